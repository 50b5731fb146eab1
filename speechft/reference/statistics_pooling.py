r"""Statistics pooling: the mean and the standard deviation of the frames of an utterance.

With weights :math:`\alpha_t` that sum to 1 over the valid frames,

.. math::

    \mu = \sum_t \alpha_t x_t, \qquad
    \sigma = \sqrt{\max\Bigl(\sum_t \alpha_t (x_t - \mu)^2,\ \epsilon\Bigr)},

channel by channel. The weights are equal (Snyder et al. 2018), given, or the softmax over time of
scores, of each channel its own (Okabe et al. 2018; Desplanques et al. 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-7


def statistics_pooling(
    x: Tensor,
    lengths: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    correction: int = 0,
    epsilon: float = EPSILON,
) -> Tensor:
    """(B, T, C) -> (B, 2 C); see :func:`speechft.functional.statistics_pooling`."""
    valid = _valid(x, lengths)
    number = valid.sum(1)
    if weights is None:
        shares = valid.to(_wide(x)) / number[:, None, :]
    else:
        weights = weights if weights.dim() == 3 else weights[..., None]
        kept = torch.where(valid, weights.to(_wide(x)), 0.0)
        shares = kept / kept.sum(1, keepdim=True)
    count = number.to(_wide(x))
    factor = count / (count - correction) if correction else 1.0
    return _statistics(x, shares, valid, epsilon, factor)


def attentive_statistics_pooling(
    x: Tensor, scores: Tensor, lengths: Tensor | None = None, *, epsilon: float = EPSILON
) -> Tensor:
    """(B, T, C) -> (B, 2 C); see :func:`speechft.functional.attentive_statistics_pooling`."""
    valid = _valid(x, lengths)
    shares = scores.to(_wide(x)).masked_fill(~valid, -torch.inf).softmax(1)
    return _statistics(x, shares, valid, epsilon, 1.0)


def _statistics(
    x: Tensor, shares: Tensor, valid: Tensor, epsilon: float, factor: Tensor | float
) -> Tensor:
    """``shares`` (B, T, G): each of G groups of channels, next to each other, has its own."""
    x = torch.where(valid, x.to(_wide(x)), 0.0)
    shares = shares.to(x.dtype).repeat_interleave(x.shape[2] // shares.shape[2], dim=2)
    mean = (shares * x).sum(1)
    variance = (shares * torch.where(valid, x - mean[:, None], 0.0).square()).sum(1) * factor
    return torch.cat([mean, variance.clamp_min(epsilon).sqrt()], dim=1)


def _valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, T, 1) booleans."""
    if lengths is None:
        return torch.ones(*x.shape[:2], 1, dtype=torch.bool, device=x.device)
    return (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
