"""Trial lists of speaker verification, read as a stream: ten million trials in 90 MB."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechft.data import Manifest
from speechft.data.audio import SUFFIXES
from speechft.errors import ManifestError
from speechft.evaluation.layouts.base import TrialList

_LABELS = {b"1": True, b"0": False, b"target": True, b"nontarget": False}
_HEADER = (b"label", b"left", b"right")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
_WANTED = (
    "wants LABEL LEFT RIGHT or LEFT RIGHT LABEL, separated by spaces or tabs, where LABEL is 1 or "
    "target, 0 or nontarget"
)


def read_trials(path: str | Path, manifest: Manifest) -> TrialList:
    """Read a trial list, one trial a line, about the utterances of a manifest.

    The line of VoxCeleb1, ``1 id10270/x/00001.wav id10270/y/00002.wav``, or with the label last
    (as in Kaldi: ``LEFT RIGHT target``); 1 or ``target`` is the same speaker, 0 or ``nontarget``
    is not. The first line says which, and it holds for all: fields are separated by tabs if that
    line has one (ids may then hold spaces), else by spaces, and the label is first or last. That
    line may also be a header of the names label, left and right in any order. Blank lines are
    skipped. An id is that of an utterance, or differs from it by the suffix of an audio file.

    Args:
        path: the list.
        manifest: the utterances; the indices of the result are its rows.

    Raises:
        ManifestError: naming the file and the line: it cannot be read or holds no trials, a line
            has not three fields or no such label, an id is unknown or fits two utterances.
    """
    return _read(Path(path), _Index(manifest))


def read_trials_and_names(path: Path) -> tuple[TrialList, list[str]]:
    """Read a trial list with the ids it names, without the suffixes of audio files.

    Its indices are those of the ids, which are in the order of their first trial. Errors as
    :func:`read_trials`, but that no id is unknown.
    """
    names = _Names()
    trials = _read(path, names)
    return trials, [os.fsdecode(name) for name in names.stems]


def line_of(path: Path, name: str) -> int | None:
    """The first line of a trial list with this id, with or without a suffix."""
    wanted = os.fsencode(name)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if wanted in line and any(_stem(part) == wanted for part in line.split()):
                return number
    return None


class _Unknown(LookupError):
    """An id that names no utterance, or two; the message says which."""


class _Index(dict[bytes, int]):
    """Row of a manifest by id; spellings with another suffix are learnt as they come."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__((os.fsencode(utterance.id), row) for row, utterance in enumerate(manifest))
        self.source = "the manifest" if manifest.source is None else str(manifest.source)
        self.stems: dict[bytes, int | None] = {}
        for name, row in self.items():
            stem = _stem(name)
            self.stems[stem] = None if stem in self.stems else row

    def __missing__(self, name: bytes) -> int:
        stem = _stem(name)
        row = self.stems.get(stem)
        if row is None:
            several = "fits several utterances" if stem in self.stems else "is no utterance"
            raise _Unknown(f"{os.fsdecode(name)!r} {several} of {self.source}")
        self[name] = row
        return row


class _Names(dict[bytes, int]):
    """Numbers ids as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.stems: dict[bytes, int] = {}

    def __missing__(self, name: bytes) -> int:
        row = self.stems.setdefault(_stem(name), len(self.stems))
        self[name] = row
        return row


def _stem(name: bytes) -> bytes:
    base, suffix = os.path.splitext(name)
    return base if suffix.lower() in _SUFFIXES else name


@dataclass(frozen=True)
class _Format:
    """Where the fields of a line are, as the first line shows."""

    separator: bytes | None
    left: int
    right: int
    label: int
    is_header: bool


def _read(path: Path, rows: Mapping[bytes, int]) -> TrialList:
    left, right, target = array("i"), array("i"), bytearray()
    form: _Format | None = None
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.rstrip(b"\r\n")
                if form is None:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    if not line.strip():
                        continue
                    form = _format(path, number, line, rows)
                    separator = form.separator
                    at_left, at_right, at_label = form.left, form.right, form.label
                    if form.is_header:
                        continue
                fields = line.split(separator)
                if len(fields) != 3:
                    if not line.strip():
                        continue
                    raise ManifestError(path, number, f"has {len(fields)} fields; {_WANTED}")
                # Spaces may stand beside tabs, and a label in any case: rare, so looked at last.
                label = _LABELS.get(fields[at_label])
                if label is None:
                    label = _label(path, number, fields[at_label])
                try:
                    one, other = rows[fields[at_left]], rows[fields[at_right]]
                except _Unknown as error:
                    raise ManifestError(path, number, str(error)) from None
                left.append(one)
                right.append(other)
                target.append(label)
    except OSError as error:
        raise ManifestError(path, None, f"cannot be read: {error.strerror or error}") from None
    if not target:
        raise ManifestError(path, None, f"holds no trials; {_WANTED}")
    return TrialList(
        np.frombuffer(left, dtype=np.int32),
        np.frombuffer(right, dtype=np.int32),
        np.frombuffer(target, dtype=np.bool_),
    )


def _label(path: Path, number: int, field: bytes) -> bool:
    label = _LABELS.get(field.strip().lower())
    if label is None:
        raise ManifestError(path, number, f"{os.fsdecode(field)!r} is no label; {_WANTED}")
    return label


def _format(path: Path, number: int, line: bytes, rows: Mapping[bytes, int]) -> _Format:
    separator = b"\t" if b"\t" in line else None
    fields = line.split(separator)
    if len(fields) != 3:
        raise ManifestError(path, number, f"has {len(fields)} fields; {_WANTED}")
    names = [field.strip().lower() for field in fields]
    if sorted(names) == sorted(_HEADER):
        label, left, right = (names.index(name) for name in _HEADER)
        return _Format(separator, left, right, label, True)
    first, last = names[0] in _LABELS, names[2] in _LABELS
    if first and last and isinstance(rows, _Index):
        # An utterance may be called 1: then the other two have to be utterances.
        first = _known(rows, fields[1]) and _known(rows, fields[2])
    if first:
        return _Format(separator, 1, 2, 0, False)
    if last:
        return _Format(separator, 0, 1, 2, False)
    raise ManifestError(path, number, f"has no label, first or last; {_WANTED}")


def _known(rows: _Index, name: bytes) -> bool:
    return name in rows or rows.stems.get(_stem(name)) is not None
