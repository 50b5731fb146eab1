"""Pooling without parameters."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.functional.mean_pooling import max_pooling, mean_pooling
from speechft.functional.statistics_pooling import statistics_pooling
from speechft.lengths import LengthsLike
from speechft.reference.statistics_pooling import EPSILON


class MeanPooling(nn.Module):
    """:func:`speechft.functional.mean_pooling`: (B, T, C) -> (B, C).

    >>> import torch
    >>> MeanPooling()(torch.tensor([[[1.0], [3.0], [99.0]]]), [2])
    tensor([[2.]])
    """

    def forward(self, x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """The mean of the valid frames."""
        return mean_pooling(x, lengths)

    def output_size(self, channels: int) -> int:
        """Of the vector that frames of so many channels become."""
        return channels


class MaxPooling(nn.Module):
    """:func:`speechft.functional.max_pooling`: (B, T, C) -> (B, C).

    >>> import torch
    >>> MaxPooling()(torch.tensor([[[1.0], [3.0], [99.0]]]), [2])
    tensor([[3.]])
    """

    def forward(self, x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """The largest value of each channel over the valid frames."""
        return max_pooling(x, lengths)

    def output_size(self, channels: int) -> int:
        """Of the vector that frames of so many channels become."""
        return channels


class StatisticsPooling(nn.Module):
    """:func:`speechft.functional.statistics_pooling`: (B, T, C) -> (B, 2 C).

    Args:
        correction: 1 divides the squares by n - 1 frames in place of n.
        epsilon: the least variance.

    >>> import torch
    >>> StatisticsPooling()(torch.tensor([[[1.0], [3.0], [99.0]]]), [2])
    tensor([[2., 1.]])
    """

    def __init__(self, *, correction: int = 0, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.correction = correction
        self.epsilon = epsilon

    def forward(
        self, x: Tensor, lengths: LengthsLike | None = None, *, weights: Tensor | None = None
    ) -> Tensor:
        """Means, then deviations; ``weights`` (B, T) as in the function."""
        return statistics_pooling(
            x, lengths, weights=weights, correction=self.correction, epsilon=self.epsilon
        )

    def output_size(self, channels: int) -> int:
        """Of the vector that frames of so many channels become."""
        return 2 * channels

    def extra_repr(self) -> str:
        return f"correction={self.correction}, epsilon={self.epsilon}"
