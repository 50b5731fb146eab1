"""What the softmax losses share at the door and over the ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed

from speechft.backends import values_are_checked
from speechft.distributed import (
    Gather,
    all_gather,
    all_reduce,
    check_shapes,
    group_of,
    place_of,
)
from speechft.errors import ArgumentError
from speechft.functional._checks import check_weight
from speechft.functional._ring import ring_pairwise_lse
from speechft.functional.pairwise_lse import BACKENDS, pairwise_lse
from speechft.reference.pairwise_lse import PairwiseLSE


def check_margins(margin: float, angular_margin: float, normalize: bool) -> None:
    """Margins are of cosines and angles: not negative, and of unit rows."""
    for value, argument in ((margin, "margin"), (angular_margin, "angular_margin")):
        check_weight(value, argument)
        if value and not normalize:
            raise ArgumentError(argument, "is of the cosine; wants normalize=True")
    if angular_margin > math.pi:
        raise ArgumentError("angular_margin", f"wants radians up to pi, got {angular_margin}")


def pairs_over_ranks(
    query: Tensor,
    key: Tensor | None,
    *,
    scale: Tensor,
    labels: Tensor | None,
    all_labels: Tensor | None,
    gather: Gather,
    columns: bool = False,
    own: bool = False,
) -> PairwiseLSE:
    """:func:`pairwise_lse` of this rank's queries with the keys of all ranks.

    ``query[i]`` and ``key[i]`` are one sample, of ``labels[i]``, and that pair is left out; without
    a key the queries are the keys. ``all_labels`` are those of all ranks. ``column_negatives`` are
    of this rank's keys with the queries of all ranks.
    """
    group = group_of(gather)
    rank, ranks = place_of(group)
    if ranks == 1:
        return pairwise_lse(
            query, key, scale=scale, query_labels=labels,
            key_labels=None if key is None else labels, self_offset=0, columns=columns, own=own,
        )  # fmt: skip
    key = query if key is None else key
    if isinstance(gather, str):
        if own:
            raise ArgumentError("gather", 'takes True, not "ring", for positives each on its own')
        if BACKENDS.choose(query.device, query.dtype) == "reference":
            raise ArgumentError("gather", '"ring" does not run on the reference; True does')
        check_shapes(key, group, "gather")
        wide = None if labels is None else labels.long()  # ranks may differ in the width of theirs
        return ring_pairwise_lse(query, key, scale, wide, group, columns=columns)
    start = rank * len(key)
    found = pairwise_lse(
        query, all_gather(key, group), scale=scale, query_labels=labels, key_labels=all_labels,
        self_offset=start, columns=columns, own=own,
    )  # fmt: skip
    if found.column_negatives is None:
        return found
    of_all = logsumexp_over_ranks(found.column_negatives, group)
    return found._replace(column_negatives=of_all[start : start + len(key)])


def gather_labels(labels: Tensor, group: Any | None) -> Tensor:
    """Labels (N,) of all ranks; int64, as ranks may differ in the width of theirs."""
    return all_gather(labels.long(), group, "labels")


def logsumexp_over_ranks(values: Tensor, group: Any | None) -> Tensor:
    """Log-sum-exp of (M,) over the ranks, entry by entry; ``-inf`` is the sum of nothing."""
    most = values.detach().clone()
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX, group=group)
    most = torch.where(torch.isfinite(most), most, 0.0)
    finite = torch.isfinite(values)
    # exp(-inf) is a fine 0, and its derivative at -inf is not.
    parts = (torch.where(finite, values, most) - most).exp()
    total = all_reduce(torch.where(finite, parts, 0.0), group)
    some = total > 0
    lse = torch.where(some, total, 1.0).log() + most
    return torch.where(some, lse, -math.inf)


def check_some_negative(labels: Tensor, why: str) -> None:
    """Two known labels at least: a loss with negatives alone below is not defined without."""
    if not values_are_checked(labels):
        return
    known = labels[labels >= 0]
    if len(known) and bool((known == known[0]).all()):
        raise ArgumentError(
            "labels", f"are all {int(known[0])}: there is no negative pair, which {why}"
        )
