"""VICReg as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.functional.vicreg import vicreg


class VICRegLoss(nn.Module):
    r""":func:`speechft.functional.vicreg` with its settings kept.

    .. math::

        L = \alpha \frac{1}{N D} \|Z_1 - Z_2\|_F^2
          + \frac\mu 2 \sum_{k=1,2} \frac 1 D \sum_i \max(0, 1 - \sqrt{C^k_{ii} + 10^{-4}})
          + \nu \sum_{k=1,2} \frac 1 D \sum_{i \ne j} (C^k_{ij})^2

    Args:
        sim_weight: :math:`\alpha`, weight of the invariance, 0 or above.
        var_weight: :math:`\mu`, weight of the variance, 0 or above.
        cov_weight: :math:`\nu`, weight of the covariance, 0 or above.
        gather: the loss of the batches of all ranks: True, or a process group.

    Shape:
        z1 and z2 (N, D), N at least 2; a scalar.

    Source: Bardes, Ponce & LeCun, ICLR 2022.

    >>> import torch
    >>> z = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    >>> VICRegLoss()(z, z)
    tensor(0.)
    """

    def __init__(
        self,
        sim_weight: float = 25.0,
        var_weight: float = 25.0,
        cov_weight: float = 1.0,
        *,
        gather: Gather = False,
    ) -> None:
        super().__init__()
        self.sim_weight = sim_weight
        self.var_weight = var_weight
        self.cov_weight = cov_weight
        self.gather = gather

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views, row by row of the same samples."""
        return vicreg(
            z1,
            z2,
            sim_weight=self.sim_weight,
            var_weight=self.var_weight,
            cov_weight=self.cov_weight,
            gather=self.gather,
        )

    def extra_repr(self) -> str:
        return (
            f"sim_weight={self.sim_weight}, var_weight={self.var_weight}, "
            f"cov_weight={self.cov_weight}, gather={self.gather}"
        )
