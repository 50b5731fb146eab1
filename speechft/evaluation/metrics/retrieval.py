r"""Retrieval: does an embedding find the others of its kind?

Every item is a query in turn. Its gallery is all other items or, with ``groups``, those of other
groups only: with sentences as labels and speakers as groups, it is the same content in another
voice that has to be found. With similarity by cosine, and :math:`P(t)` and :math:`R(t)` precision
and recall of the gallery's items at least as similar as :math:`t`,

.. math:: \mathrm{AP} = \sum_t \big( R(t) - R(t^+) \big) P(t)

over the distinct similarities :math:`t` from high to low, :math:`t^+` the one before: items that
are equally similar are found at once, so no order among them is made up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError

_CELLS = 1 << 23  # similarities in memory at once


class Retrieval(NamedTuple):
    """What :func:`retrieval` found.

    Attributes:
        mean_average_precision: over the queries that have a match, 0 to 1.
        top1: the share of these queries whose most similar item is a match; of several equally
            similar items, the share of matches among them counts.
        chance: the mean average precision to expect of similarities drawn at random, about: the
            mean share of matches in a gallery.
        queries: how many have a match.
        without_match: how many have none, and count nowhere.
    """

    mean_average_precision: float
    top1: float
    chance: float
    queries: int
    without_match: int


def retrieval(embeddings: Tensor, labels: Any, *, groups: Any = None) -> Retrieval:
    """Mean average precision and top-1 accuracy, by cosine.

    Args:
        embeddings: (N, D), floating point.
        labels: N integers or strings: items of one label match.
        groups: N integers or strings, or None: a query is not compared with its own group.

    Raises:
        ArgumentTypeError: embeddings that are not a floating-point tensor.
        ArgumentError: wrong shapes or counts, an embedding of zeros, no query with a match.
        NonFiniteError: NaN or infinity in the embeddings.

    >>> found = retrieval(torch.eye(2).repeat(2, 1), ["a", "b", "a", "b"])
    >>> found.mean_average_precision, found.top1
    (1.0, 1.0)
    """
    _check(embeddings)
    count = len(embeddings)
    of_label = _codes(labels, count, "labels", embeddings.device)
    of_group = None if groups is None else _codes(groups, count, "groups", embeddings.device)
    directions = normalize(embeddings.detach().double(), dim=1)
    precision, top1, chance = [], [], []
    step = max(1, _CELLS // count)
    for start in range(0, count, step):
        queries = torch.arange(start, min(start + step, count), device=embeddings.device)
        similar = directions[queries] @ directions.T
        if of_group is None:
            outside = queries[:, None] == torch.arange(count, device=queries.device)
        else:
            outside = of_group[queries, None] == of_group
        match = (of_label[queries, None] == of_label) & ~outside
        has_match = match.any(1)
        similar = similar.masked_fill(outside, -torch.inf)[has_match]
        match, inside = match[has_match], ~outside[has_match]
        precision.append(_average_precision(similar, match))
        best = similar == similar.amax(1, keepdim=True)
        top1.append((match & best).sum(1).double() / best.sum(1))
        chance.append(match.sum(1).double() / inside.sum(1))
    found = torch.cat(precision)
    if not len(found):
        raise ArgumentError(
            "labels",
            f"none of {count} items has another one of its label"
            + ("" if groups is None else " in another group"),
        )
    return Retrieval(
        mean_average_precision=float(found.mean()),
        top1=float(torch.cat(top1).mean()),
        chance=float(torch.cat(chance).mean()),
        queries=len(found),
        without_match=count - len(found),
    )


def _average_precision(similar: Tensor, match: Tensor) -> Tensor:
    """AP of each row; what is not in the gallery has similarity -inf and is no match."""
    ordered, order = similar.sort(dim=1, descending=True)
    hits = match.gather(1, order).cumsum(1).double()
    ranks = torch.arange(1, similar.shape[1] + 1, device=similar.device)
    # Only the last of equally similar items is an operating point.
    last = torch.ones_like(match)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    before = torch.where(last, hits, 0.0).cummax(1).values
    before = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], dim=1)
    return torch.where(last, (hits - before) * hits / ranks, 0.0).sum(1) / hits[:, -1]


def _codes(values: Any, count: int, argument: str, device: torch.device) -> Tensor:
    """Integers that are equal where the values are."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if len(values) != count:
        raise ArgumentError(argument, f"wants one an embedding, {count}, got {len(values)}")
    known: dict[Any, int] = {}
    return torch.tensor([known.setdefault(value, len(known)) for value in values], device=device)


def _check(embeddings: Tensor) -> None:
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        what = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ArgumentTypeError("embeddings", f"wants a floating-point tensor, got {what}")
    if embeddings.dim() != 2 or 0 in embeddings.shape:
        raise ArgumentError("embeddings", f"wants shape (N, D), got {tuple(embeddings.shape)}")
    bad = (~embeddings.isfinite().all(1)).nonzero()
    if len(bad):
        raise NonFiniteError("embeddings", f"row {int(bad[0, 0])} holds NaN or infinity")
    zero = (embeddings == 0).all(1).nonzero()
    if len(zero):
        raise ArgumentError("embeddings", f"row {int(zero[0, 0])} is zero and has no direction")
