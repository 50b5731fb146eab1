"""CREMA-D, for recognition of six emotions."""

from __future__ import annotations

import re
from pathlib import Path

from speechft.data import Manifest, Utterance
from speechft.errors import ManifestError
from speechft.evaluation.layouts.base import EvaluationData, Layout
from speechft.evaluation.layouts.files import files_in, first_with, missing

EMOTIONS = {
    "ANG": "angry",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
"""X is XX: of 1040_ITH_SAD_X.wav, the one file of the data set that is named so."""

SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
"""Codes of the twelve sentences."""

LOOKED_FOR = "AudioWAV/1001_DFA_ANG_XX.wav"

_NAME = re.compile(r"(1\d{3})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")


def crema_d(root: str | Path) -> EvaluationData:
    """Read CREMA-D (Cao and others, 2014): 7442 clips of 91 actors, six acted emotions.

    Expected, as its repository has it::

        ROOT/AudioWAV/1001_DFA_ANG_XX.wav      ACTOR_SENTENCE_EMOTION_LEVEL

    There is no official split. The labels are the emotions that were acted, of the names, not
    those that raters heard.

    Returns:
        The part "all", with the label ``emotion``, the groups ``speaker``, and the factors
        ``level`` and ``sentence``.

    Raises:
        ManifestError: the folder is missing or empty, or a name is none of the above.
    """
    root = Path(root)
    base = find(root)
    if base is None:
        raise missing(root, "CREMA-D", LOOKED_FOR)
    folder = base / "AudioWAV"
    return EvaluationData(
        name="crema_d (6 acted emotions)",
        parts={"all": Manifest(map(_utterance, files_in(folder, ".wav")), source=folder)},
        label="emotion",
        groups="speaker",
    )


def find(root: Path) -> Path | None:
    """The folder that holds ``AudioWAV/``, or None."""
    return first_with((root, root / "CREMA-D"), "AudioWAV")


def _utterance(file: Path) -> Utterance:
    match = _NAME.fullmatch(file.stem)
    if match is None:
        raise ManifestError(file, None, "wants a name ACTOR_SENTENCE_EMOTION_LEVEL.wav")
    actor, sentence, emotion, level = match.groups()
    for code, known, what in (
        (sentence, SENTENCES, "sentence"),
        (emotion, EMOTIONS, "emotion"),
        (level, LEVELS, "level"),
    ):
        if code not in known:
            raise ManifestError(file, None, f"{code} is no {what} of {', '.join(known)}")
    return Utterance(
        id=file.stem,
        audio=file,
        speaker=actor,
        language="en",
        factors={"emotion": EMOTIONS[emotion], "level": LEVELS[level], "sentence": sentence},
    )


LAYOUT = Layout("crema_d", crema_d, find, LOOKED_FOR)
