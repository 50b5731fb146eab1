"""The triplet loss as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.functional.triplet import triplet


class TripletLoss(nn.Module):
    r""":func:`speechft.functional.triplet` with its settings kept.

    .. math::

        \ell_i = \max(0,\; \cos(a_i, n_i) - \cos(a_i, p_i) + m)

    Args:
        margin: how much nearer the positive has to be, 0 or above; distances are 0 to 2.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        anchor, positive and negative (B, D); a scalar, or (B,) with ``reduction="none"``.

    Source: Lux, Chen & Vu, SLT 2022, after Schroff et al., CVPR 2015.

    >>> import torch
    >>> TripletLoss(margin=0.5)(torch.ones(2, 3), torch.ones(2, 3), -torch.ones(2, 3))
    tensor(0.)
    """

    def __init__(self, margin: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__()
        self.margin = margin
        self.reduction = reduction

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of the triplets ``(anchor[b], positive[b], negative[b])``."""
        return triplet(anchor, positive, negative, margin=self.margin, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}"
