"""Silence of Speech Commands: seconds of its background noise, always the same ones."""

from __future__ import annotations

from pathlib import Path

from speechft.data import Utterance
from speechft.data.audio import decode
from speechft.errors import ManifestError
from speechft.evaluation.layouts.files import files_in

NOISE = "_background_noise_"
"""Folder of the noise."""

VALIDATION_EVERY = 10
"""Each tenth second is validation: the share of speakers that is."""


def silence(folder: Path) -> dict[str, list[Utterance]]:
    """Every whole second of the files, as segments for training and for validation.

    Raises:
        ManifestError: no files, one that lasts less than a second, no second for training.
        AudioError: a file that cannot be decoded.
    """
    parts: dict[str, list[Utterance]] = {"train": [], "validation": []}
    for file in files_in(folder, ".wav"):
        noise = decode(Utterance(id=file.stem, audio=file))
        seconds = len(noise.samples) // noise.sample_rate
        if not seconds:
            raise ManifestError(file, None, "is shorter than the second that silence lasts")
        for second in range(seconds):
            part = "train" if second % VALIDATION_EVERY else "validation"
            parts[part].append(
                Utterance(
                    id=f"{NOISE}/{file.stem}#{second}-{second + 1}",
                    audio=file,
                    start=float(second),
                    end=float(second + 1),
                    factors={"keyword": "_silence_"},
                )
            )
    if not parts["train"]:
        raise ManifestError(folder, None, "lasts too short a time to give silence to training")
    return parts
