"""What a cell is as samples, and as a file: 16 kHz, 16 bits, mono, and to be heard."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from speechft.grid.conditions import RATE, Samples
from speechft.grid.engines import EngineError, Spoken

_SILENT = 10 ** (-60 / 20)  # of full scale: nothing in it is louder
_SHORTEST = 0.1  # seconds


def checked(spoken: Spoken) -> Samples:
    """At 16 kHz; what nobody can hear is no cell."""
    samples, rate = spoken
    _check_heard(samples, rate)
    if rate != RATE:
        import soxr

        samples = soxr.resample(samples, rate, RATE)
    return np.asarray(samples, dtype=np.float32)


def within_scale(samples: Samples, conditions: Mapping[str, str]) -> Samples:
    """What conditions left of a cell, with a peak of at most 1."""
    try:
        _check_heard(samples, RATE)
    except EngineError as error:
        done = ", ".join(f"{name}={value}" for name, value in conditions.items())
        raise EngineError(f"{done}: leaves {error}") from error
    scaled: Samples = samples / np.maximum(np.abs(samples).max(), np.float32(1))
    return scaled


def _check_heard(samples: Samples, rate: int) -> None:
    if len(samples) < _SHORTEST * rate or float(np.abs(samples).max()) < _SILENT:
        raise EngineError(f"silence: {len(samples) / rate:.2f} s, and nothing louder than -60 dB")


def wav_of(samples: Samples) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), RATE, subtype="PCM_16", format="WAV")
    return file.getvalue()


def samples_of(wav: bytes) -> Samples:
    import soundfile

    samples: Samples = soundfile.read(io.BytesIO(wav), dtype="float32")[0]
    return samples


def write_whole(path: Path, wav: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
    unfinished.write_bytes(wav)
    os.replace(unfinished, path)
