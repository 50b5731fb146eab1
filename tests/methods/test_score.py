"""SCORE as published: what is tuned, what is not, and what the loss is."""

from __future__ import annotations

import pytest
import torch

from speechft import models
from speechft import reference as R
from speechft.augment import make_keys
from speechft.errors import ConfigError
from speechft.methods import Score, ScoreConfig, get
from speechft.methods.content import project

LENGTHS = torch.tensor([4000, 6400, 5000])


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    waveforms = 0.1 * torch.randn(3, int(LENGTHS.max()), generator=generator)
    return waveforms, LENGTHS, make_keys(0, 0, torch.tensor([1, 2, 3]))


def test_registry():
    assert get("score") is Score
    with pytest.raises(ConfigError, match="did you mean 'score'"):
        get("scores")


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm"])
def test_tunes_the_top_two_layers_and_the_connector(kind):
    score = Score(models.tiny(kind))
    assert score.tuned()
    assert all(
        name.startswith(("encoder.layers.1.", "encoder.layers.2.")) for name in score.tuned()
    )
    assert not any(p.requires_grad for p in score.target.parameters())
    assert all(p.requires_grad for p in score.connector.parameters())
    score(*batch()).loss.backward()
    for name, parameter in score.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_switches_of_the_released_code():
    tuned = Score(models.tiny(), ScoreConfig(tune_feature_norm=True)).tuned()
    assert "feature_projection.layer_norm.weight" in tuned
    assert not Score(models.tiny()).train().target.training
    assert Score(models.tiny(), ScoreConfig(target_dropout=True)).train().target.training


def test_connector_and_speeds_as_published():
    hubert, wavlm = Score(models.tiny("hubert")), Score(models.tiny("wavlm"))
    assert [type(m).__name__ for m in hubert.connector] == ["Linear"]
    assert [type(m).__name__ for m in wavlm.connector] == ["Linear", "ReLU", "Linear"]
    assert hubert.perturb.augmentations[0].factors == (0.9, 1.0, 1.1)
    assert wavlm.perturb.augmentations[0].factors == (0.85, 0.9, 1.0, 1.1, 1.15)
    assert hubert.connector[0].out_features == 256
    assert torch.equal(Score(models.tiny(), seed=3).connector[0].weight,
                       Score(models.tiny(), seed=3).connector[0].weight)  # fmt: skip


def test_one_side_is_perturbed_and_a_coin_says_which():
    score = Score(models.tiny())
    count = 64
    waveforms = torch.randn(1, 3200).expand(count, -1)
    keys = make_keys(0, 0, torch.arange(count))
    lengths = torch.full((count,), 3200)
    views = score.views({"waveforms": waveforms, "lengths": lengths, "keys": keys})
    tuned, fixed = views["tuned"][0], views["fixed"][0]
    plain = torch.nn.functional.pad(waveforms, (0, tuned.shape[1] - 3200))
    tuned_is_plain = (tuned == plain).all(1)
    fixed_is_plain = (fixed == plain).all(1)
    assert (tuned_is_plain ^ fixed_is_plain).all()
    assert 0.25 < tuned_is_plain.float().mean() < 0.75


def test_loss_is_the_formula_and_knows_no_batch_mates():
    score = Score(models.tiny()).eval()
    waveforms, lengths, keys = batch()
    with torch.no_grad():
        together = score(waveforms, lengths, keys).loss
        alone = [
            score(waveforms[b : b + 1, : lengths[b]], lengths[b : b + 1], keys[b : b + 1]).loss
            for b in range(3)
        ]
        views = score.views({"waveforms": waveforms, "lengths": lengths, "keys": keys})
        a, b = score.encoder(*views["tuned"]), score.target(*views["fixed"])
        x, y = (project(score.connector, side.last_hidden_state) for side in (a, b))
        terms = [
            R.soft_dtw(p, q, n, m, reduction="none")
            for p, q, n, m in (
                (x, y, a.lengths, b.lengths),
                (x, x, a.lengths, a.lengths),
                (y, y, b.lengths, b.lengths),
            )
        ]
    formula = (terms[0] - (terms[1] + terms[2]) / 2) / (a.lengths + b.lengths)
    torch.testing.assert_close(together, formula.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "bad", [{"gamma": 0.0}, {"tuned_layers": 0}, {"bandwidth": 0}, {"connector_size": 0}]
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ScoreConfig(**bad)


def test_more_layers_than_there_are():
    with pytest.raises(ConfigError, match="tuned_layers: the encoder has 3"):
        Score(models.tiny(), ScoreConfig(tuned_layers=4))
