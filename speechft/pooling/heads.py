"""Attention with several heads and queries, and self-attentive pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError
from speechft.functional.attentive_statistics_pooling import attentive_statistics_pooling
from speechft.lengths import LengthsLike
from speechft.reference.statistics_pooling import EPSILON


class SelfAttentivePooling(nn.Module):
    r"""A mean over time with one weight a frame.

    .. math::

        \alpha = \mathrm{softmax}_t\bigl(v^\top \tanh(W x_t + b)\bigr), \qquad
        y = \sum_t \alpha_t x_t

    Args:
        channels: C.
        bottleneck: rows of W.

    Shape:
        x (B, T, C), lengths (B,); (B, C), float32.

    Source: Zhu et al., Interspeech 2018; Cai et al., Odyssey 2018.

    >>> import torch
    >>> SelfAttentivePooling(16)(torch.randn(2, 9, 16), [9, 5]).shape
    torch.Size([2, 16])
    """

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.project = nn.Linear(channels, bottleneck)
        self.score = nn.Linear(bottleneck, 1, bias=False)

    def forward(self, x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """The weighted mean of the valid frames."""
        scores = self.score(torch.tanh(self.project(x)))
        return attentive_statistics_pooling(x, scores.to(x.dtype), lengths)[:, : x.shape[2]]

    def output_size(self, channels: int) -> int:
        """Of the vector that frames of so many channels become."""
        return channels


class MultiHeadAttentiveStatisticsPooling(nn.Module):
    r"""Each head weighs the frames of its own part of the channels (MHASTP).

    Of head i, whose part of a frame is :math:`x^i_t`,

    .. math::

        \alpha^i = \mathrm{softmax}_t\bigl(V_i \tanh(W_i x^i_t + b_i) + k_i\bigr), \qquad
        y^i = \mathrm{stats}_{\alpha^i}(x^i).

    Args:
        channels: C, which the heads divide.
        heads: parts of the channels.
        bottleneck: rows of each W; 0: scores are one product, without a tanh.
        by_channel: each channel of a head has weights of its own (in the papers, d_s = d_h), not
            one for the head.
        epsilon: the least variance.

    Shape:
        x (B, T, C), lengths (B,); (B, 2 C), the means of all heads, then their deviations, float32.

    All heads are computed at once.

    Raises:
        ArgumentError: channels that the heads do not divide.

    Source: India et al., Interspeech 2019; Zhao et al., "Multi-query multi-head attention pooling",
    ICASSP 2022.

    >>> import torch
    >>> MultiHeadAttentiveStatisticsPooling(16, 4)(torch.randn(2, 9, 16), [9, 5]).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        bottleneck: int = 64,
        *,
        by_channel: bool = False,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ArgumentError("heads", f"wants to divide {channels} channels, got {heads}")
        each = channels // heads
        outputs = each if by_channel else 1
        self.heads = heads
        self.epsilon = epsilon
        self.project = _HeadwiseLinear(heads, each, bottleneck) if bottleneck else None
        self.score = _HeadwiseLinear(heads, bottleneck or each, outputs)

    def forward(self, x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """Means and deviations of the valid frames."""
        hidden = x.view(*x.shape[:2], self.heads, -1)
        if self.project is not None:
            hidden = torch.tanh(self.project(hidden))
        scores = self.score(hidden).flatten(2)
        return attentive_statistics_pooling(x, scores.to(x.dtype), lengths, epsilon=self.epsilon)

    def output_size(self, channels: int) -> int:
        """Of the vector that frames of so many channels become."""
        return 2 * channels


class MultiQueryAttentiveStatisticsPooling(nn.Module):
    """Several multi-head poolings of the same frames, next to each other (MQMHASTP).

    Args:
        channels: C, which the heads divide.
        queries: how many.
        heads: of each.
        bottleneck: of each.
        by_channel: as in :class:`MultiHeadAttentiveStatisticsPooling`.
        epsilon: the least variance.

    Shape:
        x (B, T, C), lengths (B,); (B, 2 C queries), float32.

    Source: Zhao et al., ICASSP 2022.

    >>> import torch
    >>> MultiQueryAttentiveStatisticsPooling(16, 2, 4)(torch.randn(2, 9, 16)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        channels: int,
        queries: int = 2,
        heads: int = 8,
        bottleneck: int = 64,
        *,
        by_channel: bool = False,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        if queries < 1:
            raise ArgumentError("queries", f"wants 1 or more, got {queries}")
        self.queries = nn.ModuleList(
            MultiHeadAttentiveStatisticsPooling(
                channels, heads, bottleneck, by_channel=by_channel, epsilon=epsilon
            )
            for _ in range(queries)
        )

    def forward(self, x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """Each query's means and deviations."""
        return torch.cat([query(x, lengths) for query in self.queries], dim=1)

    def output_size(self, channels: int) -> int:
        """Of the vector that frames of so many channels become."""
        return 2 * channels * len(self.queries)


class _HeadwiseLinear(nn.Module):
    """(..., H, D) -> (..., H, E): each head with a matrix of its own."""

    def __init__(self, heads: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...hd,hde->...he", x, self.weight) + self.bias
