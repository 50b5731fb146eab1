"""NT-Xent as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.functional.nt_xent import nt_xent
from speechft.losses._temperature import Temperature


class NTXentLoss(nn.Module):
    """:func:`speechft.functional.nt_xent` with its settings kept: the loss of SimCLR.

    Args:
        temperature: above 0.
        normalize: make rows of length 1.
        margin: of the cosine of a positive pair; not with labels.
        angular_margin: of its angle, in radians; not with labels.
        learn_temperature: make it a parameter, ``temperature.log_scale``.
        gather: the loss of the batch of all ranks.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        z1 (N, D), z2 (N, D), labels (N,); a scalar, or (2N,) with ``reduction="none"``.

    >>> import torch
    >>> NTXentLoss()(torch.eye(3), torch.eye(3)) < 1e-3
    tensor(True)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        normalize: bool = True,
        margin: float = 0.0,
        angular_margin: float = 0.0,
        learn_temperature: bool = False,
        gather: Gather = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learn_temperature)
        self.normalize = normalize
        self.margin = margin
        self.angular_margin = angular_margin
        self.gather = gather
        self.reduction = reduction

    def forward(self, z1: Tensor, z2: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """The loss of two views of each sample."""
        return nt_xent(
            z1,
            z2,
            labels=labels,
            temperature=self.temperature(),
            normalize=self.normalize,
            margin=self.margin,
            angular_margin=self.angular_margin,
            gather=self.gather,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"normalize={self.normalize}, margin={self.margin}, "
            f"angular_margin={self.angular_margin}, gather={self.gather}, "
            f"reduction={self.reduction!r}"
        )
