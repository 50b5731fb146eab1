"""Which of the training utterances are held out, to choose the best state of a run by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speechft.data import Manifest
from speechft.errors import ConfigError

Value = str | int | None


class Parts(NamedTuple):
    """Rows of a manifest: to train on, and to validate on."""

    fit: list[int]
    held: list[int]


def hold_out(
    manifest: Manifest,
    label: str | None,
    *,
    share: float,
    groups: str | None = None,
    part: str | None = None,
    seed: int = 0,
    least: int = 1,
) -> Parts:
    """Hold utterances out.

    Of each class a share is drawn, at least one; or, with ``groups``, whole groups are: in an
    order drawn by the seed, those that leave every class ``least`` utterances to train on, until
    they are the share of the groups and have every class. Utterances without the label are trained
    on. With ``part`` nothing is drawn.

    Args:
        manifest: the utterances.
        label: every class of which is to be on both sides; None: there are no classes.
        share: of the utterances, or of the groups, above 0 and below 1; 0 holds nothing out.
        groups: a label whose values are not to be on both sides.
        part: a label that is ``"validation"`` of what is held out.
        seed: of what is drawn.
        least: utterances of every class that are left to train on.

    Raises:
        ConfigError: a class that cannot be on both sides, an utterance without its group, nobody
            to hold out.
    """
    rows = range(len(manifest))
    classes: list[Value] = [None if label is None else row.label(label) for row in manifest]
    if part is not None:
        held = {row for row in rows if manifest[row].label(part) == "validation"}
        if not held:
            raise ConfigError(f"part: no utterance has {part!r} 'validation'")
        if label is not None:
            held = {row for row in held if classes[row] is not None}
    elif share == 0:
        return Parts(list(rows), [])
    elif groups is not None:
        members = [manifest[row].label(groups) for row in rows]
        if None in members:
            name = manifest[members.index(None)].id
            raise ConfigError(f"groups: utterance {name!r} has no {groups!r}")
        held = _groups([str(name) for name in members], classes, share, seed, least)
    elif label is None:
        order = np.random.default_rng(seed).permutation(len(manifest))
        held = set(order[: max(1, round(share * len(manifest)))].tolist())
    else:
        held = _each(classes, share, seed, least)
    parts = Parts([row for row in rows if row not in held], sorted(held))
    if label is not None:
        _check(parts, classes, label, groups=groups, part=part, least=least)
    return parts


def _each(classes: Sequence[Value], share: float, seed: int, least: int) -> set[int]:
    """A share of each class."""
    rng, held = np.random.default_rng(seed), set[int]()
    for value in sorted({c for c in classes if c is not None}, key=str):
        mine = rng.permutation([row for row, c in enumerate(classes) if c == value])
        wanted = max(1, round(share * len(mine)))
        held |= set(mine[: max(0, min(wanted, len(mine) - least))].tolist())
    return held


def _groups(
    members: Sequence[str], classes: Sequence[Value], share: float, seed: int, least: int
) -> set[int]:
    """Whole groups."""
    names = sorted(set(members))
    rng = np.random.default_rng(seed)
    order = [names[place] for place in rng.permutation(len(names))]
    left: Counter[str | int] = Counter(value for value in classes if value is not None)
    counts: dict[str, Counter[str | int]] = {name: Counter() for name in names}
    for name, value in zip(members, classes, strict=True):
        if value is not None:
            counts[name][value] += 1
    wanted, lacking, chosen = max(1, round(share * len(names))), set(left), set[str]()
    for name in order:
        mine = counts[name]
        if len(chosen) >= wanted and not (lacking & set(mine)):
            continue
        if len(chosen) + 1 < len(names) and all(left[v] - n >= least for v, n in mine.items()):
            chosen.add(name)
            left -= mine
            lacking -= set(mine)
    return {row for row, name in enumerate(members) if name in chosen}


def _check(
    parts: Parts,
    classes: Sequence[Value],
    label: str,
    *,
    groups: str | None,
    part: str | None,
    least: int,
) -> None:
    """Every class is on both sides, or the figure would be of other classes than the training."""
    fit = Counter(classes[row] for row in parts.fit if classes[row] is not None)
    held = {classes[row] for row in parts.held}
    of_whom = "" if groups is None else f" of another {groups}"
    for value in sorted({c for c in classes if c is not None}, key=str):
        if fit[value] < least:
            raise ConfigError(
                f"validation: of {label} {value!r} {fit[value]} are left to train on; wants {least}"
            )
        if value not in held and part is not None:
            raise ConfigError(
                f"validation: no utterance of {label} {value!r} is in the validation part"
            )
        if value not in held:
            raise ConfigError(
                f"validation: no utterance of {label} {value!r} can be held out and {least} be "
                f"left to train on; give more{of_whom}, or set validation to 0"
            )
