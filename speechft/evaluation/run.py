"""One call from a model and data to figures: what ``speechft evaluate`` runs."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from speechft.data import Manifest
from speechft.errors import ArgumentError, ConfigError
from speechft.evaluation.embeddings import Embeddings, FrameEncoder
from speechft.evaluation.layouts import EvaluationData, read_evaluation_data
from speechft.evaluation.log_mel import LogMel
from speechft.evaluation.result import EvaluationReport
from speechft.evaluation.tasks import TASKS, Context, Task
from speechft.models import (
    EmbeddingModel,
    SubspaceModel,
    UnitModel,
    load,
    load_embedding,
    load_subspaces,
    load_units,
)
from speechft.models.embedding_saving import is_embedding_folder
from speechft.models.subspaces_saving import is_subspace_folder
from speechft.models.units import UnitFrames
from speechft.models.units_saving import is_unit_folder
from speechft.models.utterances import UtteranceEncoder


def evaluate(
    *,
    model: str | Path | FrameEncoder | EmbeddingModel | SubspaceModel | UnitModel,
    tasks: str | Task | Sequence[str | Task],
    data: str | Path | Manifest | EvaluationData = "embedded",
    layout: str = "auto",
    output: str | Path | None = None,
    seeds: int | Sequence[int] = 5,
    cache: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_seconds: float = 64.0,
    plots: bool = True,
    progress: bool | None = None,
) -> EvaluationReport:
    """Evaluate an encoder, frozen, on some tasks.

    With ``output``: writes ``evaluation.json`` and pictures there, and keeps embeddings in its
    folder ``embeddings``, so that a second run, or one that was stopped, does not begin again.

    Args:
        model: what :func:`speechft.models.load` takes, ``"log-mel"`` for the features that an
            encoder has to beat, or an encoder. A subspace model (or the folder of one) is judged
            subspace by subspace, beside the pooled features that it starts from; an embedding model
            (or its folder) by its vectors; an encoder with units (or its folder) as any encoder,
            and by its units.
        tasks: names in :data:`speechft.evaluation.tasks.TASKS`, or tasks with settings.
        data: ``"embedded"`` for the corpus that ships with speechft, a manifest, a folder in one
            of the official layouts (:mod:`speechft.evaluation.layouts`), or such data.
        layout: which layout ``data`` has; ``"auto"`` looks.
        output: a folder; None writes nothing.
        seeds: how many (0, 1, ...), or which.
        cache: a folder for embeddings; None: ``embeddings`` in ``output``.
        device: to encode on; None: a GPU if there is one.
        batch_seconds: of padded speech in a batch.
        plots: draw pictures into ``output``.
        progress: show bars; None shows them on a terminal.

    Raises:
        ConfigError: no tasks, an unknown one.
        ManifestError, AudioError: the data, or what a task needs of it; naming file and line.
        ArgumentError: the model, the seeds, a setting of a task.
    """
    asked = [tasks] if isinstance(tasks, (str, Task)) else tasks
    chosen = [_task(task) for task in asked]
    if not chosen:
        raise ConfigError(f"tasks: there are none to do; known: {', '.join(TASKS)}")
    twice = [task.name for task in chosen if [t.name for t in chosen].count(task.name) > 1]
    if twice:
        raise ConfigError(f"tasks: {twice[0]!r} is there twice")
    drawn = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not drawn or min(drawn) < 0 or len(set(drawn)) < len(drawn):
        raise ArgumentError("seeds", f"wants one or more, different, from 0 on; got {seeds!r}")
    start = time.perf_counter()
    read = data if isinstance(data, EvaluationData) else read_evaluation_data(data, layout=layout)
    if output is not None and plots:
        _check_plots(chosen)
    encoder, name, restore = _encoder(model, device)
    folder = None if output is None else Path(output)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        cache = folder / "embeddings" if cache is None else cache
    report = EvaluationReport(name, {}, 0.0, folder, drawn)
    try:
        embeddings = Embeddings(
            encoder, cache=cache, batch_seconds=batch_seconds, progress=progress
        )
        context = Context(embeddings, read, drawn, folder)
        for task in chosen:
            _run(task, context, report, plots=plots, progress=progress)
            report.seconds = time.perf_counter() - start
            if folder is not None:
                report.write(folder)  # what is done is not lost if a later task fails
    finally:
        restore()
    return report


def _run(
    task: Task, context: Context, report: EvaluationReport, *, plots: bool, progress: bool | None
) -> None:
    """One task, into the report."""
    began = time.perf_counter()
    result = report.results[task.name] = task.run(context)
    result.settings = asdict(task)
    if len(context.data.parts) > 1 and not task.uses_parts and context.data.trials is None:
        result.notes.append(f"all parts together: {', '.join(context.data.parts)}")
    left_out = context.data.left_out.items()
    result.notes += [f"{count} rows left out: {why}" for why, count in left_out]
    if progress or (progress is None and sys.stderr.isatty()):
        print(f"  {task.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if context.output is not None and plots:
        from speechft.evaluation.plots import draw

        report.write(context.output)
        result.plots = draw(result, context.output)


def _check_plots(tasks: Sequence[Task]) -> None:
    """Say now, not after hours, that pictures cannot be drawn."""
    needed = ["matplotlib"] + ["sklearn"] * any(task.name == "leakage" for task in tasks)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"plots: {', '.join(missing)} not installed (pip install 'speechft[evaluate]'); "
            "or ask for none"
        )


def _task(task: str | Task) -> Task:
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(TASKS)}"
        raise ConfigError(f"tasks: no task {task!r}{meant}")
    return TASKS[task]()


def _encoder(
    model: Any, device: str | torch.device | None
) -> tuple[FrameEncoder, str, Callable[[], None]]:
    """On its device, in eval mode; a name for the report; and what puts it back as it was."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device", "there is no GPU that this torch can use")
    if isinstance(model, (str, Path)):
        if str(model) == "log-mel":
            encoder: Any = LogMel()
        else:
            encoder = _load(model)
        return encoder.to(place).eval(), str(model), lambda: None
    if isinstance(model, (SubspaceModel, EmbeddingModel)):
        return _encoder(UtteranceEncoder(model), device)
    if isinstance(model, UnitModel):
        return _encoder(UnitFrames(model), device)
    before = next((t.device for t in (*model.parameters(), *model.buffers())), place)
    training = {module: module.training for module in model.modules()}

    def restore() -> None:
        model.to(before)
        for module, mode in training.items():
            module.training = mode

    return model.to(place).eval(), f"{type(model).__name__} in memory", restore


def _load(model: str | Path) -> Any:
    """An encoder, or what stands for a model of utterances."""
    if is_subspace_folder(model):
        return UtteranceEncoder(load_subspaces(model))
    if is_embedding_folder(model):
        return UtteranceEncoder(load_embedding(model))
    if is_unit_folder(model):
        return UnitFrames(load_units(model))
    return load(model)
