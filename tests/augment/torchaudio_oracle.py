"""How far speechft is from torchaudio, as JSON: run as a program, where transformers is not loaded.

torchaudio's newest build does not load beside a torch without CUDA, and only pretending that its
compiled part is absent lets its Python be used. No other test may see that.
"""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor

from bench.peers.augmentation import torchaudio_functional
from speechft import functional as F
from speechft.augment import Pitch, Speed
from speechft.functional.pointwise import Mix

RATE = 16000
KEY = torch.tensor([1])


def decibels(error: Tensor, of: Tensor) -> float:
    return float(10 * (error.double().square().mean() / of.double().square().mean()).log10())


def noise(steps: int, cutoff: float, seed: int) -> Tensor:
    """Noise with nothing above a share of the Nyquist frequency."""
    drawn = torch.randn(steps, generator=torch.Generator().manual_seed(seed))
    spectrum = torch.fft.rfft(drawn)
    spectrum[int(cutoff * len(spectrum)) :] = 0
    return 0.1 * torch.fft.irfft(spectrum, n=steps)


def voice(f0: float) -> Tensor:
    time = torch.arange(24000) / RATE
    return 0.1 * torch.stack(
        [torch.sin(2 * math.pi * f0 * h * time) / h for h in range(1, 11)]
    ).sum(dim=0)


def partials(y: Tensor, f0: float) -> Tensor:
    """Decibels of the first ten."""
    level = 20 * torch.fft.rfft(y[4000:20384] * torch.hann_window(16384)).abs().log10()
    at = [round(h * f0 * 16384 / RATE) for h in range(1, 11)]
    return torch.stack([level[k - 8 : k + 9].max() for k in at])


def main() -> None:
    functional = torchaudio_functional()
    found: dict[str, float] = {}
    x = noise(32000, 0.6, 0)
    for factor in (0.9, 1.1):
        theirs, lengths = functional.speed(x, RATE, factor, torch.tensor([32000]))
        ours, after = Speed((factor,))(x[None], None, KEY)
        found[f"speed {factor} length"] = abs(int(after) - int(lengths))
        n = min(len(theirs), ours.shape[1])
        inner = slice(1000, n - 1000)
        found[f"speed {factor}"] = decibels(ours[0, inner] - theirs[inner], theirs[inner])
    theirs = functional.resample(x, 5, 4, lowpass_filter_width=64)
    ours = Speed((1.25,))(x[None], None, KEY)[0][0]
    inner = slice(1000, 24000)
    found["resample"] = decibels(ours[inner] - theirs[inner], theirs[inner])

    speech, disturbance = torch.stack([x, noise(32000, 0.9, 1)]), noise(64000, 1.0, 2)
    lengths, snr = torch.tensor([32000, 9000]), torch.tensor([3.0, 12.5])
    mixed = functional.add_noise(speech, disturbance.view(2, 32000), snr, lengths)
    mix = Mix(disturbance, torch.tensor([0, 32000]), torch.tensor([32000, 32000]), torch.ones(2),
              torch.tensor([[0], [1]]), torch.zeros(2, 1, dtype=torch.int64), snr)  # fmt: skip
    ours, _ = F.pointwise(speech, lengths, [mix])
    found["add_noise"] = max(
        float((ours[row, :n] - mixed[row, :n]).abs().max()) for row, n in enumerate(lengths)
    )

    room = torch.randn(2, 4000) * torch.exp(-torch.arange(4000) / 700)
    theirs = functional.fftconvolve(speech, room)[:, :32000]
    ours = F.convolve(speech, None, [(room, torch.zeros(2, dtype=torch.int64))])
    found["fftconvolve"] = float((ours - theirs).abs().max() / theirs.abs().max())

    # A voice of 10 partials, of which the shifted spectrum is known; the vocoders differ.
    for semitones in (-2, 2):
        f0 = 150 * 2 ** (semitones / 12)
        theirs = functional.pitch_shift(voice(150), RATE, semitones)
        ours = Pitch((semitones,))(voice(150)[None], None, KEY)[0][0]
        exact, ours_at, theirs_at = (partials(y, f0) for y in (voice(f0), ours, theirs))
        found[f"pitch {semitones} ours"] = float((ours_at - exact).abs().max())
        found[f"pitch {semitones} theirs"] = float((theirs_at - exact).abs().max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
