"""MSP-Podcast, for recognition of emotions, by its official partitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import first_with, missing, read_table

EMOTIONS = {
    "A": "angry",
    "S": "sad",
    "H": "happy",
    "U": "surprise",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
}
"""The primary emotions by their letters; O (other) and X (no agreement) are no classes."""

PARTITIONS = {"Train": "train", "Development": "validation", "Validation": "validation"}
"""Partitions beside the tests; early releases call the development set Validation."""

TESTS = ("Test1", "Test2", "Test3")

LOOKED_FOR = "Labels/labels_consensus.csv beside Audios/"

_NO_CLASS = {"O": "other", "X": "no agreement"}
_COLUMNS = (("FileName",), ("EmoClass",), ("SpkrID",), ("Split_Set",))


def msp_podcast(
    root: str | Path, *, test: str = "Test1", classes: Sequence[str] = tuple(EMOTIONS.values())
) -> EvaluationData:
    """Read MSP-Podcast (Lotfian and Busso, 2019) in its official partitions.

    Expected, as the release unpacks::

        ROOT/Audios/MSP-PODCAST_0001_0008.wav
        ROOT/Labels/labels_consensus.csv      FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,...,
                                              Split_Set

    Training is the partition Train, validation is Development, test is the one asked for. Rows of
    the other tests, of other classes and without an agreement are left out and counted.

    Args:
        root: the folder.
        test: "Test1" or "Test2" ("Test3" has no public labels).
        classes: those of the primary emotions to read: all eight, as the Odyssey 2024 challenge
            has them, or the common four, ("angry", "sad", "happy", "neutral").

    Returns:
        Training, validation and test, with the label ``emotion``. A speaker called Unknown is
        None. No groups: the partitions are the corpus's own.

    Raises:
        ArgumentError: an unknown test or class, fewer than two classes.
        ManifestError: naming the file and the line: the table is missing or malformed, a row has
            an unknown class or partition, no file, or a name that another row has; or a
            partition has no row.
    """
    root = Path(root)
    if test not in TESTS:
        raise ArgumentError("test", f"wants one of {', '.join(TESTS)}, got {test!r}")
    unknown = [name for name in classes if name not in EMOTIONS.values()]
    if isinstance(classes, str) or unknown or len(set(classes)) < 2:
        raise ArgumentError(
            "classes", f"wants two or more of {', '.join(EMOTIONS.values())}, got {classes!r}"
        )
    base = find(root)
    if base is None:
        raise missing(root, "MSP-Podcast", LOOKED_FOR)
    path = base / "Labels" / "labels_consensus.csv"
    part_of = {**PARTITIONS, test: "test"}
    parts: dict[str, list[Utterance]] = {"train": [], "validation": [], "test": []}
    lines: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for number, (name, letter, speaker, partition) in read_table(path, _COLUMNS):
        first = lines.setdefault(name, number)
        if first != number:
            raise ManifestError(path, number, f"{name!r} is also line {first}")
        if partition not in part_of and partition not in TESTS:
            known = ", ".join((*PARTITIONS, *TESTS))
            raise ManifestError(path, number, f"{partition!r} is no partition ({known})")
        if letter not in EMOTIONS and letter not in _NO_CLASS:
            known = ", ".join((*EMOTIONS, *_NO_CLASS))
            raise ManifestError(path, number, f"{letter!r} is no class ({known})")
        emotion = EMOTIONS.get(letter)
        if partition not in part_of:
            left_out[partition] += 1
        elif emotion is None or emotion not in classes:
            left_out[emotion or _NO_CLASS[letter]] += 1
        else:
            audio = base / "Audios" / name
            if not audio.is_file():
                raise ManifestError(path, number, f"there is no file {str(audio)!r}")
            parts[part_of[partition]].append(
                Utterance(
                    id=audio.stem,
                    audio=audio,
                    speaker=None if speaker.lower() in ("unknown", "") else speaker,
                    language="en",
                    factors={"emotion": emotion},
                    line=number,
                )
            )
    for part, utterances in parts.items():
        if not utterances:
            wanted = test if part == "test" else "Train" if part == "train" else "Development"
            raise ManifestError(path, None, f"no row of {wanted} is of the classes asked for")
    return EvaluationData(
        name=f"msp_podcast ({test}, {len(set(classes))} classes)",
        parts={part: Manifest(rows, source=path) for part, rows in parts.items()},
        label="emotion",
        left_out=dict(sorted(left_out.items())),
    )


def find(root: Path) -> Path | None:
    """The folder that holds ``Labels/`` and ``Audios/``, or None."""
    return first_with((root,), "Labels/labels_consensus.csv")


LAYOUT = Layout("msp_podcast", msp_podcast, find, LOOKED_FOR)
