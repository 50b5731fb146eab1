"""What is the CPU backend's own: two ways to a gradient, threads, memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from speechft import functional as F
from speechft import reference as R
from speechft.backends import compiled_module
from speechft.functional import _soft_dtw_cpu

if compiled_module() is None:
    pytest.skip("the compiled module is missing", allow_module_level=True)


def sequences(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(op, x: Tensor, y: Tensor, **options) -> list[Tensor]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = op(x, y, reduction="none", **options)
    weights = torch.linspace(1.0, 2.0, len(value)).to(value)
    return [value.detach(), *torch.autograd.grad(value, (x, y), weights)]


@pytest.fixture
def dense_pairs(monkeypatch):
    """How many pairs of each term went through GEMMs."""
    seen = []
    inner = _soft_dtw_cpu._Term.add_dense_gradients

    def spy(term):
        seen.append(int(term.dense.sum()))
        inner(term)

    monkeypatch.setattr(_soft_dtw_cpu._Term, "add_dense_gradients", spy)
    return seen


@pytest.mark.parametrize("features", [1, 7, 8, 65])
def test_pairs_of_both_kinds_in_one_batch(dense_pairs, features):
    """Sharp alignments are gathered cell by cell, blunt ones multiplied; the gradient is one."""
    x, y = sequences(40, 90, features), sequences(40, 70, features, seed=1)
    x[::3] *= 0.02  # nearly constant sequences: every path costs about the same
    y[::3] *= 0.02
    lengths = {"x_lengths": torch.arange(51, 91), "y_lengths": torch.arange(70, 30, -1)}
    options = {"gamma": 0.05, "divergence": True, "length_normalize": True, **lengths}
    got = gradients(F.soft_dtw, x, y, **options)
    assert any(0 < count < 40 for count in dense_pairs)
    exact = gradients(R.soft_dtw, x.double(), y.double(), **options)
    for one, true in zip(got, exact, strict=True):
        for pair in range(40):  # each pair for itself: the blunt ones' gradients are small
            scale = max(float(true[pair].abs().max()), 1e-3)
            # float32 costs of up to 130 over gamma, so weights to 1e-4
            assert float((one[pair] - true[pair]).abs().max()) < 3e-4 * scale


@pytest.mark.parametrize("gamma", [0.1, 100.0])
@pytest.mark.parametrize("needed", ["x", "y"])
def test_one_side_only(dense_pairs, gamma, needed):
    x, y = sequences(3, 200, 12), sequences(3, 180, 12, seed=1)
    _, of_x, of_y = gradients(F.soft_dtw, x, y, gamma=gamma, divergence=True)
    both = {"x": of_x, "y": of_y}
    leaves = {"x": x, "y": y}
    leaves[needed].requires_grad_()
    value = F.soft_dtw(x, y, gamma=gamma, divergence=True, reduction="none")
    (got,) = torch.autograd.grad(value, leaves[needed], torch.linspace(1.0, 2.0, 3))
    torch.testing.assert_close(got, both[needed], rtol=1e-6, atol=1e-5)
    assert (sum(dense_pairs) == 0) == (gamma == 0.1)


def test_the_gradient_against_itself_is_zero():
    """X against x: what the alignment pulls both ways cancels to the last bit."""
    x = sequences(4, 50, 16)
    got = gradients(F.soft_dtw, x, x, gamma=1e-3)
    assert not got[1].any()
    assert not got[2].any()


def on_threads(threads: int, run):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pairs", [1, 5, 40])
def test_threads_change_no_bit_of_the_programme(pairs):
    cost = sequences(pairs, 60, 45).square().requires_grad_()

    def run():
        value = F.soft_dtw_from_cost(cost, gamma=0.1, reduction="none")
        return value, torch.autograd.grad(value.sum(), cost)[0]

    one, two, five = (on_threads(threads, run) for threads in (1, 2, 5))
    for other in (two, five):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("gamma", [0.1, 100.0])
@pytest.mark.parametrize("pairs", [1, 5, 40])
def test_threads_change_nothing_but_the_rounding_of_gemms(pairs, gamma):
    x, y = sequences(pairs, 60, 24), sequences(pairs, 45, 24, seed=1)

    def run():
        return gradients(F.soft_dtw, x, y, gamma=gamma, divergence=True)

    one, two, five = (on_threads(threads, run) for threads in (1, 2, 5))
    for other in (two, five):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_runs_on_the_pool_of_torch():
    """Threads of its own would share the cores with torch's, which spin."""
    assert compiled_module().thread_pool() == "openmp"


_PEAK = """
import json, sys, torch
from torch.nn.functional import normalize
from speechft import functional as F
from speechft.bench.memory import resident_peak
torch.set_num_threads(2)
def step(*shape):
    x, y = (normalize(torch.randn(*shape), dim=-1).requires_grad_() for _ in range(2))
    def run():
        return torch.autograd.grad(F.soft_dtw(x, y, divergence=True), (x, y))
    return run
step(2, 8, 4)()
print(json.dumps(resident_peak(step(*map(int, sys.argv[1:])))))
"""


def test_memory_is_what_the_documentation_says():
    """Beyond inputs and gradients: a block's costs, and a thread's weights."""
    pairs, frames, features = 48, 400, 64
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, str(pairs), str(frames), str(features)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = json.loads(result.stdout)
    area, lanes = frames * frames, compiled_module().soft_dtw_lanes()
    block = max(lanes * 2, (1 << 22) // area)
    stated = 4 * area * block + 8 * area * lanes * 2  # costs, weights
    gradients_ = 4 * (2 * pairs * frames * features * 4)  # kept and returned, by x and by y
    assert stated / 2 < peak < 1.15 * stated + gradients_ + (6 << 20)
    everything = 12 * area * pairs * 3
    assert peak < everything / 3  # what all pairs and terms at once would take
