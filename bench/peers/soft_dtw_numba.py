r"""Soft-DTW as it is used today: a numba dynamic programme on a cost that torch makes.

The recursion keeps absolute values of

.. math::

    R_{ij} = D_{ij} - \gamma \log \left( e^{-R_{i-1,j-1} / \gamma} + e^{-R_{i-1,j} / \gamma}
                                        + e^{-R_{i,j-1} / \gamma} \right),

and its gradient makes the weights anew from differences of them (Cuturi & Blondel 2017,
algorithms 1 and 2):

.. math::

    E_{ij} = \sum_{(a, b) \in \{(i+1, j), (i, j+1), (i+1, j+1)\}}
             e^{(R_{ab} - R_{ij} - D_{ab}) / \gamma} E_{ab}.

Two forms of it are timed:

* :func:`score`, what SCORE and LASER run: an N x M x D difference makes the cost, one thread, one
  pair at a time, three calls for the divergence;
* :func:`gram`, the same programme given what it lacks: a cost by the Gram matrix, and pairs spread
  over all threads.

Everything is in the dtype of the cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]
Programme = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@numba.njit(fastmath=False, nogil=True)
def _values(cost, n, m, gamma, R):  # type: ignore[no-untyped-def]
    """Fill R (N + 2, M + 2) of one pair; row and column 0 are the border."""
    R[: n + 1, 0] = np.inf
    R[0, : m + 1] = np.inf
    R[0, 0] = 0.0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            diagonal, above, left = R[i - 1, j - 1], R[i - 1, j], R[i, j - 1]
            least = min(diagonal, above, left)
            total = (
                np.exp((least - diagonal) / gamma)
                + np.exp((least - above) / gamma)
                + np.exp((least - left) / gamma)
            )
            R[i, j] = cost[i - 1, j - 1] + least - gamma * np.log(total)
    return R[n, m]


@numba.njit(fastmath=False, nogil=True)
def _gradient(cost, n, m, gamma, R, E):  # type: ignore[no-untyped-def]
    """E (N, M), the gradient of R[n, m] by the cost of one pair."""
    E[:] = 0.0
    E[n - 1, m - 1] = 1.0
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            here = R[i + 1, j + 1]
            if i + 1 < n:
                weight = np.exp((R[i + 2, j + 1] - here - cost[i + 1, j]) / gamma)
                E[i, j] += weight * E[i + 1, j]
            if j + 1 < m:
                weight = np.exp((R[i + 1, j + 2] - here - cost[i, j + 1]) / gamma)
                E[i, j] += weight * E[i, j + 1]
            if i + 1 < n and j + 1 < m:
                weight = np.exp((R[i + 2, j + 2] - here - cost[i + 1, j + 1]) / gamma)
                E[i, j] += weight * E[i + 1, j + 1]


@numba.njit(nogil=True)
def _values_one_by_one(cost, n, m, gamma, R, value):  # type: ignore[no-untyped-def]
    for b in range(len(cost)):
        value[b] = _values(cost[b], n[b], m[b], gamma, R[b])


@numba.njit(nogil=True)
def _gradients_one_by_one(cost, n, m, gamma, R, E):  # type: ignore[no-untyped-def]
    for b in range(len(cost)):
        _gradient(cost[b], n[b], m[b], gamma, R[b], E[b])


@numba.njit(parallel=True, nogil=True)
def _values_side_by_side(cost, n, m, gamma, R, value):  # type: ignore[no-untyped-def]
    for b in numba.prange(len(cost)):
        value[b] = _values(cost[b], n[b], m[b], gamma, R[b])


@numba.njit(parallel=True, nogil=True)
def _gradients_side_by_side(cost, n, m, gamma, R, E):  # type: ignore[no-untyped-def]
    for b in numba.prange(len(cost)):
        _gradient(cost[b], n[b], m[b], gamma, R[b], E[b])


class _SoftDTW(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, n: Tensor, m: Tensor, gamma: float, parallel: bool
    ) -> Tensor:
        batch, N, M = cost.shape
        ctx.parallel, ctx.gamma = parallel, gamma
        R = torch.empty(batch, N + 2, M + 2, dtype=cost.dtype)
        value = torch.empty(batch, dtype=cost.dtype)
        run = _values_side_by_side if parallel else _values_one_by_one
        run(*_arrays(cost, n, m), _scalar(gamma, cost), *_arrays(R, value))
        ctx.save_for_backward(cost, n, m, R)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        cost, n, m, R = ctx.saved_tensors
        E = torch.empty_like(cost)
        run = _gradients_side_by_side if ctx.parallel else _gradients_one_by_one
        run(*_arrays(cost, n, m), _scalar(ctx.gamma, cost), *_arrays(R, E))
        return E.mul_(grad[:, None, None]), None, None, None, None


def _arrays(*tensors: Tensor) -> list[np.ndarray[Any, Any]]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _scalar(value: float, like: Tensor) -> np.floating[Any]:
    return np.float64(value) if like.dtype == torch.float64 else np.float32(value)  # type: ignore[no-any-return]


def from_cost(
    cost: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    *,
    gamma: float,
    parallel: bool = True,
) -> Tensor:
    """Soft-DTW (B,) of costs (B, N, M); ``parallel`` spreads the pairs over numba's threads."""
    threads = torch.get_num_threads()
    if parallel:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    full = torch.ones(len(cost), dtype=torch.int64)
    n = full * cost.shape[1] if x_lengths is None else x_lengths
    m = full * cost.shape[2] if y_lengths is None else y_lengths
    value: Tensor = _SoftDTW.apply(cost, n, m, gamma, parallel)  # type: ignore[no-untyped-call]
    # As it starts its threads numba sets OpenMP's number of them, which torch has in common.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return value


def difference_cost(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (B, N, M) through the whole difference (B, N, M, D)."""
    return ((x[:, :, None] - y[:, None]) ** 2).sum(-1)


def gram_cost(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (B, N, M) through the Gram matrix, whatever autograd makes of it."""
    norms = (x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None]
    return torch.baddbmm(norms, x, y.transpose(1, 2), alpha=-2.0)


def score(
    x: Tensor, y: Tensor, *, gamma: float, divergence: bool = False, length_normalize: bool = False
) -> Tensor:
    """Soft-DTW (B,) of sequences (B, N, D) and (B, M, D) as SCORE has it: give it one pair."""
    return _loss(
        x, y, None, None, gamma, divergence, length_normalize, cost=difference_cost, parallel=False
    )


def gram(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    *,
    gamma: float,
    divergence: bool = False,
    length_normalize: bool = False,
) -> Tensor:
    """Soft-DTW (B,) of sequences (B, N, D) and (B, M, D), on the Gram matrix and all threads."""
    return _loss(
        x, y, x_lengths, y_lengths, gamma, divergence, length_normalize,
        cost=gram_cost, parallel=True,
    )  # fmt: skip


def _loss(
    x: Tensor,
    y: Tensor,
    n: Tensor | None,
    m: Tensor | None,
    gamma: float,
    divergence: bool,
    length_normalize: bool,
    *,
    cost: Cost,
    parallel: bool,
) -> Tensor:
    value = from_cost(cost(x, y), n, m, gamma=gamma, parallel=parallel)
    if divergence:
        of_x = from_cost(cost(x, x), n, n, gamma=gamma, parallel=parallel)
        of_y = from_cost(cost(y, y), m, m, gamma=gamma, parallel=parallel)
        value = value - 0.5 * (of_x + of_y)
    if length_normalize:
        value = value / ((x.shape[1] if n is None else n) + (y.shape[1] if m is None else m))
    return value
