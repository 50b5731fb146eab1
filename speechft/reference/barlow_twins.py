r"""Barlow Twins, by its definition: a D x D correlation matrix that should be the identity.

.. math::

    C = \frac 1 N \hat Z_1^\top \hat Z_2, \qquad
    L = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2,

where :math:`\hat Z` has mean 0 and variance 1 in each dimension, over the batch (Zbontar et al.
2021, equations 1 and 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5  # that of torch.nn.BatchNorm1d


def barlow_twins(z1: Tensor, z2: Tensor, *, lambd: float = 5e-3) -> Tensor:
    """The loss of two views of a batch; see :func:`speechft.functional.barlow_twins`."""
    dtype = torch.promote_types(z1.dtype, torch.float32)
    with torch.autocast(z1.device.type, enabled=False):
        correlation = standardize(z1.to(dtype)).T @ standardize(z2.to(dtype)) / len(z1)
        on = correlation.diagonal()
        off = correlation - torch.diag(on)
        return (on - 1).square().sum() + lambd * off.square().sum()


def standardize(z: Tensor) -> Tensor:
    """Batch norm without its affine part: (N, D) with mean 0 and (biased) variance 1."""
    centred = z - z.mean(0)
    return centred / torch.sqrt(centred.square().mean(0) + EPSILON)
