"""The contrastive inverse difference moment as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.functional.temporal_idm import temporal_idm
from speechft.lengths import LengthsLike


class TemporalIDMLoss(nn.Module):
    """:func:`speechft.functional.temporal_idm` with its settings kept.

    With ``margin=1.1`` (HuBERT) or ``1.0`` (WavLM) it is the regulariser of LASER (Meghanani & Hain
    2024), of either side of its soft-DTW.

    Args:
        sigma: frames up to so many apart are pulled together, 0 or above.
        margin: what all others are pushed apart to, above 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        x (B, T, D), lengths (B,); a scalar, or (B,) with ``reduction="none"``.

    >>> import torch
    >>> TemporalIDMLoss(margin=1.1)(torch.eye(3)[None])    # all are sqrt(2) apart
    tensor(0.)
    """

    def __init__(self, sigma: float = 0.0, margin: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__()
        self.sigma = sigma
        self.margin = margin
        self.reduction = reduction

    def forward(self, x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """The loss of the sequences ``x[b]``."""
        return temporal_idm(
            x, lengths, sigma=self.sigma, margin=self.margin, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, margin={self.margin}, reduction={self.reduction!r}"
