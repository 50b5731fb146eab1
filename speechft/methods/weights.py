"""Weighted sums as they are written down: ``triplet:1.0 barlow_twins:0.05``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

from speechft.errors import ConfigError


def parse_weights(
    entries: Sequence[str], known: Iterable[str], *, setting: str = "losses"
) -> dict[str, float]:
    """``NAME:WEIGHT`` entries as a mapping, in their order; ``NAME`` alone weighs 1.

    Args:
        entries: what was written.
        known: the names that there are.
        setting: what an error calls the entries.

    Raises:
        ConfigError: no entry, one that is no text, a name that is not known (with the nearest that
            is), the same name twice, or a weight that is not a finite number above 0.

    >>> parse_weights(["triplet", "barlow_twins:0.05"], ["triplet", "barlow_twins", "vicreg"])
    {'triplet': 1.0, 'barlow_twins': 0.05}
    """
    names = list(known)
    if isinstance(entries, str) or not all(isinstance(entry, str) for entry in entries):
        raise ConfigError(f"{setting}: wants a list of NAME:WEIGHT, got {entries!r}")
    if not entries:
        raise ConfigError(f"{setting}: wants one or more of {', '.join(names)}; there are none")
    weights: dict[str, float] = {}
    for entry in entries:
        name, colon, text = entry.partition(":")
        name = name.strip()
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
            raise ConfigError(f"{setting}: no {name!r}; {hint}")
        if name in weights:
            raise ConfigError(f"{setting}: {name!r} is there twice; give it one weight")
        weights[name] = _weight(text, entry, setting) if colon else 1.0
    return weights


def _weight(text: str, entry: str, setting: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(
            f"{setting}: the weight of {entry!r} wants a finite number above 0, got {text!r}"
        )
    return weight
