r"""ABX: is an item closer to another of its own kind than to one of another kind?

Items are segments of speech, each of a label (a phone, a word), a voice and a context. A and X are
two items of one label, B one of another label, and the error is

.. math:: P\big( d(A, X) > d(B, X) \big) + \tfrac{1}{2} P\big( d(A, X) = d(B, X) \big).

A, B and X are of one context. *Within* voices all three are of one voice; *across* voices, A and B
are of one voice and X of another. The triples of one label of A, label of B, context, voice of A
and voice of X make a cell. Errors are averaged over contexts and voices of X, then over voices of
A, then over which of the two labels is A's, then over pairs of labels: so no label or voice weighs
more for being frequent (Schatz et al., "Evaluating speech features with the minimal-pair ABX task",
2013; with triphones as contexts and labels it is the error of the ZeroSpeech challenges). 0 is
perfect and 0.5 is chance.

Distances are usually :func:`speechft.evaluation.search.dtw_distances`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics.detection import _array

Codes = NDArray[np.int64]


class ABX(NamedTuple):
    """What :func:`abx` found.

    Attributes:
        error: 0 to 1, averaged over pairs of labels; 0.5 is chance.
        pairs: pairs of labels, in no order, that have a triple.
        cells: combinations of labels, context and voices that have one.
        triples: how many were counted.
        items: how many items they were made of, after sampling.
    """

    error: float
    pairs: int
    cells: int
    triples: int
    items: int


def abx(
    distances: ArrayLike,
    labels: Sequence[Hashable] | Tensor,
    *,
    voices: Sequence[Hashable] | Tensor | None = None,
    contexts: Sequence[Hashable] | Tensor | None = None,
    across: bool = False,
    max_items: int | None = None,
    seed: int = 0,
) -> ABX:
    """ABX error of items from the distances between them; exact over the items used.

    Args:
        distances: (N, N) real numbers; row X, column A or B. The diagonal is not looked at, and
            infinity is a distance.
        labels: N integers or strings: what has to be told apart.
        voices: N integers or strings; None: all of one voice.
        contexts: N integers or strings; None: all of one context.
        across: X is of another voice than A and B, instead of the same.
        max_items: use at most so many items of each label, voice and context, as
            :func:`sample_items` draws them; None uses all. Time goes with its square.
        seed: of this draw.

    Raises:
        ArgumentTypeError: distances that are not real numbers.
        ArgumentError: wrong shapes or counts, across voices without voices, no triple.
        NonFiniteError: a distance off the diagonal is NaN.

    >>> points = np.array([0.0, 1.0, 5.0, 6.0])
    >>> abx(abs(points[:, None] - points), ["a", "a", "b", "b"])
    ABX(error=0.0, pairs=1, cells=2, triples=8, items=4)
    """
    values = _checked(distances)
    label, voice, context = _all_codes(labels, voices, contexts, len(values))
    if across and voices is None:
        raise ArgumentError("voices", "wants the voice of each item to go across voices, got None")
    items = _draw(label, voice, context, max_items, seed)
    errors: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    triples = 0
    for v, c in np.unique(np.stack([voice[items], context[items]], 1), axis=0):
        of_context = items[context[items] == c]
        candidates = of_context[voice[of_context] == v]
        for a in np.unique(label[candidates]):
            same, other = candidates[label[candidates] == a], candidates[label[candidates] != a]
            targets = of_context[(label[of_context] == a) & (voice[of_context] != v)]
            targets = targets if across else same
            if not len(other) or not len(targets) or not (across or len(same) > 1):
                continue
            of_other, number_b = np.unique(label[other], return_inverse=True)
            of_target, number_x = np.unique(voice[targets], return_inverse=True)
            wrong = np.zeros((len(of_target), len(of_other)))
            for x, row in zip(targets, number_x, strict=True):
                twice = _twice_wrong(values[x, same[same != x]], values[x, other])
                wrong[row] += np.bincount(number_b, twice, len(of_other))
            counts = np.outer(np.bincount(number_x), np.bincount(number_b))
            counts *= len(same) if across else len(same) - 1
            triples += int(counts.sum())
            for b, cells in zip(of_other, (wrong / (2 * counts)).T, strict=True):
                errors[int(a), int(b), int(v)] += cells.tolist()
    if not triples:
        between = "voices and " if across else ""
        raise ArgumentError("labels", f"no triple: no two {between}labels have items enough")
    of_pair: dict[tuple[int, ...], dict[bool, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (a, b, _), of_cells in errors.items():
        of_pair[min(a, b), max(a, b)][a < b].append(_mean(of_cells))
    means = [_mean([_mean(of) for of in orders.values()]) for orders in of_pair.values()]
    cells = sum(map(len, errors.values()))
    return ABX(_mean(means), len(of_pair), cells, triples, len(items))


def sample_items(
    labels: Sequence[Hashable] | Tensor,
    *,
    voices: Sequence[Hashable] | Tensor | None = None,
    contexts: Sequence[Hashable] | Tensor | None = None,
    max_items: int,
    seed: int = 0,
) -> Codes:
    """Positions, in order, of at most ``max_items`` items of each label, voice and context.

    Drawn without replacement, each item as likely as the others of its kind. With them, distances
    need to be computed for the items that are used only.

    Raises:
        ArgumentError: counts that differ, ``max_items`` below 1.

    >>> sample_items(["a", "b", "a"], max_items=3)
    array([0, 1, 2])
    """
    codes = _all_codes(labels, voices, contexts, len(labels))
    return _draw(*codes, max_items, seed)


def _draw(label: Codes, voice: Codes, context: Codes, max_items: int | None, seed: int) -> Codes:
    if max_items is None:
        return np.arange(len(label))
    if max_items < 1:
        raise ArgumentError("max_items", f"wants 1 or more, got {max_items}")
    drawn: Counter[tuple[int, ...]] = Counter()
    chosen = []
    for item in np.random.default_rng(seed).permutation(len(label)).tolist():
        kind = int(label[item]), int(voice[item]), int(context[item])
        drawn[kind] += 1
        if drawn[kind] <= max_items:
            chosen.append(item)
    return np.sort(np.array(chosen, dtype=np.int64))


def _twice_wrong(to_same: NDArray[Any], to_other: NDArray[Any]) -> NDArray[np.int64]:
    """For each B, twice the count of A that are farther, and once the count of those as far."""
    ordered = np.sort(to_same)
    closer = np.searchsorted(ordered, to_other, side="left")
    not_farther = np.searchsorted(ordered, to_other, side="right")
    return 2 * len(ordered) - closer - not_farther


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _all_codes(labels: Any, voices: Any, contexts: Any, count: int) -> tuple[Codes, Codes, Codes]:
    """Integers that are equal where the values are."""
    codes = []
    for argument, values in (("labels", labels), ("voices", voices), ("contexts", contexts)):
        if values is None:
            values = [0] * count
        values = values.tolist() if hasattr(values, "tolist") else values
        if len(values) != count:
            raise ArgumentError(argument, f"wants one for each of {count} items, got {len(values)}")
        known: dict[Hashable, int] = {}
        codes.append(np.array([known.setdefault(value, len(known)) for value in values], np.int64))
    return codes[0], codes[1], codes[2]


def _checked(distances: ArrayLike) -> NDArray[Any]:
    values = _array(distances)
    if values.dtype.kind not in "fiu":
        raise ArgumentTypeError("distances", f"wants real numbers, got {values.dtype}")
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ArgumentError("distances", f"wants shape (N, N), got {values.shape}")
    bad = np.argwhere(np.isnan(values) & ~np.eye(len(values), dtype=bool))
    if len(bad):
        raise NonFiniteError("distances", f"NaN between items {bad[0, 0]} and {bad[0, 1]}")
    return values
