"""What combined losses are put together from: who is paired with whom, and the figures of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from speechft.augment import fold_in, uniform
from speechft.losses import (
    BarlowTwinsLoss,
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
    VICRegLoss,
)

_KEY_POSITIVE, _KEY_ANCHOR, _KEY_NEGATIVE = 16, 17, 18


class Pairs(NamedTuple):
    """Anchors, and what they are paired with.

    Attributes:
        anchors: (N, D).
        pool: (M, D), from which positives and negatives are: the anchors, or their other views.
        positive: (N, M) bool, what is a positive of whom.
        negative: (N, M) bool, likewise.
        labels: (N,) integers: the class, or with views the utterance.
    """

    anchors: Tensor
    pool: Tensor
    positive: Tensor
    negative: Tensor
    labels: Tensor


def pair_by_label(vectors: Tensor, labels: Tensor) -> Pairs:
    """Vectors (N, D) and classes (N,): those of a class are pairs, but none with itself."""
    same = labels[:, None] == labels[None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return Pairs(vectors, vectors, same & ~itself, ~same, labels)


def pair_by_view(one: Tensor, other: Tensor) -> Pairs:
    """Two views (N, D) of utterances: each with its other, and with all others' as negatives."""
    rows = torch.arange(len(one), device=one.device)
    itself = rows[:, None] == rows[None]
    return Pairs(one, other, itself, ~itself, rows)


def drawn_positives(pairs: Pairs, keys: Tensor) -> Tensor:
    """(N,) rows of the pool: a positive of each anchor, drawn by the keys (N,) of utterances.

    Utterances stand on a circle, at places drawn for them; the positive is the next one. So within
    a class each is the positive of one other.
    """
    place = uniform(fold_in(keys, _KEY_POSITIVE), 0, 1)[:, 0]
    return _next(place, place, pairs.positive)


def drawn_negatives(pairs: Pairs, keys: Tensor) -> Tensor:
    """(N,) rows of the pool: a negative of each anchor, drawn by the keys (N,) of utterances."""
    start = uniform(fold_in(keys, _KEY_ANCHOR), 0, 1)[:, 0]
    place = uniform(fold_in(keys, _KEY_NEGATIVE), 0, 1)[:, 0]
    return _next(start, place, pairs.negative)


def _next(start: Tensor, place: Tensor, allowed: Tensor) -> Tensor:
    """For each start (N,) on a circle of length 1 the first allowed place (M,) from it on."""
    gap = torch.remainder(place[None] - start[:, None], 1.0)
    return gap.masked_fill(~allowed, 2.0).argmin(1)


def hardest(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(N,) rows of the pool twice: the farthest positive and the nearest negative, by cosine."""
    with torch.no_grad():
        distance = cosine_distances(pairs.anchors, pairs.pool)
        farthest = distance.masked_fill(~pairs.positive, -1.0).argmax(1)
        nearest = distance.masked_fill(~pairs.negative, 3.0).argmin(1)
    return farthest, nearest


def cosine_distances(one: Tensor, other: Tensor) -> Tensor:
    """1 - cosine of (N, D) and (M, D): (N, M) float32, 0 to 2."""
    one = torch_functional.normalize(one.float(), dim=1)
    other = torch_functional.normalize(other.float(), dim=1)
    return 1 - one @ other.T


def pair_accuracy(distance: Tensor, positive: Tensor, negative: Tensor) -> float:
    r"""The mean of positive and negative accuracy, 0 to 1.

    With :math:`\mu` and :math:`\sigma` of the distances of positive pairs and
    :math:`t = \mu + 3 \sigma`, the share of positive pairs with :math:`d < t` and that of negative
    ones with :math:`d \ge t`.

    Args:
        distance: (N, M).
        positive: (N, M) bool.
        negative: (N, M) bool.

    Source: Lux, Chen & Vu, SLT 2022.
    """
    near, far = distance[positive].double(), distance[negative].double()
    threshold = near.mean() + 3 * near.std(correction=0)
    right = (near < threshold).double().mean() + (far >= threshold).double().mean()
    return float(right / 2)


def nearest_mean(vectors: Tensor, means: Tensor) -> Tensor:
    """(N, D) and (K, D): which of the second is nearest by cosine, (N,)."""
    return cosine_distances(vectors, means).argmin(1)


def make_losses(
    weights: dict[str, float], *, margin: float, barlow_lambda: float, temperature: float
) -> nn.ModuleDict:
    """The losses that have a weight, by name."""
    made: dict[str, Callable[[], nn.Module]] = {
        "triplet": lambda: TripletLoss(margin),
        "barlow_twins": lambda: BarlowTwinsLoss(barlow_lambda),
        "vicreg": VICRegLoss,
        "info_nce": lambda: InfoNCELoss(temperature),
        "nt_xent": lambda: NTXentLoss(temperature),
        "sup_con": lambda: SupConLoss(temperature),
    }
    return nn.ModuleDict({name: made[name]() for name in weights})
