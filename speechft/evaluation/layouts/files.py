"""Lines, tables and folders of a data set, with errors that name the file and the line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from speechft.errors import ManifestError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without their ends, numbered from 1. UTF-8, LF or CRLF.

    Raises:
        ManifestError: the file cannot be read, holds a line that is not UTF-8, or nothing.
    """
    found = False
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    line = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise ManifestError(
                        path, number, f"is not UTF-8 (byte {error.start + 1} of the line)"
                    ) from None
                if line.strip():
                    found = True
                    yield number, line
    except OSError as error:
        raise ManifestError(path, None, f"cannot be read: {error.strerror or error}") from None
    if not found:
        raise ManifestError(path, None, "is empty")


def read_table(path: Path, columns: Iterable[Sequence[str]]) -> Iterator[tuple[int, list[str]]]:
    """Columns of a comma-separated file with a header, in the order asked for.

    Args:
        path: the file.
        columns: for each column the names it may have, in any case.

    Raises:
        ManifestError: as :func:`read_lines`; a column is missing, or a row has other cells.
    """
    rows = _Numbered(path)
    reader = csv.reader(iter(rows), strict=True)
    header: list[str] = []
    places: list[int] = []
    while True:
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            raise ManifestError(path, rows.number, f"is not CSV: {error}") from None
        if not header:
            header = [cell.lower() for cell in cells]
            for names in columns:
                found = [header.index(name.lower()) for name in names if name.lower() in header]
                if not found:
                    raise ManifestError(
                        path,
                        rows.number,
                        f"the header has no column {' or '.join(names)}; it has "
                        + ", ".join(cells),
                    )
                places.append(found[0])
        elif len(cells) != len(header):
            raise ManifestError(
                path, rows.number, f"has {len(cells)} cells; the header has {len(header)}"
            )
        else:
            yield rows.number, [cells[place] for place in places]


class _Numbered:
    """Lines of a file, and the number of the last one."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0

    def __iter__(self) -> Iterator[str]:
        for number, line in read_lines(self.path):
            self.number = number
            yield line


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder with this suffix, in any case, by name. Hidden ones are left out.

    Raises:
        ManifestError: there is no such folder, or it holds none.
    """
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() == suffix and not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise ManifestError(folder, None, f"cannot be read: {error.strerror or error}") from None
    if not found:
        raise ManifestError(folder, None, f"holds no {suffix} files")
    return found


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, by name. Hidden ones are left out.

    Raises:
        ManifestError: there is no such folder.
    """
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise ManifestError(folder, None, f"cannot be read: {error.strerror or error}") from None


def first_with(candidates: Iterable[Path], marker: str) -> Path | None:
    """The first of the folders in which the path ``marker`` exists."""
    return next((folder for folder in candidates if (folder / marker).exists()), None)


def missing(root: Path, layout: str, looked_for: str) -> ManifestError:
    """The error of a folder that is not laid out as it should be."""
    problem = "is not laid out as" if root.is_dir() else "there is no such folder to read as"
    return ManifestError(root, None, f"{problem} {layout}, which wants {looked_for}")
