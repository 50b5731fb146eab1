"""Supervised training: the loss by hand, what moves and what stays, and runs that go on."""

from __future__ import annotations

import gc
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from toy_corpus import toys

from speechft import models
from speechft.augment import fold_in, make_keys
from speechft.data import Manifest, SpeechDataset
from speechft.errors import ConfigError, InterruptedRun
from speechft.losses import AAMSoftmaxLoss, LossGate
from speechft.methods.classification import Classification, check_repeated
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.prediction import predict
from speechft.methods.refine import refine
from speechft.models import EmbeddingSpec, load_embedding, make_embedding
from speechft.models.classifier import load_classifier
from speechft.models.embedding import PARTS
from speechft.training import TrainingSettings
from speechft.training.trainer import RefinementTrainer

PLAIN = {"label": "mood", "loss": "cross_entropy", "augmentation": "none", "chunk_seconds": None}
CLASSES = ("bright", "dark")
LENGTHS = torch.tensor([4_000, 3_000, 3_500, 2_700])
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "feat_proj_dropout": 0.1}


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(
        **{"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, "device": "cpu",
           "log_every": 2, "evaluate_utterances": 4, **changes}
    )  # fmt: skip


def xvector(kind: str = "xvector-8"):
    return make_embedding(EmbeddingSpec(kind, size=16)).eval()


def of_encoder(layer: int | None = None):
    encoder = models.tiny("hubert", config=DROPOUT)
    return make_embedding(EmbeddingSpec("encoder", size=16, layer=layer), encoder=encoder).eval()


def method(model=None, classes=CLASSES, seed=0, **changes) -> Classification:
    config = ClassificationConfig(**{**PLAIN, **changes})
    return Classification(model or xvector(), config, classes=classes, seed=seed)


def batch(labels=(0, 1, 1, 0)):
    generator = torch.Generator().manual_seed(0)
    waves = 0.1 * torch.randn(len(labels), 4_000, generator=generator)
    lengths = LENGTHS[: len(labels)]
    for wave, length in zip(waves, lengths, strict=True):
        wave[length:] = 0
    return {
        "waveforms": waves, "lengths": lengths, "keys": make_keys(0, 0, torch.arange(len(labels))),
        "factors": torch.tensor(labels)[:, None],
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Every run ends in a collection of garbage, which need not go through all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return toys(tmp_path_factory.mktemp("speech"), 3, 4)


def run(output, speech, model="xvector-8", resume=False, training=None, **changes):
    config = ClassificationConfig(**{**PLAIN, "size": 16, **changes})
    return refine(
        model=model, method="classification", data=speech, output=output, config=config,
        training=training or settings(), resume=resume,
    )  # fmt: skip


class TestLoss:
    def test_is_cross_entropy_of_what_is_known(self):
        trained = method().eval()
        given = batch((0, -1, 1, 0))
        logits = trained.classifier(given["waveforms"], given["lengths"])
        losses = -logits.log_softmax(1)[[0, 2, 3], [0, 1, 0]]
        torch.testing.assert_close(trained(**given).loss, losses.mean())
        right = (logits.argmax(1)[[0, 2, 3]] == torch.tensor([0, 1, 0])).float().mean()
        assert trained.monitors().keys() == {"accuracy"}
        torch.testing.assert_close(trained.monitors()["accuracy"], right)

    def test_is_that_of_the_margin(self):
        trained = method(loss="aam", margin=0.3, scale=9.0, sub_centers=3).eval()
        given = batch((0, -1, 1, 0))
        vectors = trained.encoder(given["waveforms"], given["lengths"])
        unit = functional.normalize(vectors.double(), dim=1)
        centres = functional.normalize(trained.classifier.head.weight.double(), dim=1)
        cosine = (unit @ centres.T).unflatten(1, (2, 3)).amax(2)
        losses = []
        for row, label in ((0, 0), (2, 1), (3, 0)):
            own = torch.cos(cosine[row, label].acos() + 0.3)
            other = cosine[row, 1 - label]
            losses.append(-torch.stack([9 * own, 9 * other]).log_softmax(0)[0])
        torch.testing.assert_close(
            trained(**given).loss.double(), torch.stack(losses).mean(), rtol=1e-4, atol=1e-5
        )

    def test_without_a_known_label_is_nothing(self):
        trained = method()
        loss = trained(**batch((-1, -1, -1, -1))).loss
        assert float(loss.detach()) == 0
        loss.backward()
        assert all(not p.grad.any() for p in trained.parameters() if p.grad is not None)

    def test_of_the_gate_is_of_what_it_lets_through(self):
        plain, gated = method().eval(), method(loss_gate="fixed", loss_gate_threshold=0.7).eval()
        given = batch((0, 1, -1, 0))
        logits = plain.classifier(given["waveforms"], given["lengths"])
        losses = -logits.log_softmax(1)[[0, 1, 3], [0, 1, 0]]
        threshold = float(losses.detach().sort().values[:2].mean())
        gated.gate = LossGate(threshold=threshold)
        torch.testing.assert_close(gated(**given).loss, losses[losses <= threshold].mean())
        assert gated.monitors().keys() == {"accuracy", "kept"}
        assert float(gated.monitors()["kept"]) == pytest.approx(1 / 3)
        gated.gate = LossGate(threshold=1e-9)
        assert float(gated(**given).loss.detach()) == 0

    def test_of_an_unknown_label_never_gets_into_the_gate(self):
        trained = method(loss_gate="dynamic")
        trained(**batch((0, -1, 1, -1)))
        assert trained.gate.losses.isfinite().sum() == 2
        assert (trained.gate.losses[trained.gate.losses.isfinite()] > 0).all()
        trained.eval()(**batch())
        assert trained.gate.losses.isfinite().sum() == 2

    def test_does_not_depend_on_padding_or_batch_mates(self):
        trained = method(augmentation="student", chunk_seconds=0.2).eval()
        given = batch()
        alone = []
        for row, length in enumerate(LENGTHS):
            one = {name: value[row : row + 1] for name, value in given.items()}
            one["waveforms"] = one["waveforms"][:, :length]
            # Babble is made of batch-mates: none of it here.
            trained.augment = None
            alone.append(trained(**one).loss)
        torch.testing.assert_close(trained(**given).loss, torch.stack(alone).mean())

    def test_is_of_a_chunk_that_the_key_chooses(self):
        trained = method(chunk_seconds=0.17).eval()
        given = batch()
        cut = trained.crop(given["waveforms"], given["lengths"], fold_in(given["keys"], 0))
        assert cut[1].tolist() == [2720, 2720, 2720, 2700]
        logits = trained.classifier(*cut)
        wanted = functional.cross_entropy(logits, given["factors"][:, 0])
        torch.testing.assert_close(trained(**given).loss, wanted)
        again = trained(**given).loss
        given["keys"] = given["keys"] + 1
        assert not torch.equal(trained(**given).loss, again)

    def test_masks_features_in_training_alone(self):
        config = ClassificationConfig(**PLAIN, spec_augment=True, size=16)
        model = Classification.load("xvector-8", config, seed=0)
        trained = Classification(model, config, classes=CLASSES)
        seen = []
        model.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
        trained(**batch())
        trained.eval()(**batch())
        assert seen[0].shape == (4,)
        assert seen[1] is None


FROZEN = {
    "head": PARTS, "affine": ("frames", "pooling"), "pooling": ("frames",), "all": (),
}  # fmt: skip


class TestWhatTrains:
    @pytest.mark.parametrize("kind", ["xvector-8", "ecapa-8", "encoder"])
    @pytest.mark.parametrize("train", FROZEN)
    def test_parts_train_whole_or_not_at_all(self, kind, train):
        model = of_encoder() if kind == "encoder" else xvector(kind)
        trained = method(model, train=train, dropout=0.5).train()
        assert all(p.requires_grad for p in trained.classifier.head.parameters())
        assert trained.dropout.training
        for name in PARTS:
            still = name in FROZEN[train]
            for module in model.part(name).modules():
                assert not (still and module.training)
            if kind != "encoder" or still or name != "frames":
                learnt = {n for n, p in model.part(name).named_parameters() if p.requires_grad}
                if kind == "encoder" and train == "pooling" and name == "frames":
                    assert learnt == {"layer_weights"}  # by which the pooling's input is made
                    continue
                assert len(learnt) == (0 if still else len(list(model.part(name).parameters())))
                assert still or all(module.training for module in model.part(name).modules())

    @pytest.mark.parametrize("train", [*FROZEN, "lora"])
    @pytest.mark.parametrize("tuned", [None, 0, 2])
    def test_whatever_is_frozen_is_in_eval_mode(self, train, tuned):
        """Dropout before a frozen layer would be noise in a part that was to stay as it is."""
        if tuned is not None and train != "all":
            return
        model = of_encoder()
        trained = method(model, train=train, tuned_layers=tuned).train()
        for name, module in trained.named_modules():
            own = list(module.parameters())
            if own and not any(p.requires_grad for p in own):
                assert not any(inner.training for inner in module.modules()), name
        encoder = model.encoder
        count = {"all": encoder.num_layers if tuned is None else tuned}.get(train, 0)
        training = [layer.training for layer in encoder.layers]
        assert training == [place >= encoder.num_layers - count for place in range(3)]
        assert encoder.hf_model.encoder.dropout.training is (count == encoder.num_layers)
        assert not encoder.hf_model.feature_projection.dropout.training
        trained.eval()
        assert not any(module.training for module in trained.modules())

    def test_layers_above_the_one_used_are_frozen(self):
        model = of_encoder(layer=2)
        method(model, train="all", tuned_layers=1)
        trains = [
            any(p.requires_grad for p in layer.parameters()) for layer in model.encoder.layers
        ]
        assert trains == [False, True, False]

    @pytest.mark.parametrize("kind", ["xvector-8", "ecapa-16"])
    @pytest.mark.parametrize("train", FROZEN)
    def test_a_run_moves_these_and_not_a_bit_of_the_rest(self, tmp_path, speech, kind, train):
        """Running statistics of frozen batch norms as well."""
        model = xvector(kind)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        run(tmp_path, speech, model, train=train, dropout=0.2, training=settings(steps=3))
        after = load_file(tmp_path / "model.safetensors")
        assert after.keys() == before.keys()
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        wanted = {name for name in before if name.split(".")[0] not in FROZEN[train]}
        assert {name for name in wanted if not name.endswith("features.window")} - moved <= {
            name for name, tensor in model.named_buffers()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        }  # fmt: skip
        assert moved <= wanted
        statistics = {name for name in before if name.endswith("running_mean")}
        assert statistics
        assert bool(moved & statistics) is any(name in wanted for name in statistics)
        told = json.loads((tmp_path / "report.json").read_text())["tuned"]
        assert {name.split(".")[0] for name in told} == set(PARTS) - set(FROZEN[train]) - (
            {"pooling"} if kind == "xvector-8" else set()  # which has no weights
        )


class TestAdapters:
    def test_alone_and_what_is_above_them_train(self):
        model = of_encoder()
        trained = method(model, train="lora", lora_rank=2)
        names = [name for name, p in trained.named_parameters() if p.requires_grad]
        of_frames = [name for name in names if "frames" in name]
        assert of_frames
        assert all("lora_" in name or name.endswith("layer_weights") for name in of_frames)
        for layer in range(3):
            for where in ("q_proj", "v_proj"):
                assert any(f"layers.{layer}." in n and where in n for n in of_frames)
        assert {name.split(".")[2] for name in names if ".model." in name} >= {"pooling", "affine"}
        assert all(p.shape[0] == 2 for n, p in trained.named_parameters() if "lora_A" in n)

    def test_only_of_the_layers_used(self):
        trained = method(of_encoder(layer=1), train="lora")
        names = [name for name, p in trained.named_parameters() if "lora_" in name]
        assert names
        assert all("layers.0." in name for name in names)

    def test_want_an_encoder(self):
        with pytest.raises(ConfigError, match="train: lora is of a speech foundation model, not"):
            method(train="lora")

    def test_are_merged_into_what_is_saved(self, tmp_path, speech):
        """The saved model is a plain one, and gives what the adapted one gave."""
        model = of_encoder()
        config = ClassificationConfig(**PLAIN, train="lora", lora_rank=4)
        trained = Classification(model, config, classes=CLASSES)
        before = {
            name: tensor.clone()
            for name, tensor in model.state_dict().items()
            if "lora" not in name
        }
        torch.manual_seed(0)
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        given = batch()
        trained.eval()
        with torch.no_grad():
            adapted = model(given["waveforms"], given["lengths"])
        plain = of_encoder()
        assert not torch.allclose(adapted, plain(given["waveforms"], given["lengths"]), atol=1e-2)
        trained.save(tmp_path)
        again = load_embedding(tmp_path)
        assert not any("lora" in name for name in again.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(
                again(given["waveforms"], given["lengths"]), adapted, atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                load_classifier(tmp_path).model(given["waveforms"], given["lengths"]), adapted,
                atol=1e-5, rtol=1e-5,
            )  # fmt: skip
        changed = {
            name.replace("base_layer.", "") for name, tensor in before.items()
            if not torch.equal(tensor, again.state_dict()[name.replace("base_layer.", "")])
        }  # fmt: skip
        assert changed
        assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)

    def test_of_a_run_move_queries_and_values_alone(self, tmp_path, speech):
        model = of_encoder()
        model.save_pretrained(tmp_path / "start")
        run(tmp_path / "run", speech, tmp_path / "start", train="lora", training=settings(steps=4))
        before = load_embedding(tmp_path / "start").state_dict()
        after = load_embedding(tmp_path / "run").state_dict()
        assert after.keys() == before.keys()
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        inside = {name for name in moved if name.startswith("frames.")}
        assert inside
        learnt = ("q_proj.weight", "v_proj.weight", "layer_weights")
        assert all(name.endswith(learnt) for name in inside)
        assert {"affine.0.weight", "affine.0.bias"} <= moved


class StopAt(RefinementTrainer):
    """Sends itself the signal in the middle of a run."""

    at = 0

    def training_step(self, *args, **keywords):
        loss = super().training_step(*args, **keywords)
        if self.state.global_step == self.at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss


def stopped_at(step):
    return type("StopsHere", (StopAt,), {"at": step})


class TestRuns:
    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            ("xvector-8", {"loss": "aam", "margin_warmup_steps": 5, "loss_gate": "dynamic",
                           "dropout": 0.3, "spec_augment": True, "augmentation": "student",
                           "chunk_seconds": (0.2, 0.3)}),
            ("encoder", {"train": "lora", "dropout": 0.3}),
        ],
    )  # fmt: skip
    def test_that_stopped_goes_on_as_the_same(self, tmp_path, speech, monkeypatch, model, changes):
        if model == "encoder":
            of_encoder().save_pretrained(tmp_path / "start")
            model = tmp_path / "start"
        run(tmp_path / "straight", speech, model, **changes)
        from speechft.training import trainer

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "RefinementTrainer", stopped_at(3))
            with pytest.raises(InterruptedRun):
                run(tmp_path / "halting", speech, model, **changes)
        run(tmp_path / "halting", speech, model, resume=True, **changes)
        names = ["model.safetensors", "head.safetensors"]
        names += ["encoder/model.safetensors"] * (model != "xvector-8")
        for name in names:
            one, other = (load_file(tmp_path / f / name) for f in ("straight", "halting"))
            assert one.keys() == other.keys()
            for key, tensor in one.items():
                assert torch.equal(tensor, other[key]), key
        kept = json.loads((tmp_path / "halting" / "report.json").read_text())
        assert kept["steps"] == 6

    def test_fit_the_gate_once_an_epoch_and_keep_it(self, tmp_path, speech, monkeypatch):
        """12 utterances in batches of 4: after the third update, and the sixth."""
        fits, at = [], []
        monkeypatch.setattr(
            LossGate, "fit", lambda gate: fits.append(int(gate.losses.isfinite().sum())) or at
        )
        run(tmp_path, speech, loss_gate="dynamic", training=settings(steps=8, save_every=4))
        assert fits == [12, 24]  # nothing is forgotten, as fit itself is not there to do so
        saved = load_file(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
        assert int(saved["gate.losses"].isfinite().sum()) == 16
        assert {"gate.place", "gate.threshold"} <= saved.keys()
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert all({"accuracy", "kept"} <= json.loads(line).keys() for line in lines)

    @pytest.mark.parametrize("seconds", [None, 0.25])
    def test_have_no_batch_of_one_utterance(self, tmp_path, speech, seconds):
        """ECAPA-TDNN has a batch norm of vectors, of which it wants two."""
        few = Manifest(list(speech)[:9])
        changes = {"chunk_seconds": seconds, "training": settings(steps=5)}
        run(tmp_path / "run", few, "ecapa-16", **changes)
        trained = method(chunk_seconds=seconds)
        dataset = SpeechDataset(few, min_samples=2640, factors=("mood",), progress=False)
        batches = trained.training_data(dataset, settings(), tmp_path).batches
        for epoch in range(4):
            found = batches.batches(epoch)
            assert sorted(map(len, found)) == [4, 5]
            assert len(batches) == 2
            assert sorted(row for batch in found for row in batch) == list(range(9))
        assert trained._epoch == 2

    def test_learn_what_can_be_told_apart(self, tmp_path, speech):
        report = run(
            tmp_path, speech, loss="aam", sub_centers=2, scale=10.0, chunk_seconds=0.25,
            training=settings(steps=60),
        )  # fmt: skip
        assert report.loss_after < 0.3 * report.loss_before
        found = predict(load_classifier(tmp_path), speech, chunk_seconds=0.25)
        assert (found.log_probabilities.argmax(1) == found.truth).float().mean() >= 0.9

    def test_have_classes_in_the_order_of_the_labels(self, tmp_path, speech):
        """As the data set numbers them: by number, and not by digit."""
        rows = [
            replace(row, factors={"mood": {"bright": 10, "dark": 9}[row.label("mood")]})
            for row in speech
        ]
        run(tmp_path, Manifest(rows), training=settings(steps=1))
        assert load_classifier(tmp_path).classes == (9, 10)

    def test_of_a_probe_that_starts_from_a_head_go_on(self, tmp_path, speech):
        run(tmp_path / "one", speech)
        config = ClassificationConfig(**PLAIN, start_head=str(tmp_path / "one"))
        model = load_embedding(tmp_path / "one")
        given = batch()
        going_on = Classification(model, config, classes=CLASSES, seed=7).eval()
        first = load_classifier(tmp_path / "one")
        torch.testing.assert_close(
            going_on.classifier(given["waveforms"]), first(given["waveforms"])
        )


class TestErrors:
    def test_a_head_of_others_to_start_from(self, tmp_path, speech):
        with pytest.raises(ConfigError, match=r"start_head: .* holds no classifier"):
            method(start_head=str(tmp_path))
        first = method()
        first.save(tmp_path)
        with pytest.raises(
            ConfigError, match=r"start_head: .* tells other classes of 'mood' apart"
        ):
            method(start_head=str(tmp_path), classes=("dark", "bright"))
        with pytest.raises(ConfigError, match="tells other classes of 'mood'"):
            method(start_head=str(tmp_path), label="health")
        method(start_head=str(tmp_path))

    @pytest.mark.parametrize("classes", [(), ("same",)])
    def test_fewer_than_two_classes(self, classes):
        with pytest.raises(ConfigError, match=r"label: 'mood' has .* value.*; wants two"):
            method(classes=classes)

    def test_labels_of_one_value_and_of_one_utterance_each(self, tmp_path, speech):
        with pytest.raises(ConfigError, match="label: 'one' has one value, 'same'; wants two"):
            run(tmp_path / "a", speech, label="one")
        with pytest.raises(ConfigError, match=r"label: every own has one utterance \(12 of them\)"):
            run(tmp_path / "b", speech, label="own")
        once = Manifest([row for row in speech if row.id.endswith("-0")])
        with pytest.raises(ConfigError, match="label: every speaker has one utterance"):
            check_repeated(once, "speaker")
        check_repeated(Manifest([*once, speech[1]]), "speaker")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"train": "some"}, "train: wants one of head, affine, pooling, all, lora; got 'some'"),
            ({"loss": "amm"}, "loss: wants one of cross_entropy, aam; got 'amm'"),
            ({"loss_gate": "on"}, "loss_gate: wants one of none, fixed, dynamic; got 'on'"),
            ({"lora_rank": 0}, "lora_rank: wants at least 1, got 0"),
            ({"size": 0}, "size: wants at least 1, got 0"),
            ({"adapter_size": -1}, "adapter_size: wants 0 or more, got -1"),
            ({"validation": 1.0}, "validation: wants 0 to below 1, got 1.0"),
            ({"dropout": 1.0}, "dropout: wants 0 to below 1, got 1.0"),
            ({"train": "affine", "tuned_layers": 1}, "tuned_layers: is of train: all, not of aff"),
            ({"chunk_seconds": 0}, "chunk_seconds: wants"),
            ({"chunk_seconds": (2.0, 1.0)}, "chunk_seconds: wants"),
            ({"augmentation": "some"}, "augmentation: 'some' is no file, and none of none, stud"),
        ],
    )
    def test_settings_that_cannot_be(self, changes, words):
        with pytest.raises(ConfigError, match=words):
            ClassificationConfig(**changes)

    def test_layers_of_what_has_none(self):
        with pytest.raises(ConfigError, match="tuned_layers: 'xvector-8' has none"):
            method(tuned_layers=1)
        with pytest.raises(ConfigError, match="tuned_layers: 3 layers are used, got 4"):
            method(of_encoder(), tuned_layers=4)


def test_the_seed_is_of_the_head_alone():
    state = torch.get_rng_state()
    one, same, other = (method(seed=seed).classifier.head.linear.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_margin_is_as_set():
    head = method(loss="aam", margin=0.35, scale=11.0, sub_centers=3, top_k=1).classifier.head
    assert isinstance(head, AAMSoftmaxLoss)
    assert (head.margin, head.scale, head.sub_centers, head.top_k) == (0.35, 11.0, 3, 1)


class TestAdapterOfVectors:
    """The second of two steps: an adapter and a head on a model that stays as it is."""

    def test_trains_with_the_head_and_is_saved(self, tmp_path, speech):
        model = of_encoder()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        run(tmp_path, speech, model, train="head", adapter_size=4, validation=0.25)
        again = load_classifier(tmp_path)
        for name, tensor in again.model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert again.adapter.hidden == 4
        assert again.adapter.up.bias.abs().sum() > 0
        found = predict(again, speech)
        with torch.no_grad():
            vectors = torch.cat(
                [again.model(item["waveform"][None]) for item in SpeechDataset(speech)]
            )
            wanted = again.head.logits(again.adapter(vectors)).log_softmax(1)
        torch.testing.assert_close(found.log_probabilities.float(), wanted, rtol=1e-4, atol=1e-4)
        assert json.loads((tmp_path / "selection.json").read_text())["figure"] == "UAR"

    def test_loss_is_of_what_it_makes_of_the_vectors(self):
        trained = method(adapter_size=3).eval()
        nn.init.normal_(trained.classifier.adapter.up.weight)
        given = batch((0, 1, 1, 0))
        vectors = trained.encoder(given["waveforms"], given["lengths"])
        logits = trained.classifier.head.logits(trained.classifier.adapter(vectors))
        wanted = functional.cross_entropy(logits, given["factors"][:, 0])
        torch.testing.assert_close(trained(**given).loss, wanted)

    def test_goes_on_from_another_folder_with_it(self, tmp_path, speech):
        run(tmp_path / "one", speech, train="head", adapter_size=4, training=settings(steps=2))
        config = ClassificationConfig(
            **PLAIN, size=16, adapter_size=4, start_head=str(tmp_path / "one")
        )
        again = Classification(load_embedding(tmp_path / "one"), config, classes=CLASSES)
        kept = load_classifier(tmp_path / "one").adapter.state_dict()
        for name, tensor in again.classifier.adapter.state_dict().items():
            assert torch.equal(tensor, kept[name])


class TestVectorsOnce:
    """Where nothing below the head trains and nothing is drawn."""

    def test_the_encoder_is_asked_once(self, tmp_path, speech, monkeypatch):
        model = of_encoder()
        heard = []
        model.encoder.register_forward_pre_hook(lambda _, given: heard.append(len(given[0])))
        run(tmp_path, speech, model, train="head", training=settings(steps=12))
        assert sum(heard) == len(speech)

    @pytest.mark.parametrize(
        ("changes", "once"),
        [
            ({"train": "head"}, True),
            ({"train": "head", "dropout": 0.3, "adapter_size": 2}, True),
            ({"train": "affine"}, False),
            ({"train": "head", "chunk_seconds": 0.2}, False),
            ({"train": "head", "augmentation": "student"}, False),
            ({"train": "head", "spec_augment": True}, False),
        ],
    )
    def test_only_there(self, tmp_path, speech, changes, once):
        config = ClassificationConfig(**{**PLAIN, "size": 16, **changes})
        dataset = SpeechDataset(speech, factors=("mood",))
        made = Classification.make(
            Classification.load("xvector-8", config, seed=0), config, dataset, seed=0
        )
        made.training_data(dataset, settings(), tmp_path)
        assert ("vectors" in made.inputs) is once

    def test_the_loss_is_the_same(self, speech, tmp_path):
        config = ClassificationConfig(**PLAIN, size=16, train="head")
        dataset = SpeechDataset(speech, factors=("mood",))
        made = Classification.make(of_encoder(), config, dataset, seed=0).eval()
        data = made.training_data(dataset, settings(evaluate_utterances=12), tmp_path)
        rows = list(range(12))
        told = [batch for _, batch in data.evaluation()]
        assert sum(len(batch["vectors"]) for batch in told) == 12
        vectors = torch.cat([batch["vectors"] for batch in told])
        factors = torch.cat([batch["factors"] for batch in told])
        with torch.no_grad():
            one = made(factors=factors, vectors=vectors).loss
            items = [dataset[row] for row in rows]
            waves = nn.utils.rnn.pad_sequence([i["waveform"] for i in items], batch_first=True)
            lengths = torch.tensor([len(i["waveform"]) for i in items])
            keys = make_keys(0, 0, torch.arange(12))
            other = made(dataset.factors[rows], waves, lengths, keys).loss
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


class TestValidation:
    @pytest.mark.parametrize("train", ["all", "head"])
    def test_the_best_state_is_kept_and_a_stopped_run_is_the_same(
        self, tmp_path, speech, monkeypatch, train
    ):
        changes = {"train": train, "validation": 0.3, "groups": "speaker", "validate_every": 2}
        run(tmp_path / "whole", speech, **changes)
        step = RefinementTrainer.training_step

        def stopping(self, *given, **named):
            if self.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(RefinementTrainer, "training_step", stopping)
            with pytest.raises(InterruptedRun):
                run(tmp_path / "parts", speech, **changes)
        run(tmp_path / "parts", speech, resume=True, **changes)
        for name in ("model.safetensors", "head.safetensors", "selection.json"):
            whole = (tmp_path / "whole" / name).read_bytes()
            assert (tmp_path / "parts" / name).read_bytes() == whole, name

    def test_is_the_uar_on_what_is_held_out(self, tmp_path, speech):
        for train in ("all", "head"):
            config = ClassificationConfig(**PLAIN, size=16, train=train, validation=0.4)
            dataset = SpeechDataset(speech, factors=("mood",))
            made = Classification.make(xvector(), config, dataset, seed=0)
            data = made.training_data(dataset, settings(), tmp_path)
            _, held = made._validation
            trained_on = {row for batch in data.batches.batches(0) for row in batch}
            assert trained_on == set(range(len(speech))) - set(held)
            rows = Manifest([speech[row] for row in held])
            made.eval()
            found = predict(made.classifier, rows)
            right = found.log_probabilities.argmax(1) == found.truth
            recalls = [right[found.truth == number].double().mean() for number in (0, 1)]
            with torch.no_grad():
                assert made.figure() == pytest.approx(float(sum(recalls) / 2))

    def test_a_class_that_cannot_be_validated_on_is_named(self, tmp_path, speech):
        rows = [row for row in speech if row.label("mood") == "bright" or row.speaker == "s0"]
        with pytest.raises(ConfigError, match="validation: no utterance of mood 'dark' can be"):
            run(tmp_path, Manifest(rows), validation=0.2, groups="speaker")
