"""InfoNCE by its definition: a cross-entropy over a row of logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechft.distributed import Gather, all_gather, group_of, place_of
from speechft.reference._embeddings import normalized, wide, with_margin
from speechft.reference._gathered import reduce_rows


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    symmetric: bool = False,
    normalize: bool = True,
    labels: Tensor | None = None,
    queue: Tensor | None = None,
    queue_labels: Tensor | None = None,
    in_batch: bool = True,
    margin: float = 0.0,
    angular_margin: float = 0.0,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    """See :func:`speechft.functional.info_nce`. Memory: several N x M."""
    group = group_of(gather)
    rank, _ = place_of(group)
    query, key = wide(normalized(query, normalize)), wide(normalized(key, normalize))
    keys, queries = all_gather(key, group), all_gather(query, group)
    ids = None if labels is None else all_gather(labels, group)
    if queue is not None:
        queue = wide(normalized(queue, normalize))
    own = torch.arange(len(query), device=query.device) + rank * len(query)

    def direction(a: Tensor, others: Tensor) -> Tensor:
        """Cross-entropy of each row of ``a`` against its own key among ``others``."""
        logits = a @ others.T / temperature
        diagonal = torch.arange(len(others), device=a.device) == own[:, None]
        left_out = torch.zeros_like(diagonal) if in_batch else ~diagonal
        if labels is not None and ids is not None:
            left_out = left_out | (_alike(labels, ids) & ~diagonal)
        positive = with_margin(logits.gather(1, own[:, None]), temperature, margin, angular_margin)
        logits = torch.where(diagonal, positive, logits).masked_fill(left_out, -math.inf)
        if queue is not None:
            more = a @ queue.T / temperature
            if labels is not None and queue_labels is not None:
                more = more.masked_fill(_alike(labels, queue_labels), -math.inf)
            logits = torch.cat([logits, more], dim=1)
        return logits.logsumexp(1) - positive[:, 0]

    values = direction(query, keys)
    if symmetric:
        values = (values + direction(key, queries)) / 2
    return reduce_rows(values, reduction, group)


def _alike(labels: Tensor, others: Tensor) -> Tensor:
    """Pairs that are not to be told apart: of one label, or of an unknown one."""
    return (labels[:, None] == others) | (labels < 0)[:, None] | (others < 0)
