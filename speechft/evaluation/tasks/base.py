"""What every evaluation task is, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.embeddings import Embeddings
from speechft.evaluation.layouts import EvaluationData
from speechft.evaluation.result import TaskResult
from speechft.evaluation.splits import Split, given_split


@dataclass
class Context:
    """What a task works with.

    Attributes:
        embeddings: of the model.
        data: the utterances and their parts.
        seeds: of everything that is drawn; a figure has one value a seed.
        output: a folder for pictures, or None.
    """

    embeddings: Embeddings
    data: EvaluationData
    seeds: tuple[int, ...]
    output: Path | None = None


@dataclass(frozen=True)
class Task:
    """A task and its settings; the docstring of each says the protocol.

    Attributes:
        name: what :func:`speechft.evaluate` and the command line call it.
    """

    name: ClassVar[str]

    def run(self, context: Context) -> TaskResult:
        """Do it.

        Raises:
            ManifestError: the data lacks what the task needs; names file and line.
        """
        raise NotImplementedError

    def result(self, context: Context, protocol: str) -> TaskResult:
        """An empty result."""
        return TaskResult(self.name, protocol, context.data.name)


def whole(data: EvaluationData) -> Manifest:
    """All utterances of all parts, in order."""
    if len(data.parts) == 1:
        return next(iter(data.parts.values()))
    rows = [row for part in data.parts.values() for row in part]
    source = next((part.source for part in data.parts.values() if part.source), None)
    return Manifest(rows, source=source)


def where(manifest: Manifest, row: Utterance | None = None) -> tuple[str, int | None]:
    """File and line for a message."""
    source = str(manifest.source) if manifest.source is not None else "the manifest"
    return source, None if row is None else row.line


def official_split(
    data: EvaluationData, manifest: Manifest, labels: Sequence[str], seed: int
) -> Split | None:
    """The split that the data came with, as rows of ``manifest``; None: it came with none.

    Raises:
        ManifestError: a part has nothing that this task can use.
    """
    if not {"train", "test"} <= set(data.parts):
        return None
    part_of = {row.id: part for part, rows in data.parts.items() for row in rows}
    groups = [str(row.label(data.groups) or row.id) if data.groups else row.id for row in manifest]
    parts = [part_of[row.id] for row in manifest]
    path, _ = where(manifest)
    for part in ("train", "test"):
        if part not in parts:
            raise ManifestError(path, None, f"no utterance of {part!r} can be used by this task")
    try:
        return given_split(parts, groups, labels, seed)
    except ArgumentError as error:
        raise ManifestError(path, None, str(error)) from error


def with_phones(manifest: Manifest) -> Manifest:
    """The utterances that have phone labels.

    Raises:
        ManifestError: none has.
    """
    rows = [row for row in manifest if row.phones is not None]
    if not rows:
        path, _ = where(manifest)
        raise ManifestError(path, None, "no utterance has phones; this task needs a phones column")
    return Manifest(rows, source=manifest.source)


def labels_of(manifest: Manifest, name: str) -> list[str]:
    """The label of every utterance.

    Raises:
        ManifestError: an utterance has none; names the line of the first.
    """
    labels = [row.label(name) for row in manifest]
    for row, label in zip(manifest, labels, strict=True):
        if label is None:
            path, line = where(manifest, row)
            known = sorted({key for other in manifest for key in other.factors})
            others = ", ".join(["speaker", "text", "language", *known])
            raise ManifestError(
                path, line, f"utterance {row.id!r} has no {name!r}; labels: {others}"
            )
    return [str(label) for label in labels]


def check_distinct(values: Sequence[str], name: str, manifest: Manifest) -> None:
    """Refuse labels of one value.

    Raises:
        ManifestError: there is only one.
    """
    if len(set(values)) < 2:
        path, _ = where(manifest)
        raise ManifestError(
            path, None, f"every utterance has {name} {values[0]!r}; this task needs two or more"
        )


def chosen_layers(layers: Sequence[int] | None, embeddings: Embeddings) -> tuple[int, ...]:
    """The layers a task reports; None: all.

    Raises:
        ArgumentError: a layer that does not exist.
    """
    if layers is None:
        return embeddings.layers
    unknown = [layer for layer in layers if layer not in embeddings.layers]
    if unknown or not layers:
        raise ArgumentError("layers", f"wants some of 0 to {embeddings.layers[-1]}, got {layers}")
    return tuple(layers)


def codes(labels: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Integers for labels, and the labels by integer, sorted."""
    names = sorted(set(labels))
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[label] for label in labels]), names
