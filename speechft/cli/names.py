"""The nearest name, for everything that can be misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to put behind an error: the nearest known name, or all of them."""
    known = list(known)
    found = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]}?"
    return f"; there are {', '.join(sorted(known))}"
