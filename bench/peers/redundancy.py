r"""Barlow Twins and VICReg as they are computed today: a D x D matrix, and more of its size.

Written from the definitions,

.. math::

    L_{\text{BT}} = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2, \qquad
    C = \hat Z_1^\top \hat Z_2 / N,

in the ways that are in use:

* :func:`lightly_barlow_twins` divides by the unbiased standard deviation, and weighs the entries
  off the diagonal by a boolean mask;
* :func:`authors_barlow_twins` takes batch norm, and the entries off the diagonal from the flat
  memory of the matrix: all but its last entry, as D - 1 rows of D + 1, begin on the diagonal;
* :func:`authors_vicreg` has its two covariances so.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, mse_loss


def lightly_barlow_twins(z1: Tensor, z2: Tensor, *, lambd: float = 5e-3) -> Tensor:
    """With a mask, and no epsilon: about (N / (N - 1))^2 from the others in its denominators."""
    first, second = ((z - z.mean(0)) / z.std(0) for z in (z1, z2))
    correlation = first.T @ second / len(z1)
    identity = torch.eye(z1.shape[1], dtype=z1.dtype, device=z1.device)
    errors = (correlation - identity).square()
    errors[~identity.bool()] *= lambd
    return errors.sum()


def authors_barlow_twins(z1: Tensor, z2: Tensor, *, lambd: float = 5e-3) -> Tensor:
    """With views of the matrix: the same value as ``F.barlow_twins``."""
    first, second = (batch_norm(z, None, None, training=True) for z in (z1, z2))
    correlation = first.T @ second / len(z1)
    on = (correlation.diagonal() - 1).square().sum()
    return on + lambd * off_diagonal(correlation).square().sum()


def authors_vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    sim_weight: float = 25.0,
    var_weight: float = 25.0,
    cov_weight: float = 1.0,
) -> Tensor:
    """The same value as ``F.vicreg``."""
    loss = sim_weight * mse_loss(z1, z2)
    for z in (z1, z2):
        z = z - z.mean(0)
        loss = loss + var_weight / 2 * torch.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()
        covariance = z.T @ z / (len(z) - 1)
        loss = loss + cov_weight * off_diagonal(covariance).square().sum() / z.shape[1]
    return loss


def off_diagonal(matrix: Tensor) -> Tensor:
    """The D (D - 1) entries of a square matrix off its diagonal, as a view."""
    size = len(matrix)
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:]
