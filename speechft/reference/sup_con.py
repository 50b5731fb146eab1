"""Supervised contrastive loss by its definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from speechft.distributed import Gather, all_gather, group_of, place_of
from speechft.reference._embeddings import normalized, wide, with_margin
from speechft.reference._gathered import reduce_counted
from speechft.reference.pairwise_lse import masked_logsumexp, pair_masks


def sup_con(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    denominator: str = "all",
    margin: float = 0.0,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    """See :func:`speechft.functional.sup_con`. Memory: several N x N."""
    group = group_of(gather)
    rank, _ = place_of(group)
    if embeddings.dim() == 3:
        labels = labels.repeat_interleave(embeddings.shape[1])
    z = wide(normalized(embeddings, normalize)).flatten(0, -2)
    keys, all_labels = all_gather(z, group), all_gather(labels, group)
    positive, negative = pair_masks(len(z), len(keys), labels, all_labels, rank * len(z), z.device)
    cosines = z @ keys.T / temperature
    logits = torch.where(positive, with_margin(cosines, temperature, margin, 0.0), cosines)
    counts = positive.sum(1)
    among = {"all": positive | negative, "none": negative, "own": negative}[denominator]
    lse = masked_logsumexp(logits, among, 1)[:, None]
    terms = softplus(lse - logits) if denominator == "own" else lse - logits
    valid = counts > 0
    if denominator == "none":
        valid = valid & negative.any(1)
    terms = torch.where(positive & valid[:, None], terms, 0.0)
    values = terms.sum(1) / counts.clamp_min(1)
    return reduce_counted(values, valid, reduction, group)
