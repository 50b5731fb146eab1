r"""VICReg, by its definition: variance, invariance and a D x D covariance.

.. math::

    L = \alpha\, s(Z_1, Z_2) + \frac\mu 2 \bigl(v(Z_1) + v(Z_2)\bigr)
      + \nu \bigl(c(Z_1) + c(Z_2)\bigr),

with the mean squared difference :math:`s`, the hinge on each dimension's standard deviation
:math:`v(Z) = \frac 1 D \sum_i \max(0, 1 - \sqrt{\mathrm{Var}_i + \epsilon})`, and
:math:`c(Z) = \frac 1 D \sum_{i \ne j} \mathrm{Cov}_{ij}^2`; variance and covariance divide by
N - 1 (Bardes, Ponce & LeCun 2022, equations 1 to 6, as their code weighs them).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4


def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    sim_weight: float = 25.0,
    var_weight: float = 25.0,
    cov_weight: float = 1.0,
) -> Tensor:
    """The loss of two views of a batch; see :func:`speechft.functional.vicreg`."""
    dtype = torch.promote_types(z1.dtype, torch.float32)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = z1.to(dtype), z2.to(dtype)
        similarity = (z1 - z2).square().mean()
        variance = 0.5 * (variance_hinge(z1) + variance_hinge(z2))
        covariance = covariance_energy(z1) + covariance_energy(z2)
        return sim_weight * similarity + var_weight * variance + cov_weight * covariance


def variance_hinge(z: Tensor) -> Tensor:
    """How far the standard deviations of the D dimensions are below 1, on average."""
    return torch.relu(1 - torch.sqrt(z.var(0) + EPSILON)).mean()


def covariance_energy(z: Tensor) -> Tensor:
    """Squares of the covariances of different dimensions, summed, over D."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    off = covariance - torch.diag(covariance.diagonal())
    return off.square().sum() / z.shape[1]
