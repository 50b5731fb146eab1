"""One call from a model and data to figures: what ``speechft evaluate`` runs."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from speechft.data import Manifest
from speechft.errors import ArgumentError, ConfigError
from speechft.evaluation.embeddings import Embeddings, FrameEncoder
from speechft.evaluation.layouts import EvaluationData, read_evaluation_data
from speechft.evaluation.log_mel import LogMel
from speechft.evaluation.result import EvaluationReport, TaskResult
from speechft.evaluation.tasks import TASKS, Context, Task


def evaluate(
    *,
    model: str | Path | FrameEncoder,
    tasks: Sequence[str | Task],
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
            encoder has to beat, or an encoder.
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
    chosen = [_task(task) for task in tasks] if not isinstance(tasks, str) else [_task(tasks)]
    if not chosen:
        raise ConfigError(f"tasks: there are none to do; known: {', '.join(TASKS)}")
    twice = [task.name for task in chosen if [t.name for t in chosen].count(task.name) > 1]
    if twice:
        raise ConfigError(f"tasks: {twice[0]!r} is there twice")
    drawn = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not drawn:
        raise ArgumentError("seeds", f"wants one or more, got {seeds!r}")
    start = time.perf_counter()
    read = data if isinstance(data, EvaluationData) else read_evaluation_data(data, layout=layout)
    encoder, name = _encoder(model, device)
    folder = None if output is None else Path(output)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        cache = folder / "embeddings" if cache is None else cache
    embeddings = Embeddings(encoder, cache=cache, batch_seconds=batch_seconds, progress=progress)
    context = Context(embeddings, read, drawn, folder)
    results: dict[str, TaskResult] = {}
    for task in chosen:
        began = time.perf_counter()
        result = results[task.name] = task.run(context)
        result.notes += [f"{count} rows left out: {why}" for why, count in read.left_out.items()]
        if progress or (progress is None and sys.stderr.isatty()):
            print(f"  {task.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if folder is not None and plots:
            from speechft.evaluation.plots import draw

            results[task.name].plots = draw(results[task.name], folder)
    report = EvaluationReport(name, results, time.perf_counter() - start, folder)
    if folder is not None:
        report.write(folder)
    return report


def _task(task: str | Task) -> Task:
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(TASKS)}"
        raise ConfigError(f"tasks: no task {task!r}{meant}")
    return TASKS[task]()


def _encoder(model: Any, device: str | torch.device | None) -> tuple[FrameEncoder, str]:
    """On its device, in eval mode, with a name for the report."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(model, (str, Path)):
        name = str(model)
        if name == "log-mel":
            encoder: Any = LogMel()
        else:
            from speechft.models import load

            encoder = load(model)
    else:
        encoder = model
        name = f"{type(model).__name__} in memory"
    return encoder.to(place).eval(), name
