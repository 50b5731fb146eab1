"""The account of a data set: every row of the manifest is either used or skipped for a reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechft.errors import ArgumentError


@dataclass(frozen=True)
class Skip:
    """A row that is not used, and why."""

    id: str
    audio: str
    line: int | None
    reason: str


@dataclass(frozen=True)
class Ledger:
    """``seen + len(skipped) == rows``, or it cannot be made.

    Attributes:
        rows: rows of the manifest.
        seen: rows that are used.
        skipped: the others, in the order of the manifest.
        source: the manifest.
        seconds: duration of the rows that are used.

    Raises:
        ArgumentError: the identity does not hold.
    """

    rows: int
    seen: int
    skipped: tuple[Skip, ...] = ()
    source: str | None = None
    seconds: float = field(default=0.0)

    def __post_init__(self) -> None:
        if self.seen + len(self.skipped) != self.rows:
            raise ArgumentError(
                "rows",
                f"{self.seen} seen and {len(self.skipped)} skipped do not make {self.rows} rows",
            )

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`write` writes."""
        return {
            "source": self.source,
            "rows": self.rows,
            "seen": self.seen,
            "skipped": len(self.skipped),
            "seconds": round(self.seconds, 3),
            "skips": [vars(skip) for skip in self.skipped],
        }

    def write(self, path: str | Path) -> None:
        """Write JSON; the file appears complete or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(
            json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        os.replace(partial, path)

    def __str__(self) -> str:
        text = f"{self.seen} of {self.rows} utterances, {self.seconds / 60:.1f} min"
        if self.skipped:
            reasons = Counter(skip.reason.split(":", 1)[0] for skip in self.skipped)
            counted = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
            text += f"; {len(self.skipped)} skipped ({counted}{', …' if len(reasons) > 3 else ''})"
        return text
