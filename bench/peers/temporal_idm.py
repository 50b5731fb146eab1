"""The contrastive inverse difference moment as users write it, from its formula: N x N matrices.

Of sequences of one length; the weights of pairs are made anew in each call.
"""

from __future__ import annotations

import torch
from torch import Tensor


def by_difference(x: Tensor, *, sigma: float, margin: float) -> Tensor:
    """With the whole difference (B, N, N, D)."""
    return _moment(torch.linalg.vector_norm(x[:, :, None] - x[:, None], dim=-1), sigma, margin)


def by_cdist(x: Tensor, *, sigma: float, margin: float) -> Tensor:
    """With ``torch.cdist``, which takes a Gram matrix for more than 25 frames."""
    return _moment(torch.cdist(x, x), sigma, margin)


def _moment(distance: Tensor, sigma: float, margin: float) -> Tensor:
    n = distance.shape[1]
    frame = torch.arange(n, device=distance.device, dtype=distance.dtype)
    lag = (frame[:, None] - frame).abs()
    weight = lag**2 + 1
    far = (lag > sigma).to(distance.dtype)
    terms = far * weight * torch.relu(margin - distance) + (1 - far) * distance / weight
    return terms.sum((1, 2)) / n**2
