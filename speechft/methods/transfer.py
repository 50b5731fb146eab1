"""Transfer of an embedding model to a labelled task, in stages: what ``speechft transfer`` runs.

Each stage goes on from the one before: the last affine layer alone first, say, then the whole
network. What is not trained is frozen, in eval mode. A grid over chunk lengths and augmentation
shows what a task needs.

Source: Cho et al., "Non-contrastive self-supervised learning for utterance-level information
extraction from speech", IEEE JSTSP 16(6), 2022.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from speechft.data import Manifest
from speechft.errors import ConfigError
from speechft.evaluation.layouts import EvaluationData, read_evaluation_data
from speechft.evaluation.metrics import accuracy, macro_f1, micro_f1, uar
from speechft.evaluation.splits import Split, random_split
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.prediction import predict
from speechft.methods.refine import refine
from speechft.methods.resuming import check_same, digests
from speechft.methods.stages import Stage, override, read_stages
from speechft.methods.transfer_report import Cell, TransferReport
from speechft.models.classifier import HeadKind, load_classifier
from speechft.models.embedding import Pooling


@dataclass(frozen=True)
class TransferConfig:
    """What is transferred to.

    Args:
        label: of the manifest; None: what the data is for.
        task: ``"classes"``: the classes of the label are told apart in unseen utterances (emotion,
            a diagnosis, any label); ``"verification"``: two utterances of unseen values, speakers,
            are the same or not.
        stages: a name in :data:`speechft.methods.stages.STAGES`, or a YAML file of stages.
        groups: a label whose values are never on both sides, such as ``"speaker"``; with
            ``"classes"`` each is left out in turn. None: as the data says, or that of
            ``aggregate``.
        folds: leave out the groups in so many parts, drawn by the seed, rather than one by one.
        aggregate: a label of whose values one prediction is made each (``"speaker"``).
        loss, scale, sub_centers, noise, rooms: see
            :class:`speechft.methods.ClassificationConfig`; the margin is each stage's own.
        size, pooling, layer: of a model that is made anew.
        backend, norm: of verification; see :class:`speechft.evaluation.tasks.speaker.Speaker`.
        seeds: how many runs: of weights, batches and the division of the data.

    Raises:
        ConfigError: settings that contradict each other.
    """

    label: str | None = None
    task: Literal["classes", "verification"] = "classes"
    stages: str = "two-stage"
    groups: str | None = None
    folds: int | None = None
    aggregate: str | None = None
    loss: HeadKind = "cross_entropy"
    scale: float = 30.0
    sub_centers: int = 1
    noise: str | None = None
    rooms: str | None = None
    size: int = 256
    pooling: Pooling | None = None
    layer: int | None = None
    backend: Literal["cosine", "plda"] = "cosine"
    norm: Literal["none", "as-norm"] = "none"
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds: wants at least 1, got {self.seeds}")
        if self.folds is not None and self.folds < 2:
            raise ConfigError(f"folds: wants at least 2, got {self.folds}")
        if self.task == "verification" and self.aggregate is not None:
            raise ConfigError("aggregate: is of classes; trials of verification are of utterances")


def transfer(
    *,
    model: str | Path,
    data: str | Path | Manifest | EvaluationData,
    output: str | Path,
    config: TransferConfig | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    layout: str = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> TransferReport:
    """Train in stages and judge on utterances that none of them saw.

    Settings are never chosen on the test part: of a grid, the report names what is best on the
    validation part, and gives both figures. A run that was stopped goes on where it was.

    Args:
        model: what :func:`speechft.models.load_backbone` takes.
        data: a manifest, a folder in an official layout, ``"embedded"``, or such data. Parts
            train, validation and test are used as they are; without them the seed divides.
        output: a folder; the models of all runs are in it.
        config: what to transfer to.
        grid: settings of all stages to try, such as ``{"chunk_seconds": [1, 2, 4]}``; every
            combination is run.
        layout: of the data.
        device: to train on.

    Raises:
        ConfigError: settings, stages, a label with one utterance each, or a folder of a run with
            other settings.
        ManifestError, AudioError: the data.
        TrainingError: the training.
    """
    config = config or TransferConfig()
    stages = read_stages(config.stages)
    cells = _cells(stages, grid or {})
    read = data if isinstance(data, EvaluationData) else read_named(data, layout)
    label = config.label or read.label or "speaker"
    config = replace(config, label=label)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    report = TransferReport(str(model), read.name, config, [], 0.0, folder)
    for number, (settings, chosen) in enumerate(cells):
        cell = Cell(dict(settings), [asdict(stage) for stage in chosen])
        for seed in range(config.seeds):
            place = folder / f"cell-{number}" / f"seed-{seed}"
            if config.task == "classes":
                found = _classes(model, read, config, chosen, place, seed, device)
            else:
                found = _verification(model, read, config, chosen, place, seed, device)
            for name, value in found.items():
                cell.figures.setdefault(name, []).append(value)
        report.cells.append(cell)
        report.seconds = time.perf_counter() - start
        report.write()
    report.draw()
    return report


def _cells(
    stages: tuple[Stage, ...], grid: Mapping[str, Sequence[Any]]
) -> list[tuple[dict[str, Any], tuple[Stage, ...]]]:
    empty = [name for name, values in grid.items() if not values]
    if empty:
        raise ConfigError(f"grid: {empty[0]} has no values")
    settings = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    return [(each, override(stages, each)) for each in settings]


def read_named(data: str | Path | Manifest, layout: str) -> EvaluationData:
    """Data in a layout; a manifest is named after its file."""
    read = read_evaluation_data(data, layout=layout)
    source = data.source if isinstance(data, Manifest) else data
    named = read.name == "manifest" and source is not None
    return replace(read, name=str(source)) if named else read


def _classes(
    model: str | Path,
    data: EvaluationData,
    config: TransferConfig,
    stages: tuple[Stage, ...],
    place: Path,
    seed: int,
    device: Any,
) -> dict[str, float]:
    """Figures of a seed, over all folds."""
    from speechft.evaluation.tasks.base import whole
    from speechft.evaluation.tasks.label import label_splits

    manifest = whole(data)
    groups = config.groups or data.groups or config.aggregate
    splits = list(label_splits(data, str(config.label), groups, seed, folds=config.folds))
    order = sorted({str(row.label(str(config.label))) for row in manifest})
    answers: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for fold, split in enumerate(splits):
        last = _train(model, rows_of(manifest, split.fit), config, stages, place / f"fold-{fold}",
                      seed, device)  # fmt: skip
        classifier = load_classifier(last)
        if device != "cpu" and torch.cuda.is_available():
            classifier.cuda()
        # A fold may lack a class that others have; one that it never saw is never guessed.
        known = [order.index(str(value)) for value in classifier.classes]
        number = torch.tensor([*known, len(order)])
        for part, rows in (("validation", split.validation), ("test", split.test)):
            found = predict(
                classifier, rows_of(manifest, rows), chunk_seconds=_chunk(stages[-1]),
                aggregate=config.aggregate,
            )  # fmt: skip
            truth, guesses = answers.setdefault(part, ([], []))
            truth.append(number[found.truth])
            guesses.append(number[found.log_probabilities.argmax(1)])
    figures = {}
    for part, (truths, guessed) in answers.items():
        true, guess = torch.cat(truths), torch.cat(guessed)
        for name, metric in (("accuracy", accuracy), ("UAR", uar), ("micro-F1", micro_f1),
                             ("macro-F1", macro_f1)):  # fmt: skip
            figures[f"{part} {name}"] = metric(true, guess)
    return figures


def _verification(
    model: str | Path,
    data: EvaluationData,
    config: TransferConfig,
    stages: tuple[Stage, ...],
    place: Path,
    seed: int,
    device: Any,
) -> dict[str, float]:
    """Figures of a seed: trials of speakers that were not trained on."""
    from speechft.evaluation import evaluate
    from speechft.evaluation.tasks.speaker import Speaker

    parts = _speaker_parts(data, str(config.label), seed)
    _check_strangers(data, parts, str(config.label))
    last = _train(model, parts["train"], config, stages, place / "fold-0", seed, device)
    figures = {}
    for part in ("validation", "test"):
        trials = data.trials if part == "test" else None
        if trials is not None:
            tested = {"all": data.parts["all"]}
        elif part in parts:
            tested = {"test": parts[part]}
        else:
            continue
        needs = config.backend == "plda" or config.norm == "as-norm"
        judged = EvaluationData(
            f"{data.name}, {part}", {**tested, **({"train": parts["train"]} if needs else {})},
            trials=trials,
        )  # fmt: skip
        task = Speaker(label=str(config.label), backend=config.backend, norm=config.norm)
        report = evaluate(
            model=last, tasks=task, data=judged, seeds=(seed,), plots=False, progress=False,
            device=None if device == "auto" else device,
        )  # fmt: skip
        result = report["speaker"]
        for name in ("EER", "minDCF(0.05)"):
            figures[f"{part} {name}"] = result.figure(name).mean
    return figures


def _check_strangers(data: EvaluationData, parts: Mapping[str, Manifest], label: str) -> None:
    """Refuse to test on who was trained on: such figures say nothing of strangers."""
    known = {row.label(label) for row in parts["train"]} - {None}
    judged = {name: rows for name, rows in parts.items() if name != "train"}
    if data.trials is not None:
        judged["the trials"] = data.parts["all"]
    for name, rows in judged.items():
        row = next((row for row in rows if row.label(label) in known), None)
        if row is not None:
            raise ConfigError(
                f"data: {label} {row.label(label)!r} is in train and in {name} of {data.name} "
                f"(utterance {row.id!r}); verification is of {label}s that were not trained on"
            )


def _speaker_parts(data: EvaluationData, label: str, seed: int) -> dict[str, Manifest]:
    """Parts as the data has them, or whole speakers divided by the seed."""
    if "train" in data.parts:
        return {part: data.parts[part] for part in ("train", "validation", "test")
                if part in data.parts}  # fmt: skip
    from speechft.evaluation.tasks.base import labels_of, whole

    manifest = whole(data)
    if data.trials is not None:
        raise ConfigError(
            f"data: {data.name} has trials and no part 'train' to learn from; give a manifest "
            "with parts, or train on other speech and evaluate on these"
        )
    speakers = labels_of(manifest, label)
    count = len(set(speakers))
    if count < 6:
        raise ConfigError(
            f"label: verification wants 6 values of {label!r} or more, two each to train, validate "
            f"and test on; {data.name} has {count}"
        )
    two = 2 / count
    split: Split = random_split(speakers, seed, validation=max(0.15, two), test=max(0.25, two))
    return {
        part: rows_of(manifest, rows)
        for part, rows in zip(
            ("train", "validation", "test"), (split.fit, split.validation, split.test), strict=True
        )
    }


def _train(
    model: str | Path,
    manifest: Manifest,
    config: TransferConfig,
    stages: tuple[Stage, ...],
    place: Path,
    seed: int,
    device: Any,
) -> Path:
    """All stages; the folder of the last."""
    base = ClassificationConfig(
        label=str(config.label), loss=config.loss, scale=config.scale,
        sub_centers=config.sub_centers, noise=config.noise, rooms=config.rooms, size=config.size,
        pooling=config.pooling, layer=config.layer,
    )  # fmt: skip
    return train_stages(model, manifest, base, stages, place, seed=seed, device=device)


def train_stages(
    model: str | Path,
    manifest: Manifest,
    base: ClassificationConfig,
    stages: Sequence[Stage],
    place: Path,
    *,
    seed: int,
    device: Any = "auto",
) -> Path:
    """Train stage after stage, each from the one before, and go on where that stopped.

    Args:
        model: what :func:`speechft.models.load_backbone` takes.
        manifest: the training utterances, with the label.
        base: settings that all stages share.
        stages: in order.
        place: the folder of their folders, ``stage-1`` and so on.
        seed: of the runs.
        device: to train on.

    Returns:
        the folder of the last stage, a classifier.

    Raises:
        ConfigError: a folder in which a stage was trained with other settings, model or labels.
    """
    start: str | Path = model
    for number, stage in enumerate(stages, 1):
        folder = place / f"stage-{number}"
        settings = stage.config(base)
        training = stage.training(len(manifest), seed=seed, device=device)
        what = {**asdict(settings), **asdict(training), **digests(start, manifest, base.label)}
        del what["device"]
        check_same(folder, what)
        if not (folder / "report.json").exists():
            if number > 1:
                settings = replace(settings, start_head=str(start))
            resume = any((folder / "checkpoints").glob("checkpoint-*"))
            refine(
                model=start, method="classification", data=manifest, output=folder,
                config=settings, training=training, resume=resume,
            )  # fmt: skip
        start = folder
    assert isinstance(start, Path)
    return start


def _chunk(stage: Stage) -> float | None:
    chunk = stage.chunk_seconds
    return sum(chunk) / 2 if isinstance(chunk, tuple) else chunk


def rows_of(manifest: Manifest, rows: Sequence[int]) -> Manifest:
    """Some utterances of a manifest."""
    return Manifest([manifest[row] for row in rows], source=manifest.source)


def parse_grid(entries: Sequence[str]) -> dict[str, list[Any]]:
    """``["chunk_seconds=1,2", "augmentation=none,student"]`` as a mapping.

    Raises:
        ConfigError: an entry without values, or a setting named twice.
    """
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        name, equals, values = entry.partition("=")
        if not equals or not name or not all(values.split(",")):
            raise ConfigError(f"grid: wants SETTING=VALUE,VALUE,...; got {entry!r}")
        if name in grid:
            raise ConfigError(f"grid: {name!r} is there twice")
        grid[name] = [_value(value) for value in values.split(",")]
    return grid


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None if text == "None" else text
