r"""Barlow Twins by the smaller Gram side: N x N instead of D x D where the batch is small.

The energy off the diagonal of :math:`C = \hat Z_1^\top \hat Z_2 / N` is that of all entries less
that of the diagonal, and the first is
:math:`\langle \hat Z_1 \hat Z_1^\top, \hat Z_2 \hat Z_2^\top \rangle / N^2`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from speechft.distributed import Gather, all_gather, all_reduce, group_of
from speechft.functional._checks import check_weight
from speechft.functional._gram import cross_energy, cross_energy_of_ranks, rows_are_fewer
from speechft.functional._views import centre, check_views, rows_of
from speechft.reference._embeddings import wide
from speechft.reference.barlow_twins import EPSILON


def barlow_twins(z1: Tensor, z2: Tensor, *, lambd: float = 5e-3, gather: Gather = False) -> Tensor:
    r"""Barlow Twins: each dimension of two views is correlated with its twin and no other.

    .. math::

        C = \frac 1 N \hat Z_1^\top \hat Z_2, \qquad
        L = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2,

    where :math:`\hat Z` is :math:`Z` with mean 0 and variance 1 in each dimension, over the batch:
    ``BatchNorm1d(affine=False)`` in training, with its biased variance and its epsilon of 1e-5.

    Args:
        z1: embeddings (N, D) of one view of N samples, floating point, N at least 2.
        z2: of the other view, with the shape, dtype and device of ``z1``.
        lambd: weight of the redundancy, 0 or above.
        gather: the loss of the batches of all ranks of ``torch.distributed`` (True, or a process
            group), of one shape. Each rank returns the whole loss, and the gradient that
            ``DistributedDataParallel`` averages is that of one process.

    Returns:
        Tensor: a scalar, a sum over dimensions; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, fewer than 2 samples, a negative ``lambd``, NaN,
            ``gather`` without a process group or with batches of unequal shapes.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.

    A dimension that is constant over the batch counts as uncorrelated with all, itself too, and
    has a finite gradient. Values of GPU tensors are checked only inside
    :func:`speechft.checked`. Under autocast the loss is computed in float32. It has a second
    derivative, but not with ``gather``. On a GPU, where N <= D/2, the sum off the diagonal is
    rounded as the whole of :math:`\sum C_{ij}^2`.

    Memory beyond inputs and gradients: seven float32 tensors (N, D), and two N x N where N <= D/2
    or 1024 x D where not; never D x D. With ``gather``, N is that of all ranks where N <= D/4;
    where not, nothing is gathered, and D x D products are summed over the ranks.

    Source: Zbontar et al., "Barlow Twins", ICML 2021, equations 1 and 2. Other code differs:
    lightly, until July 2026, returned under DDP a gradient that is too small by the number of
    ranks (lightly#1977), and its first versions divided by the unbiased standard deviation, with
    no epsilon; Lux, Chen & Vu (2022) have a ``lambd`` of 5.1e-4 on speech.

    >>> import torch
    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(float(barlow_twins(z, z)), 6), round(float(barlow_twins(z, z.flip(1))), 3)
    (0.0, 2.01)
    """
    group = group_of(gather)
    check_views(z1, z2, group)
    lambd = check_weight(lambd, "lambd")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = wide(z1), wide(z2)
        rows = rows_of(z1, group)
        if rows == len(z1) or rows_are_fewer(rows, z1.shape[1], z1.shape[1], gathered=True):
            z1, z2 = (_standardize(all_gather(z, group)) for z in (z1, z2))
            on = torch.linalg.vecdot(z1, z2, dim=0) / rows
            off = cross_energy(z1, z2, off_diagonal=True)
        else:
            z1, z2 = _standardize_over_ranks(z1, z2, rows, group)
            on = all_reduce(torch.linalg.vecdot(z1, z2, dim=0), group) / rows
            off = cross_energy_of_ranks(z1, z2, group, off_diagonal=True)
        loss: Tensor = (on - 1).square().sum() + lambd / rows**2 * off
        return loss


def _standardize(z: Tensor) -> Tensor:
    # PyTorch's loses the digits of a variance far below the squared mean, so that mean is taken
    # away before; a shift has no derivative here.
    return batch_norm(z - z.detach().mean(0), None, None, training=True, eps=EPSILON)


def _standardize_over_ranks(
    z1: Tensor, z2: Tensor, rows: int, group: Any | None
) -> tuple[Tensor, Tensor]:
    z1, z2, of_1, of_2 = centre(z1, z2, group)
    return z1 * torch.rsqrt(of_1 / rows + EPSILON), z2 * torch.rsqrt(of_2 / rows + EPSILON)
