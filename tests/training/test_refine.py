"""A run from end to end: what it writes, that it resumes as the same run, and what stops it."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from speechft import models
from speechft.data import Manifest, embedded_corpus
from speechft.errors import (
    AudioError,
    ConfigError,
    DivergedError,
    InterruptedRun,
    NoGradientError,
)
from speechft.methods import MethodOutput, Score, ScoreConfig
from speechft.methods.refine import refine
from speechft.training import TrainingSettings
from speechft.training.audit import GradientAudit

# Dropout is on: a resumed run is the same only if its random state is, too.
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
SETTINGS = {
    "steps": 6, "batch_size": 3, "log_every": 2, "learning_rate": 1e-3, "device": "cpu",
    "evaluate_utterances": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def speech():
    """Seven clips of 1 to 3.5 seconds."""
    return Manifest(u for u in embedded_corpus().filter(language="en") if u.duration < 4)


def run(output, speech, **changes):
    resume = changes.pop("resume", False)
    return refine(
        model=models.tiny("hubert", config=DROPOUT),
        data=speech,
        output=output,
        training=TrainingSettings(**{**SETTINGS, **changes}),
        resume=resume,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, speech):
    output = tmp_path_factory.mktemp("runs") / "straight"
    return output, run(output, speech)


def test_writes_a_plain_model_and_the_account_of_the_run(finished, speech):
    from transformers import HubertModel

    output, report = finished
    model = HubertModel.from_pretrained(output)
    assert type(model) is HubertModel
    told = json.loads((output / "report.json").read_text())
    assert told["steps"] == 6
    assert told["data"]["used"] == len(speech)
    assert told["audio_seconds"] > 0
    assert told["times"].keys() == {"augmentation", "encoder", "loss", "other"}
    assert sum(told["times"].values()) == pytest.approx(told["seconds"], rel=0.05)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all({"loss", "learning_rate", "grad_norm", "seconds"} <= line.keys() for line in lines)
    assert json.loads((output / "ledger.json").read_text())["seen"] == len(speech)
    for word in ("loss before", "augmentation", "encoder", "× real time"):
        assert word in str(report)


def test_only_the_top_two_layers_have_changed(finished):
    output, _ = finished
    before = models.tiny("hubert", config=DROPOUT).hf_model.state_dict()
    after = load_file(output / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("encoder.layers.1.", "encoder.layers.2.")) for name in changed)


def test_the_loss_goes_down(tmp_path, speech):
    report = run(tmp_path / "longer", speech, steps=25)
    assert report.loss_after < 0.9 * report.loss_before


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_resumed_is_the_same_run(tmp_path, speech, accumulate):
    """SIGTERM after the third step; the resumed run ends with the same bits."""
    run(tmp_path / "straight", speech, accumulate=accumulate)
    calls = 0

    def stop_at_third(self, **inputs):
        nonlocal calls
        calls += 1
        if calls == 3 * accumulate + 2:  # the first two batches measure the loss before
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, **inputs)

    forward = Score.forward
    output = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Score, "forward", stop_at_third)
        with pytest.raises(InterruptedRun, match="--resume") as stopped:
            run(output, speech, accumulate=accumulate)
    assert 1 <= stopped.value.step < 6
    torch.manual_seed(999)  # whatever the global state is now
    run(output, speech, accumulate=accumulate, resume=True)
    one, two = (
        load_file(tmp_path / name / "model.safetensors") for name in ("straight", "stopped")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in text.splitlines()
        ]
        for text in ((tmp_path / n / "metrics.jsonl").read_text() for n in ("straight", "stopped"))
    ]
    assert lines[0][-1]["grad_norm"] == lines[1][-1]["grad_norm"]


def test_the_number_of_workers_changes_nothing(tmp_path, finished, speech):
    run(tmp_path / "workers", speech, workers=2)
    one = load_file(finished[0] / "model.safetensors")
    two = load_file(tmp_path / "workers" / "model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_folder_in_use_is_refused(finished, speech):
    with pytest.raises(ConfigError, match="holds a run already"):
        run(finished[0], speech)
    with pytest.raises(ConfigError, match="no checkpoint"):
        run(finished[0], speech, resume=True)


def test_a_tensor_without_a_gradient_stops_the_run(tmp_path, speech, monkeypatch):
    def forward(self, waveforms, lengths, keys):
        output = self.encoder(waveforms, lengths, up_to_layer=2)  # the last layer is left out
        return MethodOutput(self.connector(output.last_hidden_state).sum(), {})

    monkeypatch.setattr(Score, "forward", forward)
    with pytest.raises(NoGradientError, match=r"encoder\.layers\.2\.") as caught:
        run(tmp_path / "run", speech)
    assert all("layers.2." in name for name in caught.value.names)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, speech, monkeypatch):
    forward = Score.forward

    def diverge(self, **inputs):
        output = forward(self, **inputs)
        return output._replace(loss=output.loss * float("nan"))

    monkeypatch.setattr(Score, "forward", diverge)
    with pytest.raises(DivergedError, match="step 0: the loss is nan"):
        run(tmp_path / "run", speech)


def test_weights_that_are_not_finite_stop_the_run(tmp_path, speech):
    with pytest.raises(DivergedError, match="learning rate"):
        run(tmp_path / "run", speech, learning_rate=1e30, warmup_steps=0)


def test_bad_audio_fails_or_is_counted(tmp_path, speech):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    rows = [{"audio": str(u.audio), "id": u.id} for u in speech] + [{"audio": "bad.wav"}]
    manifest = tmp_path / "data.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    arguments = {
        "model": models.tiny(),
        "data": manifest,
        "training": TrainingSettings(**{**SETTINGS, "steps": 1}),
    }
    with pytest.raises(AudioError, match=r"bad\.wav"):
        refine(output=tmp_path / "fail", **arguments)
    report = refine(output=tmp_path / "skip", on_bad_audio="skip", **arguments)
    assert report.data["skipped"] == 1
    ledger = json.loads((tmp_path / "skip" / "ledger.json").read_text())
    assert "bad.wav" in ledger["skips"][0]["audio"]


def test_settings_of_another_method(tmp_path, speech):
    with pytest.raises(ConfigError, match="ScoreConfig"):
        refine(model=models.tiny(), data=speech, output=tmp_path / "x", config=object())


class TestAudit:
    def test_zeros_are_forgiven_at_first_and_named_in_the_end(self):
        module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        audit = GradientAudit(module, patience=3)

        def backward():
            module.zero_grad()
            (module["a"](torch.ones(2)).sum() + 0 * module["b"](torch.ones(2)).sum()).backward()

        for _ in range(2):
            backward()
            audit()
        backward()
        with pytest.raises(NoGradientError) as caught:
            audit()
        assert caught.value.names == ["b.weight", "b.bias"]

    def test_frozen_tensors_and_later_steps_are_left_alone(self):
        module = nn.Linear(2, 2)
        module.bias.requires_grad_(False)
        audit = GradientAudit(module, patience=1)
        module(torch.ones(2)).sum().backward()
        audit()
        module.zero_grad()
        audit()


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"learning_rate": 0.0}, {"batch_size": 0}, {"max_batch_seconds": -1.0}]
)
def test_bad_training_settings_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrainingSettings(**bad)


def test_warmup_is_scores_share():
    assert TrainingSettings().warmup == 1000
    assert TrainingSettings(steps=36).warmup == 10
    assert TrainingSettings(warmup_steps=0).warmup == 0
    assert ScoreConfig().gamma == 0.1
