"""Speech that is none: tones whose pitch is the speaker and whose brightness is the mood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from speechft.data import Manifest, Utterance, write_manifest

RATE = 16_000
MOODS = ("bright", "dark")


def tone(pitch: float, mood: str, seconds: float, seed: int) -> np.ndarray:
    """Harmonics up to 1 kHz, or up to 6 kHz, and some noise."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    highest = {"dark": 1000, "bright": 6000}[mood]
    numbers = np.arange(1, int(highest / pitch) + 1)
    phases = draw.uniform(0, 2 * np.pi, len(numbers))
    wave = np.sin(2 * np.pi * pitch * numbers[:, None] * time + phases[:, None]).sum(0)
    wave = 0.3 * wave / np.abs(wave).max() + 0.003 * draw.standard_normal(len(time))
    return wave.astype(np.float32)


def pitch_of(speaker: int) -> float:
    """Hz."""
    return 90.0 * 1.3**speaker


def toys(
    folder: Path, speakers: int = 5, each: int = 4, *, seconds: tuple[float, float] = (0.25, 0.5)
) -> Manifest:
    """Utterances of some speakers, in turn in either mood; the manifest is written as well.

    Factors: ``mood``, ``health`` (of the speaker: the even ones are well), ``one`` (the same for
    all), ``own`` (another for each).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for speaker in range(speakers):
        for take in range(each):
            number = speaker * each + take
            mood = MOODS[(take + speaker) % 2]
            length = float(np.random.default_rng(number).uniform(*seconds))
            path = folder / f"s{speaker}-{take}.wav"
            soundfile.write(path, tone(pitch_of(speaker), mood, length, number), RATE)
            factors = {
                "mood": mood, "health": "ill" if speaker % 2 else "well", "one": "same",
                "own": number,
            }  # fmt: skip
            rows.append(Utterance(path.stem, path, speaker=f"s{speaker}", factors=factors))
    manifest = Manifest(rows, source=folder / "manifest.jsonl")
    write_manifest(manifest, folder / "manifest.jsonl")
    return manifest
