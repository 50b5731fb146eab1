"""Soft-DTW as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.functional.soft_dtw import soft_dtw
from speechft.lengths import LengthsLike


class SoftDTWLoss(nn.Module):
    """:func:`speechft.functional.soft_dtw` with its settings kept.

    With ``divergence=True, length_normalize=True`` it is the loss of SCORE (Meghanani & Hain 2024).

    Args:
        gamma: smoothing, above 0.
        bandwidth: half width of the band in frames, or None.
        divergence: subtract the mean of the two self-alignments.
        length_normalize: divide by ``n + m``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        x (B, N, D), y (B, M, D), lengths (B,); a scalar, or (B,) with ``reduction="none"``.

    >>> import torch
    >>> loss = SoftDTWLoss(divergence=True, length_normalize=True)
    >>> loss(torch.ones(2, 5, 3), torch.ones(2, 7, 3), [5, 4], [7, 6]).shape
    torch.Size([])
    """

    def __init__(
        self,
        gamma: float = 0.1,
        *,
        bandwidth: int | None = None,
        divergence: bool = False,
        length_normalize: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.bandwidth = bandwidth
        self.divergence = divergence
        self.length_normalize = length_normalize
        self.reduction = reduction

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_lengths: LengthsLike | None = None,
        y_lengths: LengthsLike | None = None,
    ) -> Tensor:
        """The loss of the pairs ``(x[b], y[b])``."""
        return soft_dtw(
            x,
            y,
            x_lengths,
            y_lengths,
            gamma=self.gamma,
            bandwidth=self.bandwidth,
            divergence=self.divergence,
            length_normalize=self.length_normalize,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"gamma={self.gamma}, bandwidth={self.bandwidth}, divergence={self.divergence}, "
            f"length_normalize={self.length_normalize}, reduction={self.reduction!r}"
        )
