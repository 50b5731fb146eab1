"""The figures of a run, and the table of all runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ROWS = {
    "EER, own: speaker": ("speaker", "EER of speakers in the speaker subspace"),
    "EER, other: content": ("content", "EER of speakers in the content subspace"),
    "speaker probe, content": ("content", "speaker probe in the content subspace"),
    "text probe, content": ("content", "sentence probe in the content subspace"),
    "text probe, speaker": ("speaker", "sentence probe in the speaker subspace"),
    "keyword, content": ("content", "keywords from the content subspace"),
    "keyword, speaker": ("speaker", "keywords from the speaker subspace"),
    "real EER, speaker": ("speaker", "real speakers: EER in the speaker subspace"),
    "real EER, content": ("content", "real speakers: EER in the content subspace"),
    "real speaker probe, content": ("content", "real speakers: probe in the content subspace"),
}


def row_of(reports: Mapping[str, Any]) -> dict[str, float]:
    """Figures of one model, each beside the pooled features' own."""
    speaker, leakage = reports["test"]["speaker"], reports["test"]["leakage"]
    keyword = reports["words"]["keyword"]
    real, real_leakage = reports["real"]["speaker"], reports["real"]["leakage"]
    found: dict[str, float] = {}

    def add(name: str, result: Any, metric: str, of: str, pooled: str) -> None:
        own, start = result.figure(metric, of=of), result.figure(metric, of=pooled)
        found[name], found[f"pooled {name}"] = own.mean, start.mean
        if own.spread is not None:
            found[f"spread {name}"] = own.spread

    add("EER, own: speaker", speaker, "EER", "speaker", "pooled")
    add("EER, other: content", speaker, "EER", "content", "pooled")
    for factor, space in (("speaker", "content"), ("text", "content"), ("text", "speaker")):
        of, pooled = f"{factor} from {space}", f"{factor} from pooled"
        add(f"{factor} probe, {space}", leakage, "probe", of, pooled)
    found["chance of speaker"] = leakage.figure("chance", of="speaker from pooled").mean
    for space in ("content", "speaker"):
        add(f"keyword, {space}", keyword, "accuracy", space, "pooled")
    add("real EER, speaker", real, "EER", "speaker", "pooled")
    add("real EER, content", real, "EER", "content", "pooled")
    add(
        "real speaker probe, content", real_leakage, "probe", "speaker from content",
        "speaker from pooled",
    )  # fmt: skip
    return found


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: a row a figure, a column a way, in %, with the spread over seeds."""
    lines = ["| in % | pooled | " + " | ".join(rows) + " |", "|" + "---|" * (len(rows) + 2)]
    first = next(iter(rows.values()))[0]
    for name, (_, title) in ROWS.items():
        cells = [f"{100 * first[f'pooled {name}']:.1f}"]
        for runs in rows.values():
            values = [run[name] for run in runs]
            mean = sum(values) / len(values)
            if len(values) > 1:
                variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
                spread: float | None = math.sqrt(variance)
            else:
                spread = runs[0].get(f"spread {name}")
            cells.append(f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}"))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
