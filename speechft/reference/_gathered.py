"""Reductions over the rows of all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechft.distributed import all_reduce, place_of
from speechft.reference._reduce import reduce_batch


def reduce_rows(values: Tensor, reduction: str, group: Any | None) -> Tensor:
    """``values`` of this rank's rows as they are, or the mean or sum over the rows of all ranks."""
    if group is None or reduction == "none":
        return reduce_batch(values, reduction)
    total = all_reduce(values.sum(), group)
    return total / (len(values) * place_of(group)[1]) if reduction == "mean" else total


def reduce_counted(values: Tensor, counts: Tensor, reduction: str, group: Any | None) -> Tensor:
    """Sum of values over the sum of counts, both over all ranks: a zero with a graph for none."""
    if reduction == "none":
        return values
    total = all_reduce(values.sum(), group)
    if reduction == "sum":
        return total
    return total / all_reduce(counts.sum().to(total.dtype), group).clamp_min(1)


def count_positives(query_labels: Tensor, key_labels: Tensor) -> Tensor:
    """(N,) keys of each query's label, the query itself, which is among them, not counted."""
    ordered, query_labels = key_labels.sort().values, query_labels.contiguous()
    first = torch.searchsorted(ordered, query_labels)
    counts = torch.searchsorted(ordered, query_labels, right=True) - first - 1
    return torch.where(query_labels >= 0, counts, 0)
