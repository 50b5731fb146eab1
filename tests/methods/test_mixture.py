"""Mixtures: one method alone is itself, several share the encoder and its passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from speechft import models
from speechft.augment import make_keys
from speechft.errors import ConfigError, InterruptedRun
from speechft.functional import orthogonality
from speechft.methods import DinoConfig, LaserConfig, MixtureConfig, ScoreConfig, SpinConfig, get
from speechft.methods.mixture import Mixture
from speechft.methods.refine import refine
from speechft.models import load, load_embedding, load_units
from speechft.training import TrainingSettings
from tests.toy_corpus import toys

DINO = DinoConfig(
    long_seconds=0.3, short_seconds=0.2, short=1, size=16, codes=64, hidden_size=32, bottleneck=16,
    augment_long="none", augment_short="none", freeze_last_steps=0,
)  # fmt: skip
SPIN = SpinConfig(codes=8, crop_seconds=None, min_seconds=0.0)
LENGTHS = torch.tensor([6400, 8000, 7000, 8000])


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "waveforms": 0.1 * torch.randn(4, int(LENGTHS.max()), generator=generator),
        "lengths": LENGTHS,
        "keys": make_keys(0, 0, torch.arange(4)),
    }


def mixture(*objectives: str, **settings) -> MixtureConfig:
    names = {objective.partition(":")[0] for objective in objectives}
    known = {"dino": DINO, "spin": SPIN, "score": ScoreConfig(), "laser": LaserConfig()}
    return MixtureConfig(objectives, **{n: known[n] for n in names}, **settings)


@pytest.mark.parametrize("name", ["score", "laser", "spin"])
def test_of_one_method_is_that_method(name):
    """The loss and every gradient, to the last bit."""
    config = mixture(name)
    alone = get(name)(models.tiny(), config.of(name), seed=3).eval()
    mixed = Mixture(models.tiny(), config, seed=3).eval()
    one, other = alone(**batch()).loss, mixed(**batch()).loss
    assert torch.equal(one, other)
    one.backward()
    other.backward()
    theirs = dict(mixed.encoder.named_parameters())
    for key, parameter in alone.encoder.named_parameters():
        assert (parameter.grad is None) == (theirs[key].grad is None), key
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, theirs[key].grad), key


def test_the_loss_is_the_weighted_sum():
    mixed = Mixture(models.tiny(), mixture("score:2", "dino:0.5", orthogonality_weight=3.0)).eval()
    with torch.no_grad():
        loss = mixed(**batch()).loss
        score = mixed.methods["score"](**batch())
        dino = mixed.methods["dino"](**batch())
        apart = orthogonality(score.vectors, dino.vectors)
    torch.testing.assert_close(loss, 2 * score.loss + 0.5 * dino.loss + 3 * apart)
    found = mixed.monitors()
    torch.testing.assert_close(found["orthogonality"], apart)
    torch.testing.assert_close(found["dino"], dino.loss)
    assert {"dino.information", "dino.rank"} <= set(found)


def test_a_view_that_two_share_is_encoded_once(monkeypatch):
    mixed = Mixture(models.tiny(), mixture("score", "laser", "spin"))
    rows = []
    forward = type(mixed.encoder).forward

    def counted(self, waveforms, *args, **settings):
        rows.append((self is mixed.encoder, waveforms))
        return forward(self, waveforms, *args, **settings)

    monkeypatch.setattr(type(mixed.encoder), "forward", counted)
    given = batch()
    mixed(**given)
    passes = [waveforms for tuned, waveforms in rows if tuned]
    assert len(passes) == 4  # one of SCORE; plain, of two; perturbed; in another voice
    assert sum(waveforms is given["waveforms"] for waveforms in passes) == 1
    assert len(rows) - len(passes) == 1  # SCORE's frozen target


@pytest.mark.parametrize("objectives", [("score", "dino:0.1"), ("laser", "spin")])
def test_every_tensor_is_held_once(objectives):
    mixed = Mixture(models.tiny(), mixture(*objectives))
    state = mixed.state_dict()
    places = [tensor.data_ptr() for tensor in state.values() if tensor.numel()]
    assert len(set(places)) == len(places)
    held = {id(p) for p in mixed.parameters()}
    assert all(id(p) in held for p in mixed.encoder.parameters())
    mixed(**batch()).loss.backward()
    for key, parameter in mixed.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    mixed.eval()
    assert not mixed.encoder.training
    assert mixed.train().encoder.training


def test_tunes_what_any_of_them_tunes():
    config = mixture("score", "spin")
    config = replace(config, score=ScoreConfig(tune_feature_norm=True))
    tuned = Mixture(models.tiny(), config).tuned()
    assert "feature_projection.layer_norm.weight" in tuned
    assert any(name.startswith("encoder.layers.2.") for name in tuned)
    assert not any(name.startswith("encoder.layers.0.") for name in tuned)


def run(output, data, config, **settings):
    training = TrainingSettings(
        steps=6, batch_size=4, learning_rate=1e-3, warmup_steps=1, evaluate_utterances=4,
        **{"save_every": 3, **settings},
    )  # fmt: skip
    return refine(
        model=models.tiny(), method="mixture", data=data, output=output, config=config,
        training=training, resume=(output / "checkpoints").exists(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return toys(tmp_path_factory.mktemp("speech"), 4, 2, seconds=(0.35, 0.5))


@pytest.mark.parametrize("objectives", [("score:1.0", "dino:0.1"), ("laser", "spin:2")])
def test_stopped_and_resumed_is_the_same_run(tmp_path, speech, objectives, monkeypatch):
    config = mixture(*objectives)
    run(tmp_path / "whole", speech, config)
    after = Mixture.after_update
    done = []

    def stop(self):
        after(self)
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Mixture, "after_update", stop)
    with pytest.raises((KeyboardInterrupt, InterruptedRun)):
        run(tmp_path / "parts", speech, config)
    monkeypatch.setattr(Mixture, "after_update", after)
    run(tmp_path / "parts", speech, config)
    files = ["model.safetensors"]
    files += ["dino/model.safetensors", "dino/encoder/model.safetensors"] * (
        "dino" in config.weights
    )
    for file in files:
        one, other = (load_file(tmp_path / part / file) for part in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file


def test_what_comes_out(tmp_path, speech):
    run(tmp_path / "run", speech, mixture("spin", "dino:0.1"))
    waveforms, lengths = batch()["waveforms"], LENGTHS
    assert load(tmp_path / "run")(waveforms, lengths).last_hidden_state.isfinite().all()
    assert load_embedding(tmp_path / "run" / "dino")(waveforms, lengths).shape == (4, 16)
    units, counts = load_units(tmp_path / "run")(waveforms, lengths)
    assert int(units.max()) < 8
    assert (units >= 0).sum() == counts.sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ("score", "dine")}, "objectives: no 'dine'; did you mean 'dino'"),
        ({"objectives": ()}, "objectives: wants one or more of score, laser, spin, dino"),
        ({"objectives": ("score", "score:2")}, "objectives: 'score' is there twice"),
        ({"objectives": ("score:-1",)}, "objectives: the weight of 'score:-1'"),
        ({"objectives": ("score",), "dino": DINO}, "dino: has settings, but is no objective"),
        ({"objectives": ("score",), "orthogonality_weight": 1.0}, "orthogonality_weight: is bet"),
        ({"tuned_layers": 0}, "tuned_layers: wants at least 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        MixtureConfig(**settings)


def test_utterances_too_short_for_a_member_are_counted(tmp_path):
    data = toys(tmp_path / "speech", 4, 2, seconds=(0.15, 0.45))
    short = sum(1 for row in data if _seconds(row) < DINO.short_seconds)
    assert 0 < short < len(data)
    report = run(tmp_path / "run", data, mixture("score", "dino:0.1"))
    assert report.data["skipped"] == short


def _seconds(row):
    import soundfile

    return soundfile.info(row.audio).duration
