"""Units of Spin on ``speechft/hubert-mini``, by the number of codes.

    python -m recipes.spin_units --output runs/spin_units

The speech that ships with speechft is divided as in :mod:`recipes.demo`: the clips without phone
labels train, 48 of four speakers; the sentences with phone labels, 33 of another, judge. For each K
there are two models: k-means of the frames of the encoder as it is (brought to unit length, its
last layer, the same clips), and Spin.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import transformers
from torch.nn.functional import normalize

from recipes.demo import MODEL
from speechft.data import Manifest, embedded_corpus
from speechft.evaluation import EvaluationData, evaluate
from speechft.evaluation.embeddings import Embeddings
from speechft.evaluation.result import Figure, TaskResult
from speechft.evaluation.tasks import Units
from speechft.methods import Spin, SpinConfig
from speechft.methods.refine import refine
from speechft.models import UnitHead, UnitModel, load, load_units
from speechft.training import TrainingSettings

CONDITIONS = ("unchanged", "pitch +4")
FIGURES = ("PNMI", "phone purity", "cluster purity", "code perplexity", "active codes")


def main() -> None:
    """Train, judge, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/spin_units"))
    parser.add_argument("--codes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    settings = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    start = time.perf_counter()
    corpus = embedded_corpus()
    spoken = Manifest(row for row in corpus if row.phones is None)
    judged = EvaluationData(
        "held-out sentences of festvox-ru",
        {"all": Manifest(row for row in corpus if row.phones is not None)},
    )
    rows: list[tuple[str, int, list[TaskResult]]] = []
    for codes in settings.codes:
        found: dict[str, list[TaskResult]] = {"k-means": [], "Spin": []}
        for seed in range(settings.seeds):
            output = settings.output / f"codes{codes}-seed{seed}"
            refine(
                model=MODEL, method="spin", data=spoken, output=output,
                config=SpinConfig(codes=codes, min_seconds=1.0),
                training=TrainingSettings(
                    **{
                        **Spin.training_defaults, "steps": settings.steps, "warmup_steps": None,
                        "learning_rate": settings.learning_rate, "batch_size": 8, "seed": seed,
                    }
                ),
            )  # fmt: skip
            for name, model in (
                ("k-means", clustered(spoken, codes, seed)),
                ("Spin", load_units(output)),
            ):
                task = Units(conditions=CONDITIONS)
                report = evaluate(model=model, tasks=task, data=judged, seeds=1)
                found[name].append(report.results["units"])
            print(f"  {codes} codes, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
        rows += [(name, codes, results) for name, results in found.items()]
    print(f"\n{table(rows)}\n")
    write(rows, settings.output / "spin_units.json")
    print(f"{time.perf_counter() - start:.0f} s in all; written to {settings.output}")


def clustered(speech: Manifest, codes: int, seed: int) -> UnitModel:
    """The encoder as it is, with k-means for a codebook."""
    from sklearn.cluster import KMeans

    encoder = load(MODEL)
    frames = Embeddings(encoder, progress=False).frames(speech, layers=(encoder.num_layers,))
    unit = normalize(torch.cat(frames.layer(encoder.num_layers)), dim=1)
    means = KMeans(codes, n_init=1, random_state=seed).fit(unit.numpy()).cluster_centers_
    head = UnitHead(encoder.hidden_size, encoder.hidden_size, codes)
    with torch.no_grad():
        head.projection.weight.copy_(torch.eye(encoder.hidden_size))
        head.projection.bias.zero_()
        head.codebook.copy_(torch.from_numpy(means))
    return UnitModel(encoder, head)


def merged(name: str, condition: str, results: list[TaskResult]) -> Figure:
    """A figure, one value a seed."""
    values = tuple(result.figure(name, condition=condition).values[0] for result in results)
    return Figure(name, values, condition=condition)


def table(rows: list[tuple[str, int, list[TaskResult]]]) -> str:
    """As it is printed."""
    lines = [["units", "K", "speech", *FIGURES]]
    for name, codes, results in rows:
        for condition in CONDITIONS:
            figures = [merged(figure, condition, results) for figure in FIGURES]
            shown = [
                f"{figure.mean:.3f}" if figure.mean < 1.0 else f"{figure.mean:.0f}"
                for figure in figures
            ]
            lines.append([name, str(codes), condition, *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(rows: list[tuple[str, int, list[TaskResult]]], path: Path) -> None:
    """Every value of every seed."""
    content = [
        {
            "units": name, "codes": codes, "condition": condition, "figure": figure,
            "values": list(merged(figure, condition, results).values),
        }
        for name, codes, results in rows
        for condition in CONDITIONS
        for figure in FIGURES
    ]  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
