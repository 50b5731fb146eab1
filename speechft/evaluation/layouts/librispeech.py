"""LibriSpeech, by its official folders."""

from __future__ import annotations

from pathlib import Path

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import files_in, folders_in, missing, read_lines

FOLDERS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
"""The official splits."""

LOOKED_FOR = f"a folder {', '.join(FOLDERS[:-1])} or {FOLDERS[-1]}"


def librispeech(
    root: str | Path,
    *,
    train: str | None = "train-clean-100",
    validation: str | None = "dev-clean",
    test: str | None = "test-clean",
) -> EvaluationData:
    """Read three folders of LibriSpeech with their transcripts.

    Expected, as the archives unpack (Panayotov, Chen, Povey, Khudanpur, 2015)::

        ROOT/train-clean-100/103/1240/103-1240-0000.flac      or ROOT/LibriSpeech/...
        ROOT/train-clean-100/103/1240/103-1240.trans.txt      103-1240-0000 CHAPTER ONE ...

    The defaults are the splits of SUPERB's phoneme and speech recognition.

    Args:
        root: the folder.
        train: folder of the part "train"; None leaves the part out. Likewise the others.
        validation: folder of the part "validation".
        test: folder of the part "test".

    Returns:
        These parts; every utterance has its text, its speaker and the factor ``chapter``.

    Raises:
        ArgumentError: no part is asked for, or two are the same folder.
        ManifestError: naming the file and line: a folder is missing, a transcript is missing or
            malformed or names another chapter, an utterance has no file, a file no transcript.
    """
    root = Path(root)
    base = find(root)
    if base is None:
        raise missing(root, "LibriSpeech", LOOKED_FOR)
    folders = {"train": train, "validation": validation, "test": test}
    chosen = {part: folder for part, folder in folders.items() if folder is not None}
    if not chosen:
        raise ArgumentError("test", "no part is asked for")
    if len(set(chosen.values())) != len(chosen):
        raise ArgumentError("test", f"two parts are the same folder: {chosen}")
    for part, name in chosen.items():
        if not (base / name).is_dir():
            raise ManifestError(
                base / name,
                None,
                f"there is no such folder, for {part}: unpack {name} there, or name another folder",
            )
    return EvaluationData(
        name=f"librispeech ({', '.join(f'{part}: {name}' for part, name in chosen.items())})",
        parts={part: _read_folder(base / name) for part, name in chosen.items()},
    )


def find(root: Path) -> Path | None:
    """The folder that holds the splits, or None."""
    for base in (root, root / "LibriSpeech"):
        if any((base / name).is_dir() for name in FOLDERS):
            return base
    return None


def _read_folder(folder: Path) -> Manifest:
    utterances: list[Utterance] = []
    for speaker in folders_in(folder):
        for chapter in folders_in(speaker):
            utterances += _read_chapter(chapter)
    if not utterances:
        raise ManifestError(folder, None, "holds no SPEAKER/CHAPTER/*.flac")
    return Manifest(utterances, source=folder)


def _read_chapter(folder: Path) -> list[Utterance]:
    name = f"{folder.parent.name}-{folder.name}"
    path = folder / f"{name}.trans.txt"
    files = {file.stem: file for file in files_in(folder, ".flac")}
    utterances = []
    for number, line in read_lines(path):
        id, _, text = line.strip().partition(" ")
        if not id.startswith(f"{name}-") or not text.strip():
            raise ManifestError(path, number, f"wants {name}-NNNN TEXT, got {line[:60]!r}")
        audio = files.pop(id, None)
        if audio is None:
            raise ManifestError(path, number, f"there is no file {id}.flac, or two lines of it")
        utterances.append(
            Utterance(
                id=id,
                audio=audio,
                speaker=folder.parent.name,
                text=text.strip(),
                language="en",
                factors={"chapter": folder.name},
                line=number,
            )
        )
    if files:
        raise ManifestError(path, None, f"has no line for {min(files)} and {len(files) - 1} more")
    return utterances


LAYOUT = Layout("librispeech", librispeech, find, LOOKED_FOR)
