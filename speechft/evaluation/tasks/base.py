"""What every evaluation task is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.conditions import UNCHANGED, Condition
from speechft.evaluation.embeddings import Embeddings
from speechft.evaluation.layouts import EvaluationData
from speechft.evaluation.layouts.base import SPLITS
from speechft.evaluation.result import TaskResult
from speechft.evaluation.splits import Split, given_split

_AT_LEAST = {
    "phones": 1, "max_queries": 2, "max_items": 2, "max_frames": 100, "max_pairs": 100, "shots": 0,
    "steps": 2, "hidden": 1, "blstm": 0, "learning_rate": 0, "batch_seconds": 1,
}  # fmt: skip


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
        uses_parts: whether train, validation and test differ for it; if not, it takes all of them
            together, and the result says so.
    """

    name: ClassVar[str]
    uses_parts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        conditions = getattr(self, "conditions", (UNCHANGED,))
        if isinstance(conditions, str) or not conditions:
            raise ArgumentError("conditions", f"wants a tuple of one or more, got {conditions!r}")
        known = [Condition.parse(condition).name for condition in conditions]
        if len(set(known)) < len(known):
            raise ArgumentError("conditions", f"has one twice: {conditions}")
        Condition.parse(getattr(self, "condition", UNCHANGED))
        penalties = getattr(self, "penalties", (1.0,))
        if not penalties or not all(penalty > 0 for penalty in penalties):
            raise ArgumentError("penalties", f"wants numbers above 0, got {penalties}")
        if not 0 < getattr(self, "test", 0.5) < 0.8:
            raise ArgumentError("test", f"wants a share above 0 and below 0.8, got {self.test}")  # type: ignore[attr-defined]
        for name, lowest in _AT_LEAST.items():
            value = getattr(self, name, lowest)
            if value < lowest:
                raise ArgumentError(name, f"wants {lowest} or more, got {value}")

    def run(self, context: Context) -> TaskResult:
        """Do it.

        Raises:
            ManifestError: the data lacks what the task needs; names file and line.
        """
        raise NotImplementedError

    def result(self, context: Context, protocol: str) -> TaskResult:
        """An empty result."""
        return TaskResult(self.name, protocol, context.data.name)


class Whole(Manifest):
    """All utterances of all parts, each with the file that it was read from."""

    def __init__(self, rows: Sequence[Utterance], files: Mapping[str, str]) -> None:
        super().__init__(rows)
        self.files = files


def whole(data: EvaluationData) -> Manifest:
    """All utterances of all parts, in order.

    Raises:
        ManifestError: two parts have an utterance of one id.
    """
    if len(data.parts) == 1:
        return next(iter(data.parts.values()))
    rows: dict[str, Utterance] = {}
    files: dict[str, str] = {}
    first: dict[str, str] = {}
    for part, manifest in data.parts.items():
        for row in manifest:
            path, line = where(manifest, row)
            if row.id in rows:
                raise ManifestError(
                    path, line, f"utterance {row.id!r} is in {part!r} and in {first[row.id]!r}"
                )
            rows[row.id], files[row.id], first[row.id] = row, path, part
    return Whole(list(rows.values()), files)


def kept(manifest: Manifest, keep: Callable[[Utterance], bool]) -> Manifest:
    """Some utterances, from the files that they were read from."""
    rows = [row for row in manifest if keep(row)]
    if isinstance(manifest, Whole):
        return Whole(rows, manifest.files)
    return Manifest(rows, source=manifest.source)


def where(manifest: Manifest, row: Utterance | None = None) -> tuple[str, int | None]:
    """File and line for a message."""
    if isinstance(manifest, Whole):
        files = sorted(set(manifest.files.values()))
        return (manifest.files[row.id], row.line) if row else (", ".join(files), None)
    source = str(manifest.source) if manifest.source is not None else "the manifest"
    return source, None if row is None else row.line


def official_split(
    data: EvaluationData,
    manifest: Manifest,
    labels: Sequence[str],
    seed: int,
    *,
    groups: str | None = None,
) -> Split | None:
    """The split that the data came with, as rows of ``manifest``; None: it came with none.

    Args:
        data: of the task.
        manifest: the utterances that the task can use.
        labels: of each, so that none is lost to validation where some of train is held out.
        seed: of what is held out.
        groups: a label whose values are not to be in two parts; None: as the data says.

    Raises:
        ManifestError: a part is missing, or has nothing that this task can use.
    """
    if not set(SPLITS) & set(data.parts):
        return None
    path, _ = where(whole(data))
    part_of = {row.id: part for part, rows in data.parts.items() for row in rows}
    parts = [part_of[row.id] for row in manifest]
    for part in ("train", "test", *({"validation"} & set(data.parts))):
        if part not in parts:
            raise ManifestError(path, None, f"no utterance of {part!r} can be used by this task")
    groups = groups or data.groups
    members = [row.id if groups is None else str(row.label(groups) or row.id) for row in manifest]
    try:
        return given_split(parts, members, labels, seed)
    except ArgumentError as error:
        raise ManifestError(path, None, str(error)) from error


def describe_split(context: Context) -> str:
    """How utterances are divided, for the protocol."""
    parts = set(context.data.parts)
    if set(SPLITS) <= parts:
        return "official parts"
    if {"train", "test"} <= parts:
        return "official parts, 15 % of train held out by the seed to validate"
    return "utterances divided by the seed"


def with_phones(manifest: Manifest) -> Manifest:
    """The utterances that have phone labels.

    Raises:
        ManifestError: none has.
    """
    spoken = kept(manifest, lambda row: row.phones is not None)
    if not len(spoken):
        path, _ = where(manifest)
        raise ManifestError(path, None, "no utterance has phones; this task needs a phones column")
    return spoken


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
    if len(set(layers)) < len(layers):
        raise ArgumentError("layers", f"has a layer twice: {layers}")
    unknown = [layer for layer in layers if layer not in embeddings.layers]
    if unknown or not layers:
        raise ArgumentError("layers", f"wants some of 0 to {embeddings.layers[-1]}, got {layers}")
    return tuple(layers)


class View(NamedTuple):
    """Vectors of utterances that a task judges: of a layer, or of a subspace.

    Attributes:
        of: the subspace; empty for a layer.
        layer: None for a subspace.
        vectors: (N, C).
    """

    of: str
    layer: int | None
    vectors: Tensor


def views(context: Context, pooled: Tensor, layers: Sequence[int]) -> list[View]:
    """What to judge: some layers of an encoder, or every subspace of a model that has them.

    Args:
        context: of the task.
        pooled: (N, L + 1, C) of :meth:`Embeddings.pooled`.
        layers: of an encoder.
    """
    spaces = context.embeddings.spaces
    if not spaces:
        return [View("", layer, pooled[:, layer]) for layer in layers]
    return [View(name, None, pooled[:, 0, a:b]) for name, (a, b) in spaces.items()]


def codes(labels: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Integers for labels, and the labels by integer, sorted."""
    names = sorted(set(labels))
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[label] for label in labels]), names
