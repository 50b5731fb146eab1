"""The figures of all runs, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechft.methods.transfer_report import TransferReport


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: a row a way, means and spreads over seeds."""
    lines = ["| | EER, % | minDCF(0.05) | seconds |", "|---|---|---|---|"]
    for name, runs in rows.items():
        eer = _cell([100 * run["EER"] for run in runs], 1)
        dcf = _cell([run["minDCF(0.05)"] for run in runs], 3)
        lines.append(f"| {name} | {eer} | {dcf} | {_cell([r['seconds'] for r in runs], 0)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def chart(reports: Sequence[TransferReport], path: Path) -> None:
    """The EER over the length of chunks, mean and spread over seeds, as PNG."""
    first = reports[0]
    for number, cell in enumerate(first.cells):
        for report in reports[1:]:
            for name, values in report.cells[number].figures.items():
                cell.figures[name] = [*cell.figures[name], *values]
    drawn = first.draw()
    assert drawn is not None
    path.write_bytes(drawn.read_bytes())
