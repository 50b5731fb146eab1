"""Read a manifest: JSONL, CSV or a folder. One schema, and the names other toolkits use for it.

=========  ==========================================  =========================================
field      accepted names                              meaning
=========  ==========================================  =========================================
audio      ``audio``, ``audio_filepath``, ``wav``      path, relative to the manifest's folder
id         ``id``, ``ID``                              unique; else made of the path and segment
start      ``start``, ``offset``                       seconds
end        ``end``                                     seconds; null is the end of the file
stop       ``stop`` (SpeechBrain, with ``start``)      *samples* of the file, both
duration   ``duration``                                seconds: with a start and no end it gives
                                                       the end, otherwise it is checked
speaker    ``speaker``, ``spk_id``                     string
text       ``text``                                    string
language   ``language``, ``lang``                      string
phones     ``phones``                                  path of phone labels
factors    ``factors`` (JSONL: an object), or          strings or integers
           ``factors.NAME`` (one column each)
others     anything else                               kept in ``Utterance.extra``
=========  ==========================================  =========================================

An empty CSV cell or a JSON null is the same as a missing key (but see ``end``).
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechft.data.manifest import Factor, Manifest, Utterance
from speechft.errors import AudioError, ManifestError

_NAMES = {
    "audio": ("audio", "audio_filepath", "wav"),
    "id": ("id", "ID"),
    "start": ("start", "offset"),
    "end": ("end",),
    "stop": ("stop",),
    "duration": ("duration",),
    "speaker": ("speaker", "spk_id"),
    "text": ("text",),
    "language": ("language", "lang"),
    "phones": ("phones",),
    "factors": ("factors",),
}
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_KNOWN = {name: known for known, names in _NAMES.items() for name in names}

Rows = Iterator[tuple[int, dict[str, Any]]]


def read_manifest(path: str | Path, *, check_files: bool = True) -> Manifest:
    """Read a manifest file or search a folder for audio.

    * ``.jsonl``, ``.json``, ``.ndjson``: one JSON object a line; empty lines are skipped.
    * ``.csv``: comma-separated with a header row.
    * a folder: every wav, flac, ogg, opus and mp3 file below it, sorted by path; its id is the
      path relative to the folder without the suffix. Hidden files and symbolic links to folders
      are left out. In the layout of VoxCeleb 1 and 2, ``.../idNNNNN/VIDEO/FILE`` throughout, the
      third name from the end is the speaker.

    UTF-8, with or without byte order mark, lines ending in LF or CRLF. The names of columns are in
    :mod:`speechft.data.readers`. No audio is decoded here: :func:`speechft.data.scan` does that.

    Args:
        path: the file or folder.
        check_files: whether each audio and phone file must exist.

    Raises:
        ManifestError: naming the file and the line: it does not exist, is empty or of an unknown
            type; a line is malformed or not UTF-8, has no audio, a wrong type, two names for one
            field, a negative start, an end that is not after the start, a missing file, or an id
            that another line has.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ManifestError(path, None, "there is no such file or folder")
    if path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        rows = _json_rows(path)
    elif path.suffix.lower() == ".csv":
        rows = _csv_rows(path)
    else:
        raise ManifestError(
            path, None, f"unknown type {path.suffix!r}; wants .jsonl, .csv or a folder of audio"
        )
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    rates: dict[Path, int] = {}
    for line, values in rows:
        utterance = _Row(path, line, values, rates).utterance()
        first = lines.setdefault(utterance.id, line)
        if first != line:
            raise ManifestError(path, line, f"the id {utterance.id!r} is also that of line {first}")
        for file in (utterance.audio, utterance.phones):
            if check_files and file is not None and not os.path.isfile(file):
                raise ManifestError(path, line, f"there is no file {str(file)!r}")
        utterances.append(utterance)
    if not utterances:
        raise ManifestError(path, None, "is empty: it has no rows")
    return Manifest(utterances, source=path)


def _read_folder(folder: Path) -> Manifest:
    from speechft.data.audio import SUFFIXES

    found: dict[str, Path] = {}
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            Path(root, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    for file in sorted(paths, key=lambda file: file.relative_to(folder).parts):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ManifestError(
                folder, None, f"{found[name].name} and {file.name} have the same id {name!r}"
            )
        found[name] = file
    if not found:
        raise ManifestError(folder, None, f"holds no audio ({', '.join(SUFFIXES)}){_aac(folder)}")
    speakers = {name: _voxceleb_speaker(name) for name in found}
    known = None not in speakers.values()
    return Manifest(
        (
            Utterance(id=name, audio=file, speaker=speakers[name] if known else None)
            for name, file in found.items()
        ),
        source=folder,
    )


def _voxceleb_speaker(name: str) -> str | None:
    """The idNNNNN of .../idNNNNN/VIDEO/FILE; None of another layout."""
    parts = name.split("/")
    if len(parts) < 3 or not re.fullmatch(r"id\d{5}", parts[-3]):
        return None
    return parts[-3]


def _aac(folder: Path) -> str:
    """What to do with VoxCeleb2 as it comes."""
    if next(folder.rglob("*.m4a"), None) is None:
        return ""
    return "; its .m4a files are AAC, which is not read: convert them, ffmpeg -i X.m4a X.flac"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ManifestError(
                        path, number, f"is not UTF-8 (byte {error.start + 1} of the line)"
                    ) from None
    except OSError as error:
        raise ManifestError(path, None, f"cannot be read: {error.strerror or error}") from error


def _json_rows(path: Path) -> Rows:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise ManifestError(path, number, f"is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ManifestError(
                path, number, f"wants one JSON object a line, got {type(row).__name__}"
            )
        yield (
            number,
            {key: value for key, value in row.items() if value is not None or key == "end"},
        )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key appears twice")
    return row


def _csv_rows(path: Path) -> Rows:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    first_line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ManifestError(path, reader.line_num, f"is not CSV: {error}") from None
        line, first_line = first_line, reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) != len(header):
                raise ManifestError(path, line, "the header names a column twice")
            if not any(_KNOWN.get(name) == "audio" for name in header):
                raise ManifestError(
                    path,
                    line,
                    f"the header has no column for audio ({', '.join(_NAMES['audio'])})",
                )
            continue
        if len(cells) != len(header):
            raise ManifestError(path, line, f"has {len(cells)} cells; the header has {len(header)}")
        yield line, {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


class _Row:
    """One row of a manifest on its way to an utterance."""

    def __init__(self, path: Path, line: int, row: dict[str, Any], rates: dict[Path, int]) -> None:
        self.path, self.line, self.rates = path, line, rates
        self.values: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.factors: dict[str, Factor] = {}
        for name, value in row.items():
            known = _KNOWN.get(name)
            if known is not None:
                if known in self.values:
                    raise self.error(f"gives {known!r} twice, under two names ({name!r} is one)")
                self.values[known] = value
            elif name.startswith("factors."):
                self.factors[name.removeprefix("factors.")] = self.factor(name, value)
            else:
                self.extra[name] = value

    def utterance(self) -> Utterance:
        audio = self.file("audio")
        if audio is None:
            raise self.error(f"has no audio (a key {', '.join(map(repr, _NAMES['audio']))})")
        start, end, duration = self.segment(audio)
        factors = self.values.get("factors", {})
        if not isinstance(factors, dict):
            raise self.error(f"factors: wants an object of names and labels, got {factors!r}")
        for name, value in factors.items():
            if value is not None:
                self.factors[name] = self.factor(name, value)
        return Utterance(
            id=self.string("id", numbers=True) or self.default_id(start, end),
            audio=audio,
            start=start,
            end=end,
            duration=duration,
            speaker=self.string("speaker", numbers=True),
            text=self.string("text"),
            language=self.string("language"),
            phones=self.file("phones"),
            factors=self.factors,
            extra=self.extra,
            line=self.line,
        )

    def segment(self, audio: Path) -> tuple[float, float | None, float | None]:
        """Start and end in seconds, and the duration where it is a claim to be checked."""
        start, end = self.number("start"), self.number("end")
        duration, stop = self.number("duration"), self.number("stop")
        if stop is not None:
            if "end" in self.values:
                raise self.error("has both end (seconds) and stop (samples): give one")
            rate = self.rate(audio)
            start, end, duration = (start or 0.0) / rate, stop / rate, None
        elif start is not None and "end" not in self.values and duration is not None:
            start, end, duration = start, start + duration, None
        first = start or 0.0
        if end is not None:
            if end <= first:
                raise self.error(f"end {end:g} s is not after start {first:g} s")
            if duration is not None:
                if abs(end - first - duration) > 0.01 + 1e-9:
                    raise self.error(
                        f"duration {duration:g} s contradicts start {first:g} s and end {end:g} s"
                    )
                duration = None
        return first, end, duration

    def rate(self, audio: Path) -> int:
        from speechft.data.audio import file_rate

        if audio not in self.rates:
            try:
                self.rates[audio] = file_rate(audio)
            except AudioError as error:
                raise self.error(
                    f"start and stop are in samples of {audio}: {error.reason}"
                ) from None
        return self.rates[audio]

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            number = float(value)
        except (ValueError, OverflowError):
            raise self.error(f"{name}: wants a number, got {value!r}") from None
        if not math.isfinite(number) or number < 0 or (name == "duration" and number == 0):
            wanted = "more than 0" if name == "duration" else "at least 0"
            raise self.error(f"{name}: wants a finite number, {wanted}; got {value!r}")
        return number

    def string(self, name: str, *, numbers: bool = False) -> str | None:
        value = self.values.get(name)
        if numbers and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise self.error(f"{name}: wants a string, got {value!r}")
        if value == "" and name in ("id", "audio", "phones"):
            raise self.error(f"{name}: is an empty string")
        if value is not None and not value.isascii() and _HALF_PAIR.search(value):
            raise self.error(f"{name}: holds half a surrogate pair, {value!r}")
        text: str | None = value
        return text

    def file(self, name: str) -> Path | None:
        value = self.string(name)
        if value is None:
            return None
        if "\0" in value:
            raise self.error(f"{name}: a path cannot hold a NUL character")
        return self.path.parent / value

    def factor(self, name: str, value: Any) -> Factor:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.error(f"factor {name!r}: wants a string or an integer, got {value!r}")
        label: Factor = value
        return label

    def default_id(self, start: float, end: float | None) -> str:
        name: str = os.path.splitext(self.values["audio"])[0]
        if start == 0 and end is None:
            return name
        return f"{name}#{start:.9g}-" + ("" if end is None else f"{end:.9g}")

    def error(self, reason: str) -> ManifestError:
        return ManifestError(self.path, self.line, reason)
