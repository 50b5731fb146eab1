"""What an evaluation found: figures with their seeds and spread, as JSON and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechft.errors import ArgumentError


@dataclass(frozen=True)
class Figure:
    """One figure of merit.

    Attributes:
        name: of the metric, such as ``"accuracy"``.
        values: one a seed. Of a figure that draws nothing at random, the one value.
        layer: which layer it is of; None where that has no meaning.
        condition: what was done to the speech that was tested; ``"unchanged"`` where nothing was.
        of: what it is about where a task gives several: a factor, a subspace.
        higher_is_better: None where neither is.
    """

    name: str
    values: tuple[float, ...]
    layer: int | None = None
    condition: str = "unchanged"
    of: str = ""
    higher_is_better: bool | None = True

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (N - 1); None of a single value."""
        if len(self.values) < 2:
            return None
        deviations = ((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(math.fsum(deviations) / (len(self.values) - 1))

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.4f}"
        return f"{self.mean:.4f}{spread}"

    def to_dict(self) -> dict[str, Any]:
        """All of it, with mean, spread and the number of seeds."""
        return {
            "name": self.name, "of": self.of, "layer": self.layer, "condition": self.condition,
            "mean": self.mean, "spread": self.spread, "seeds": len(self.values),
            "values": list(self.values), "higher_is_better": self.higher_is_better,
        }  # fmt: skip


@dataclass
class TaskResult:
    """What one task found.

    Attributes:
        task: its name.
        protocol: how it was done, in a sentence or two.
        data: what it was done on.
        figures: what was found.
        counts: how much of what there was: utterances, trials, frames, classes.
        notes: what a reader of the figures has to know.
        settings: of the task.
        curves: points of curves to draw, by name.
        plots: pictures written.
    """

    task: str
    protocol: str
    data: str
    figures: list[Figure] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    plots: list[Path] = field(default_factory=list)

    def figure(
        self, name: str, *, layer: int | None = None, condition: str = "unchanged", of: str = ""
    ) -> Figure:
        """The figure of this name.

        Args:
            name: of the metric.
            layer: None takes the last layer that has one.
            condition: what was done to the speech that was tested.
            of: see :class:`Figure`.

        Raises:
            ArgumentError: there is none.
        """
        found = [
            figure for figure in self.figures
            if (figure.name, figure.condition, figure.of) == (name, condition, of)
            and layer in (None, figure.layer)
        ]  # fmt: skip
        if not found:
            names = sorted({figure.name for figure in self.figures})
            raise ArgumentError(
                "name",
                f"{self.task} has no {name!r} of layer {layer}, {condition!r}; it has: "
                f"{', '.join(names)}",
            )
        return max(found, key=lambda figure: -1 if figure.layer is None else figure.layer)

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {
            "task": self.task, "protocol": self.protocol, "data": self.data,
            "settings": self.settings, "counts": self.counts, "notes": self.notes,
            "figures": [figure.to_dict() for figure in self.figures],
            "plots": [path.name for path in self.plots],
        }  # fmt: skip

    def __str__(self) -> str:
        counts = ", ".join(f"{number:,} {name}" for name, number in self.counts.items())
        lines = [f"{self.task} on {self.data} ({counts})"]
        lines += ["  " + line for line in self._table()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """A row for each subject, condition and layer, a column for each metric."""
        names = list(dict.fromkeys(figure.name for figure in self.figures))
        keys = list(dict.fromkeys((f.of, f.condition, f.layer) for f in self.figures))
        cells = {(f.of, f.condition, f.layer, f.name): str(f) for f in self.figures}
        several = any(of for of, _, _ in keys)
        layered = any(layer is not None for _, _, layer in keys)
        conditions = {condition for _, condition, _ in keys} != {"unchanged"}
        head = ["what"] * several + ["layer"] * layered + ["condition"] * conditions
        rows = [head + names]
        for of, condition, layer in keys:
            row = [of] * several + ["" if layer is None else str(layer)] * layered
            row += [condition] * conditions
            row += [cells.get((of, condition, layer, name), "") for name in names]
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]


@dataclass
class EvaluationReport:
    """What :func:`speechft.evaluate` returns; printed, it is a table a task.

    Attributes:
        model: what was evaluated.
        results: by task.
        seconds: the wall time.
        output: the folder with ``evaluation.json`` and the pictures, if one was asked for.
        seeds: what was drawn with.
    """

    model: str
    results: dict[str, TaskResult]
    seconds: float
    output: Path | None = None
    seeds: tuple[int, ...] = ()

    def __getitem__(self, task: str) -> TaskResult:
        return self.results[task]

    def to_dict(self) -> dict[str, Any]:
        """As ``evaluation.json`` has it."""
        tasks = [result.to_dict() for result in self.results.values()]
        return {
            "model": self.model, "seeds": list(self.seeds), "seconds": round(self.seconds, 2),
            "tasks": tasks,
        }  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Write ``evaluation.json`` whole or not at all."""
        path = folder / "evaluation.json"
        part = folder / "evaluation.json.part"
        part.write_text(
            json.dumps(_finite(self.to_dict()), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
        part.replace(path)
        return path

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.results.values()))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures_of_layers(
    name: str,
    values: Mapping[tuple[int, str], Sequence[float]],
    **settings: Any,
) -> list[Figure]:
    """A figure for each (layer, condition)."""
    return [
        Figure(name, tuple(seeds), layer=layer, condition=condition, **settings)
        for (layer, condition), seeds in values.items()
    ]
