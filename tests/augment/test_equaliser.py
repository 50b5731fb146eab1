from __future__ import annotations

import math
from itertools import pairwise

import numpy
import pytest
import torch
from scipy import signal

from speechft.augment import HighPass, make_keys
from speechft.augment import base as base_module
from speechft.augment import equaliser as equaliser_module
from speechft.augment.compose import Compose
from speechft.augment.equaliser import Equaliser
from speechft.augment.parameters import Parameters
from speechft.errors import ArgumentError, ArgumentTypeError

from .signals import RATE, decibels, speech_like

KEYS = make_keys(0, 0, torch.arange(64))


def cookbook(kind: str, frequency: float, gain: float, q: float) -> list[float]:
    """A section as the cookbook writes it, as a row for ``scipy.signal.sosfilt``."""
    a = 10 ** (gain / 40)
    w = 2 * math.pi * frequency / RATE
    cos, alpha = math.cos(w), math.sin(w) / (2 * q)
    if kind == "peak":
        b = [1 + alpha * a, -2 * cos, 1 - alpha * a]
        d = [1 + alpha / a, -2 * cos, 1 - alpha / a]
    else:
        sign = 1 if kind == "low" else -1
        up, down, root = a + 1, sign * (a - 1), 2 * math.sqrt(a) * alpha
        b = [
            a * (up - down * cos + root),
            2 * sign * a * (a - 1 - sign * up * cos) if sign > 0 else -2 * a * (a - 1 + up * cos),
            a * (up - down * cos - root),
        ]
        d = [
            up + down * cos + root,
            -2 * (a - 1 + up * cos) if sign > 0 else 2 * (a - 1 - up * cos),
            up + down * cos - root,
        ]
    return [value / d[0] for value in b + d]


def sections(module: Equaliser, gains: list[float], qualities: list[float]) -> numpy.ndarray:
    kinds = ["low", *["peak"] * (len(gains) - 2), "high"]
    rows = zip(kinds, module.centers, gains, qualities, strict=True)
    return numpy.array([cookbook(*row) for row in rows])


def with_values(gains: torch.Tensor, q: torch.Tensor) -> Parameters:
    applied = torch.ones(len(gains), dtype=torch.bool)
    return Parameters({"applied": applied, "decibels": gains.double(), "q": q.double()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_cookbook_recursion(dtype: torch.dtype) -> None:
    """Against the recursion in float64, on noise and on speech: 1e-4 of the result at most."""
    module = Equaliser()
    drawn = module.parameters_for(KEYS[:8])
    noise = torch.randn(4, 16000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x = torch.cat([noise, torch.stack([speech_like(16000, seed=i).to(dtype) for i in range(4)])])
    y, lengths = module(x, None, KEYS[:8])
    assert lengths.tolist() == [16000] * 8
    for row in range(8):
        sos = sections(module, drawn["decibels"][row].tolist(), drawn["q"][row].tolist())
        wanted = torch.from_numpy(signal.sosfilt(sos, x[row].double().numpy()))
        assert decibels(y[row].double() - wanted) - decibels(wanted) < -80
        assert abs(decibels(wanted) - decibels(x[row])) > 0.1


def test_what_the_cut_costs() -> None:
    """The numbers of the docstring, on white noise: the response against the recursion's."""
    module = Equaliser()
    drawn = module.parameters_for(make_keys(0, 0, torch.arange(300)))
    [(response, delay)] = module.responses(drawn, torch.float32)
    assert response.shape == (300, 5120)
    assert not delay.any()
    impulse = numpy.zeros(16384)
    impulse[0] = 1
    errors, tails = [], []
    for row in range(300):
        sos = sections(module, drawn["decibels"][row].tolist(), drawn["q"][row].tolist())
        wanted = torch.from_numpy(signal.sosfilt(sos, impulse))
        tails.append(float(wanted[5120:].abs().max() / wanted.abs().max()))
        error = wanted.clone()
        error[:5120] -= response[row].double()
        errors.append(float(error.norm() / wanted.norm()))
    assert numpy.median(errors) < 1e-5
    assert max(errors) < 1e-4
    assert max(errors) < 5e-4
    assert max(tails) < 1e-4  # -80 dB


@pytest.mark.parametrize("gain", [-12.0, 12.0])
@pytest.mark.parametrize("q", [2.0, 5.0])
def test_the_longest_resonances_fit(gain: float, q: float) -> None:
    """All bands at an end of their range, on an impulse and on a tone at the lowest of them."""
    module = Equaliser()
    drawn = with_values(torch.full((1, 10), gain), torch.full((1, 10), q))
    sos = sections(module, [gain] * 10, [q] * 10)
    impulse = torch.zeros(1, 16384, dtype=torch.float64)
    impulse[0, 0] = 1
    tone = torch.sin(2 * math.pi * 60 / RATE * torch.arange(32000)).double()[None]
    for x, limit in ((impulse, -70), (tone, -55)):
        wanted = torch.from_numpy(signal.sosfilt(sos, x[0].numpy()))
        got = module.replay(x, None, drawn)[0][0]
        assert decibels(got - wanted) - decibels(wanted) < limit


def test_many_bands_stay_in_the_range_of_float32() -> None:
    module = Equaliser(32, 20.0, 7800.0, (-24, 24), (10, 10))
    drawn = module.parameters_for(KEYS[:4])
    [(response, _)] = module.responses(drawn, torch.float32)
    [(exact, _)] = module.responses(drawn, torch.float64)
    for row in range(4):
        sos = sections(module, drawn["decibels"][row].tolist(), drawn["q"][row].tolist())
        impulse = numpy.zeros(response.shape[1])
        impulse[0] = 1
        wanted = torch.from_numpy(signal.sosfilt(sos, impulse))
        for got in (response, exact):
            assert decibels(got[row].double() - wanted) - decibels(wanted) < -60


def test_gains_and_qualities_are_drawn_as_published() -> None:
    drawn = Equaliser().draw(make_keys(0, 0, torch.arange(4000)))
    gains, q = drawn["decibels"], drawn["q"]
    assert gains.shape == q.shape == (4000, 10)
    assert gains.dtype == torch.float64
    for values, low, high in ((gains, -12, 12), (q.log(), math.log(2), math.log(5))):
        assert low <= float(values.min()) < float(values.max()) < high
        share = (values.flatten().sort().values - low) / (high - low)
        even = (torch.arange(40000) + 0.5) / 40000
        assert float((share - even).abs().max()) < 1.95 / 200  # Kolmogorov, once in a thousand
    together = torch.corrcoef(torch.cat([gains, q], dim=1).T) - torch.eye(20)
    assert float(together.abs().max()) < 5 / math.sqrt(4000)


def test_the_centres_are_log_spaced() -> None:
    centers = Equaliser().centers
    assert centers[0] == pytest.approx(60)
    assert centers[-1] == pytest.approx(7600)
    ratios = [b / a for a, b in pairwise(centers)]
    assert ratios == pytest.approx([(7600 / 60) ** (1 / 9)] * 9)


def test_no_gain_is_no_filter() -> None:
    x = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    y, _ = Equaliser(decibels=0.0)(x, [3000, 100], KEYS[:2])
    torch.testing.assert_close(y[0], x[0], rtol=0, atol=2e-6)
    assert not y[1, 100:].any()


def test_what_is_not_applied_passes_the_bits() -> None:
    x = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    module = Equaliser(p=0.5)
    applied = module.parameters_for(KEYS)["applied"]
    y, _ = module(x, None, KEYS)
    assert 16 < int(applied.sum()) < 48
    assert torch.equal(y[~applied], x[~applied])
    assert bool((y != x).any(dim=1)[applied].all())


def test_the_bits_are_the_same_alone_and_the_batched_way_agrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = Equaliser()
    drawn = module.parameters_for(KEYS[:7])
    [(expected, _)] = module.responses(drawn, torch.float32)
    for row in range(7):
        [(alone, _)] = module.responses(drawn.rows(slice(row, row + 1)), torch.float32)
        assert torch.equal(alone[0], expected[row])
    for at in (base_module, equaliser_module):
        monkeypatch.setattr(at, "values_are_at_hand", lambda tensor: False)
    [(got, _)] = module.responses(drawn, torch.float32)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_it_is_merged_with_its_neighbours() -> None:
    x = torch.randn(4, 8000, generator=torch.Generator().manual_seed(0))
    both = Compose([HighPass(), Equaliser()])
    drawn = both.parameters_for(KEYS[:4])
    y, _ = both.replay(x, None, drawn)
    step, _ = HighPass().replay(x, None, drawn.members[0])
    step, _ = Equaliser().replay(step, None, drawn.members[1])
    # One after another each step is cut to the clip, which is heard at its ends alone.
    torch.testing.assert_close(y[:, 600:-600], step[:, 600:-600], rtol=0, atol=2e-2)


def test_what_it_says_of_itself() -> None:
    assert Equaliser().changes == frozenset()
    assert repr(Equaliser(p=0.5)) == (
        "Equaliser(bands=10, low=60, high=7600, decibels=(-12, 12), q=(2, 5), p=0.5)"
    )


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentError, match="bands: wants 3 to 32, got 2"):
        Equaliser(2)
    with pytest.raises(ArgumentTypeError, match=r"bands: wants an integer, got 2\.5"):
        Equaliser(2.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="low, high: want 20 to 7840 Hz"):
        Equaliser(10, 60.0, 8000.0)
    with pytest.raises(ArgumentError, match="low, high: want 20 to 3920 Hz"):
        Equaliser(high=4000.0, sample_rate=8000)
    with pytest.raises(ArgumentError, match="decibels: wants -24 to 24"):
        Equaliser(decibels=(-30, 0))
    with pytest.raises(ArgumentError, match=r"q: wants 0\.1 to 10"):
        Equaliser(q=(0, 5))
