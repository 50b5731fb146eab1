"""Spin as published: what is tuned, what the loss is, what stops a run, and what comes out."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from speechft import models
from speechft.augment import make_keys
from speechft.data import Manifest, SpeechDataset, embedded_corpus
from speechft.errors import CollapsedError, ConfigError, InterruptedRun
from speechft.methods import Spin, SpinConfig, get
from speechft.methods.refine import refine
from speechft.training import TrainingSettings

LENGTHS = torch.tensor([8000, 12800, 10_000])
SMALL = SpinConfig(codes=8, size=6, min_seconds=0.5)


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    waveforms = 0.1 * torch.randn(3, int(LENGTHS.max()), generator=generator)
    waveforms[torch.arange(waveforms.shape[1]) >= LENGTHS[:, None]] = 0
    keys = make_keys(0, 0, torch.tensor([1, 2, 3]))
    return {"waveforms": waveforms, "lengths": LENGTHS, "keys": keys}


def assignments(cosines: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """SwAV's loop in float64, over the rows of (N, K)."""
    q = (cosines.double() / epsilon).exp().T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * len(q)
        q /= q.sum(0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_registry_and_what_was_published():
    assert get("spin") is Spin
    config, defaults = SpinConfig(), TrainingSettings(**Spin.training_defaults)
    assert (config.codes, config.temperature, config.epsilon) == (256, 0.1, 0.02)
    assert Spin.shortest(config) == (2.5, "drop")
    assert (defaults.steps, defaults.warmup, defaults.learning_rate) == (5000, 2500, 1e-4)
    spin = Spin(models.tiny())
    assert spin.crop is not None
    assert round(spin.crop.seconds[1] * 16_000) == 272_000
    assert [type(m).__name__ for m in spin.perturb.chain.members] == ["Voice", "Equaliser"]


def test_the_loss_is_the_formula():
    spin = Spin(models.tiny(), SMALL).eval()
    with torch.no_grad():
        views = spin.views(batch())
        frames = {name: spin.encoder(*view) for name, view in views.items()}
        found = spin.objective(batch(), views, frames)
        valid = torch.arange(frames["plain"].last_hidden_state.shape[1]) < frames[
            "plain"
        ].lengths.unsqueeze(1)
        cosines = []
        for name in ("plain", "voiced"):
            z = spin.connector(frames[name].last_hidden_state)[valid].double()
            z = z / z.norm(dim=1, keepdim=True)
            w = spin.loss.codebook.double()
            cosines.append(z @ (w / w.norm(dim=1, keepdim=True)).T)
        q = [assignments(s, 0.02, 3) for s in cosines]
        log_p = [(s / 0.1).log_softmax(1) for s in cosines]
        expected = -0.5 * ((q[1] * log_p[0]).sum(1) + (q[0] * log_p[1]).sum(1)).mean()
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-5)
    mean = torch.nn.functional.normalize(spin.connector(frames["plain"].last_hidden_state), dim=-1)
    mean = (mean * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
    torch.testing.assert_close(found.vectors, mean)


def test_padding_changes_nothing_and_the_batch_does():
    spin = Spin(models.tiny(), SMALL).eval()
    given = batch()
    with torch.no_grad():
        loss = spin(**given).loss
        padded = torch.nn.functional.pad(given["waveforms"], (0, 5000), value=0.3)
        again = spin(**{**given, "waveforms": padded}).loss
        alone = [spin(**{k: v[b : b + 1] for k, v in given.items()}).loss for b in range(3)]
    torch.testing.assert_close(loss, again, rtol=1e-6, atol=0)
    # Codes are shared out among the frames of the whole batch.
    assert abs(float(torch.stack(alone).mean() - loss)) > 1e-3


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm"])
def test_tunes_the_top_two_layers_and_the_head(kind):
    spin = Spin(models.tiny(kind), SMALL)
    assert spin.tuned()
    assert all(n.startswith(("encoder.layers.1.", "encoder.layers.2.")) for n in spin.tuned())
    spin(**batch()).loss.backward()
    for name, parameter in spin.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    every = Spin(models.tiny(kind), SpinConfig(codes=8, tuned_layers=None)).tuned()
    assert any(name.startswith("encoder.layers.0.") for name in every)
    assert not any(name.startswith("feature_extractor") for name in every)


def test_views_are_as_long_and_the_plain_one_may_be_the_batch_itself():
    given = batch()
    views = Spin(models.tiny(), SpinConfig(crop_seconds=None)).views(given)
    assert views["plain"][0] is given["waveforms"]
    assert views["plain"][1] is views["voiced"][1]
    assert views["voiced"][0].shape == given["waveforms"].shape
    assert views["voiced"][0].abs().max() <= 1
    assert not torch.equal(views["voiced"][0], given["waveforms"])
    cut = Spin(models.tiny(), SpinConfig(crop_seconds=0.7, min_seconds=0.5)).views(given)
    assert cut["plain"][1].tolist() == [8000, 11_200, 10_000]
    assert cut["plain"][0].shape == cut["voiced"][0].shape == (3, 11_200)


def test_a_crop_begins_where_a_frame_does():
    spin = Spin(models.tiny(), SpinConfig(crop_seconds=0.5, min_seconds=0.5))
    ramp = torch.arange(12_800.0)[None].expand(64, -1) / 12_800
    keys = make_keys(0, 0, torch.arange(64))
    assert spin.crop is not None
    cut, _ = spin.crop(ramp, torch.full((64,), 12_800), keys)
    starts = (cut[:, 0] * 12_800).round().to(torch.int64)
    assert (starts % 320 == 0).all()
    assert set(starts.tolist()) == set(range(0, 12_800 - 8000 + 1, 320))


def test_codes_have_unit_length_after_each_update():
    spin = Spin(models.tiny(), SMALL)
    torch.testing.assert_close(spin.loss.codebook.norm(dim=1), torch.ones(8))
    with torch.no_grad():
        spin.loss.codebook.mul_(torch.linspace(0.5, 2, 8)[:, None])
    spin.after_update()
    torch.testing.assert_close(spin.loss.codebook.norm(dim=1), torch.ones(8))


def test_new_weights_are_those_of_the_seed():
    one, two, other = (Spin(models.tiny(), SMALL, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.loss.codebook, two.loss.codebook)
    assert not torch.equal(one.loss.codebook, other.loss.codebook)


def test_ranks_assign_their_frames_together(monkeypatch):
    assert Spin(models.tiny(), SMALL).loss.gather is False
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Spin(models.tiny(), SMALL).loss.gather is True


@pytest.mark.parametrize(
    "bad",
    [
        {"codes": 1}, {"temperature": 0.0}, {"epsilon": -1.0}, {"tuned_layers": 0},
        {"formant": 0.5}, {"pitch": 5.0}, {"crop_seconds": 1.0}, {"pieces": 100},
        {"decibels": 30.0},
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SpinConfig(**bad)


def test_noise_must_not_move_frames():
    with pytest.raises(ConfigError, match=r"augmentation: Speed changes timing"):
        Spin(models.tiny(), SpinConfig(augmentation="[Gain, Speed]"))
    noisy = Spin(models.tiny(), SpinConfig(augmentation="[AddNoise]", crop_seconds=None))
    views = noisy.views(batch())
    assert not torch.equal(views["plain"][0], batch()["waveforms"])


@pytest.fixture(scope="module")
def speech():
    return Manifest(u for u in embedded_corpus().filter(language="en") if u.duration < 4)


SETTINGS = {
    "steps": 6, "batch_size": 3, "max_batch_seconds": None, "log_every": 2, "device": "cpu",
    "learning_rate": 1e-3, "warmup_steps": 2, "evaluate_utterances": 4,
}  # fmt: skip


def run(output, speech, config=None, **changes):
    resume = changes.pop("resume", False)
    dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    return refine(
        model=models.tiny("hubert", config=dropout),
        method="spin",
        data=speech,
        output=output,
        config=config or SpinConfig(codes=8, size=6, min_seconds=1.0, crop_seconds=2.0),
        training=TrainingSettings(**{**Spin.training_defaults, **SETTINGS, **changes}),
        resume=resume,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, speech):
    output = tmp_path_factory.mktemp("runs") / "straight"
    return output, run(output, speech)


def test_what_comes_out(finished):
    from transformers import HubertModel

    output, _ = finished
    assert type(HubertModel.from_pretrained(output)) is HubertModel
    model = models.load_units(output)
    assert model.codes == 8
    torch.testing.assert_close(model.head.codebook.norm(dim=1), torch.ones(8))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {"code_perplexity", "soft_perplexity"} <= lines[-1].keys()


def test_stopped_and_resumed_is_the_same_run(tmp_path, finished, speech, monkeypatch):
    calls = 0
    forward = Spin.forward

    def stop_at_third(self, **inputs):
        nonlocal calls
        calls += 1
        if calls == 5:  # the first two batches measure the loss before
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Spin, "forward", stop_at_third)
        with pytest.raises(InterruptedRun):
            run(tmp_path / "stopped", speech)
    torch.manual_seed(999)
    run(tmp_path / "stopped", speech, resume=True)
    for name in ("model.safetensors", "units.safetensors"):
        one, two = (load_file(folder / name) for folder in (finished[0], tmp_path / "stopped"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_more_codes_than_frames_are_refused_before_training(tmp_path, speech):
    with pytest.raises(ConfigError, match=r"codes: 5000 are to share the \d+ frames of a batch"):
        run(tmp_path / "run", speech, SpinConfig(codes=5000, min_seconds=1.0))
    assert not (tmp_path / "run" / "start.json").exists()


def test_what_is_used_of_an_utterance_counts(tmp_path, speech):
    """An utterance that is longer than a batch may be, and cut to less, is no error."""
    dataset = SpeechDataset(speech, progress=False)
    config = SpinConfig(codes=8, crop_seconds=1.0, min_seconds=0.5)
    settings = TrainingSettings(batch_size=100, max_batch_seconds=2.0)
    data = Spin(models.tiny(), config).training_data(dataset, settings, tmp_path)
    assert {len(batch) for batch in data.batches.batches(0)} <= {1, 2}


def test_a_collapse_is_caught(tmp_path, speech, monkeypatch):
    forward = Spin.objective

    def collapse(self, batch, views, frames):
        same = {
            name: view._replace(last_hidden_state=torch.ones_like(view.last_hidden_state))
            for name, view in frames.items()
        }
        found = forward(self, batch, views, same)
        real = sum(view.last_hidden_state.sum() for view in frames.values())
        return found._replace(loss=found.loss + 1e-9 * real)

    monkeypatch.setattr(Spin, "objective", collapse)
    with pytest.raises(CollapsedError, match="code_perplexity has been 1 where it wants") as caught:
        run(tmp_path / "run", speech, steps=100, log_every=10)
    assert caught.value.monitor == "code_perplexity"
