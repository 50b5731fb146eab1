"""Stages of a transfer: by name, from a file, changed by a grid; and what a mistake is met with."""

from __future__ import annotations

import dataclasses

import pytest

from speechft.errors import ConfigError
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.stages import STAGES, Stage, override, read_stages


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "stages.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", STAGES)
def test_a_preset_makes_settings_of_its_own(name):
    stages = read_stages(name)
    assert stages is STAGES[name]
    base = ClassificationConfig(label="mood", loss="cross_entropy", scale=7.0, size=16, noise="x")
    for stage in stages:
        config = stage.config(base)
        kept = ("label", "loss", "scale", "size", "noise")
        assert all(getattr(config, key) == getattr(base, key) for key in kept)
        own = {field.name for field in dataclasses.fields(Stage)}
        for field in dataclasses.fields(ClassificationConfig):
            if field.name in own:
                assert getattr(config, field.name) == getattr(stage, field.name)


def test_what_the_presets_train_in_what_order():
    assert {name: [stage.train for stage in stages] for name, stages in STAGES.items()} == {
        "two-stage": ["affine", "all"], "all-at-once": ["all"], "probe": ["head"],
        "lora": ["pooling", "lora"], "hyperion": ["affine", "all"],
    }  # fmt: skip
    first, second = STAGES["hyperion"]
    assert (first.optimizer, first.learning_rate, first.epochs, first.dropout) == (
        "sgd", 0.1, 30, 0.1,
    )  # fmt: skip
    assert (second.optimizer, second.learning_rate, second.epochs, second.dropout) == (
        "sgd", 0.01, 70, 0.01,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("utterances", "batch", "epochs", "warmup", "steps", "warm"),
    [
        (10, 4, 2, 0.1, 6, 1),  # batches of 4, 4 and 2
        (8, 4, 3, 0.0, 6, 0),
        (8, 4, 0.5, 0.5, 1, 0),
        (1, 32, 0.001, 1.0, 1, 1),  # never none
        (1000, 256, 10, 0.25, 40, 10),
    ],
)
def test_epochs_are_updates(utterances, batch, epochs, warmup, steps, warm):
    stage = Stage(batch_size=batch, epochs=epochs, warmup=warmup, optimizer="sgd", momentum=0.5,
                  learning_rate=0.3, schedule="constant", weight_decay=0.2)  # fmt: skip
    training = stage.training(utterances, seed=5, device="cpu")
    assert (training.steps, training.warmup_steps, training.batch_size) == (steps, warm, batch)
    assert (training.seed, training.device, training.optimizer) == (5, "cpu", "sgd")
    assert (training.momentum, training.learning_rate, training.weight_decay) == (0.5, 0.3, 0.2)
    assert training.schedule == "constant"


def test_a_file_of_stages(written):
    stages = read_stages(
        written("- {train: head, epochs: 3}\n- train: all\n  chunk_seconds: [1, 2.5]\n"
                "  augmentation: student\n- {chunk_seconds: null, train: lora}\n")
    )  # fmt: skip
    assert stages == (
        Stage(train="head", epochs=3),
        Stage(train="all", chunk_seconds=(1, 2.5), augmentation="student"),
        Stage(train="lora", chunk_seconds=None),
    )
    assert hash(stages)  # a list in it would have none


def test_stages_themselves():
    stage = Stage()
    assert read_stages([stage]) == (stage,)
    with pytest.raises(ConfigError, match="stages: there are none"):
        read_stages([])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {train: all}\n- {lerning_rate: 1}", r"stage 2: no setting 'lerning_rate'; did you "
         "mean 'learning_rate'"),
        ("- {qqq: 1}", r"stage 1: no setting 'qqq'; there are: train, epochs, "),
        ("- {1: 1}", "stage 1: no setting '1'; there are"),
        ("train: all", "wants a list of stages"),
        ("[]", "wants a list of stages"),
        ("- all", "stage 1: wants keys and values, got 'all'"),
        ("- [", "is not YAML"),
        ("- {train: al}", r"stage 1: train: wants one of head, affine, pooling, all, lora; "
         "got 'al'"),
        ("- {epochs: 0}", "stage 1: epochs: wants more than 0, got 0"),
        ("- {epochs: ten}", "stage 1: "),
        ("- {warmup: 2}", "stage 1: warmup: wants a share from 0 to 1, got 2"),
        ("- {learning_rate: -1}", "stage 1: learning_rate: wants a finite number above 0"),
        ("- {dropout: 1}", "stage 1: dropout: wants 0 to below 1, got 1"),
        ("- {train: affine, tuned_layers: 2}", "stage 1: tuned_layers: is of train: all"),
        ("- {}\n- {chunk_seconds: [2, 1]}", "stage 2: chunk_seconds: wants .* the least first"),
        ("- {chunk_seconds: long}", "stage 1: chunk_seconds: wants a number"),
        ("- {augmentation: studnt}", "stage 1: augmentation: 'studnt' is no file, and none of "
         "none, student, teacher"),
        ("- {loss_gate: dynmic}", "stage 1: loss_gate: wants one of none, fixed, dynamic; "
         "got 'dynmic'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_met_before_anything_is_trained(written, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_stages(written(text))
    assert "stages.yaml" in str(caught.value)


def test_no_such_stages():
    with pytest.raises(ConfigError, match="no 'two-stages', and no such file; did you mean 'two-"):
        read_stages("two-stages")
    with pytest.raises(ConfigError, match="there are: two-stage, all-at-once, probe, lora, hyper"):
        read_stages("zzz.yaml")


def test_a_grid_changes_every_stage_and_nothing_else():
    before = STAGES["two-stage"]
    after = override(before, {"chunk_seconds": 1.5, "augmentation": "teacher"})
    for old, new in zip(before, after, strict=True):
        assert new == dataclasses.replace(old, chunk_seconds=1.5, augmentation="teacher")
    assert override(before, {}) == before
    (ranged,) = override([Stage()], {"chunk_seconds": [1, 2]})
    assert ranged.chunk_seconds == (1, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chunk_second": 1}, "grid: no setting 'chunk_second'; did you mean 'chunk_seconds'"),
        ({"label": "x"}, "grid: no setting 'label'"),
        ({"chunk_seconds": -1}, "grid: chunk_seconds: wants"),
        ({"chunk_seconds": "x"}, "grid: chunk_seconds: wants a number"),
        ({"augmentation": "x"}, "grid: augmentation: 'x' is no file"),
        ({"epochs": 0}, "grid: epochs"),
        ({"epochs": "many"}, "grid: "),
    ],
)
def test_a_grid_that_cannot_be(settings, words):
    with pytest.raises(ConfigError, match=words):
        override(STAGES["two-stage"], settings)
