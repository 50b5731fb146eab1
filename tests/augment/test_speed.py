from __future__ import annotations

import math
from fractions import Fraction

import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft.augment import Speed
from speechft.augment.resample import nearest_fraction, passband, resample, resampled_length
from speechft.errors import ArgumentError, ArgumentTypeError

from .signals import band_limited_noise, decibels

KEY = torch.tensor([1])
FACTORS = [0.1, 0.5, 0.85, 0.9, 1.1, 1.15, 1.2, 2.0, 4.0]


def play(x: torch.Tensor, factor: float, **settings: int) -> torch.Tensor:
    return Speed((factor,), **settings)(x[None], None, KEY)[0][0]


@pytest.mark.parametrize("factor", FACTORS)
def test_agrees_with_soxr_in_the_pass_band(factor: float) -> None:
    x = band_limited_noise(32000, passband(80) * min(1, 1 / factor))
    expected = torch.from_numpy(soxr.resample(x.numpy(), factor * 1000, 1000, quality="VHQ"))
    got = play(x.float(), factor).double()
    inner = slice(int(400 / factor), min(len(got), len(expected)) - int(400 / factor))
    error = got[inner] - expected[inner]
    assert decibels(expected[inner]) - decibels(error) > 76  # where the ripple of its pass band is


@pytest.mark.parametrize("factor", [1.1, 1.15, 2.0])
@pytest.mark.parametrize("above", [1.01, 1.05, 1.1])
def test_a_tone_above_the_new_nyquist_does_not_fold_back(factor: float, above: float) -> None:
    frequency = math.pi * min(0.999, above / factor)
    x = torch.sin(frequency * torch.arange(32000, dtype=torch.float64))
    assert decibels(play(x.float(), factor)[400:-400]) - decibels(x) < -126


@pytest.mark.parametrize("zero_crossings", [16, 64])
def test_the_pass_band_is_what_it_says(zero_crossings: int) -> None:
    for share, low, high in ((1.0, -0.02, 0.02), (1 / passband(zero_crossings), -90, -50)):
        frequency = math.pi * 0.999 * share * passband(zero_crossings) / 1.1
        x = torch.sin(frequency * torch.arange(32000, dtype=torch.float64))
        y = play(x, 1.1, zero_crossings=zero_crossings)[400:-400]
        if share == 1.0:
            assert low < decibels(y) - decibels(x) < high
    assert passband(64) > passband(32) > passband(16)


def test_a_factor_plays_that_much_faster() -> None:
    x = torch.zeros(16000)
    x[5000] = 1.0
    assert int(play(x, 1.25).argmax()) == 4000
    assert int(play(x, 0.8).argmax()) == 6250


def test_a_constant_stays_what_it_is() -> None:
    for factor in FACTORS:
        inner = play(torch.ones(16000), factor)[int(400 / factor) : -int(400 / factor)]
        assert float((inner - 1).abs().max()) < 1e-5


@settings(deadline=None, max_examples=200)
@given(n=st.integers(1, 10**7), p=st.integers(1, 200), q=st.integers(1, 200))
def test_the_length_is_every_output_that_lies_before_the_end(n: int, p: int, q: int) -> None:
    speed = Fraction(p, q)
    length = resampled_length(n, speed)
    assert (length - 1) * speed < n <= length * speed
    assert int(resampled_length(torch.tensor([n]), speed)[0]) == length


@pytest.mark.parametrize("steps", [1, 2, 3, 17, 100, 4321])
@pytest.mark.parametrize("factor", FACTORS)
def test_every_length_works(steps: int, factor: float) -> None:
    x = torch.randn(1, steps, generator=torch.Generator().manual_seed(steps))
    y, lengths = Speed((factor,))(x, None, KEY)
    exact = math.ceil(steps / nearest_fraction(factor))
    assert lengths.tolist() == [exact]
    assert y.shape == (1, exact)
    assert bool(y.isfinite().all())


def test_equals_the_sum_that_defines_it() -> None:
    """Against the formula written as one dense matrix, on a clip with several blocks."""
    n, speed, z = 700, Fraction(11, 10), 16
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = resampled_length(n, speed)
    tenths = torch.arange(-100, n + 100)[:, None] * 10 - torch.arange(outputs) * 11
    offset = tenths.double() / 10
    attenuation, half = 132.0, z * 1.1
    cutoff = (1 - (attenuation - 7.95) / (2.285 * 2 * math.pi) / (2 * z)) / 1.1
    beta = 0.1102 * (attenuation - 8.7)
    window = torch.special.i0(beta * (1 - (offset / half) ** 2).clamp(min=0).sqrt())
    taps = torch.sinc(cutoff * offset) * window * (tenths.abs() <= z * 11)
    taps = (taps / taps.sum(dim=0))[100:-100]
    got = resample(x[None], speed, zero_crossings=z)[0]
    torch.testing.assert_close(got, x @ taps, rtol=0, atol=1e-12)


def test_factor_one_passes_the_bits() -> None:
    x = torch.randn(3, 1000)
    y, lengths = Speed((1.0,))(x, [1000, 10, 1], torch.arange(3))
    assert lengths.tolist() == [1000, 10, 1]
    assert torch.equal(y[0], x[0])
    assert torch.equal(y[1, :10], x[1, :10])
    assert y.data_ptr() != x.data_ptr()


def test_fractions() -> None:
    assert Speed((0.85, 0.9, 1.0, 1.15)).fractions == (
        Fraction(17, 20),
        Fraction(9, 10),
        Fraction(1),
        Fraction(23, 20),
    )
    assert all(nearest_fraction(n / 100) == Fraction(n, 100) for n in range(10, 1001))
    odd = nearest_fraction(1.0372)
    assert odd.denominator <= 100
    assert abs(float(odd) - 1.0372) < 2e-4


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentError, match="factors: is empty"):
        Speed(())
    for bad in (0.0, -1.0, 0.05, 11.0):
        with pytest.raises(ArgumentError, match=r"factors: wants speeds from 0\.1 to 10"):
            Speed((1.0, bad))
    for bad in (math.nan, math.inf):
        with pytest.raises(ArgumentError, match="factors: wants finite"):
            Speed((bad,))
    for wrong in (1.1, "0.9", [1.0, "1.1"], [True], None):
        with pytest.raises(ArgumentTypeError, match="factors: wants a list or tuple"):
            Speed(wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="zero_crossings: wants at least 16"):
        Speed(zero_crossings=0)


@pytest.mark.parametrize("factor", [1.1, 1.25])
def test_aliases_are_rejected_as_by_soxr(factor: float) -> None:
    loudest = {"ours": -200.0, "soxr": -200.0}
    for above in (1.005, 1.02, 1.05, 1.08):
        x = 0.5 * torch.sin(math.pi * above / factor * torch.arange(32000, dtype=torch.float64))
        theirs = soxr.resample(x.float().numpy(), factor * 1000, 1000, quality="HQ")
        for name, y in (("ours", play(x.float(), factor)), ("soxr", torch.from_numpy(theirs))):
            loudest[name] = max(loudest[name], decibels(y[1000:-1000]) - decibels(x))
    assert loudest["ours"] < loudest["soxr"] + 6
    assert loudest["soxr"] < -125


def test_the_pass_band_is_flat() -> None:
    for share in (0.05, 0.3, 0.6, 0.99):
        frequency = math.pi * share * passband(80) / 1.1
        x = torch.sin(frequency * torch.arange(64000, dtype=torch.float64))
        assert abs(decibels(play(x.float(), 1.1)[2000:-2000]) - decibels(x)) < 1e-3
