"""KoLeo without an N x N matrix: nearest neighbours are found a block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.distributed import Gather, all_gather, group_of, place_of
from speechft.errors import ArgumentError
from speechft.functional._checks import check_finite, check_floating, check_positive
from speechft.reference._embeddings import normalized, wide
from speechft.reference._gathered import reduce_rows
from speechft.reference.koleo import EPSILON

ROWS = 1024  # whose products with all others exist at once


def koleo(
    x: Tensor, *, normalize: bool = True, epsilon: float = EPSILON, gather: Gather = False
) -> Tensor:
    r"""The KoLeo regulariser: it is small where embeddings are far from their nearest neighbours.

    .. math::

        L = - \frac 1 N \sum_i \log \Bigl( \min_{j \ne i} \lVert \hat x_i - \hat x_j \rVert
            + \epsilon \Bigr)

    Args:
        x: (N, D), floating point, 2 rows or more.
        normalize: make rows of length 1.
        epsilon: above 0.
        gather: neighbours are looked for in the rows of all ranks, and the mean is over all rows:
            True, or a process group. Batches are of one size.

    Returns:
        Tensor: a scalar; float32 (float64 for float64 inputs). Two rows that are the same have a
        distance of 0, and no gradient from each other.

    Raises:
        ArgumentError: a wrong rank, fewer than 2 rows over all ranks, ``epsilon <= 0``, NaN.
        ArgumentTypeError: inputs that are not floating point.

    Autocast changes nothing. Memory beyond inputs and outputs: products of 1024 rows with all, and
    copies of the rows.

    Source: Sablayrolles et al., ICLR 2019, equation 5; Oquab et al., "DINOv2", 2023.

    >>> import torch
    >>> abs(round(float(koleo(torch.eye(2))), 4))    # - log(sqrt(2))
    0.3466
    """
    check_floating(x, "x", "(N, D)")
    check_positive(epsilon, "epsilon")
    group = group_of(gather)
    rank, ranks = place_of(group)
    if len(x) * ranks < 2:
        raise ArgumentError("x", "is one row, which has no neighbour")
    check_finite(x, "x")
    rows = wide(normalized(x, normalize))
    others = all_gather(rows, group, "x")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, of which |a|^2 is the same for all b
        half = others.square().sum(1) / 2
        nearest = torch.cat([
            _nearest(rows[start : start + ROWS], others, half, rank * len(rows) + start)
            for start in range(0, len(rows), ROWS)
        ])  # fmt: skip
    gap = torch.linalg.vector_norm(rows - others[nearest], dim=-1)
    return reduce_rows(-(gap + epsilon).log(), "mean", group)


def _nearest(rows: Tensor, others: Tensor, half: Tensor, first: int) -> Tensor:
    """The index of each row's nearest other; row k itself is ``others[first + k]``."""
    nearness = torch.addmm(-half, rows, others.T)
    own = first + torch.arange(len(rows), device=rows.device)
    return nearness.scatter_(1, own[:, None], -torch.inf).argmax(1)
