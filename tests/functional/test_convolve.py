"""Filters of waveforms, by overlap-save, against scipy's sums and the definition."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from speechft import functional as F
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError

convolve_module = sys.modules["speechft.functional.convolve"]

LENGTHS = [6000, 1, 37, 4500]


def batch(taps: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6000, generator=g, dtype=torch.float64).to(dtype)
    h = torch.randn(4, taps, generator=g, dtype=torch.float64).to(dtype) / taps**0.5
    delay = torch.randint(0, taps, (4,), generator=g)
    return x, torch.tensor(LENGTHS), h, delay


@pytest.fixture(params=["a row at a time", "the batch at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "the batch at once":  # a GPU's
        monkeypatch.setattr(convolve_module, "_row_by_row", lambda x: False)
    return str(request.param)


@pytest.mark.parametrize("taps", [1, 2, 500, 5000, 9000])
def test_is_the_sum_that_defines_it(taps: int, way: str) -> None:
    x, lengths, h, delay = batch(taps)
    y = F.convolve(x, lengths, [(h, delay)])
    assert y.shape == x.shape
    for row, n in enumerate(LENGTHS):
        full = np.convolve(x[row, :n].double().numpy(), h[row].double().numpy())
        full = np.pad(full, (0, taps))[int(delay[row]) : int(delay[row]) + n]
        torch.testing.assert_close(y[row, :n].double(), torch.from_numpy(full), rtol=0, atol=1e-5)
        assert not y[row, n:].any()


def test_several_filters_are_one(way: str) -> None:
    x, lengths, h, delay = batch(300)
    _, _, k, lag = batch(41, seed=1)
    y = F.convolve(x, lengths, [(h, delay), (k, lag)])
    for row, n in enumerate(LENGTHS):
        both = scipy.signal.fftconvolve(h[row].double().numpy(), k[row].double().numpy())
        full = scipy.signal.oaconvolve(x[row, :n].double().numpy(), both)
        start = int(delay[row] + lag[row])
        full = torch.from_numpy(np.pad(full, (0, 400))[start : start + n].copy())
        torch.testing.assert_close(y[row, :n].double(), full, rtol=0, atol=1e-5)


def test_agrees_with_the_reference(way: str) -> None:
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        x, lengths, h, delay = batch(800, dtype=dtype)
        applied = torch.tensor([True, True, False, True])
        for where in (None, applied):
            expected = R.convolve(x.double(), lengths, [(h.double(), delay)], applied=where)
            y = F.convolve(x, lengths, [(h, delay)], applied=where)
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)


def test_rows_that_are_not_applied_pass_their_bits(way: str) -> None:
    x, lengths, h, delay = batch(99)
    applied = torch.tensor([False, True, True, False])
    y = F.convolve(x, lengths, [(h, delay)], applied=applied)
    assert torch.equal(y[0], x[0])
    assert torch.equal(y[3, :4500], x[3, :4500])
    assert not torch.equal(y[2, :37], x[2, :37])


def test_padding_and_batch_mates_mean_nothing(way: str) -> None:
    x, lengths, h, delay = batch(700)
    y = F.convolve(x, lengths, [(h, delay)])
    wide = torch.full((4, 9001), float("nan"))
    for row, n in enumerate(LENGTHS):
        wide[row, :n] = x[row, :n]
    got = F.convolve(wide, lengths, [(h, delay)])
    torch.testing.assert_close(got[:, :6000], y, rtol=0, atol=1e-6)
    assert not got[:, 6000:].any()
    alone = F.convolve(x[3:, :4500], None, [(h[3:], delay[3:])])
    torch.testing.assert_close(alone[0], y[3, :4500], rtol=0, atol=1e-6)
    if way == "a row at a time":
        assert torch.equal(alone[0], y[3, :4500])
        assert torch.equal(got[:, :6000], y)


def test_half_precision_is_computed_in_float32(way: str) -> None:
    x, lengths, h, delay = batch(99)
    y = F.convolve(x.bfloat16(), lengths, [(h, delay)])
    assert y.dtype == torch.bfloat16
    expected = F.convolve(x.bfloat16().float(), lengths, [(h, delay)])
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-6)


def test_compiles_to_one_graph() -> None:
    x, lengths, h, delay = batch(99)
    compiled = torch.compile(
        lambda *a: F.convolve(a[0], a[1], [(a[2], a[3])]), backend="eager", fullgraph=True
    )
    expected = F.convolve(x, lengths, [(h, delay)])
    torch.testing.assert_close(compiled(x, lengths, h, delay), expected, rtol=0, atol=1e-6)


def test_bad_arguments_are_named() -> None:
    x, lengths, h, delay = batch(9)
    with pytest.raises(ArgumentError, match="responses: is empty"):
        F.convolve(x, lengths, [])
    with pytest.raises(ArgumentError, match="responses: wants 4 rows and delays"):
        F.convolve(x, lengths, [(h[:3], delay)])
    with pytest.raises(ArgumentTypeError, match="responses: wants floating point"):
        F.convolve(x, lengths, [(h.long(), delay)])
    with pytest.raises(ArgumentTypeError, match="applied: wants booleans"):
        F.convolve(x, lengths, [(h, delay)], applied=delay)
    with pytest.raises(LengthError, match="lengths"):
        F.convolve(x, [6001, 1, 1, 1], [(h, delay)])
