"""All of the speech as one stream, from which crops of a fixed length are cut without padding.

Each utterance is padded to a whole number of frames, so that frame t of the stream begins at sample
320 t, and the utterances of a speaker lie side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.hubert_mini.targets import HOP, WINDOW
from speechft.data import read_manifest
from speechft.data.audio import load_audio


class Stream(NamedTuple):
    """``samples`` int16 (320 F,); ``starts``, ``frames`` and ``speakers`` of each utterance."""

    samples: Tensor
    starts: list[int]
    frames: list[int]
    speakers: list[str]

    @property
    def total_frames(self) -> int:
        """F."""
        return len(self.samples) // HOP

    def waveform(self, index: int) -> Tensor:
        """An utterance, float32, with the zeros that fill its last frame."""
        start = self.starts[index] * HOP
        stop = (self.starts[index + 1] if index + 1 < len(self.starts) else self.total_frames) * HOP
        return self.samples[start:stop].float() / 32768


def read_stream(manifest: Path) -> Stream:
    """Read and join the utterances of a manifest, by speaker."""
    rows = sorted(read_manifest(manifest), key=lambda row: (row.speaker or "", row.id))
    parts, starts, frames, position = [], [], [], 0
    for row in rows:
        waveform = load_audio(row)
        pcm = np.rint(waveform * 32768).clip(-32768, 32767).astype(np.int16)
        length = max(-(-len(pcm) // HOP), 2)
        padded = np.zeros(length * HOP, np.int16)
        padded[: len(pcm)] = pcm
        parts.append(padded)
        starts.append(position)
        frames.append((length * HOP - WINDOW) // HOP + 1)
        position += length
    samples = torch.from_numpy(np.concatenate(parts))
    return Stream(samples, starts, frames, [row.speaker or "" for row in rows])
