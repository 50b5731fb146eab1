r"""Soft-DTW, by its definition, in PyTorch.

For sequences :math:`x_1 \dots x_n` and :math:`y_1 \dots y_m` with the cost
:math:`D_{ij} = \|x_i - y_j\|^2`,

.. math::

    R_{ij} = D_{ij} + \operatorname{softmin}_\gamma(R_{i-1,j-1}, R_{i-1,j}, R_{i,j-1}),
    \qquad
    \operatorname{softmin}_\gamma(a) = -\gamma \log \sum_k e^{-a_k / \gamma},

with :math:`R_{00} = 0` and :math:`R_{i0} = R_{0j} = \infty`; the value is :math:`R_{nm}`
(Cuturi & Blondel 2017, equations 1 and 2, algorithm 1). Cells of one anti-diagonal depend only on
the two before it, so the recursion runs over anti-diagonals, a whole batch of them at a time.

The cost comes from the Gram matrix, :math:`\|x_i\|^2 + \|y_j\|^2 - 2 x_i^\top y_j`: never an
N x M x D tensor. Everything is differentiable by autograd, to any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.reference._reduce import reduce_batch

# Stands for infinity: e^(-FAR / gamma) is 0, yet differences of two of them are finite, so that
# cells which no path reaches have a gradient of zero and not NaN.
FAR = 1e30


def soft_dtw(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    *,
    gamma: float = 0.1,
    bandwidth: int | None = None,
    divergence: bool = False,
    length_normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Soft-DTW of each pair of a batch; see :func:`speechft.functional.soft_dtw`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x = zero_padding(x.to(dtype), x_lengths)
        y = zero_padding(y.to(dtype), y_lengths)

        def value(a: Tensor, b: Tensor, n: Tensor | None, m: Tensor | None) -> Tensor:
            cost = squared_euclidean(a, b)
            return soft_dtw_from_cost(
                cost, n, m, gamma=gamma, bandwidth=bandwidth, reduction="none"
            )

        loss = value(x, y, x_lengths, y_lengths)
        if divergence:
            of_x = value(x, x, x_lengths, x_lengths)
            of_y = value(y, y, y_lengths, y_lengths)
            loss = loss - 0.5 * (of_x + of_y)
        if length_normalize:
            n = x.shape[1] if x_lengths is None else x_lengths
            m = y.shape[1] if y_lengths is None else y_lengths
            loss = loss / (n + m)
        return reduce_batch(loss, reduction)


def soft_dtw_from_cost(
    cost: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    *,
    gamma: float = 0.1,
    bandwidth: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Soft-DTW of ready costs (B, N, M); see :func:`speechft.functional.soft_dtw_from_cost`."""
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    batch, N, M = cost.shape
    device = cost.device
    full = torch.ones(batch, dtype=torch.int64, device=device)
    n = full * N if x_lengths is None else x_lengths
    m = full * M if y_lengths is None else y_lengths

    rows = torch.arange(1, N + 1, device=device)
    columns = torch.arange(1, M + 1, device=device)
    inside = (rows[:, None] <= n[:, None, None]) & (columns <= m[:, None, None])
    if bandwidth is not None:
        inside = inside & in_band(rows, columns, n, m, bandwidth)
    cost = torch.where(inside, cost, FAR)

    # diagonals[k][b, i] = cost[b, i, k - i]. Rows are widened to N + M and the flat memory is cut
    # anew, one shorter, which shifts each row by one more step. (unbind, because its backward is
    # one stack; indexing in the loop would make a gradient of the whole for every anti-diagonal.)
    skewed = torch.nn.functional.pad(cost, (0, N), value=FAR)
    skewed = skewed.reshape(batch, -1)[:, : N * (N + M - 1)].reshape(batch, N, N + M - 1)
    diagonals = skewed.permute(2, 0, 1).contiguous().unbind(0)

    outside = cost.new_full((batch, 1), FAR)
    before = cost.new_full((batch, N + 1), FAR)  # anti-diagonal k - 2; entry i is row i, from 0
    last = before  # anti-diagonal k - 1
    before = torch.cat([torch.zeros_like(outside), before[:, 1:]], dim=1)  # R[0, 0] = 0
    result = cost.new_zeros(batch)
    for k in range(N + M - 1):
        candidates = torch.stack([before[:, :-1], last[:, :-1], last[:, 1:]])
        softmin = -gamma * torch.logsumexp(candidates / -gamma, dim=0)
        current = torch.cat([outside, diagonals[k] + softmin], dim=1)
        result = torch.where(n + m - 2 == k, current.gather(1, n[:, None])[:, 0], result)
        before, last = last, current
    result = torch.where(result >= FAR / 2, torch.inf, result)  # the band admits no path
    return reduce_batch(result, reduction)


def in_band(rows: Tensor, columns: Tensor, n: Tensor, m: Tensor, bandwidth: int) -> Tensor:
    r"""Cells (B, N, M) of the band :math:`|i\,m - j\,n| \le w \max(n, m)`.

    A Sakoe-Chiba band along the diagonal of each pair's own rectangle. The width ``w`` is in
    frames of the shorter sequence, so it is symmetric in x and y, equals :math:`|i - j| \le w` for
    equal lengths, and admits a path for every ``w >= 1``.
    """
    n, m = n[:, None, None], m[:, None, None]
    return (rows[:, None] * m - columns * n).abs() <= bandwidth * torch.maximum(n, m)


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (B, N, M) of frames (B, N, D) and (B, M, D), by the Gram matrix."""
    norms = (x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None, :]
    return torch.baddbmm(norms, x, y.transpose(1, 2), alpha=-2.0)


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``x`` (B, T, D) with zeros beyond each length, whatever stood there (NaN too)."""
    if lengths is None:
        return x
    valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(valid[:, :, None], x, 0.0)
