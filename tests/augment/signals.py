"""Signals whose perturbed versions are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATE = 16000


def harmonic_tone(f0: float, steps: int, *, harmonics: int = 10) -> Tensor:
    """Partials at multiples of ``f0`` with amplitudes falling as 1/h."""
    time = torch.arange(steps, dtype=torch.float64) / RATE
    partials = [
        torch.sin(2 * math.pi * f0 * h * time) / h
        for h in range(1, harmonics + 1)
        if f0 * h < RATE / 2
    ]
    return 0.1 * torch.stack(partials).sum(dim=0)


def band_limited_noise(steps: int, cutoff: float, *, seed: int = 0) -> Tensor:
    """Noise with nothing above ``cutoff`` times the Nyquist frequency."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(steps, generator=generator, dtype=torch.float64))
    frequency = torch.fft.rfftfreq(steps, d=0.5, dtype=torch.float64)
    return 0.1 * torch.fft.irfft(spectrum * (frequency < cutoff), n=steps)


def speech_like(steps: int, *, seed: int = 0) -> Tensor:
    """A gliding voice under moving formants and syllables, with hiss between them."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(steps, dtype=torch.float64) / RATE
    f0 = 120 + 25 * torch.sin(2 * math.pi * 0.7 * time) + 3 * torch.sin(2 * math.pi * 5 * time)
    phase = 2 * math.pi * f0.cumsum(0) / RATE
    formants = [(600 + 200 * torch.sin(2 * math.pi * 1.3 * time), 90.0), (1700 + 0 * time, 140.0)]
    voice = torch.zeros_like(time)
    for h in range(1, 40):
        frequency = h * f0
        gain = sum(1 / (1 + ((frequency - centre) / width) ** 2) for centre, width in formants)
        voice += (gain + 0.01) * torch.sin(h * phase) * (frequency < 0.4 * RATE)
    syllables = torch.sin(2 * math.pi * 2.1 * time).clamp(min=0) ** 0.5
    hiss = torch.randn(steps, generator=generator, dtype=torch.float64)
    return 0.1 * (voice * syllables + 0.02 * hiss)


def decibels(x: Tensor) -> float:
    """Mean power."""
    return float(10 * torch.log10(x.double().pow(2).mean()))


def fundamental(x: Tensor, *, highest: float) -> float:
    """The frequency of the strongest partial below ``highest`` Hz, to about 0.02 Hz."""
    padded = 2**20
    window = torch.hann_window(len(x), dtype=torch.float64)
    spectrum = torch.fft.rfft(x.double() * window, n=padded).abs()
    return float(spectrum[: int(highest * padded / RATE)].argmax()) * RATE / padded
