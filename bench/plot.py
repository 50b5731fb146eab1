"""A bar chart of the times of each case. matplotlib is imported only here, when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from speechft.errors import ConfigError

from .rows import Row

_OURS, _OTHERS, _FLOOR = "#1f6f8b", "#b8c4cc", "#d1495b"


def save(rows: Sequence[Row], path: Path) -> None:
    """One panel a case and mode: a bar a provider with its p20 to p80, and the floor as a line.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = sorted((row for row in rows if row.median_ms), key=lambda row: (row.case, row.mode))
    panels = [(key, list(group)) for key, group in groupby(timed, lambda r: (r.case, r.mode))]
    if not panels:
        return
    heights = [0.45 + 0.32 * len(group) for _, group in panels]
    figure, axes = plt.subplots(
        len(panels), 1, squeeze=False, figsize=(8, sum(heights) + 0.45 * len(panels)),
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    for axis, ((case, mode), group) in zip(axes[:, 0], panels, strict=True):
        for place, row in enumerate(reversed(group)):
            assert row.median_ms is not None
            assert row.p20_ms is not None
            assert row.p80_ms is not None
            spread = [[row.median_ms - row.p20_ms], [row.p80_ms - row.median_ms]]
            color = _OURS if row.provider.startswith("speechft") else _OTHERS
            axis.barh(place, row.median_ms, xerr=spread, color=color, ecolor="#555", capsize=2)
            axis.annotate(f"  {row.median_ms:.3g} ms", (row.p80_ms, place), va="center", fontsize=8)
        axis.set_yticks(range(len(group)), [row.provider for row in reversed(group)], fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(right=4 * max(row.p80_ms or 0 for row in group))
        axis.set_title(f"{case} · {mode}", fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        if group[0].floor_ms is not None:
            axis.axvline(group[0].floor_ms, color=_FLOOR, linewidth=1, label="floor")
    figure.suptitle(f"{timed[0].op}, median ms and p20 to p80 · {timed[0].device}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
