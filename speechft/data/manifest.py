"""What a data set is: a sequence of utterances, each a segment of a file with its labels."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, overload

import torch
from torch import Tensor

from speechft.errors import ArgumentError

Factor = Union[str, int]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row of a manifest.

    Attributes:
        id: unique in its manifest.
        audio: path of the file.
        start: seconds from the start of the file.
        end: seconds from the start of the file, or None for its end.
        duration: seconds that ``start`` to the end of the file must last to 10 ms, or None if the
            manifest does not say; :func:`speechft.data.scan` fills it in. It never cuts.
        speaker, text, language: as the manifest gives them.
        phones: a file of phone labels, see :func:`speechft.data.read_phones`.
        factors: further labels by name (emotion, noise, ...), strings or integers.
        extra: columns that speechft does not know, unchanged.
        line: line of the manifest, from 1; None where there is none. Not compared.
    """

    id: str
    audio: Path
    start: float = 0.0
    end: float | None = None
    duration: float | None = None
    speaker: str | None = None
    text: str | None = None
    language: str | None = None
    phones: Path | None = None
    factors: Mapping[str, Factor] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    line: int | None = field(default=None, compare=False)

    @property
    def key(self) -> int:
        """:func:`utterance_key` of the id."""
        return utterance_key(self.id)

    def label(self, name: str) -> Factor | None:
        """A factor by name; ``speaker``, ``text`` and ``language`` count as factors."""
        if name in ("speaker", "text", "language"):
            own: str | None = getattr(self, name)
            return own
        return self.factors.get(name)


class Manifest(Sequence[Utterance]):
    """An immutable sequence of utterances with unique ids.

    Args:
        utterances: the rows, in order.
        source: where they come from, for messages.

    Raises:
        ArgumentError: two utterances with one id.
    """

    def __init__(self, utterances: Iterable[Utterance], *, source: Path | None = None) -> None:
        self._utterances = tuple(utterances)
        self.source = source
        seen: set[str] = set()
        for utterance in self._utterances:
            if utterance.id in seen:
                raise ArgumentError("utterances", f"two have the id {utterance.id!r}")
            seen.add(utterance.id)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> Manifest: ...

    def __getitem__(self, index: int | slice) -> Utterance | Manifest:
        if isinstance(index, slice):
            return Manifest(self._utterances[index], source=self.source)
        return self._utterances[index]

    def __len__(self) -> int:
        return len(self._utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self._utterances)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self._utterances == other._utterances

    def __hash__(self) -> int:
        return hash(tuple(utterance.id for utterance in self._utterances))

    def __repr__(self) -> str:
        return f"Manifest({len(self)} utterances, source={str(self.source)!r})"

    def filter(self, *, language: str | None = None, speaker: str | None = None) -> Manifest:
        """The utterances in this language and of this speaker, in order."""
        return Manifest(
            (
                utterance
                for utterance in self
                if (language is None or utterance.language == language)
                and (speaker is None or utterance.speaker == speaker)
            ),
            source=self.source,
        )

    def factor_ids(self, names: Sequence[str]) -> Tensor:
        """Integer ids of the labels, int64 of shape (N, K), -1 where a row has none.

        For each name the labels of the whole manifest are sorted (numbers before strings) and
        numbered from 0, so the ids depend on the set of labels, not on the order of the rows.

        Raises:
            ArgumentError: no utterance has such a label.
        """
        ids = torch.full((len(self), len(names)), -1, dtype=torch.int64)
        for column, name in enumerate(names):
            labels = [utterance.label(name) for utterance in self]
            distinct = {label for label in labels if label is not None}
            if not distinct:
                raise ArgumentError("names", f"no utterance has a label {name!r}")
            ordered = sorted(distinct, key=lambda x: (isinstance(x, str), x))
            numbers = {label: number for number, label in enumerate(ordered)}
            for row, label in enumerate(labels):
                if label is not None:
                    ids[row, column] = numbers[label]
        return ids


def utterance_key(id: str) -> int:
    """A stable number for an utterance, in 0 .. 2**63 - 1.

    BLAKE2b (RFC 7693) of the UTF-8 id, 8 bytes little-endian, without the top bit. It keys the
    randomness of augmentations by (seed, epoch, utterance), so it is the same on every machine
    and in every release.

    >>> utterance_key("it/agent-user")
    262644332597570768
    """
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def write_manifest(manifest: Iterable[Utterance], path: str | Path) -> None:
    """Write JSONL that :func:`speechft.data.read_manifest` reads back to equal utterances.

    Files below the folder of ``path`` are written relative to it, others absolutely. The file
    appears complete or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        for utterance in manifest:
            file.write(json.dumps(_as_row(utterance, folder), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _as_row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"id": utterance.id, "audio": _relative(utterance.audio, folder)}
    if utterance.start != 0 or utterance.end is not None:
        # An explicit null says "to the end of the file", where duration is a check and no cut.
        row["start"], row["end"] = utterance.start, utterance.end
    for name in ("duration", "speaker", "language", "text"):
        value = getattr(utterance, name)
        if value is not None:
            row[name] = value
    if utterance.phones is not None:
        row["phones"] = _relative(utterance.phones, folder)
    if utterance.factors:
        row["factors"] = dict(utterance.factors)
    return {**utterance.extra, **row}


def _relative(path: Path, folder: Path) -> str:
    absolute = Path(os.path.abspath(path))
    for base in (folder, Path(os.path.abspath(folder))):
        if absolute.is_relative_to(base):
            return absolute.relative_to(base).as_posix()
    resolved = absolute.resolve()
    return (
        resolved.relative_to(folder).as_posix()
        if resolved.is_relative_to(folder)
        else str(absolute)
    )
