"""Data as a grid: synthesized, or recordings of people who read the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from speechft.data import Manifest, read_manifest
from speechft.data.manifest import Factor
from speechft.errors import ArgumentError, ManifestError, SpeechftError


@dataclass(frozen=True, eq=False)
class Grid:
    """Utterances by the factors that they are made of. The first two span the grid.

    Attributes:
        manifest: the N utterances.
        names: of the K factors.
        factors: int64 of shape (N, K): the number of each utterance's value, -1 where it is not
            known. It is what :class:`GridBlockSampler` takes.
        values: of each factor, in the order of their numbers.
    """

    manifest: Manifest
    names: tuple[str, ...]
    factors: Tensor
    values: tuple[tuple[Factor, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each factor has."""
        return tuple(map(len, self.values))

    @property
    def filled(self) -> float:
        """The share of the cells of the first two factors that have an utterance, 0 to 1."""
        return len(self._cells()) / (self.shape[0] * self.shape[1])

    @property
    def holes(self) -> list[tuple[Factor, Factor]]:
        """The cells of the first two factors that no utterance is in, as values, in order."""
        there = np.zeros(self.shape[0] * self.shape[1], bool)
        there[self._cells()] = True
        rows, columns = np.divmod(np.flatnonzero(~there), self.shape[1])
        return [
            (self.values[0][row], self.values[1][column])
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]

    @property
    def duplicates(self) -> list[tuple[str, ...]]:
        """Ids of utterances that are in one cell of all factors, a tuple a cell."""
        cells: dict[tuple[int, ...], list[str]] = {}
        for utterance, numbers in zip(self.manifest, self.factors.tolist(), strict=True):
            if min(numbers) >= 0:
                cells.setdefault(tuple(numbers), []).append(utterance.id)
        return [tuple(ids) for ids in cells.values() if len(ids) > 1]

    def __str__(self) -> str:
        sizes = " × ".join(
            f"{count:,} of {name}" for name, count in zip(self.names, self.shape, strict=True)
        )
        holes = self.shape[0] * self.shape[1] - len(self._cells())
        text = (
            f"grid of {sizes}: {len(self.manifest):,} utterances, {holes:,} holes, "
            f"{len(self.duplicates):,} cells with several"
        )
        for name, unknown in zip(self.names, (self.factors < 0).sum(0).tolist(), strict=True):
            text += f", {unknown:,} without a {name}" if unknown else ""
        return text

    def _cells(self) -> npt.NDArray[np.int64]:
        """Numbers of the cells of the first two factors that have an utterance."""
        row, column = self.factors[:, 0].numpy(), self.factors[:, 1].numpy()
        known = (row >= 0) & (column >= 0)
        return np.unique(row[known] * self.shape[1] + column[known])


def read_grid(data: str | Path | Manifest, *, factors: Sequence[str] = ("speaker", "text")) -> Grid:
    """Read data as a grid of some factors.

    Args:
        data: a manifest, its path, or a folder that ``speechft grid`` wrote.
        factors: labels of the manifest, at least two; the first is the row, the second the column.

    Raises:
        ManifestError: the file cannot be read; no row has such a factor, or all have one value.
        ArgumentError: fewer than two factors, or one twice. Where the manifest is of no file, a
            factor that no row has, or that has one value.
    """
    names = tuple(factors)
    if isinstance(factors, str) or len(names) < 2 or len(set(names)) < len(names):
        raise ArgumentError("factors", f"wants at least two different names, got {factors!r}")
    manifest = data if isinstance(data, Manifest) else read_manifest(_file(Path(data)))
    for name in names:
        found = {label for row in manifest if (label := row.label(name)) is not None}
        if not found:
            raise _error(manifest, f"no row has a factor {name!r}; {_known(manifest, name)}")
        if len(found) == 1:
            raise _error(
                manifest,
                f"the factor {name!r} has one value, {found.pop()!r}, and a grid wants two or "
                "more; leave it out, or add data",
            )
    ids = manifest.factor_ids(names)
    ordered: list[dict[int, Factor]] = [{} for _ in names]
    for row, numbers in zip(manifest, ids.tolist(), strict=True):
        for name, number, column in zip(names, numbers, ordered, strict=True):
            label = row.label(name)
            if label is not None:
                column[number] = label
    return Grid(
        manifest,
        names,
        ids,
        tuple(tuple(column[number] for number in sorted(column)) for column in ordered),
    )


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    file = path / "manifest.jsonl"
    if not file.is_file():
        raise ManifestError(
            path, None, "has no manifest.jsonl in it; a folder of audio alone has no factors"
        )
    return file


def _known(manifest: Manifest, wanted: str) -> str:
    """What there is instead."""
    if any(wanted in row.extra for row in manifest):
        return f"it is a column, and is one where it stands in 'factors', or as factors.{wanted}"
    names = [
        name
        for name in ("speaker", "text", "language")
        if any(row.label(name) is not None for row in manifest)
    ]
    names += sorted({name for row in manifest for name in row.factors})
    return f"there are {', '.join(names)}" if names else "there are none"


def _error(manifest: Manifest, reason: str) -> SpeechftError:
    if manifest.source is None:
        return ArgumentError("factors", reason)
    return ManifestError(manifest.source, None, reason)
