"""Augmentations as they are run today: eager torch, and the libraries that people have.

Eager torch is given what was drawn, so that its results can be compared. The libraries draw for
themselves: they are timed on transforms of the same kinds, and cannot be compared.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechft.augment import ClipBank, Parameters

RATE = 16000


def torchaudio_functional() -> Any:
    """``torchaudio.functional``, also of a build whose compiled part does not load here.

    What is timed of it is Python over torch.
    """
    try:
        import torchaudio.functional
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        absent = types.ModuleType("torchaudio._extension")
        absent._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
        absent.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
        sys.modules["torchaudio._extension"] = absent
        import torchaudio.functional
    return torchaudio.functional


def noise_of(bank: ClipBank) -> Callable[[Parameters, int], Tensor]:
    """Slices (B, T) of the bank's clips as float32, each long enough to need no second turn."""
    clips = []
    for offset, count, level in zip(
        bank.offsets.tolist(), bank.counts.tolist(), bank.levels.tolist(), strict=True
    ):
        samples = bank.samples[offset : offset + count].float() / level
        clips.append(torch.cat([samples, samples]))

    def slices(drawn: Parameters, steps: int) -> Tensor:
        device = drawn["clips"].device
        rows = zip(drawn["clips"][:, 0].tolist(), drawn["start"][:, 0].tolist(), strict=True)
        starts = [(clip, int(share * (len(clips[clip]) // 2))) for clip, share in rows]
        if clips[0].device != device:
            clips[:] = [clip.to(device) for clip in clips]
        return torch.stack([clips[clip][start : start + steps] for clip, start in starts])

    return slices


def six_in_torch(x: Tensor, noise: Tensor, drawn: tuple[Parameters, ...]) -> Tensor:
    """Gain, polarity, noise, clipping, gaps and quantising, op by op; no lengths."""
    gain, polarity, mix, clip, drop, quantise = drawn
    x = x * (10 ** (gain["decibels"] / 20)).float()[:, None]
    x = torch.where(polarity["applied"][:, None], -x, x)
    rms = x.square().mean(dim=1, keepdim=True).sqrt()
    of_noise = noise.square().mean(dim=1, keepdim=True).sqrt()
    x = x + noise * (rms / of_noise * (10 ** (-mix["snr"] / 20)).float()[:, None])
    limit = clip["share"].float()[:, None] * x.abs().amax(dim=1, keepdim=True)
    x = torch.minimum(torch.maximum(x, -limit), limit)
    time = torch.arange(x.shape[1], device=x.device)
    for k in range(drop["start"].shape[1]):
        duration = (drop["seconds"][:, k] * RATE).round().long()
        first = (drop["start"][:, k] * (x.shape[1] - duration + 1)).floor().long()
        inside = (time >= first[:, None]) & (time < (first + duration)[:, None])
        x = x.masked_fill(inside & (drop["count"] > k)[:, None], 0.0)
    steps = (2.0 ** (quantise["bits"] - 1))[:, None]
    return torch.clamp((x * steps).round(), min=-steps, max=steps - 1) / steps


def torch_audiomentations() -> Callable[[Tensor], Tensor]:
    """Six of its transforms: it has no clipping, gaps or quantising, so its lightest stand in."""
    torchaudio_functional()
    import torch_audiomentations as library

    every = {"p": 1.0, "output_type": "tensor"}
    chain = library.Compose(
        [
            library.Gain(-6.0, 6.0, **every),
            library.PolarityInversion(**every),
            library.AddColoredNoise(0.0, 18.0, sample_rate=RATE, **every),
            library.PeakNormalization(**every),
            library.Shift(-0.1, 0.1, **every),
            library.TimeInversion(**every),
        ],
        output_type="tensor",
    )
    return lambda x: chain(x[:, None], sample_rate=RATE)[:, 0]


def audiomentations() -> Callable[[Tensor], Tensor]:
    """Its six of the same kinds, a clip at a time, as it works."""
    import audiomentations as library

    chain = library.Compose(
        [
            library.Gain(-6.0, 6.0, p=1.0),
            library.PolarityInversion(p=0.5),
            library.AddGaussianSNR(0.0, 18.0, p=1.0),
            library.ClippingDistortion(0, 20, p=1.0),
            library.TimeMask(0.01, 0.02, p=1.0),
            library.BitCrush(12, 16, p=1.0),
        ]
    )
    return lambda x: torch.stack([torch.from_numpy(chain(row.numpy(), RATE)) for row in x])


def torchaudio_room(x: Tensor, rooms: Tensor, delays: Tensor) -> Tensor:
    """``fftconvolve`` with a room for each, cut to where the direct sound stays in place."""
    full: Tensor = torchaudio_functional().fftconvolve(x, rooms)
    at = torch.arange(x.shape[1], device=x.device) + delays[:, None]
    return full.gather(1, at)


def torchaudio_speed(x: Tensor, factors: Tensor) -> Tensor:
    """``speed`` of each clip."""
    functional = torchaudio_functional()
    longest = int((x.shape[1] / factors.min()).ceil())
    result = x.new_zeros(len(x), longest)
    for row, factor in enumerate(factors.tolist()):
        played, _ = functional.speed(x[row], RATE, factor)
        result[row, : len(played)] = played[:longest]
    return result


def torchaudio_pitch(x: Tensor, semitones: Tensor) -> Tensor:
    """``pitch_shift`` of each clip."""
    functional = torchaudio_functional()
    rows = zip(x, semitones.tolist(), strict=True)
    return torch.stack([functional.pitch_shift(row, RATE, steps) for row, steps in rows])
