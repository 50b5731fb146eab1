"""Barlow Twins as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.functional.barlow_twins import barlow_twins


class BarlowTwinsLoss(nn.Module):
    r""":func:`speechft.functional.barlow_twins` with its settings kept.

    .. math::

        L = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2, \qquad
        C = \mathrm{BN}(Z_1)^\top \mathrm{BN}(Z_2) / N

    Args:
        lambd: weight of the redundancy, 0 or above.
        gather: the loss of the batches of all ranks: True, or a process group.

    Shape:
        z1 and z2 (N, D), N at least 2; a scalar.

    Source: Zbontar et al., ICML 2021.

    >>> import torch
    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(float(BarlowTwinsLoss()(z, 3 * z)), 6)
    0.0
    """

    def __init__(self, lambd: float = 5e-3, *, gather: Gather = False) -> None:
        super().__init__()
        self.lambd = lambd
        self.gather = gather

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views, row by row of the same samples."""
        return barlow_twins(z1, z2, lambd=self.lambd, gather=self.gather)

    def extra_repr(self) -> str:
        return f"lambd={self.lambd}, gather={self.gather}"
