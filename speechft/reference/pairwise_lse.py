r"""Log-sum-exp over the pairs of queries and keys, by its definition.

With logits :math:`s_{ij} = \sigma\, q_i \cdot k_j`, each pair (i, j) is one of three things:

* *left out*: the key is the query itself (``j = i + self_offset``), or either label is -1;
* *positive*: both have the same label;
* *negative*: everything else. Without labels no pair is positive.

The softmax losses of contrastive learning are sums of what this returns, of a row each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class PairwiseLSE(NamedTuple):
    """What :func:`pairwise_lse` returns, in logits; ``-inf`` where a row has no such pair.

    Attributes:
        negatives: (N,) log-sum-exp over the negative pairs of each query.
        positives: (N,) log-sum-exp over its positive pairs.
        positive_sum: (N,) sum over its positive pairs: of the logits or, with ``own``, of
            ``log_sigmoid(s - negatives)``, the log-probability of that positive pair against all
            negative ones.
        column_negatives: (M,) log-sum-exp over the negative pairs of each key; None if not asked
            for.
    """

    negatives: Tensor
    positives: Tensor
    positive_sum: Tensor
    column_negatives: Tensor | None


def pair_masks(
    rows: int,
    columns: int,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Which pairs are positive and which negative, two boolean (N, M)."""
    counted = torch.ones(rows, columns, dtype=torch.bool, device=device)
    if self_offset is not None:
        own = torch.arange(rows, device=device)[:, None] + self_offset
        counted &= torch.arange(columns, device=device) != own
    if query_labels is None or key_labels is None:
        return torch.zeros_like(counted), counted
    counted &= (query_labels >= 0)[:, None] & (key_labels >= 0)
    same = query_labels[:, None] == key_labels
    return counted & same, counted & ~same


def masked_logsumexp(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Over the entries of the mask; ``-inf``, with gradient 0, where it is empty."""
    some = mask.any(dim, keepdim=True)
    kept = torch.where(mask, logits, torch.where(some, -math.inf, 0.0).to(logits.dtype))
    return kept.logsumexp(dim).masked_fill(~some.squeeze(dim), -math.inf)


def pairwise_lse(
    query: Tensor,
    key: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    self_offset: int | None = None,
    columns: bool = False,
    own: bool = False,
) -> PairwiseLSE:
    """See :func:`speechft.functional.pairwise_lse`. Memory: several N x M."""
    if key is None:
        key, key_labels = query, query_labels
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    with torch.autocast(query.device.type, enabled=False):
        logits = scale * (query @ key.T)
    positive, negative = pair_masks(
        len(query), len(key), query_labels, key_labels, self_offset, query.device
    )
    negatives = masked_logsumexp(logits, negative, 1)
    of_positives = logsigmoid(logits - negatives[:, None]) if own else logits
    return PairwiseLSE(
        negatives,
        masked_logsumexp(logits, positive, 1),
        torch.where(positive, of_positives, 0.0).sum(1),
        masked_logsumexp(logits, negative, 0) if columns else None,
    )
