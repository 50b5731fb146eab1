from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from speechft.augment import base as base_module
from speechft.augment import make_keys
from speechft.augment import tempo as tempo_module
from speechft.augment.tempo import Tempo
from speechft.augment.vocoder import HOP, WINDOW
from speechft.errors import ArgumentError, ArgumentTypeError

from .signals import decibels, fundamental, harmonic_tone, speech_like

KEY = torch.tensor([1])


def play(x: torch.Tensor, factor: float) -> torch.Tensor:
    return Tempo((factor,))(x.float()[None], None, KEY)[0][0]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.25, 2.0])
@pytest.mark.parametrize("f0", [95.0, 220.0])
def test_a_tone_keeps_its_pitch_and_its_level(factor: float, f0: float) -> None:
    x = harmonic_tone(f0, 32000)
    y = play(x, factor)
    assert len(y) == math.ceil(32000 / Fraction(factor).limit_denominator(100))
    heard = fundamental(y[2000:-2000], highest=1.5 * f0)
    assert abs(1200 * math.log2(heard / f0)) < 3
    assert abs(decibels(y[2000:-2000]) - decibels(x[2000:-2000])) < (0.2 if f0 > 200 else 1.0)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_events_move_with_the_tempo(factor: float) -> None:
    """Clicks, far apart, come out where they should be.

    The frame read is the nearest one, half a hop away at most. What lies off its middle, by about
    a hop, keeps its distance from there, which no tempo changes.
    """
    places = torch.tensor([3000, 9000, 20000, 29001])
    x = torch.zeros(32000)
    x[places] = 1.0
    y = play(x, factor)
    for place in places.tolist():
        wanted = round(place / factor)
        near = y[wanted - 1000 : wanted + 1000].double() ** 2
        centre = float((near * torch.arange(-1000, 1000)).sum() / near.sum())
        assert abs(centre) < HOP / 2 + HOP * abs(1 - factor)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speech_keeps_its_level_and_its_envelope(factor: float) -> None:
    x = speech_like(48000).float()
    y = play(x, factor)
    assert abs(decibels(y) - decibels(x)) < 1

    def power(signal: torch.Tensor, hop: float) -> torch.Tensor:
        """Frames at multiples of ``hop``, which need not be whole."""
        starts = (torch.arange(280) * hop).round().long()
        frames = torch.stack([signal[start : start + 400] for start in starts.tolist()])
        return torch.fft.rfft(frames * torch.hann_window(400)).abs() ** 2

    before, after = power(x, 160), power(y, 160 / factor)

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a, b]).log())[0, 1])

    assert correlation(before.sum(dim=1), after.sum(dim=1)) > 0.97
    assert correlation(before.mean(dim=0), after.mean(dim=0)) > 0.99


def test_factor_one_and_what_is_not_applied_pass_the_bits() -> None:
    x = torch.randn(2, 5000)
    for tempo in (Tempo((1.0,)), Tempo((0.5,), p=0.0)):
        y, lengths = tempo(x, [5000, 77], torch.arange(2))
        assert lengths.tolist() == [5000, 77]
        assert torch.equal(y[0], x[0])
        assert torch.equal(y[1, :77], x[1, :77])


@pytest.mark.parametrize("factors", [(0.9, 1.0, 1.1), (1.1, 2.0), (0.25, 4.0)])
def test_the_batched_way_agrees(
    factors: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(8, 6000, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths = [6000, 1, 5000, 37, 513, 6000, 4321, 128]
    keys = make_keys(0, 0, torch.arange(8))
    tempo = Tempo(factors, p=0.8)
    expected, after = tempo(x, lengths, keys)
    for module in (base_module, tempo_module):
        monkeypatch.setattr(module, "values_are_at_hand", lambda tensor: False)
    got, got_after = tempo(x, lengths, keys)
    assert torch.equal(got_after, after)
    assert got.shape[1] == math.ceil(6000 / min(1, *factors))
    torch.testing.assert_close(got[:, : expected.shape[1]], expected, rtol=0, atol=1e-6)
    assert not got[:, expected.shape[1] :].any()


@pytest.mark.parametrize("steps", [1, 2, 127, 128, 129, 257, 511, 512, 513, 1000])
@pytest.mark.parametrize("factor", [0.25, 0.9, 1.1, 4.0])
def test_every_length_works(steps: int, factor: float) -> None:
    x = torch.randn(1, steps, generator=torch.Generator().manual_seed(steps)).clamp(-3, 3)
    y, lengths = Tempo((factor,))(x, None, KEY)
    assert lengths.tolist() == [math.ceil(steps / Fraction(factor).limit_denominator(100))]
    assert y.shape == (1, int(lengths[0]))
    assert bool(y.isfinite().all())
    assert float(y.abs().max()) < 20


def test_silence_stays_silent() -> None:
    x = torch.zeros(16000)
    x[8000:] = harmonic_tone(200.0, 8000).float()
    y = play(x, 0.8)
    assert float(y[: 10000 - 2 * WINDOW].abs().max()) == 0.0
    assert float(y.abs().max()) > 0.05


def test_what_it_says_of_itself() -> None:
    tempo = Tempo((0.9, 1.1), p=0.5)
    assert tempo.changes == {"timing"}
    assert tempo.values == (0.9, 1.1)
    assert repr(tempo) == "Tempo(factors=(0.9, 1.1), p=0.5)"


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentError, match="factors: is empty"):
        Tempo(())
    with pytest.raises(ArgumentError, match=r"factors: wants tempos from 0\.25 to 4, got 5"):
        Tempo((1, 5))
    with pytest.raises(ArgumentTypeError, match="factors: wants a list or tuple"):
        Tempo(2)  # type: ignore[arg-type]
