"""NT-Xent by its definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechft.distributed import Gather, all_gather, group_of, place_of
from speechft.reference._embeddings import normalized, wide, with_margin
from speechft.reference._gathered import reduce_counted
from speechft.reference.pairwise_lse import pair_masks


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    margin: float = 0.0,
    angular_margin: float = 0.0,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    """See :func:`speechft.functional.nt_xent`. Memory: several 2N x 2N."""
    group = group_of(gather)
    rank, _ = place_of(group)
    z = wide(normalized(torch.cat([z1, z2]), normalize))
    if labels is None:
        labels = torch.arange(len(z1), device=z.device) + rank * len(z1)
    mine = torch.cat([labels, labels])
    keys, all_labels = all_gather(z, group), all_gather(mine, group)
    positive, negative = pair_masks(len(z), len(keys), mine, all_labels, rank * len(z), z.device)
    logits = z @ keys.T / temperature
    against = logits.masked_fill(~negative, -math.inf).logsumexp(1, keepdim=True)
    against = torch.where(negative.any(1, keepdim=True), against, -math.inf)
    pulled = with_margin(logits, temperature, margin, angular_margin)
    values = torch.where(positive, torch.nn.functional.softplus(against - pulled), 0.0).sum(1)
    return reduce_counted(values, positive.sum(1), reduction, group)
