"""The peers compute what they are timed for: values and gradients of the reference in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from speechft import reference as R

pytest.importorskip("numba")
from speechft.bench.peers import soft_dtw_numba as peers


def sequences(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def both(op, *leaves: Tensor, **settings) -> list[Tensor]:
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    value = op(*leaves, **settings)
    weights = torch.arange(1.0, len(value) + 1).to(value)  # an incoming gradient of each pair's own
    return [value.detach(), *torch.autograd.grad(value, leaves, weights)]


@pytest.mark.parametrize("divergence", [False, True])
@pytest.mark.parametrize("gamma", [0.1, 2.0])
@pytest.mark.parametrize("sizes", [(7, 5), (4, 9), (1, 6), (1, 1)])
@pytest.mark.parametrize("name", ["score", "gram"])
def test_peer_agrees_with_the_reference(name, sizes, gamma, divergence):
    x, y = sequences(3, sizes[0], 4), sequences(3, sizes[1], 4)
    settings = {"gamma": gamma, "divergence": divergence, "length_normalize": True}
    got = both(getattr(peers, name), x, y, **settings)
    want = both(R.soft_dtw, x, y, **settings, reduction="none")
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gram_peer_knows_lengths():
    x, y = sequences(3, 8, 4), sequences(3, 6, 4)
    n, m = torch.tensor([8, 3, 1]), torch.tensor([2, 6, 5])
    for divergence in (False, True):
        settings = {"gamma": 0.3, "divergence": divergence, "length_normalize": True}
        got = both(lambda a, b: peers.gram(a, b, n, m, **settings), x, y)  # noqa: B023
        want = both(lambda a, b: R.soft_dtw(a, b, n, m, **settings, reduction="none"), x, y)  # noqa: B023
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_programme_alone_keeps_the_dtype_of_the_cost():
    cost = sequences(2, 6, 6).square()
    exact = both(peers.from_cost, cost, gamma=0.1)
    single = both(peers.from_cost, cost.float(), gamma=0.1)
    assert single[0].dtype == single[1].dtype == torch.float32
    # float32 all through: close, and not as close as float64 rounded at the end
    assert 1e-9 < float((single[1] - exact[1]).abs().max()) < 1e-3


def test_leaves_torch_the_threads_that_it_has():
    """In a process of its own: numba starts its threads once, and OpenMP's number is common."""
    code = (
        "import torch; from speechft.bench.peers import soft_dtw_numba as peers; "
        "torch.set_num_threads(1); peers.from_cost(torch.rand(2, 3, 4), gamma=1.0); "
        "import numba; print(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)"
    )
    many = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=many, check=True
    )
    assert done.stdout.split() == ["1", "2"]
