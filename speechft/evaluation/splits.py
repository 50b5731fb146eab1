"""Which utterances fit a probe, which choose its settings, and which it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speechft.errors import ArgumentError


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
