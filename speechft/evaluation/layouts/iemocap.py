"""IEMOCAP, for recognition of four emotions."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from speechft.data import Manifest, Utterance
from speechft.errors import ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import files_in, first_with, missing, read_lines

EMOTIONS = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
"""The labels of the data set that are read, and the classes that they are."""

LOOKED_FOR = "Session1/dialog/EmoEvaluation/ (also below IEMOCAP_full_release/)"

_OTHERS = ("dis", "fea", "fru", "oth", "sur", "xxx")
_TURN = re.compile(r"\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\t(\S+)\t(\S+)\t\[[^\]]*\]\s*")
_NAME = re.compile(r"(Ses0[1-5])[FM]_\w+_([FM])\w*")


def iemocap(root: str | Path) -> EvaluationData:
    """Read the turns of IEMOCAP (Busso and others, 2008) in four classes, for five folds.

    Expected, as the archive unpacks::

        ROOT/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt     or ROOT/IEMOCAP_full_release/...
        ROOT/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav
        ...                                                       to Session5

    The label is the majority's, of the lines ``[START - END]<tab>TURN<tab>LABEL<tab>[V, A, D]``.
    As in SUPERB, happy and excited are one class, "happy"; with "angry", "neutral" and "sad" these
    are 5531 turns. The others are left out and counted by label. The folds are the sessions: each
    is tested on in turn, and its two speakers are in no other.

    Returns:
        The part "all", with the label ``emotion`` and the groups ``session`` ("Session1"). The
        factor ``label`` is that of the data set. The speaker is the one who talks, "Ses01_F" (not
        "Ses01F", who wears the markers of motion capture).

    Raises:
        ManifestError: naming the file and the line: a session is missing, a turn is malformed, is
            there twice, has an unknown label or, if it is of the four classes, no file.
    """
    root = Path(root)
    base = find(root)
    if base is None:
        raise missing(root, "IEMOCAP", LOOKED_FOR)
    utterances: list[Utterance] = []
    lines: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for session in (f"Session{number}" for number in range(1, 6)):
        folder = base / session / "dialog" / "EmoEvaluation"
        for path in files_in(folder, ".txt"):
            for number, line in read_lines(path):
                if not line.startswith("["):
                    continue  # ratings of one person, and the legend
                turn, label, speaker = _turn(path, number, line)
                first = lines.setdefault(turn, f"{path.name}, line {number}")
                if first != f"{path.name}, line {number}":
                    raise ManifestError(path, number, f"{turn!r} is also in {first}")
                if label in _OTHERS:
                    left_out[f"label {label}"] += 1
                    continue
                dialog = turn.rpartition("_")[0]
                audio = base / session / "sentences" / "wav" / dialog / f"{turn}.wav"
                if not audio.is_file():
                    raise ManifestError(path, number, f"there is no file {str(audio)!r}")
                utterances.append(
                    Utterance(
                        id=turn,
                        audio=audio,
                        speaker=speaker,
                        language="en",
                        factors={"emotion": EMOTIONS[label], "label": label, "session": session},
                        line=number,
                    )
                )
    return EvaluationData(
        name="iemocap (4 classes, excited is happy)",
        parts={"all": Manifest(utterances, source=base)},
        label="emotion",
        groups="session",
        left_out=dict(sorted(left_out.items())),
    )


def find(root: Path) -> Path | None:
    """The folder that holds the sessions, or None."""
    candidates = (root, root / "IEMOCAP_full_release", root / "IEMOCAP")
    return first_with(candidates, "Session1/dialog/EmoEvaluation")


def _turn(path: Path, number: int, line: str) -> tuple[str, str, str]:
    match = _TURN.fullmatch(line)
    name = None if match is None else _NAME.fullmatch(match[1])
    if match is None or name is None:
        raise ManifestError(
            path,
            number,
            f"wants [START - END]<tab>Ses0NX_DIALOG_XNNN<tab>LABEL<tab>[V, A, D], got {line!r}",
        )
    if match[2] not in EMOTIONS and match[2] not in _OTHERS:
        known = ", ".join(sorted({*EMOTIONS, *_OTHERS}))
        raise ManifestError(path, number, f"{match[2]!r} is no label of IEMOCAP ({known})")
    return match[1], match[2], f"{name[1]}_{name[2]}"


LAYOUT = Layout("iemocap", iemocap, find, LOOKED_FOR)
