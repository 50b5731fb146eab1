r"""VICReg by the smaller Gram side: N x N instead of D x D where the batch is small."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.distributed import Gather, all_gather, all_reduce, group_of
from speechft.functional._checks import check_weight
from speechft.functional._gram import cross_energy, cross_energy_of_ranks, rows_are_fewer
from speechft.functional._views import centre, check_views, rows_of
from speechft.reference._embeddings import wide
from speechft.reference.vicreg import EPSILON


def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    sim_weight: float = 25.0,
    var_weight: float = 25.0,
    cov_weight: float = 1.0,
    gather: Gather = False,
) -> Tensor:
    r"""VICReg: two views agree, no dimension collapses, no two say the same.

    .. math::

        L = \alpha \frac{1}{N D} \|Z_1 - Z_2\|_F^2
          + \frac\mu 2 \sum_{k=1,2} \frac 1 D \sum_i \max(0, 1 - \sqrt{C^k_{ii} + 10^{-4}})
          + \nu \sum_{k=1,2} \frac 1 D \sum_{i \ne j} (C^k_{ij})^2,

    where :math:`C^k` is the covariance of view k over the batch, with N - 1 in its denominator.

    Args:
        z1: embeddings (N, D) of one view of N samples, floating point, N at least 2.
        z2: of the other view, with the shape, dtype and device of ``z1``.
        sim_weight: :math:`\alpha`, 0 or above.
        var_weight: :math:`\mu`, 0 or above.
        cov_weight: :math:`\nu`, 0 or above.
        gather: the loss of the batches of all ranks of ``torch.distributed`` (True, or a process
            group), of one shape. Each rank returns the whole loss, and the gradient that
            ``DistributedDataParallel`` averages is that of one process.

    Returns:
        Tensor: a scalar; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, fewer than 2 samples, a negative weight, NaN,
            ``gather`` without a process group or with batches of unequal shapes.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.

    A dimension that is constant over the batch has a finite gradient (of zero, by the variance).
    Values of GPU tensors are checked only inside :func:`speechft.checked`. Under autocast the loss
    is computed in float32. It has a second derivative, but not with ``gather``. On a GPU, where
    N <= D/2, the sum of squared covariances is rounded as if the variances were in it.

    Memory beyond inputs and gradients: six float32 tensors (N, D), and one N x N where N <= D/2 or
    1024 x D where not; never D x D. With ``gather``, N is that of all ranks where N <= D/4; where
    not, nothing is gathered, and D x D products are summed over the ranks.

    Source: Bardes, Ponce & LeCun, "VICReg", ICLR 2022, with the weights of the authors' code: the
    variance is averaged over the two views, where equation 6 adds it up. That code and lightly's
    (``VICRegLoss``) return the invariance of a rank's own samples, so their values differ between
    ranks, though not the averaged gradient; here all is that of the whole batch.

    >>> import torch
    >>> z = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    >>> float(vicreg(z, z)), float(vicreg(z, -z))
    (0.0, 400.0)
    """
    group = group_of(gather)
    check_views(z1, z2, group)
    sim_weight = check_weight(sim_weight, "sim_weight")
    var_weight = check_weight(var_weight, "var_weight")
    cov_weight = check_weight(cov_weight, "cov_weight")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = wide(z1), wide(z2)
        rows, dim = rows_of(z1, group), z1.shape[1]
        if rows == len(z1) or rows_are_fewer(rows, dim, dim, gathered=True):
            z1, z2, group = all_gather(z1, group), all_gather(z2, group), None
        similarity = all_reduce((z1 - z2).square().sum(), group) / (rows * dim)
        z1, z2, *squares = centre(z1, z2, group)
        deviation = torch.sqrt(torch.stack(squares) / (rows - 1) + EPSILON)
        variance = torch.relu(1 - deviation).mean()  # over dimensions and views
        loss = sim_weight * similarity + var_weight * variance
        if cov_weight == 0:
            return loss
        if group is None:
            energy = [cross_energy(z, off_diagonal=True) for z in (z1, z2)]
        else:
            energy = [cross_energy_of_ranks(z, z, group, off_diagonal=True) for z in (z1, z2)]
        return loss + cov_weight / ((rows - 1) ** 2 * dim) * (energy[0] + energy[1])
