"""What two-step tuning found beside the others, as JSON and a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechft.methods.transfer_report import Cell


@dataclass
class TwoStepReport:
    """A finished comparison.

    Attributes:
        model: what was tuned.
        data: on what.
        config: how.
        folder: where all of it is.
        ways: figures by way, and in them by name, one a seed.
        chosen: by way, of each seed and fold: what the validation part chose, and its figures.
        seconds: wall clock of the call that made the report.
        space_utterances: how many step one had of its own; None: it had those of the others.
    """

    model: str
    data: str
    config: Any
    folder: Path
    ways: dict[str, Cell] = field(default_factory=dict)
    chosen: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)
    seconds: float = 0.0
    space_utterances: int | None = None

    def add(self, way: str, figures: dict[str, float], chosen: list[dict[str, Any]]) -> None:
        """The figures of one more seed."""
        cell = self.ways.setdefault(way, Cell({"way": way}, []))
        for name, value in figures.items():
            cell.figures.setdefault(name, []).append(value)
        self.chosen.setdefault(way, []).append(chosen)

    def write(self) -> None:
        """Write ``two_step.json``."""
        content = {
            "model": self.model, "data": self.data, "config": asdict(self.config),
            "seconds": round(self.seconds, 1), "space_utterances": self.space_utterances,
            "ways": {
                way: {"figures": cell.figures, "chosen": self.chosen[way]}
                for way, cell in self.ways.items()
            },
        }  # fmt: skip
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (self.folder / "two_step.json").write_text(text, encoding="utf-8")

    def rows(self) -> list[list[str]]:
        """A row of names, and one a way: means, with their spreads over seeds."""
        names = list(next(iter(self.ways.values())).figures)
        rows = [["", *names]]
        for way, cell in self.ways.items():
            values = []
            for name in names:
                spread = cell.spread(name)
                values.append(
                    f"{cell.mean(name):.3f}" + ("" if spread is None else f" ± {spread:.3f}")
                )
            rows.append([way, *values])
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        title = f"{self.config.label} of {self.data}, from {self.model}; {self.seconds:.0f} s"
        if self.space_utterances is not None:
            title += f"\nstep one, and what is classified first: {self.space_utterances} utterances"
        return "\n".join([title, *lines])
