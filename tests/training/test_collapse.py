"""The collapse watch: what has collapsed is stopped within 200 steps and named; nothing else is."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from speechft.cli import main
from speechft.data import Manifest, Utterance, embedded_corpus, write_manifest
from speechft.errors import CollapsedError
from speechft.methods import Dino, DinoConfig
from speechft.methods.refine import refine
from speechft.models import EmbeddingSpec, make_embedding
from speechft.training import TrainingSettings
from speechft.training.collapse import CollapseWatch, read
from speechft.training.trainable import Bounds, Trainable


class Watched(Trainable):
    """Says what it is told to say."""

    def __init__(self, **bounds: Bounds) -> None:
        super().__init__()
        self.value: dict[str, float] = {}
        self.own = bounds
        self.looks = 0

    def monitors(self):
        self.looks += 1
        return {name: torch.tensor(value) for name, value in self.value.items()}

    def bounds(self):
        return self.own


def look(watch: CollapseWatch, step: int) -> None:
    watch.on_step_end(None, SimpleNamespace(global_step=step), None)


class TestWatch:
    def test_patience_is_of_looks_in_a_row(self):
        method = Watched(spread=Bounds(0.5, None))
        watch = CollapseWatch(method, every=10, patience=3)
        course = [0.1, 0.1, 0.9, 0.1, 0.1, 0.1]
        for number, value in enumerate(course, 1):
            method.value = {"spread": value}
            for step in range(10 * number - 9, 10 * number):
                look(watch, step)  # between looks, nothing is read
            assert method.looks == number - 1
            if number == 6:
                with pytest.raises(CollapsedError) as caught:
                    look(watch, 60)
            else:
                look(watch, 10 * number)
        assert caught.value.monitor == "spread"

    def test_the_message_has_the_monitor_its_bound_and_the_others(self):
        method = Watched(entropy=Bounds(None, 0.75), spread=Bounds(0.5, None))
        watch = CollapseWatch(method, every=5, patience=2)
        method.value = {"entropy": 0.8125, "spread": 1.0, "norm": 3.0}
        look(watch, 5)
        with pytest.raises(CollapsedError, match="collapsed at step 10: entropy") as caught:
            look(watch, 10)
        message = str(caught.value)
        assert "entropy has been 0.8125 where it wants at most 0.75, for 10 steps" in message
        assert "(spread 1, norm 3)" in message
        assert "learning rate" in message

    def test_what_is_not_a_number_is_out_of_bounds(self):
        method = Watched(spread=Bounds(0.5, 2.0))
        watch = CollapseWatch(method, every=1, patience=1)
        method.value = {"spread": float("nan")}
        with pytest.raises(
            CollapsedError, match=r"spread has been nan where it wants at least 0\.5"
        ):
            look(watch, 1)

    def test_each_monitor_has_a_count_of_its_own(self):
        method = Watched(a=Bounds(0.5, None), b=Bounds(None, 0.5))
        watch = CollapseWatch(method, every=1, patience=2)
        for step, (a, b) in enumerate([(0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (1.0, 1.0)], 1):
            method.value = {"a": a, "b": b}
            look(watch, step)
        method.value = {"a": 1.0, "b": 1.0}
        with pytest.raises(CollapsedError) as caught:
            look(watch, 5)
        assert caught.value.monitor == "b"

    def test_a_monitor_that_is_missing_says_nothing(self):
        """A batch of one utterance has no spread: what was counted before stays."""
        method = Watched(spread=Bounds(0.5, None))
        watch = CollapseWatch(method, every=1, patience=2)
        for step, value in enumerate([{"spread": 0.0}, {}, {}], 1):
            method.value = value
            look(watch, step)
        method.value = {"spread": 0.0}
        with pytest.raises(CollapsedError):
            look(watch, 4)

    def test_a_method_without_bounds_is_never_read(self):
        method = Watched()
        look(CollapseWatch(method, every=1), 1)
        assert method.looks == 0

    @pytest.mark.parametrize(
        ("bounds", "inside", "outside"),
        [
            (Bounds(0.5, None), [0.5, 1e9], [0.49, float("nan"), float("-inf")]),
            (Bounds(None, 0.5), [0.5, -1e9], [0.51, float("nan"), float("inf")]),
            (Bounds(0.0, 1.0), [0.0, 1.0], [-0.1, 1.1]),
            (Bounds(None, None), [0.0, 1e30], [float("nan")]),
        ],
    )
    def test_bounds(self, bounds, inside, outside):
        assert all(map(bounds.hold, inside))
        assert not any(map(bounds.hold, outside))

    def test_read(self):
        assert read({}) == {}
        found = read({"a": torch.tensor(2), "b": torch.tensor(0.5, dtype=torch.float64)})
        assert found == {"a": 2.0, "b": 0.5}


# Runs: a network of 8 channels, crops of 0.4 and 0.2 s, 64 codes.

CONFIG = {
    "codes": 64, "hidden_size": 32, "bottleneck": 16, "long_seconds": 0.4, "short_seconds": 0.2,
    "short": 2, "augment_long": "none", "augment_short": "none", "freeze_last_steps": 0,
}  # fmt: skip
TRAINING = {
    "batch_size": 12, "device": "cpu", "log_every": 20, "learning_rate": 1e-3, "warmup_steps": 5,
    "schedule": "constant", "optimizer": "adam", "evaluate_utterances": 8,
}  # fmt: skip


def pieces() -> Manifest:
    """Half a second and more of 36 utterances."""
    return Manifest(
        [
            Utterance(u.id, u.audio, start=1.0, end=1.6 + 0.01 * number)
            for number, u in enumerate(embedded_corpus()[:36])
        ]
    )


def network(seed: int = 0) -> nn.Module:
    return make_embedding(EmbeddingSpec("xvector-8", size=16, bands=20), seed=seed)


def constant_network(folder) -> str:
    """One whose vectors are all the bias of its affine layer."""
    model = network()
    with torch.no_grad():
        model.affine[0].weight.zero_()
        model.affine[0].bias.fill_(0.5)
    model.save_pretrained(folder)
    return str(folder)


# What breaks, the settings that break it, and the monitors that may be the first to say so.
INJECTIONS = {
    "constant teacher vectors": (
        {"teacher_momentum": 1.0},
        {"information", "deviation", "teacher_entropy"},
    ),
    # The student is asked for ever flatter codes, and its teacher follows.
    "no centring, hot teacher": (
        {"centering": "none", "teacher_temperature": 1.0, "teacher_temperature_start": 1.0,
         "teacher_momentum": 0.5, "learning_rate": 0.01},
        {"information", "teacher_entropy"},
    ),
    "no centring, cold teacher": (
        {"centering": "none", "teacher_temperature": 0.001, "teacher_temperature_start": 0.001,
         "teacher_momentum": 0.5, "learning_rate": 0.01},
        {"information"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INJECTIONS)
def test_an_injected_collapse_ends_with_code_4_within_200_steps(tmp_path, capsys, name):
    changes, monitors = INJECTIONS[name]
    write_manifest(pieces(), tmp_path / "data.jsonl")
    if name == "constant teacher vectors":
        model = constant_network(tmp_path / "model")
    else:
        network().save_pretrained(tmp_path / "model")
        model = str(tmp_path / "model")
    settings = {**CONFIG, **TRAINING, "steps": 200, **changes}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    code = main(
        ["refine", "dino", "--model", model, "--data", str(tmp_path / "data.jsonl"),
         "--output", str(tmp_path / "run"), *flags]
    )  # fmt: skip
    error = capsys.readouterr().err
    assert code == 4, error
    found = re.search(r"collapsed at step (\d+): (\w+) has been", error)
    assert found is not None, error
    assert int(found[1]) <= 200
    assert found[2] in monitors
    # The course is there to be read, and no model that one might take for a good one.
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] >= 60
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "report.json").exists()


def healthy(output, seed: int) -> None:
    """A run of 100 steps: an alarm wants 80. What differs is chosen by the seed.

    Averaged statistics have a lower learning rate: at 1e-3 so small a network does collapse, to an
    information of 0 at step 100 and an entropy of 1 at step 500.
    """
    variants = [
        {}, {"centering": "sinkhorn"}, {"batch_norm": True},
        {"teacher_statistics": "averaged"},
        {"student_views": "short", "regions": "disjoint", "short_seconds": 0.3},
    ]  # fmt: skip
    rates = [1e-3, 3e-4, 1e-8, 1e-3]  # the third is a long warm-up's beginning
    rate = min(rates[seed // 5], 1e-4 if seed % 5 == 3 else 1.0)
    training = {**TRAINING, "steps": 100, "seed": seed, "learning_rate": rate}
    refine(
        model=network(seed), method="dino", data=pieces(), output=output,
        config=DinoConfig(**{**CONFIG, "codes": (64, 256)[seed % 2], **variants[seed % 5]}),
        training=TrainingSettings(**training),
    )  # fmt: skip


def test_a_healthy_run_raises_no_alarm(tmp_path):
    healthy(tmp_path / "run", 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_healthy_runs_raise_no_alarm(tmp_path, seed):
    healthy(tmp_path / "run", seed)


def test_bounds_are_of_monitors_that_there_are():
    method = Dino(network(), DinoConfig(**CONFIG)).eval()
    waveforms = 0.1 * torch.randn(4, 8_000, generator=torch.Generator().manual_seed(0))
    assert {"teacher_entropy", "center_norm"} <= method.monitors().keys()
    method(waveforms, torch.full((4,), 8_000), torch.arange(4))
    found = read(method.monitors())
    assert set(method.bounds()) <= found.keys()
    assert {"deviation", "rank", "codes", "information", "divergence"} <= found.keys()
