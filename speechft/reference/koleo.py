r"""KoLeo, by its definition: the Kozachenko-Leonenko estimate of entropy, to be made large.

.. math::

    L = - \frac 1 N \sum_i \log \Bigl( \min_{j \ne i} \lVert \hat x_i - \hat x_j \rVert
        + \epsilon \Bigr)

over unit rows :math:`\hat x` (Sablayrolles et al. 2019, equation 5; DINOv2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.distributed import Gather, all_gather, group_of, place_of
from speechft.reference._embeddings import normalized, wide
from speechft.reference._gathered import reduce_rows

EPSILON = 1e-8


def koleo(
    x: Tensor, *, normalize: bool = True, epsilon: float = EPSILON, gather: Gather = False
) -> Tensor:
    """The mean over rows; see :func:`speechft.functional.koleo`. Memory: N x N."""
    group = group_of(gather)
    rank, _ = place_of(group)
    rows = wide(normalized(x, normalize))
    others = all_gather(rows, group)
    with torch.no_grad():
        distances = (rows[:, None] - others).norm(dim=-1)
        own = rank * len(rows) + torch.arange(len(rows), device=x.device)
        distances.scatter_(1, own[:, None], torch.inf)
        nearest = distances.argmin(1)
    gap = torch.linalg.vector_norm(rows - others[nearest], dim=-1)
    return reduce_rows(-(gap + epsilon).log(), "mean", group)
