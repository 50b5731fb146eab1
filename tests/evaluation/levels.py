"""A corpus whose phones are levels of loudness, and an encoder that hears nothing else.

Loudness does not change when speech is played faster or shifted in pitch, so what an evaluation
must find under any condition is known. A speaker is a frequency, which the encoder can be told to
hear too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from speechft.data import Manifest, read_manifest
from speechft.models.encoder import EncoderOutput

RATE = 16_000
LEVELS = {"pau": 0.003, "a": 0.02, "b": 0.06, "c": 0.15, "d": 0.4, "e": 0.9}
PHONES = tuple(name for name in LEVELS if name != "pau")
SPEAKERS = {"low": 300.0, "middle": 900.0, "high": 2400.0}


def write_corpus(folder: Path, *, utterances: int = 12, seed: int = 0, length: int = 14) -> Path:
    """A manifest of utterances of so many phones, speakers by turns; its path."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(utterances):
        speaker = list(SPEAKERS)[number % 3]
        phones, samples, end = [], [], 0.0
        names: list[str] = []
        for _ in range(length):
            choices = [name for name in PHONES if not names or name != names[-1]]
            names.append(str(rng.choice(choices)))
        for name in ["pau", *names, "pau"]:
            n = int(rng.uniform(0.1, 0.2) * RATE)
            time = (len(np.concatenate(samples)) if samples else 0) + np.arange(n)
            tone = np.sin(2 * np.pi * SPEAKERS[speaker] * time / RATE)
            samples.append(LEVELS[name] * tone)
            end += n / RATE
            phones.append(f"{end:.6f} {name}")
        soundfile.write(folder / f"u{number}.wav", np.concatenate(samples), RATE)
        (folder / f"u{number}.phones").write_text("\n".join(phones) + "\n")
        rows.append(
            {
                "id": f"u{number}", "audio": f"u{number}.wav", "speaker": speaker,
                "text": " ".join(names), "phones": f"u{number}.phones",
                "factors": {"mood": ("calm", "cross")[number // 3 % 2]},
            }
        )  # fmt: skip
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus(folder: Path, **settings: int) -> Manifest:
    """The manifest, read."""
    return read_manifest(write_corpus(folder, **settings))


class Loudness(nn.Module):
    """Layer 0 is noise; layer 1 is a soft one-hot code of the level, and of the frequency."""

    sample_rate = RATE
    minimum_samples = 400
    num_layers = 1

    def __init__(self, *, hears_speakers: bool = False) -> None:
        super().__init__()
        self.hears_speakers = hears_speakers

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        return ((sample_lengths - 400) // 320 + 1).clamp(min=0)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        frames = waveforms.unfold(1, 400, 320)
        level = (2 * frames.square().mean(-1)).clamp_min(1e-12).sqrt().log()
        centres = torch.tensor([*LEVELS.values()]).log()
        features = -3 * (level[..., None] - centres).square()
        features = features.softmax(-1)
        if self.hears_speakers:
            power = torch.fft.rfft(frames).abs().square()
            bins = torch.arange(power.shape[-1]) * (RATE / 400)
            edges = ((bins < 600), (bins >= 600) & (bins < 1600), bins >= 1600)
            bands = torch.stack([(power * edge).sum(-1) for edge in edges], -1)
            features = torch.cat([features, 3 * bands / bands.sum(-1, keepdim=True)], -1)
        generator = torch.Generator().manual_seed(int(1000 * waveforms.abs().sum()))
        noise = torch.randn(features.shape, generator=generator)
        counts = self.frame_lengths(lengths)
        padding = torch.arange(features.shape[1]) >= counts[:, None]
        states = [state.masked_fill(padding[..., None], 0.0) for state in (noise, features)]
        return EncoderOutput(tuple(states), states[-1], counts)
