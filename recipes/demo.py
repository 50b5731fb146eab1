"""SCORE on ``speechft/hubert-mini``, before and after: what ``make demo`` runs.

    python -m recipes.demo --output runs/demo

The speech that ships with speechft is divided: the clips without phone labels (Italian, Russian and
English, four speakers) refine the encoder; the sentences with phone labels (one other speaker)
judge it. Neither was heard in pre-training. Each seed refines anew and draws anew what is fitted
and tested, the same before and after, so a change is the mean of differences within a seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers

from speechft.data import Manifest, embedded_corpus
from speechft.evaluation import EvaluationData, evaluate
from speechft.evaluation.plots import layer_curves
from speechft.evaluation.result import Figure, TaskResult
from speechft.evaluation.tasks import Phones, Query, Retrieval, Task
from speechft.methods.refine import refine
from speechft.methods.score import ScoreConfig
from speechft.models import Encoder, load
from speechft.training import TrainingSettings

MODEL = "speechft/hubert-mini"
CHANGES = ("speed 0.8", "speed 1.25", "pitch -4", "pitch +4")
TASKS: tuple[Task, ...] = (
    Phones(conditions=("unchanged", *CHANGES), penalties=(3e-3,)),
    Query(conditions=("unchanged", *CHANGES), phones=4),
    Retrieval(conditions=CHANGES, layers=(4,)),
)


@dataclass(frozen=True)
class Row:
    """A figure before and after, one value a seed each."""

    task: str
    before: Figure
    after: Figure

    @property
    def change(self) -> Figure:
        """After less before, within each seed."""
        pairs = zip(self.before.values, self.after.values, strict=True)
        return Figure(self.before.name, tuple(after - before for before, after in pairs))

    @property
    def verdict(self) -> str:
        """What the seeds say: better or worse where they agree and the mean exceeds the spread."""
        change = self.change
        sign = 1 if self.before.higher_is_better else -1
        if change.spread is None or abs(change.mean) <= change.spread:
            return "within the spread"
        if len({value > 0 for value in change.values}) > 1:
            return "seeds disagree"
        return "better" if sign * change.mean > 0 else "worse"


def main() -> None:
    """Refine, judge, print the table, draw the layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    settings = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    start = time.perf_counter()
    corpus = embedded_corpus()
    spoken = Manifest(row for row in corpus if row.phones is None)
    judged = Manifest(row for row in corpus if row.phones is not None)
    data = EvaluationData("held-out sentences of festvox-ru", {"all": judged})
    print(f"{MODEL}: refined on {len(spoken)} clips, judged on {len(judged)} others", flush=True)

    seeds = range(settings.seeds)
    before = evaluate(model=MODEL, tasks=TASKS, data=data, seeds=seeds).results
    print(f"  before: judged in {time.perf_counter() - start:.0f} s", flush=True)
    after: dict[str, list[TaskResult]] = {task.name: [] for task in TASKS}
    for seed in seeds:
        began = time.perf_counter()
        encoder = load(MODEL)
        report = refine(
            model=encoder, method="score", data=spoken, output=settings.output / f"seed{seed}",
            config=ScoreConfig(),
            training=TrainingSettings(
                steps=settings.steps, learning_rate=settings.learning_rate, seed=seed
            ),
        )  # fmt: skip
        refined = time.perf_counter() - began
        found = evaluate(model=encoder, tasks=TASKS, data=data, seeds=[seed])
        for name, result in found.results.items():
            after[name].append(result)
        print(
            f"  seed {seed}: loss {report.loss_before:.3f} → {report.loss_after:.3f} in "
            f"{refined:.0f} s, judged in {time.perf_counter() - began - refined:.0f} s",
            flush=True,
        )
    rows = compare(before, {name: merge(results) for name, results in after.items()}, encoder)
    print(f"\n{table(rows, settings.seeds)}\n")
    picture = settings.output / "layers.png"
    layer_curves(
        {"before": before["phones"], "after": merge(after["phones"])}, picture,
        title="Phone probe by layer, before and after SCORE",
    )  # fmt: skip
    write(rows, settings.output / "demo.json")
    print(
        f"{time.perf_counter() - start:.0f} s in all; written to {settings.output}: demo.json, "
        f"layers.png, and the refined models in seed0 to seed{settings.seeds - 1}"
    )


def merge(results: list[TaskResult]) -> TaskResult:
    """Results of one seed each as one result of all."""
    first = results[0]
    figures = []
    for place, figure in enumerate(first.figures):
        values = tuple(result.figures[place].values[0] for result in results)
        figures.append(
            Figure(
                figure.name, values, figure.layer, figure.condition, figure.of,
                figure.higher_is_better,
            )
        )  # fmt: skip
    return TaskResult(first.task, first.protocol, first.data, figures, first.counts, first.notes)


def compare(
    before: Mapping[str, TaskResult], after: Mapping[str, TaskResult], encoder: Encoder
) -> list[Row]:
    """The rows of the table: figures of the last layer."""
    rows = []
    for name, result in before.items():
        for figure in result.figures:
            if figure.layer == encoder.num_layers and figure.name != "top-1":
                other = after[name].figure(
                    figure.name, layer=figure.layer, condition=figure.condition
                )
                rows.append(Row(name, figure, other))
    return rows


def table(rows: list[Row], seeds: int) -> str:
    """As it is printed."""
    head = ["task", "speech", "figure", "before", "after", "change", f"over {seeds} seeds"]
    lines = [head]
    for row in rows:
        change = row.change
        spread = "" if change.spread is None else f" ± {change.spread:.3f}"
        lines.append(
            [row.task, row.before.condition, row.before.name, f"{row.before.mean:.3f}",
             f"{row.after.mean:.3f}", f"{change.mean:+.3f}{spread}", row.verdict]
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(rows: list[Row], path: Path) -> None:
    """Every value of every seed."""
    content = [
        {
            "task": row.task, "condition": row.before.condition, "figure": row.before.name,
            "before": list(row.before.values), "after": list(row.after.values),
            "verdict": row.verdict,
        }
        for row in rows
    ]  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
