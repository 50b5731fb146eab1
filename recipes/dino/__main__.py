"""DINO from scratch on voices without labels, against training by few labels; then transfer.

    python -m recipes.dino --work runs/dino

The voices are those of ``recipes.interventional``: 256 to learn from, 20 others to choose settings
on, and 20 more to judge by. Together with the speech that ships with speechft they are what the
student hears; it is told nothing of them. Goes on where it stopped. Writes ``report.json``,
``report.md`` and pictures into the work folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.dino.report import chart, table
from recipes.dino.speech import few, heard, parts
from speechft import evaluate
from speechft.data import Manifest
from speechft.evaluation import EvaluationData
from speechft.evaluation.tasks.speaker import Speaker
from speechft.methods import ClassificationConfig, DinoConfig
from speechft.methods.refine import refine
from speechft.methods.stages import read_stages
from speechft.methods.transfer import TransferConfig, train_stages, transfer
from speechft.models import EmbeddingModel, EmbeddingSpec, make_embedding
from speechft.training import TrainingSettings

# A small x-vector: what two cores train in minutes.
SPEC = EmbeddingSpec("xvector-128", size=128, bands=40, normalize="utterance")
LONG, SHORT = 1.6, 0.8  # seconds of crops: utterances have 2 to 4
VOICES, EACH = (8, 16, 32), 4  # what is labelled: so many voices, so many utterances of each

DINO = DinoConfig(
    size=SPEC.size, long_seconds=LONG, short_seconds=SHORT, regions="disjoint",
    student_views="short", codes=2048, hidden_size=512, bottleneck=128, freeze_last_steps=30,
    teacher_momentum=0.99, augment_long="none", augment_short="none", centering="sinkhorn",
    koleo_weight=0.1,
)  # fmt: skip
DINO_TRAINING: dict[str, Any] = {
    "steps": 600, "batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 60,
    "schedule": "cosine", "final_learning_rate": 1e-5, "weight_decay": 1e-4, "max_grad_norm": 3.0,
}  # fmt: skip
LABELLED = ClassificationConfig(
    label="speaker", loss="aam", chunk_seconds=LONG, augmentation="none", size=SPEC.size
)
# Of training by labels from scratch: enough for its loss to reach its floor.
LABELLED_TRAINING: dict[str, Any] = {
    "steps": 300, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 30,
    "schedule": "cosine", "weight_decay": 1e-4, "max_grad_norm": 3.0,
}  # fmt: skip
CHUNKS = (0.4, 0.8, 1.6, None)


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/dino"))
    parser.add_argument("--speech", type=Path, default=Path("runs/interventional"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    speech = parts(arguments.speech)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        folder = work / f"seed-{seed}"
        for name, make in ways(speech, folder, seed).items():
            rows.setdefault(name, []).append(
                judged(
                    make, folder / name.replace(", ", "-").replace(" ", "-"), speech["test"], seed
                )
            )
            write(work, rows)
    curve(work, speech, arguments.seeds)
    print(table(rows))


def ways(
    speech: dict[str, Manifest], folder: Path, seed: int
) -> dict[str, Callable[[Path], Path | EmbeddingModel]]:
    """What there is to compare, and how each is made in a folder."""
    labelled = {voices: few(speech["train"], voices, EACH, seed) for voices in VOICES}
    most = VOICES[-1]

    def supervised(voices: int) -> Callable[[Path], Path]:
        return lambda path: by_labels(path, labelled[voices], seed)

    def transferred(stages: str) -> Callable[[Path], Path]:
        chosen = [replace(stage, chunk_seconds=LONG) for stage in read_stages(stages)]
        start = folder / "dino"
        return lambda path: train_stages(start, labelled[most], LABELLED, chosen, path, seed=seed)

    return {
        "untrained": lambda path: make_embedding(SPEC, seed=seed),
        "dino": lambda path: dino(path, heard(speech["train"]), seed),
        **{f"{voices * EACH} labels, from scratch": supervised(voices) for voices in VOICES},
        f"{most * EACH} labels, from DINO, two-stage": transferred("two-stage"),
        f"{most * EACH} labels, from DINO, all-at-once": transferred("all-at-once"),
    }


def judged(
    make: Callable[[Path], Path | EmbeddingModel], path: Path, test: Manifest, seed: int
) -> dict[str, float]:
    """The figures of a model, which is made unless that was done."""
    kept = path / "figures.json"
    if not kept.exists():
        start = time.perf_counter()
        model = make(path)
        seconds = time.perf_counter() - start
        path.mkdir(parents=True, exist_ok=True)
        found = {**verification(model, test, seed), "seconds": seconds}
        kept.write_text(json.dumps(found, indent=1) + "\n")
    figures: dict[str, float] = json.loads(kept.read_text())
    return figures


def dino(path: Path, data: Manifest, seed: int) -> Path:
    """Self-distillation from scratch."""
    training = TrainingSettings(**DINO_TRAINING, seed=seed)
    resume = any((path / "checkpoints").glob("checkpoint-*"))
    refine(
        model=make_embedding(SPEC, seed=seed), method="dino", data=data, output=path, config=DINO,
        training=training, resume=resume,
    )  # fmt: skip
    return path


def by_labels(path: Path, data: Manifest, seed: int) -> Path:
    """Supervised, from scratch."""
    refine(
        model=make_embedding(SPEC, seed=seed), method="classification", data=data, output=path,
        config=LABELLED, training=TrainingSettings(**LABELLED_TRAINING, seed=seed),
    )  # fmt: skip
    return path


def verification(model: Path | EmbeddingModel, test: Manifest, seed: int) -> dict[str, float]:
    """EER and minDCF on voices that nobody learnt from."""
    report = evaluate(
        model=model, tasks=Speaker(), data=EvaluationData("unseen voices", {"all": test}),
        seeds=(seed,), plots=False, progress=False,
    )  # fmt: skip
    result = report["speaker"]
    return {name: result.figure(name).mean for name in ("EER", "minDCF(0.05)")}


def curve(work: Path, speech: dict[str, Manifest], seeds: int) -> None:
    """What chunks of several lengths give, after DINO, by few labels: the picture of a grid."""
    found = []
    for seed in range(seeds):
        data = EvaluationData(
            "unseen voices",
            {
                "train": few(speech["train"], VOICES[-1], EACH, seed),
                "validation": few(speech["choose"], 20, 16, 0),
                "test": few(speech["test"], 20, 32, 0),
            },
        )
        report = transfer(
            model=work / f"seed-{seed}" / "dino", data=data,
            output=work / f"seed-{seed}" / "chunks",
            config=TransferConfig(label="speaker", task="verification", loss="aam"),
            grid={"chunk_seconds": CHUNKS},
        )  # fmt: skip
        found.append(report)
    chart(found, work / "chunks.png")


def write(work: Path, rows: dict[str, list[dict[str, float]]]) -> None:
    """What there is so far."""
    (work / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
    (work / "report.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
