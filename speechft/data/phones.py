"""Phone labels: one phone a line, ``END PHONE``, END in seconds from the start of the file.

Each phone starts where the one before it ends, the first at 0. Lines are in order of time::

    0.342 pau
    0.392 k
    0.422 ay
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from speechft.errors import ManifestError


@dataclass(frozen=True)
class Phone:
    """A phone from ``start`` to ``end``, in seconds from the start of its file."""

    start: float
    end: float
    label: str


def read_phones(path: str | Path) -> list[Phone]:
    """Read a file of phone labels.

    Raises:
        ManifestError: naming the file and line: missing, empty, malformed, or times that do not
            rise.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(path, None, f"cannot be read: {error}") from None
    phones: list[Phone] = []
    start = 0.0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.split()
        try:
            end = float(parts[0])
            (label,) = parts[1:]
        except ValueError:
            raise ManifestError(path, number, f"wants END PHONE, got {line!r}") from None
        if not math.isfinite(end) or end <= start:
            raise ManifestError(path, number, f"ends at {parts[0]} s, not after {start:g} s")
        phones.append(Phone(start, end, label))
        start = end
    if not phones:
        raise ManifestError(path, None, "holds no phones")
    return phones
