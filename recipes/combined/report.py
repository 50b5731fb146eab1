"""The figures of all runs, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from speechft.methods.two_step_report import TwoStepReport

_SHARES = ("accuracy", "UAR")


def table(reports: Mapping[int, TwoStepReport]) -> str:
    """Markdown: a row a way and a number of labels, means and spreads over seeds; shares in %."""
    names = list(next(iter(next(iter(reports.values())).ways.values())).figures)
    header = ["labels of each", "", *(f"{n}, %" if _share(n) else n for n in names)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for labelled, report in reports.items():
        for way, cell in report.ways.items():
            values = []
            for name in names:
                factor, digits = (100, 1) if _share(name) else (1, 2)
                spread = cell.spread(name)
                mean = f"{factor * cell.mean(name):.{digits}f}"
                values.append(mean if spread is None else f"{mean} ± {factor * spread:.{digits}f}")
            lines.append("| " + " | ".join([str(labelled), way, *values]) + " |")
    return "\n".join(lines)


def _share(name: str) -> bool:
    return name in _SHARES or name.endswith("-shot")
