from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from speechft.augment import Pitch
from speechft.augment.resample import ZERO_CROSSINGS
from speechft.augment.vocoder import HOP, WINDOW, stretch
from speechft.errors import ArgumentError, ArgumentTypeError

from .signals import decibels, fundamental, harmonic_tone, speech_like

KEY = torch.tensor([1])


def shift(x: torch.Tensor, semitones: float) -> torch.Tensor:
    return Pitch((semitones,))(x.float()[None], None, KEY)[0][0]


@pytest.mark.parametrize("semitones", [-12, -5, -2, -1, -0.5, 1, 2, 7])
@pytest.mark.parametrize("f0", [95.0, 220.0])
def test_a_tone_moves_by_the_semitones_asked_for(semitones: float, f0: float) -> None:
    x = harmonic_tone(f0, 32000)
    y = shift(x, semitones)
    assert y.shape == x.shape
    wanted = f0 * 2 ** (semitones / 12)
    heard = fundamental(y[4000:-4000], highest=1.5 * wanted)
    assert abs(1200 * math.log2(heard / wanted)) < 3
    # Partials of a low voice shifted down share bins, which costs a little.
    assert abs(decibels(y[2000:-2000]) - decibels(x[2000:-2000])) < (0.2 if f0 > 200 else 1.5)


@pytest.mark.parametrize("semitones", [-2, 2])
def test_events_stay_where_they_are(semitones: float) -> None:
    """Clicks, far apart, come out within half a hop of where they went in."""
    places = torch.tensor([3000, 9000, 20000, 30001])
    x = torch.zeros(32000)
    x[places] = 1.0
    y = shift(x, semitones)
    for place in places.tolist():
        near = y[place - 1000 : place + 1000].double() ** 2
        centre = float((near * torch.arange(-1000, 1000)).sum() / near.sum())
        assert abs(centre) < HOP / 2


@pytest.mark.parametrize("semitones", [-2, 2])
def test_speech_keeps_its_contour_and_moves_its_envelope(semitones: float) -> None:
    x = speech_like(48000).float()
    y = shift(x, semitones)
    assert abs(decibels(y) - decibels(x)) < 1.5

    def power(signal: torch.Tensor) -> torch.Tensor:
        window = torch.hann_window(400)
        return torch.stft(signal, 400, 160, window=window, return_complex=True).abs() ** 2

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).log())[0, 1])

    before, after = power(x), power(y)
    assert correlation(before.sum(dim=0), after.sum(dim=0)) > 0.98
    # The envelope that was at f is now at f * ratio: read the old one at the new places.
    bins = torch.arange(160)
    moved = before[(bins / 2 ** (semitones / 12)).round().long()].mean(dim=1)
    assert correlation(moved, after[bins].mean(dim=1)) > 0.98
    assert correlation(moved, after[bins].mean(dim=1)) > correlation(
        before[bins].mean(dim=1), after[bins].mean(dim=1)
    )


def test_zero_semitones_pass_the_bits() -> None:
    x = torch.randn(2, 5000)
    y, lengths = Pitch((0,))(x, [5000, 77], torch.arange(2))
    assert lengths.tolist() == [5000, 77]
    assert torch.equal(y[0], x[0])
    assert torch.equal(y[1, :77], x[1, :77])


@pytest.mark.parametrize("steps", [1, 2, 63, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1000])
@pytest.mark.parametrize("semitones", [-24, -2, 2, 24])
def test_every_length_works(steps: int, semitones: float) -> None:
    x = torch.randn(1, steps, generator=torch.Generator().manual_seed(steps)).clamp(-3, 3)
    y, lengths = Pitch((semitones,))(x, None, KEY)
    assert lengths.tolist() == [steps]
    assert y.shape == x.shape
    assert bool(y.isfinite().all())
    assert float(y.abs().max()) < 20


def test_silence_stays_silent() -> None:
    x = torch.zeros(16000)
    x[8000:] = harmonic_tone(200.0, 8000).float()
    y = shift(x, 2)
    assert float(y[: 8000 - WINDOW - ZERO_CROSSINGS].abs().max()) == 0.0
    assert float(y.abs().max()) > 0.05


@pytest.mark.parametrize("steps", [1, 100, 128, 700, 5000])
def test_stretching_by_one_gives_the_clip_back(steps: int) -> None:
    """Analysis, phase sums, locking and overlap-add undo each other, up to both ends."""
    x = torch.randn(2, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = stretch(x, steps, 1, 1)
    # Phases are held in 2**-31 of a turn.
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)


def test_a_stretched_tone_lasts_longer_at_the_same_pitch() -> None:
    x = harmonic_tone(220.0, 32000).float()
    y = stretch(x[None], 40000, 5, 4)[0]
    assert abs(1200 * math.log2(fundamental(y[4000:-4000], highest=330) / 220)) < 1
    assert abs(decibels(y[2000:-2000]) - decibels(x[2000:-2000])) < 0.2


def test_ratios_are_within_a_cent() -> None:
    pitch = Pitch([n / 4 for n in range(-96, 97)])
    for fraction, semitones in zip(pitch.fractions, pitch.semitones, strict=True):
        assert abs(1200 * math.log2(fraction) - 100 * semitones) <= 1
    assert Pitch((-2, 2)).fractions == (Fraction(41, 46), Fraction(46, 41))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentError, match="semitones: is empty"):
        Pitch(())
    with pytest.raises(ArgumentError, match="semitones: wants -24 to 24, got 25"):
        Pitch((2, 25))
    with pytest.raises(ArgumentTypeError, match="semitones: wants a list or tuple"):
        Pitch(2)  # type: ignore[arg-type]
