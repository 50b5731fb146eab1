"""A grid of generated speech, small enough to train on in a test: voices that say texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def utterance(voice: int, text: int, *, take: int = 0) -> np.ndarray:
    """Three syllables of a text, at the pitch and the pace of a voice, and some noise."""
    syllables = np.random.default_rng(1000 + text).uniform(500, 3000, 3)
    length = 1200 + 160 * voice
    time = np.arange(length) / RATE
    pitch = 90 + 35 * voice
    source = np.sign(np.sin(2 * np.pi * pitch * time)) + 0.5 * np.sin(4 * np.pi * pitch * time)
    speech = np.concatenate([source * np.sin(2 * np.pi * f * time) for f in syllables])
    noise = np.random.default_rng([voice, text, take]).standard_normal(len(speech))
    return (0.2 * speech + 0.01 * noise).astype(np.float32)


def write_grid(
    folder: Path, voices: int = 4, texts: int = 4, *, holes: tuple[tuple[int, int], ...] = ()
) -> Path:
    """Write the audio and a manifest of all cells but the holes; give the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for voice in range(voices):
        for text in range(texts):
            if (voice, text) in holes:
                continue
            name = f"v{voice}t{text}"
            soundfile.write(folder / f"{name}.wav", utterance(voice, text), RATE)
            rows.append(
                {"id": name, "audio": f"{name}.wav", "speaker": f"v{voice}", "text": f"t{text}",
                 "factors": {"parity": (voice + text) % 2, "one": "same"}}
            )  # fmt: skip
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return manifest
