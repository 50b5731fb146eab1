"""Combined losses: the sum by the references, who is paired with whom, and runs that go on."""

from __future__ import annotations

import gc
import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from toy_corpus import toys

from speechft import evaluate, models, reference
from speechft.augment import make_keys
from speechft.cli import main
from speechft.data import Manifest, SpeechDataset, write_manifest
from speechft.errors import ConfigError, InterruptedRun
from speechft.evaluation.tasks.label import Label
from speechft.methods import Combined, CombinedConfig
from speechft.methods.combined_parts import (
    cosine_distances,
    drawn_negatives,
    drawn_positives,
    hardest,
    pair_accuracy,
    pair_by_label,
    pair_by_view,
)
from speechft.methods.refine import refine
from speechft.models import EmbeddingSpec, load_embedding, make_embedding
from speechft.training import TrainingSettings
from speechft.training.trainer import RefinementTrainer

ALL = ("triplet:0.7", "barlow_twins:0.05", "vicreg:0.3", "info_nce:2", "nt_xent", "sup_con:0.5")
LENGTHS = torch.tensor([4_000, 3_000, 3_500, 2_700, 4_000, 3_900])
LABELS = torch.tensor([0, 1, 1, 0, 2, 2])
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "feat_proj_dropout": 0.1}


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Every run ends in a collection of garbage, which need not go through all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return toys(tmp_path_factory.mktemp("speech"), 4, 6, seconds=(0.2, 0.3))


def xvector():
    return make_embedding(EmbeddingSpec("xvector-8", size=16, affine="projector")).eval()


def of_encoder():
    spec = EmbeddingSpec("encoder", size=16, affine="projector", pooling="mean")
    return make_embedding(spec, encoder=models.tiny("hubert", config=DROPOUT)).eval()


def method(model=None, **changes) -> Combined:
    return Combined(model or xvector(), CombinedConfig(**{"validation": 0.0, **changes}))


def batch(labels=LABELS):
    generator = torch.Generator().manual_seed(0)
    count = len(LENGTHS)
    waves = 0.1 * torch.randn(count, 4_000, generator=generator)
    for wave, length in zip(waves, LENGTHS, strict=True):
        wave[length:] = 0
    made = {
        "waveforms": waves, "lengths": LENGTHS, "keys": make_keys(0, 0, torch.arange(count)),
    }  # fmt: skip
    return made if labels is None else {**made, "factors": labels[:, None]}


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(
        **{**Combined.training_defaults, "steps": 6, "batch_size": 8, "learning_rate": 1e-3,
           "device": "cpu", "log_every": 2, "evaluate_utterances": 8, **changes}
    )  # fmt: skip


def run(output, speech, model="xvector-8", resume=False, training=None, **changes):
    config = CombinedConfig(**{"label": "mood", "size": 16, "each": 2, "validation": 0.3,
                               "validate_every": 2, **changes})  # fmt: skip
    return refine(
        model=model, method="combined", data=speech, output=output, config=config,
        training=training or settings(), resume=resume,
    )  # fmt: skip


class TestLoss:
    def test_is_the_published_one_by_hand(self):
        trained = method(barlow_lambda=5.1e-4).eval()
        given = batch()
        z = trained.encoder(given["waveforms"], given["lengths"]).double()
        pairs = pair_by_label(z, LABELS)
        p = z[drawn_positives(pairs, given["keys"])]
        n = z[drawn_negatives(pairs, given["keys"])]

        def d(u, v):
            return 1 - functional.cosine_similarity(u, v)

        triplet = (d(z, p) - d(z, n) + 1.0).clamp(min=0).mean()

        def bn(rows):
            return (rows - rows.mean(0)) / torch.sqrt(rows.var(0, correction=0) + 1e-5)

        c = bn(z).T @ bn(p) / len(z)
        on = (c.diagonal() - 1).square().sum()
        off = c.square().sum() - c.diagonal().square().sum()
        wanted = triplet + 0.05 * (on + 5.1e-4 * off)
        torch.testing.assert_close(trained(**given).loss.double(), wanted, rtol=1e-4, atol=1e-5)

    def test_is_the_weighted_sum_of_the_references(self):
        trained = method(losses=ALL, margin=0.4, barlow_lambda=1e-2, temperature=0.2).eval()
        given = batch()
        z = trained.encoder(given["waveforms"], given["lengths"]).double()
        pairs = pair_by_label(z, LABELS)
        p = z[drawn_positives(pairs, given["keys"])]
        n = z[drawn_negatives(pairs, given["keys"])]
        wanted = {
            "triplet": reference.triplet(z, p, n, margin=0.4),
            "barlow_twins": reference.barlow_twins(z, p, lambd=1e-2),
            "vicreg": reference.vicreg(z, p),
            "info_nce": reference.info_nce(z, p, labels=LABELS, temperature=0.2),
            "nt_xent": reference.nt_xent(z, p, labels=LABELS, temperature=0.2),
            "sup_con": reference.sup_con(z, LABELS, temperature=0.2),
        }
        weights = {"triplet": 0.7, "barlow_twins": 0.05, "vicreg": 0.3, "info_nce": 2.0,
                   "nt_xent": 1.0, "sup_con": 0.5}  # fmt: skip
        total = sum(weights[name] * value for name, value in wanted.items())
        torch.testing.assert_close(trained(**given).loss.double(), total, rtol=1e-4, atol=1e-5)
        for name, value in trained.monitors().items():
            torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-5)

    def test_of_views_is_of_two_perturbed_copies(self):
        trained = method(losses=ALL, pairs="views", chunk_seconds=0.17, augmentation="none",
                         temperature=0.2, margin=0.4, barlow_lambda=1e-2).eval()  # fmt: skip
        given = batch(None)
        views = [trained._view(*given.values(), number) for number in (0, 1)]
        assert not torch.equal(views[0][0], views[1][0])
        one, other = (trained.encoder(*view).double() for view in views)
        pairs = pair_by_view(one, other)
        n = other[drawn_negatives(pairs, given["keys"])]
        utterances = torch.arange(len(one))
        wanted = (
            0.7 * reference.triplet(one, other, n, margin=0.4)
            + 0.05 * reference.barlow_twins(one, other, lambd=1e-2)
            + 0.3 * reference.vicreg(one, other)
            + 2 * reference.info_nce(one, other, temperature=0.2)
            + reference.nt_xent(one, other, temperature=0.2)
            + 0.5 * reference.sup_con(torch.stack([one, other], 1), utterances, temperature=0.2)
        )
        torch.testing.assert_close(trained(**given).loss.double(), wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("pairs", ["labels", "views"])
    @pytest.mark.parametrize("mining", ["random", "hard"])
    def test_does_not_depend_on_padding(self, pairs, mining):
        changes = {"augmentation": "none", "chunk_seconds": 0.17} if pairs == "views" else {}
        trained = method(of_encoder(), pairs=pairs, mining=mining, losses=ALL, **changes).eval()
        given = batch(LABELS if pairs == "labels" else None)
        longer = {**given, "waveforms": functional.pad(given["waveforms"], (0, 3_000))}
        with torch.no_grad():
            torch.testing.assert_close(
                trained(**longer).loss, trained(**given).loss, rtol=1e-5, atol=1e-6
            )

    def test_has_dropout_before_the_projector_in_training_alone(self):
        trained = method(dropout=0.5)
        seen = []
        trained.encoder.affine.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        pooled = trained.encoder.eval().pooled(batch()["waveforms"], batch()["lengths"])
        trained.eval()(**batch())
        torch.testing.assert_close(seen[0], pooled)
        trained.train()(**batch())
        assert 0.3 < float((seen[1] == 0).float().mean()) < 0.7

    def test_is_the_same_with_a_projector_that_is_not_kept(self):
        kept, left = (method(of_encoder(), keep_projector=keep).eval() for keep in (True, False))
        torch.testing.assert_close(left(**batch()).loss, kept(**batch()).loss, rtol=0, atol=0)
        grads = []
        for trained in (kept, left):
            trained(**batch()).loss.backward()
            grads.append([p.grad for p in trained.parameters() if p.grad is not None])
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    def test_only_losses_with_a_weight_are_made(self):
        assert list(method(losses=("vicreg", "sup_con:2")).losses) == ["vicreg", "sup_con"]


def slow_hardest(anchors, pool, positive, negative):
    """By the definition, one anchor at a time."""
    farthest, nearest = [], []
    for row, anchor in enumerate(anchors):
        distances = [1 - float(anchor @ other / (anchor.norm() * other.norm())) for other in pool]
        farthest.append(max((d, -j) for j, d in enumerate(distances) if positive[row][j])[1] * -1)
        nearest.append(min((d, j) for j, d in enumerate(distances) if negative[row][j])[1])
    return farthest, nearest


class TestPairs:
    @pytest.mark.parametrize("seed", range(4))
    def test_hard_mining_is_the_definition(self, seed):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(12, 5, generator=generator)
        other = torch.randn(12, 5, generator=generator)
        labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3])
        for pairs in (pair_by_label(z, labels), pair_by_view(z, other)):
            farthest, nearest = hardest(pairs)
            slow = slow_hardest(pairs.anchors, pairs.pool, pairs.positive, pairs.negative)
            assert (farthest.tolist(), nearest.tolist()) == slow

    def test_hard_mining_is_what_the_triplets_are_of(self):
        trained = method(losses=("triplet",), mining="hard").eval()
        given = batch()
        z = trained.encoder(given["waveforms"], given["lengths"])
        distance = cosine_distances(z, z)
        losses = []
        for row, label in enumerate(LABELS):
            same = [j for j in range(6) if LABELS[j] == label and j != row]
            others = [j for j in range(6) if LABELS[j] != label]
            far = max(distance[row, j] for j in same)
            losses.append((far - min(distance[row, j] for j in others) + 1.0).clamp(min=0))
        torch.testing.assert_close(trained(**given).loss, torch.stack(losses).mean())

    def test_drawn_ones_are_of_the_class_and_of_another(self):
        labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])
        pairs = pair_by_label(torch.randn(9, 3), labels)
        counts = torch.zeros(9, 9)
        for epoch in range(400):
            keys = make_keys(0, epoch, torch.arange(9))
            positive, negative = drawn_positives(pairs, keys), drawn_negatives(pairs, keys)
            assert (labels[positive] == labels).all()
            assert (positive != torch.arange(9)).all()
            assert sorted(positive.tolist()) == list(range(9))
            assert (labels[negative] != labels).all()
            counts[torch.arange(9), negative] += 1
            counts[torch.arange(9), positive] += 1
        assert (counts.fill_diagonal_(99) > 25).all()  # all of them, now and then

    def test_drawn_ones_are_of_the_keys(self):
        pairs = pair_by_label(torch.randn(6, 3), LABELS)
        keys = batch()["keys"]
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        mixed = pair_by_label(pairs.anchors[order], LABELS[order])
        for draw in (drawn_positives, drawn_negatives):
            assert torch.equal(order[draw(mixed, keys[order])], draw(pairs, keys)[order])

    def test_accuracy_of_pairs_by_hand(self):
        generator = np.random.default_rng(0)
        distance = generator.uniform(0, 2, (6, 6))
        same = LABELS[:, None] == LABELS[None]
        positive = same & ~torch.eye(6, dtype=torch.bool)
        near = [distance[i, j] for i in range(6) for j in range(6) if positive[i, j]]
        far = [distance[i, j] for i in range(6) for j in range(6) if not same[i, j]]
        mean = sum(near) / len(near)
        threshold = mean + 3 * (sum((d - mean) ** 2 for d in near) / len(near)) ** 0.5
        right = sum(d < threshold for d in near) / len(near)
        apart = sum(d >= threshold for d in far) / len(far)
        found = pair_accuracy(torch.from_numpy(distance), positive, ~same)
        assert found == pytest.approx((right + apart) / 2, abs=1e-12)


class TestWhatTrains:
    def test_top_layers_pooling_weights_and_projector(self):
        model = of_encoder()
        trained = method(model, tuned_layers=1).train()
        layers = [
            any(p.requires_grad for p in layer.parameters()) for layer in model.encoder.layers
        ]
        assert layers == [False, False, True]
        assert model.frames.layer_weights.requires_grad
        assert all(p.requires_grad for p in model.affine.parameters())
        assert not model.encoder.layers[0].training
        assert model.encoder.layers[2].training
        assert all("frames.encoder" not in n or ".layers.2." in n for n in trained.tuned()
                   if "encoder.layer_norm" not in n)  # fmt: skip

    @pytest.mark.parametrize("train", ["all", "lora"])
    def test_a_projector_that_is_not_kept_trains_and_is_not_in_what_is_saved(
        self, tmp_path, speech, train
    ):
        """The embedding is what is pooled, and so is what the state is chosen by."""
        start = of_encoder()
        before = [p.detach().clone() for p in start.affine.parameters()]
        seen: list[torch.Tensor] = []
        run(tmp_path, speech, start, keep_projector=False, train=train, lora_rank=2)
        assert any(
            not torch.equal(now, then)
            for now, then in zip(start.affine.parameters(), before, strict=True)
        )
        again = load_embedding(tmp_path)
        assert (again.spec.affine, again.size) == ("none", start.frames.output_size)
        assert not [name for name in load_file(tmp_path / "model.safetensors") if "affine" in name]
        given = batch()["waveforms"], batch()["lengths"]
        with torch.no_grad():
            seen = [again(*given), start.eval().pooled(*given)]
        torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)

    def test_the_figure_is_of_the_vectors_that_are_kept(self, tmp_path, speech, monkeypatch):
        config = CombinedConfig(label="mood", each=2, validation=0.3, keep_projector=False)
        dataset = SpeechDataset(speech, factors=("mood",))
        trained = Combined.make(xvector(), config, dataset, seed=0).eval()
        trained.training_data(dataset, settings(), tmp_path)
        with torch.no_grad():
            figure = trained.figure()
            for parameter in trained.projector.parameters():
                parameter.zero_()
            assert trained.figure() == figure
        assert trained.model.size == trained.model.pooling.output_size(
            trained.model.frames.output_size
        )

    def test_adapters_of_low_rank_are_merged(self, tmp_path):
        model = of_encoder()
        trained = method(model, train="lora", lora_rank=2)
        assert {"lora_A", "lora_B"} <= {part for n in trained.tuned() for part in n.split(".")}
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        trained.eval()
        given = batch()
        with torch.no_grad():
            vectors = model(given["waveforms"], given["lengths"])
            trained.save(tmp_path)
            again = load_embedding(tmp_path)(given["waveforms"], given["lengths"])
        torch.testing.assert_close(again, vectors, rtol=1e-4, atol=1e-5)


class TestRuns:
    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            ("xvector-8", {"groups": "speaker"}),
            ("encoder", {"mining": "hard", "losses": ALL}),
            ("xvector-8", {"pairs": "views", "chunk_seconds": 0.17, "augmentation": "none"}),
            ("xvector-8", {"keep_projector": False}),
        ],
    )
    def test_that_stopped_goes_on_as_the_same(self, tmp_path, speech, monkeypatch, model, changes):
        """Bytes of the model, and what was chosen: the best state goes through a checkpoint."""

        def start():
            return of_encoder() if model == "encoder" else model

        run(tmp_path / "whole", speech, start(), **changes)
        step = RefinementTrainer.training_step

        def stopping(self, *given, **named):
            if self.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(RefinementTrainer, "training_step", stopping)
            with pytest.raises(InterruptedRun):
                run(tmp_path / "parts", speech, start(), **changes)
        run(tmp_path / "parts", speech, start(), resume=True, **changes)
        for name in ("model.safetensors", "selection.json"):
            whole, parts = (
                (tmp_path / folder / name).read_bytes() for folder in ("whole", "parts")
            )
            assert whole == parts, name

    def test_learn_what_can_be_told_apart_on_speakers_never_heard(self, tmp_path, speech):
        train = Manifest([row for row in speech if row.speaker != "s1"])
        test = SpeechDataset(Manifest([row for row in speech if row.speaker == "s1"]))
        run(tmp_path, train, each=4, dropout=0.1, validation=0.2,
            training=settings(steps=40, batch_size=12, learning_rate=3e-3))  # fmt: skip
        model = load_embedding(tmp_path)
        moods = [row.label("mood") for row in test.manifest]
        with torch.no_grad():
            z = torch.cat([model(item["waveform"][None]) for item in test])
        distance = cosine_distances(z, z)
        same = torch.tensor([[a == b for a in moods] for b in moods])
        itself = torch.eye(len(z), dtype=torch.bool)
        assert distance[same & ~itself].mean() < 0.5 * distance[~same].mean()

    def test_save_the_best_state_on_what_is_held_out(self, tmp_path, speech, monkeypatch):
        figures = iter([0.1, 0.9, 0.3])
        states = []

        def figure(self):
            states.append({n: t.clone() for n, t in self.model.state_dict().items()})
            assert not self.model.affine.training
            return next(figures)

        monkeypatch.setattr(Combined, "figure", figure)
        run(tmp_path, speech)
        saved = load_file(tmp_path / "model.safetensors")
        for name, tensor in saved.items():
            assert torch.equal(tensor, states[1][name]), name
        assert any(not torch.equal(saved[name], states[2][name]) for name in saved)
        told = json.loads((tmp_path / "selection.json").read_text())
        assert (told["best"], told["step"]) == (0.9, 4)
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [line["validation"] for line in lines] == pytest.approx([0.1, 0.9, 0.3])
        assert {"triplet", "barlow_twins"} <= lines[0].keys()

    def test_nothing_held_out_is_trained_on(self, tmp_path, speech, monkeypatch):
        seen = set()
        step = RefinementTrainer.training_step

        def spying(self, model, inputs, *given, **named):
            seen.update(inputs["ids"])
            return step(self, model, inputs, *given, **named)

        monkeypatch.setattr(RefinementTrainer, "training_step", spying)
        run(tmp_path, speech, groups="speaker", training=settings(steps=12))
        held = set(json.loads((tmp_path / "selection.json").read_text())["held_out"])
        assert held
        assert not seen & held
        assert seen | held == {row.id for row in speech}
        assert not {name.split("-")[0] for name in seen} & {name.split("-")[0] for name in held}

    def test_the_figure_is_shots_by_hand(self, tmp_path, speech):
        config = CombinedConfig(label="mood", size=16, each=2, validation=0.3, shots=2)
        dataset = SpeechDataset(speech, factors=("mood",))
        trained = Combined.make(xvector(), config, dataset, seed=0)
        trained.training_data(dataset, settings(), tmp_path)
        _, held, support = trained._validation
        assert not set(held) & set(support)
        trained.eval()
        with torch.no_grad():
            z = torch.cat([trained.encoder(item["waveform"][None]) for item in dataset])
        labels = dataset.factors[:, 0]
        right = {0: [], 1: []}
        means = [z[[r for r in support if labels[r] == c]].mean(0) for c in (0, 1)]
        assert [sum(labels[r] == c for r in support) for c in (0, 1)] == [2, 2]
        for row in held:
            cosines = [functional.cosine_similarity(z[row], mean, dim=0) for mean in means]
            right[int(labels[row])].append(int(cosines[1] > cosines[0]) == int(labels[row]))
        with torch.no_grad():
            found = trained.figure()
        assert found == pytest.approx(np.mean([np.mean(r) for r in right.values()]))

    def test_the_folder_goes_on_into_evaluation_and_more_training(self, tmp_path, speech):
        run(tmp_path / "one", speech, of_encoder(), training=settings(steps=2))
        report = evaluate(
            model=tmp_path / "one", tasks=Label(label="mood"), data=speech, seeds=1, plots=False,
            progress=False,
        )  # fmt: skip
        assert 0 <= report["label"].figure("accuracy").mean <= 1
        run(tmp_path / "two", speech, tmp_path / "one", training=settings(steps=2))
        one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
        assert one.keys() == two.keys()

    def test_views_want_no_label(self, tmp_path, speech):
        bare = Manifest([type(row)(row.id, row.audio) for row in speech])
        run(tmp_path, bare, pairs="views", chunk_seconds=0.17, augmentation="none",
            training=settings(steps=2))  # fmt: skip
        told = json.loads((tmp_path / "selection.json").read_text())
        assert told["figure"] == "mean of positive and negative accuracy"


class TestErrors:
    def test_a_class_of_one_utterance_is_named(self, tmp_path, speech):
        few = [row for row in speech if row.label("mood") == "bright"]
        few += [row for row in speech if row.label("mood") == "dark"][:1]
        with pytest.raises(ConfigError, match="label: mood 'dark' has one utterance, and it takes"):
            run(tmp_path, Manifest(few))

    def test_a_class_that_cannot_be_validated_on_is_named(self, tmp_path, speech):
        rows = [row for row in speech if row.label("mood") == "bright" or row.speaker == "s0"]
        with pytest.raises(ConfigError, match="validation: no utterance of mood 'dark' can"):
            run(tmp_path, Manifest(rows), groups="speaker")
        assert not (tmp_path / "checkpoints").exists()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"label": "one"}, "label: 'one' has one value; negatives want two"),
            ({"each": 8}, "batch_size: wants two groups of 8 at least, got 8"),
            ({"tuned_layers": 2}, "tuned_layers: 'xvector-8' has none"),
        ],
    )
    def test_of_the_data(self, tmp_path, speech, changes, words):
        with pytest.raises(ConfigError, match=words):
            run(tmp_path, speech, **changes)

    def test_an_utterance_without_its_label_is_named(self, tmp_path, speech):
        bare = type(speech[0])("bare", speech[0].audio)
        with pytest.raises(ConfigError, match="label: utterance 'bare' has no 'mood'; give it one"):
            run(tmp_path, Manifest([*speech, bare]))

    @pytest.mark.parametrize("train", ["affine", "pooling"])
    def test_nothing_that_trains_is_kept(self, train):
        """A mean over the frames of one layer has nothing to train."""
        spec = EmbeddingSpec("encoder", size=16, affine="projector", pooling="mean", layer=1)
        model = make_embedding(spec, encoder=models.tiny("hubert"))
        with pytest.raises(ConfigError, match=f"train: with {train} nothing of what is kept"):
            method(model, train=train, keep_projector=False)

    def test_a_model_without_a_projector_has_none_to_leave_out(self, tmp_path, speech):
        run(tmp_path / "one", speech, keep_projector=False, training=settings(steps=2))
        with pytest.raises(ConfigError, match="keep_projector: the model has no projector"):
            run(tmp_path / "two", speech, tmp_path / "one", keep_projector=False)

    def test_seconds_of_a_batch(self, tmp_path, speech):
        with pytest.raises(ConfigError, match="max_batch_seconds: batches are made by class"):
            run(tmp_path, speech, training=settings(max_batch_seconds=3.0))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"losses": ("tripletts",)}, "losses: no 'tripletts'; did you mean 'triplet'?"),
            ({"losses": ()}, "losses: wants one or more"),
            ({"pairs": "both"}, "pairs: wants one of labels, views; got 'both'"),
            ({"mining": "easy"}, "mining: wants one of random, hard; got 'easy'"),
            ({"train": "head"}, "train: with head nothing would train"),
            ({"train": "affine", "tuned_layers": 1}, "tuned_layers: is of train: all"),
            ({"each": 1}, "each: wants at least 2, got 1"),
            ({"temperature": 0.0}, "temperature: wants a number above 0"),
            ({"dropout": 1.0}, "dropout: wants 0 to below 1"),
            ({"selection": "loss"}, "selection: wants shots or pairs, got 'loss'"),
            ({"pairs": "views", "selection": "shots"}, "selection: shots are of labels"),
            ({"pairs": "views", "augmentation": "none"}, "augmentation: two views that are not"),
            ({"augmentation": "some"}, "augmentation: 'some' is no file"),
            ({"chunk_seconds": 0}, "chunk_seconds: wants"),
            ({"validation": 2.0}, "validation: wants 0 to below 1"),
            ({"keep_projector": False, "affine": "none"}, "keep_projector: with affine none"),
        ],
    )
    def test_of_settings(self, changes, words):
        with pytest.raises(ConfigError, match=words):
            CombinedConfig(**changes)


class TestCommand:
    def command(self, speech, output, *more):
        write_manifest(speech, output.with_suffix(".jsonl"))
        return main(
            ["refine", "combined", "--model", "xvector-8", "--data",
             str(output.with_suffix(".jsonl")), "--output", str(output), "--device", "cpu",
             "--label", "mood", "--size", "16", "--steps", "2", *more]
        )  # fmt: skip

    def test_runs(self, tmp_path, speech, capsys):
        more = ("--losses", '["triplet:1.0","vicreg:0.1"]', "--batch-size", "8", "--each", "2")
        assert self.command(speech, tmp_path / "out", *more) == 0
        assert load_embedding(tmp_path / "out").spec.affine == "projector"
        assert (tmp_path / "out" / "selection.json").exists()

    @pytest.mark.parametrize(
        ("more", "code", "words"),
        [
            (["--losses", '["tripled"]'], 2, "did you mean 'triplet'"),
            (["--label", "age"], 2, "no utterance has a label 'age'"),
            (["--minning", "hard"], 2, "did you mean --mining"),
            (["--data", "/nowhere.jsonl"], 3, "there is no such file"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path, speech, capsys, more, code, words):
        assert self.command(speech, tmp_path / "out", *more) == code
        assert words in capsys.readouterr().err
