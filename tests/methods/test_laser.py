"""LASER as published: both sides train, the loss is the formula, and a collapse is seen."""

from __future__ import annotations

import pytest
import torch

from speechft import models
from speechft import reference as R
from speechft.augment import make_keys
from speechft.errors import CollapsedError, ConfigError
from speechft.methods import Laser, LaserConfig, get
from speechft.methods.content import project
from speechft.methods.refine import refine
from speechft.training import TrainingSettings
from tests.toy_corpus import toys

LENGTHS = torch.tensor([4000, 6400, 5000])


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "waveforms": 0.1 * torch.randn(3, int(LENGTHS.max()), generator=generator),
        "lengths": LENGTHS,
        "keys": make_keys(0, 0, torch.tensor([1, 2, 3])),
    }


def test_registry():
    assert get("laser") is Laser


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_settings_as_published(kind):
    laser = Laser(models.tiny(kind))
    margin, alpha, speeds = {
        "hubert": (1.1, 0.4, (0.9, 1.0, 1.1)),
        "wavlm": (1.0, 0.15, (0.8, 0.85, 0.9, 1.0, 1.1, 1.15, 1.2)),
    }[kind]
    assert (laser.regulariser.margin, laser.alpha) == (margin, alpha)
    assert laser.regulariser.sigma == 0
    assert laser.perturb.augmentations[0].factors == speeds
    assert [type(m).__name__ for m in laser.connector] == ["Linear"]
    assert all(n.startswith(("encoder.layers.1.", "encoder.layers.2.")) for n in laser.tuned())


def test_nothing_is_copied():
    """There is no frozen target: tensors are those of the encoder and of the connector."""
    encoder = models.tiny()
    laser = Laser(encoder)
    own = {id(p) for p in (*encoder.parameters(), *laser.connector.parameters())}
    assert {id(p) for p in laser.parameters()} == own


def formula(laser: Laser, one: dict[str, torch.Tensor]) -> torch.Tensor:
    """From the definitions, in the order of the paper."""
    views = laser.views(one)
    a, b = (laser.encoder(*views[name]) for name in ("plain", "perturbed"))
    x, y = (project(laser.connector, side.last_hidden_state) for side in (a, b))
    sdtw = [
        R.soft_dtw(p, q, n, m, gamma=0.1, reduction="none")
        for p, q, n, m in (
            (x, y, a.lengths, b.lengths),
            (x, x, a.lengths, a.lengths),
            (y, y, b.lengths, b.lengths),
        )
    ]
    apart = [
        R.temporal_idm(p, n, sigma=0.0, margin=1.1, reduction="none")
        for p, n in ((x, a.lengths), (y, b.lengths))
    ]
    return sdtw[0] - (sdtw[1] + sdtw[2]) / 2 + 0.4 * (apart[0] + apart[1])


def test_loss_is_the_formula_and_knows_no_batch_mates():
    laser, one = Laser(models.tiny()).eval(), batch()
    with torch.no_grad():
        together = laser(**one).loss
        alone = [
            laser(
                one["waveforms"][b : b + 1, : LENGTHS[b]],
                LENGTHS[b : b + 1],
                one["keys"][b : b + 1],
            ).loss
            for b in range(3)
        ]
        expected = formula(laser, one)
    torch.testing.assert_close(together, expected.mean(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_formula_on_both_sides():
    laser, one = Laser(models.tiny()).eval(), batch()
    weights = [p for p in laser.parameters() if p.requires_grad]
    ours = torch.autograd.grad(laser(**one).loss, weights)
    theirs = torch.autograd.grad(formula(laser, one).mean(), weights)
    largest = max(float(true.abs().max()) for true in theirs)
    for mine, true in zip(ours, theirs, strict=True):  # some are 0 but for rounding
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-5 * largest)


def test_frame_step_is_of_valid_frames():
    laser = Laser(models.tiny()).eval()
    one = batch()
    output = laser(**one)
    found = laser.monitors()
    frames = laser.encoder(*laser.views(one)["plain"])
    x = project(laser.connector, frames.last_hidden_state)
    steps = [1 - x[b, t] @ x[b, t + 1] for b in range(3) for t in range(int(frames.lengths[b]) - 1)]
    torch.testing.assert_close(found["frame_step"], torch.stack(steps).mean())
    torch.testing.assert_close(
        output.loss.detach(), found["alignment"] + 0.4 * found["regulariser"]
    )


@pytest.mark.parametrize(
    "bad",
    [{"gamma": 0.0}, {"alpha": -1.0}, {"margin": -0.1}, {"sigma": -1.0}, {"bandwidth": 0},
     {"tuned_layers": 0}, {"connector_size": 0}],
)  # fmt: skip
def test_bad_settings_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        LaserConfig(**bad)


def train(output, data, alpha):
    training = TrainingSettings(
        steps=100, learning_rate=3e-3, warmup_steps=10, batch_size=4, evaluate_utterances=4
    )
    return refine(
        model=models.tiny(), method="laser", data=data, output=output,
        config=LaserConfig(alpha=alpha), training=training,
    )  # fmt: skip


def test_without_the_regulariser_frames_become_one_and_the_run_stops(tmp_path):
    data = toys(tmp_path / "speech", 4, 2)
    with pytest.raises(CollapsedError, match=r"frame_step .* raise alpha") as caught:
        train(tmp_path / "run", data, 0.0)
    assert caught.value.monitor == "frame_step"


def test_as_published_they_keep_apart(tmp_path):
    report = train(tmp_path / "run", toys(tmp_path / "speech", 4, 2), None)
    assert report.loss_after < report.loss_before
