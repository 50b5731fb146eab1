"""Runs of DINO: what comes out, that a resumed run is the same one, and encoders as backbones.

Networks are tiny and crops are of 0.4 and 0.2 s; speech is eight short pieces of the embedded one.
"""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from speechft import models
from speechft.augment import SpecAugment, make_keys
from speechft.cli import main
from speechft.data import Manifest, Utterance, embedded_corpus, write_manifest
from speechft.errors import AudioError, ConfigError, InterruptedRun
from speechft.methods import Dino, DinoConfig
from speechft.methods.refine import refine
from speechft.models import EmbeddingSpec, load_embedding, make_embedding
from speechft.training import TrainingSettings

SMALL = {
    "codes": 64, "hidden_size": 24, "bottleneck": 12, "long_seconds": 0.4, "short_seconds": 0.2,
    "augment_long": "none", "augment_short": "none", "freeze_last_steps": 0, "expanded_size": 20,
}  # fmt: skip
SETTINGS = {
    "steps": 6, "batch_size": 4, "log_every": 2, "learning_rate": 1e-3, "warmup_steps": 0,
    "schedule": "cosine", "optimizer": "adam", "device": "cpu", "evaluate_utterances": 4,
}  # fmt: skip
SECONDS = [1.5, 0.9, 1.2, 0.7, 0.65, 1.1, 0.8, 1.0]


def config(**changes) -> DinoConfig:
    return DinoConfig(**{**SMALL, **changes})


def network(seed: int = 0):
    return make_embedding(EmbeddingSpec("xvector-8", size=16, bands=20), seed=seed)


def speech_and_keys(batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(batch, 16_000, generator=generator)
    lengths = torch.tensor([16_000, 12_000, 9_000, 7_000, 6_000][:batch])
    return waveforms, lengths, make_keys(0, 0, torch.arange(batch))


@pytest.fixture(scope="module")
def speech() -> Manifest:
    """Pieces of the embedded corpus, from 0.65 s to 1.5 s."""
    rows = embedded_corpus()[: len(SECONDS)]
    return Manifest(
        [
            Utterance(u.id, u.audio, start=1.0, end=1.0 + s)
            for u, s in zip(rows, SECONDS, strict=True)
        ]
    )


def run(output, speech, *, model=None, resume=False, settings=None, **changes):
    return refine(
        model=network() if model is None else model,
        method="dino",
        data=speech,
        output=output,
        config=config(**changes),
        training=TrainingSettings(**{**SETTINGS, **(settings or {})}),
        resume=resume,
    )


def weights(folder) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


class TestRuns:
    @pytest.fixture(scope="class")
    def straight(self, tmp_path_factory, speech):
        output = tmp_path_factory.mktemp("dino") / "straight"
        return output, run(output, speech)

    def test_what_comes_out_is_the_teachers_model(self, tmp_path, speech):
        kept = {}
        save = Dino.save

        def spy(self, output):
            kept["teacher"] = {
                n: t.clone() for n, t in self.teacher.module.model.state_dict().items()
            }
            kept["student"] = {n: t.clone() for n, t in self.student.model.state_dict().items()}
            save(self, output)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Dino, "save", spy)
            run(tmp_path / "run", speech, settings={"steps": 2})
        assert same(weights(tmp_path / "run"), kept["teacher"])
        assert not same(kept["student"], kept["teacher"])
        model = load_embedding(tmp_path / "run")
        assert model.size == 16
        assert not [n for n in weights(tmp_path / "run") if "head" in n or "codes" in n]

    def test_it_trains_and_tells(self, straight):
        output, report = straight
        assert report.method == "dino"
        first = network().state_dict()
        assert not same(weights(output), first)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [2, 4, 6]
        wanted = {"teacher_entropy", "center_norm", "deviation", "rank", "information", "codes"}
        assert all(wanted <= line.keys() for line in lines)
        assert {"frames.network.layers.0.conv.weight", "affine.0.bias"} <= set(report.tuned)

    def test_the_loss_goes_down(self, tmp_path, speech):
        """Without a teacher that moves, it is a plain regression on its codes."""
        report = run(
            tmp_path / "run", speech, teacher_momentum=1.0, centering="none",
            teacher_statistics="averaged", settings={"steps": 30, "learning_rate": 3e-3},
        )  # fmt: skip
        assert report.loss_after < report.loss_before - 0.1

    @pytest.mark.parametrize("kind", ["network", "encoder"])
    def test_stopped_and_resumed_is_the_same_run(self, tmp_path, speech, kind):
        """SIGTERM after the third step; reverb, noise, masks and all schedules are on.

        The encoder has dropout, which takes from torch's own random state; there, an update is of
        two batches.
        """
        every = {
            "temperature_warmup_steps": 5, "teacher_temperature": 0.07, "freeze_last_steps": 4,
            "cosine_weight": 0.1, "variance_weight": 0.1, "ramp_steps": 5, "teacher_momentum": 0.9,
            "spec_augment": kind == "network", "augment_long": "teacher",
            "augment_short": "student",
        }  # fmt: skip
        accumulate = 1 if kind == "network" else 2
        settings = {"accumulate": accumulate, "save_every": 6, "amsgrad": True}

        def go(output, **more):
            if kind == "network":
                model = network()
                model.frames.spec_augment = SpecAugment(1, (0, 5), 1, (0, 8))
            else:
                dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
                model = make_embedding(
                    EmbeddingSpec("encoder", size=16), encoder=models.tiny(config=dropout)
                )
            run(output, speech, model=model, settings=settings, **every, **more)

        go(tmp_path / "straight")
        forward, trained = Dino.forward, 0

        def stop_at_third(self, **inputs):
            nonlocal trained
            trained += self.training
            if trained == 3 * accumulate:
                os.kill(os.getpid(), signal.SIGTERM)
            return forward(self, **inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Dino, "forward", stop_at_third)
            with pytest.raises(InterruptedRun) as stopped:
                go(tmp_path / "stopped")
        assert stopped.value.step == 3
        torch.manual_seed(999)
        go(tmp_path / "stopped", resume=True)

        assert same(weights(tmp_path / "straight"), weights(tmp_path / "stopped"))
        one, two = (
            load_file(tmp_path / name / "checkpoints" / "checkpoint-6" / "model.safetensors")
            for name in ("straight", "stopped")
        )
        assert same(one, two)
        assert {"loss.center", "loss.step", "expander.weight"} <= one.keys()
        assert any(name.startswith("teacher.module.head") for name in one)
        assert one["loss.center"].any()
        last = [
            json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1])
            for n in ("straight", "stopped")
        ]
        for line in last:
            del line["seconds"]
        assert last[0] == last[1]

    def test_the_number_of_workers_changes_nothing(self, tmp_path, straight, speech):
        run(tmp_path / "workers", speech, settings={"workers": 2})
        assert same(weights(straight[0]), weights(tmp_path / "workers"))

    def test_bfloat16_runs(self, tmp_path, speech):
        report = run(
            tmp_path / "run", speech, settings={"precision": "bfloat16", "steps": 2},
            cosine_weight=1.0, covariance_weight=0.1,
        )  # fmt: skip
        assert math.isfinite(report.loss_after)
        assert {t.dtype for t in weights(tmp_path / "run").values()} <= {
            torch.float32, torch.int64
        }  # fmt: skip

    @pytest.mark.parametrize("on_short", ["drop", "repeat", "fail"])
    def test_utterances_shorter_than_a_short_crop(self, tmp_path, speech, on_short):
        """Of 0.65 s to 1.5 s, three are below 0.85 s."""
        changes = {"long_seconds": 1.2, "short_seconds": 0.85, "on_short": on_short}
        if on_short == "fail":
            with pytest.raises(AudioError, match="shorter than a crop"):
                run(tmp_path / "run", speech, settings={"steps": 1}, **changes)
            return
        report = run(tmp_path / "run", speech, settings={"steps": 1}, **changes)
        ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
        if on_short == "drop":
            assert (report.data["used"], report.data["skipped"], report.data["repeated"]) == (
                5,
                3,
                0,
            )
            assert all("shorter than a crop" in skip["reason"] for skip in ledger["skips"])
        else:
            assert (report.data["used"], report.data["skipped"], report.data["repeated"]) == (
                8,
                0,
                3,
            )
            assert ledger["skips"] == []

    def test_crops_that_make_no_frame_stop_it_before_it_starts(self, tmp_path, speech):
        """An x-vector wants 0.165 s. The shortest utterance, 0.65 s, is parted 2 : 1."""
        with pytest.raises(ConfigError, match=r"short_seconds: the least crop is 0\.1 s"):
            run(tmp_path / "one", speech, short_seconds=0.1)
        with pytest.raises(ConfigError, match=r"short_seconds: the least crop is 0\.15\d* s"):
            run(tmp_path / "two", speech, long_seconds=0.64, short_seconds=0.2, regions="disjoint")
        report = run(
            tmp_path / "three", speech, long_seconds=0.6, short_seconds=0.25, regions="disjoint",
            settings={"steps": 1},
        )  # fmt: skip
        assert report.steps == 1

    def test_a_batch_of_one_has_no_neighbour(self, tmp_path, speech):
        """Eight utterances in batches of seven: the last has one, and two of these need others."""
        report = run(
            tmp_path / "run", speech, koleo_weight=0.1, variance_weight=0.1, covariance_weight=0.1,
            batch_norm=True, settings={"batch_size": 7, "steps": 2},
        )  # fmt: skip
        assert math.isfinite(report.loss_after)

    def test_the_command_line_takes_a_preset_and_flags_go_over_it(self, tmp_path, speech, capsys):
        write_manifest(speech, tmp_path / "data.jsonl")
        small = {**SMALL, "segment_seconds": "[0.6, 1.0]", "size": 16, "hidden_layers": 1}
        settings = {"steps": 1, "batch_size": 4, "evaluate_utterances": 4, "device": "cpu"}
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**small, **settings}.items()]

        def command(preset, name):
            return main(
                ["refine", "dino", "--model", "xvector-8", "--data", str(tmp_path / "data.jsonl"),
                 "--output", str(tmp_path / name), "--preset", preset, *flags]
            )  # fmt: skip

        assert command("hyperion-cosine", "run") == 0, capsys.readouterr().err
        told = json.loads((tmp_path / "run" / "report.json").read_text())["settings"]
        assert told["regions"] == "disjoint"  # of the preset's method
        assert told["cosine_weight"] == 0.1
        assert told["schedule"] == "exponential"  # of its training
        assert told["betas"] == [0.9, 0.99]
        assert told["segment_seconds"] == [0.6, 1.0]  # of a flag
        assert load_embedding(tmp_path / "run").size == 16
        capsys.readouterr()
        assert command("hyperin", "other") == 2
        assert "did you mean 'hyperion'?" in capsys.readouterr().err


class TestEncoders:
    """A speech foundation model as the backbone."""

    def embedding(self, layer=None):
        return make_embedding(
            EmbeddingSpec("encoder", size=16, layer=layer),
            encoder=models.tiny("hubert", config={"hidden_dropout": 0.1}),
        )

    @pytest.mark.parametrize(
        ("layer", "tuned", "wanted"),
        [(None, None, {0, 1, 2}), (None, 1, {2}), (2, 1, {1}), (2, None, {0, 1}), (None, 0, set())],
    )
    def test_only_the_top_layers_train(self, layer, tuned, wanted):
        method = Dino(self.embedding(layer), config(tuned_layers=tuned))
        names = [n for n in method.tuned() if n.startswith("frames.encoder.")]
        layers = {int(n.split("encoder.layers.")[1].split(".")[0]) for n in names}
        assert layers == wanted
        others = {n.split(".")[0] for n in method.tuned() if n not in names}
        assert others == (
            {"frames", "pooling", "affine"} if layer is None else {"pooling", "affine"}
        )
        method.train()
        method(*speech_and_keys()).loss.backward()
        for name, parameter in method.student.named_parameters():
            if not name.endswith("k_proj.bias"):  # softmax does not see it
                assert (parameter.grad is not None) is parameter.requires_grad, name

    def test_modes(self):
        """Frozen, it is in eval mode: no dropout. So is the teacher's, always."""
        for tuned in (0, 1):
            method = Dino(self.embedding(), config(tuned_layers=tuned)).train()
            assert method.student.model.encoder.training is (tuned > 0)
            assert method.student.model.pooling.training
            assert not method.teacher.module.model.encoder.training
            assert not any(m.training for m in method.teacher.module.model.encoder.modules())
        assert not method.eval().student.model.encoder.training

    @pytest.mark.parametrize("tuned", [0, 1])
    def test_a_run(self, tmp_path, speech, tuned):
        """What is frozen is saved by name, what has been tuned is saved along."""
        models.tiny("hubert").save_pretrained(tmp_path / "encoder")
        before = load_file(tmp_path / "encoder" / "model.safetensors")
        model = make_embedding(
            EmbeddingSpec("encoder", size=16), encoder=models.load(tmp_path / "encoder")
        )
        run(
            tmp_path / "run", speech, model=model, tuned_layers=tuned, teacher_momentum=0.5,
            settings={"steps": 2},
        )  # fmt: skip
        again = load_embedding(tmp_path / "run")
        after = again.encoder.hf_model.state_dict()
        changed = {n for n in after if not torch.equal(after[n], before[n])}
        assert all(n.startswith("encoder.layers.2.") for n in changed)
        assert bool(changed) is (tuned == 1)

    def test_too_many_layers(self):
        with pytest.raises(ConfigError, match="tuned_layers: 2 layers are used, got 3"):
            Dino(self.embedding(2), config(tuned_layers=3))


def test_an_utterance_between_the_two_lengths_is_taken_whole(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(4_800), 16_000)
    manifest = Manifest([Utterance(str(i), path) for i in range(4)])
    report = run(tmp_path / "run", manifest, settings={"steps": 1})
    assert report.data["used"] == 4


def test_no_batch_has_one_utterance_where_batch_norm_would_fail(tmp_path, speech):
    """One long crop of one utterance makes one vector, of which there are no statistics."""
    odd = Manifest(list(speech)[:5])
    model = make_embedding(EmbeddingSpec("ecapa-8", size=8, bands=20))
    run(tmp_path / "run", odd, model=model, long=1, student_views="short", settings={"steps": 4})
    assert load_embedding(tmp_path / "run").spec.backbone == "ecapa-8"


def test_every_utterance_is_there_once_an_epoch_and_none_is_alone():
    from speechft.data import LengthBatchSampler
    from speechft.training.loader import NoneAlone

    for count in (5, 8, 9, 12, 13):
        batches = NoneAlone(LengthBatchSampler([100] * count, batch_size=4, num_buckets=1))
        for epoch in range(3):
            found = batches.batches(epoch)
            assert len(found) == len(batches)
            assert sorted(sum(found, [])) == list(range(count))  # noqa: RUF017
            assert min(map(len, found)) > 1
