"""Rows as people read them: a table in the terminal, or one in Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from .rows import Row

_TITLES = ("provider", "mode", "median", "p20 – p80", "× speechft", "memory", "of floor",
           "error: value", "gradient")  # fmt: skip


def terminal(rows: Iterable[Row]) -> str:
    """Tables of aligned columns, one a case, each with its floor beneath."""
    blocks = []
    for (op, case), group in groupby(rows, key=lambda row: (row.op, row.case)):
        of_case = list(group)
        lines = _aligned([_TITLES, *map(_cells, of_case)])
        rule = "─" * max(map(len, lines))
        heading = f"{op} · {case} · {of_case[0].device}"
        lines = [heading, rule, lines[0], rule, *lines[1:]]
        floors = {row.floor: f"floor of {row.mode}: {_time(row.floor_ms)} = {row.floor}"
                  for row in of_case if row.floor_ms is not None}  # fmt: skip
        blocks.append("\n".join([*lines, *floors.values()]))
    return "\n\n".join(blocks)


def markdown(rows: Iterable[Row]) -> str:
    """One Markdown table of all rows."""
    titles = ("case", *_TITLES)
    cells = [(row.case, *_cells(row)) for row in rows]
    lines = [titles, ("---",) * len(titles), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    if row.median_ms is None:
        time = row.status if row.status != "ok" else "–"
        spread = f"{row.repeats} calls" if row.repeats else ""
    else:
        time = _time(row.median_ms)
        spread = f"{_time(row.p20_ms).split()[0]} – {_time(row.p80_ms)}"
        if row.repeats is not None and row.repeats < 5:
            spread += f" ({row.repeats} calls)"
    return (
        row.provider,
        row.mode,
        time,
        spread,
        "" if row.ratio is None else f"{row.ratio:.2f}" if row.ratio < 10 else f"{row.ratio:.0f}",
        "" if row.memory_mib is None else f"{row.memory_mib:.0f} MiB",
        "" if row.floor_percent is None else f"{row.floor_percent:.0f} %",
        "" if row.value_error is None else f"{row.value_error:.1e}",
        "" if row.gradient_error is None else f"{row.gradient_error:.1e}",
    )


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    if milliseconds >= 1e4:
        return f"{milliseconds / 1e3:.1f} s"
    if milliseconds >= 100:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds:.3g} ms" if milliseconds >= 0.1 else f"{1e3 * milliseconds:.3g} µs"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Words to the left, figures to the right. A reason in the place of a time may run on."""
    reasons = [_is_reason(line) for line in lines]
    widths = [
        max(len(line[k]) for line, reason in zip(lines, reasons, strict=True)
            if not (reason and k == 2))
        for k in range(len(lines[0]))
    ]  # fmt: skip

    def align(line: Sequence[str], reason: bool) -> str:
        words = [f"{cell:<{width}}" for cell, width in zip(line[:2], widths[:2], strict=True)]
        if reason:
            return "  ".join([*words, line[2]])
        figures = [f"{cell:>{width}}" for cell, width in zip(line[2:], widths[2:], strict=True)]
        return "  ".join([*words, *figures]).rstrip()

    return [align(line, reason) for line, reason in zip(lines, reasons, strict=True)]


def _is_reason(line: Sequence[str]) -> bool:
    return line[2].startswith(("not run", "failed"))
