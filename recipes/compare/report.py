"""The table and the picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechft.evaluation.result import Figure

# name -> (heading, as a percentage, whether higher is better; None where it depends on the use)
COLUMNS: dict[str, tuple[str, bool, bool | None]] = {
    "phones": ("phone probe", True, True),
    "phones, changed": ("changed speech", True, True),
    "query": ("query, MTWV", False, True),
    "retrieval": ("retrieval, MAP", True, True),
    "EER": ("speaker EER", True, False),
    "EER from frames": ("EER from frames", True, None),
    "probe from frames": ("speaker probe", True, None),
}


@dataclass(frozen=True)
class Row:
    """A way: each of its figures, and what it changes within each seed."""

    name: str
    figures: Mapping[str, Figure]
    changes: Mapping[str, Figure]

    def mark(self, column: str) -> str:
        """Whether a change is one: all seeds agree, and its mean exceeds their spread."""
        better = COLUMNS[column][2]
        change = self.changes.get(column)
        if change is None or better is None or change.spread is None:
            return ""
        if abs(change.mean) <= change.spread or len({value > 0 for value in change.values}) > 1:
            return ""
        return " ▲" if (change.mean > 0) == better else " ▼"


def rows_of(every: Mapping[str, Sequence[Mapping[str, float]]], untuned: str) -> list[Row]:
    """Of all ways, the untuned model first."""
    before = every[untuned]
    rows = []
    for name, runs in every.items():
        figures = {
            key: Figure(key, tuple(run[key] for run in runs))
            for key in (*COLUMNS, "audio", "processor")
            if key in runs[0]
        }
        changes = {}
        if name != untuned:
            for key in COLUMNS:
                pairs = zip(runs, before, strict=False)
                changes[key] = Figure(key, tuple(run[key] - start[key] for run, start in pairs))
        rows.append(Row(name, figures, changes))
    return rows


def table(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """As Markdown."""
    head = ["", "is told", "seeds", *(heading for heading, _, _ in COLUMNS.values())]
    head += ["audio, s", "processor, s"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row.name, labels.get(row.name, ""), f"{len(row.figures['phones'].values)}"]
        for key, (_, percent, _) in COLUMNS.items():
            cells.append(_text(row.figures[key], percent) + row.mark(key))
        for key in ("audio", "processor"):
            cells.append(f"{row.figures[key].mean:.0f}" if key in row.figures else "")
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(figure: Figure, percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    spread = figure.spread
    around = "" if spread is None or not spread else f" ± {scale * spread:.{digits}f}"
    return f"{scale * figure.mean:.{digits}f}{around}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """What each way changes, a panel a figure: every seed a dot, the mean a bar."""
    from matplotlib.figure import Figure as Picture

    shown = [key for key in COLUMNS if key != "probe from frames"]
    ways = [row for row in rows if row.changes]
    picture = Picture(figsize=(11.5, 1.0 + 0.42 * len(ways) * 2), layout="constrained")
    axes = picture.subplots(2, 3, sharey=True)
    for axis, key in zip(axes.flat, shown, strict=True):
        heading, percent, better = COLUMNS[key]
        scale = 100 if percent else 1
        for place, row in enumerate(ways):
            change = row.changes[key]
            good = better is not None and (change.mean > 0) == better
            color = "0.55" if better is None else ("tab:blue" if good else "tab:red")
            axis.barh(place, scale * change.mean, color=color, alpha=0.55, height=0.7)
            values = [scale * value for value in change.values]
            axis.plot(values, [place] * len(values), "o", color="black", markersize=3)
        axis.axvline(0, color="black", linewidth=0.8)
        wanted = {True: "higher is better", False: "lower is better", None: "no direction"}[better]
        unit = ", in points" if percent else ""
        axis.set_title(f"change of {heading}{unit}\n({wanted})", fontsize=9)
        axis.set_yticks(range(len(ways)), [row.name for row in ways], fontsize=9)
        axis.tick_params(axis="x", labelsize=8)
    axes.flat[0].invert_yaxis()
    picture.savefig(path, dpi=130)
