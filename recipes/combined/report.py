"""The figures of all runs, as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from speechft.methods.two_step_report import TwoStepReport

_SHARES = ("accuracy", "UAR")
_SHOWN = {"accuracy": "higher is better", "1-shot": "higher is better",
          "Davies-Bouldin": "lower is better"}  # fmt: skip


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


def draw(reports: Mapping[int, TwoStepReport], path: Path) -> None:
    """Every seed a dot, the mean a bar: a panel a figure, a row of them a number of labels."""
    from matplotlib.figure import Figure as Picture

    ways = list(next(iter(reports.values())).ways)
    height = 0.6 + 0.32 * len(ways)
    picture = Picture(figsize=(10, 0.4 + height * len(reports)), layout="constrained")
    grid = picture.subplots(len(reports), len(_SHOWN), squeeze=False, sharey=True, sharex="col")
    for axes, (labelled, report) in zip(grid, reports.items(), strict=True):
        for axis, (name, wanted) in zip(axes, _SHOWN.items(), strict=True):
            scale, unit = (100, ", %") if _share(name) else (1, "")
            for place, way in enumerate(ways):
                cell = report.ways[way]
                color = "tab:blue" if way.startswith("combined") else "0.55"
                axis.barh(place, scale * cell.mean(name), color=color, alpha=0.55, height=0.7)
                values = [scale * value for value in cell.figures[name]]
                axis.plot(values, [place] * len(values), "o", color="black", markersize=3)
            axis.set_title(f"{name}{unit} ({wanted})", fontsize=9)
            axis.tick_params(axis="x", labelsize=8, labelbottom=True)
        axes[0].set_yticks(range(len(ways)), ways, fontsize=9)
        axes[0].set_ylabel(f"{labelled} labels of each", fontsize=9)
    grid[0, 0].invert_yaxis()
    picture.savefig(path, dpi=130)
