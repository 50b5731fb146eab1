r"""Temporal regularisation by a contrastive inverse difference moment, by its definition.

For the frames :math:`x_1 \dots x_n` of a sequence, with :math:`d_{ij} = \lVert x_i - x_j \rVert`
and :math:`w_{ij} = (i - j)^2 + 1`,

.. math::

    I(x) = \frac{1}{n^2} \sum_{i,j} \begin{cases}
        w_{ij} \max(0,\ m - d_{ij}) & |i - j| > \sigma, \\
        d_{ij} / w_{ij}             & |i - j| \le \sigma
    \end{cases}

(Haresh et al. 2021; LASER, Meghanani & Hain 2024). Frames near in time are pulled together, and
frames far apart are pushed apart until they are :math:`m` away, the harder the farther in time, so
that a sequence cannot collapse to one point.

The distances are norms of differences: a Gram matrix would lose the digits of frames that are
nearly equal, as neighbours in speech are. The gradient of a distance of 0 is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.reference._reduce import reduce_batch
from speechft.reference.soft_dtw import zero_padding


def temporal_idm(
    x: Tensor,
    lengths: Tensor | None = None,
    *,
    sigma: float = 0.0,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Of each sequence; see :func:`speechft.functional.temporal_idm`. Memory: B x T x T x D."""
    x = zero_padding(x.to(torch.promote_types(x.dtype, torch.float32)), lengths)
    batch, steps, _ = x.shape
    frames = torch.arange(steps, device=x.device)
    n = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
    inside = frames < n[:, None]

    distance = distances(x)
    lag = frames[:, None] - frames
    weight = lag.square().to(x.dtype) + 1
    far = weight * (margin - distance).relu()
    terms = torch.where(lag.abs() > sigma, far, distance / weight)
    pairs = inside[:, :, None] & inside[:, None, :]
    value = torch.where(pairs, terms, 0.0).sum((1, 2)) / n.to(x.dtype).square()
    return reduce_batch(value, reduction)


def distances(x: Tensor) -> Tensor:
    """Distances (B, T, T) between the frames of ``x`` (B, T, D), differentiable to any order."""
    squares = (x[:, :, None] - x[:, None]).square().sum(-1)
    apart = squares > 0  # the square root has no derivative at 0: it is left out there
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
