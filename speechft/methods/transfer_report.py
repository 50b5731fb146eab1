"""What a transfer found, as JSON, a table and a picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Metrics of which less is better.
_LESS = ("EER", "minDCF")


@dataclass
class Cell:
    """One combination of a grid; without one, the only.

    Attributes:
        settings: those of the grid.
        stages: all settings of every stage.
        figures: by name (``"test UAR"``), one a seed.
    """

    settings: dict[str, Any]
    stages: list[dict[str, Any]]
    figures: dict[str, list[float]] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """Over the seeds."""
        return math.fsum(self.figures[name]) / len(self.figures[name])

    def spread(self, name: str) -> float | None:
        """Standard deviation over the seeds (N - 1); None of one."""
        values = self.figures[name]
        if len(values) < 2:
            return None
        mean = self.mean(name)
        return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))

    def named(self) -> str:
        """The settings in words."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())


@dataclass
class TransferReport:
    """A finished transfer.

    Attributes:
        model: what was transferred.
        data: to what.
        config: how.
        cells: one a combination of the grid.
        seconds: wall clock.
        folder: where all of it is.
    """

    model: str
    data: str
    config: Any
    cells: list[Cell]
    seconds: float
    folder: Path

    @property
    def metric(self) -> str:
        """By which combinations are compared: UAR, or the EER."""
        return "EER" if self.config.task == "verification" else "UAR"

    def best(self) -> Cell | None:
        """The combination that is best on the validation part; None without one."""
        name = f"validation {self.metric}"
        known = [cell for cell in self.cells if name in cell.figures]
        if not known:
            return None
        sign = -1 if self.metric in _LESS else 1
        return max(known, key=lambda cell: sign * cell.mean(name))

    def write(self) -> None:
        """Write ``transfer.json``."""
        best = self.best()
        content = {
            "model": self.model, "data": self.data, "config": asdict(self.config),
            "seconds": round(self.seconds, 1),
            "cells": [{**asdict(cell), "best_on_validation": cell is best} for cell in self.cells],
        }  # fmt: skip
        path = self.folder / "transfer.json"
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def draw(self) -> Path | None:
        """A line for each combination of the rest over the chunk lengths of the grid, as PNG."""
        settings = self.cells[0].settings if self.cells else {}
        if "chunk_seconds" not in settings or len(self.cells) < 2:
            return None
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        lines: dict[str, list[Cell]] = {}
        for cell in self.cells:
            rest = {k: v for k, v in cell.settings.items() if k != "chunk_seconds"}
            lines.setdefault(Cell(rest, []).named(), []).append(cell)
        figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
        name = f"test {self.metric}"
        longest = max((_length(cell) for cell in self.cells if _length(cell) > 0), default=1.0)
        for label, cells in lines.items():
            ordered = sorted(cells, key=lambda cell: _length(cell) or 2 * longest)
            x = [_length(cell) or 2 * longest for cell in ordered]
            axis.errorbar(
                x, [100 * cell.mean(name) for cell in ordered],
                yerr=[100 * (cell.spread(name) or 0.0) for cell in ordered],
                marker="o", capsize=3, label=label or None,
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        ticks = sorted({_length(cell) or 2 * longest for cell in self.cells})
        whole = {2 * longest} if any(not _length(cell) for cell in self.cells) else set()
        axis.set_xticks(ticks, ["whole" if t in whole else f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("chunk, seconds")
        axis.set_ylabel(f"{name}, %")
        axis.set_title(f"{self.config.label}: {self.data}", fontsize=10)
        axis.grid(alpha=0.3)
        if any(lines):
            axis.legend(fontsize=8)
        path = self.folder / "transfer-grid.png"
        figure.savefig(path, dpi=150)
        plt.close(figure)
        return path

    def __str__(self) -> str:
        names = list(self.cells[0].figures)
        best = self.best() if len(self.cells) > 1 else None
        header = [("settings" if len(self.cells) > 1 else ""), *names]
        rows = [header]
        for cell in self.cells:
            values = []
            for name in names:
                spread = cell.spread(name)
                values.append(
                    f"{cell.mean(name):.4f}" + ("" if spread is None else f" ± {spread:.4f}")
                )
            mark = " (best on validation)" if cell is best else ""
            rows.append([cell.named() + mark, *values])
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        title = f"{self.config.label} of {self.data}, from {self.model}; {self.seconds:.0f} s"
        return "\n".join([title, *lines])


def _length(cell: Cell) -> float:
    """Seconds of the chunks of a cell; 0 for whole utterances."""
    chunk = cell.settings["chunk_seconds"]
    if chunk is None:
        return 0.0
    return float(sum(chunk) / len(chunk)) if isinstance(chunk, (list, tuple)) else float(chunk)
