"""Which utterances fit a probe, which choose its settings, and which it is tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speechft.errors import ArgumentError
from speechft.evaluation.layouts.base import SPLITS


class Split(NamedTuple):
    """Indices of utterances; no group is in two of the three."""

    fit: list[int]
    validation: list[int]
    test: list[int]


def random_split(
    groups: Sequence[str], seed: int, *, validation: float = 0.15, test: float = 0.25
) -> Split:
    """Whole groups, drawn at random by a seed; shares are of the number of groups.

    Raises:
        ArgumentError: fewer than 3 groups.
    """
    names = sorted(set(groups))
    if len(names) < 3:
        raise ArgumentError("groups", f"wants 3 or more to split, got {len(names)}")
    order = np.random.default_rng(seed).permutation(len(names))
    tests = max(1, round(test * len(names)))
    validations = max(1, round(validation * len(names)))
    part = {names[place]: rank for rank, place in enumerate(order)}
    split = Split([], [], [])
    for index, group in enumerate(groups):
        rank = part[group]
        side = split.test if rank < tests else split.fit
        side = split.validation if tests <= rank < tests + validations else side
        side.append(index)
    return split


def stratified_split(
    labels: Sequence[int], seed: int, *, validation: float = 0.15, test: float = 0.25
) -> Split:
    """Items of each class drawn at random by a seed, at least one of each class to test.

    Raises:
        ArgumentError: a class of fewer than 3 items.
    """
    rng = np.random.default_rng(seed)
    values = np.asarray(labels)
    split = Split([], [], [])
    for label in np.unique(values):
        mine = rng.permutation(np.flatnonzero(values == label)).tolist()
        if len(mine) < 3:
            raise ArgumentError("labels", f"class {label} has {len(mine)} items; wants 3 or more")
        tests, validations = (max(1, round(share * len(mine))) for share in (test, validation))
        split.test.extend(mine[:tests])
        split.validation.extend(mine[tests : tests + validations])
        split.fit.extend(mine[tests + validations :])
    return Split(*(sorted(part) for part in split))


def given_split(
    parts: Sequence[str], groups: Sequence[str], labels: Sequence[str], seed: int
) -> Split:
    """The split that a data set comes with; without a validation part, some of train is held out.

    What is held out are whole groups, 15 % of those that fit (at least one), drawn by the seed; a
    group without which a label would have none to fit on stays.

    Args:
        parts: ``"train"``, ``"validation"`` or ``"test"`` of each utterance; others are left out.
        groups: what must not be in two parts, of each utterance.
        labels: of each utterance.
        seed: of what is held out.

    Raises:
        ArgumentError: nothing to fit or nothing to validate on.
    """
    rows = range(len(parts))
    split = Split(*([r for r in rows if parts[r] == part] for part in SPLITS))
    if split.validation or len(split.fit) < 2:
        if not split.fit or not split.validation:
            raise ArgumentError("parts", f"wants train and test, got {sorted(set(parts))}")
        return split
    names = sorted({groups[row] for row in split.fit})
    wanted, held = max(1, round(0.15 * len(names))), set[str]()
    left = Counter(labels[row] for row in split.fit)
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for row in split.fit:
        counts[groups[row]][labels[row]] += 1
    for place in np.random.default_rng(seed).permutation(len(names)):
        mine = counts[names[place]]
        if len(held) < wanted and all(left[label] > count for label, count in mine.items()):
            held.add(names[place])
            left -= mine
    if not held:
        raise ArgumentError("parts", "train has no group that can be held out to validate on")
    return Split(
        [row for row in split.fit if groups[row] not in held],
        [row for row in split.fit if groups[row] in held],
        split.test,
    )
