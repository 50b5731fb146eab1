"""What masked prediction predicts: a cluster a frame, of MFCC first, then of the model's own layer.

Frames are those of the encoder: frame t is of samples [320 t, 320 t + 400).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechft.evaluation.log_mel import mel_filters

RATE, WINDOW, HOP, FFT, MELS, CEPSTRA = 16_000, 400, 320, 512, 40, 13
Floats = npt.NDArray[np.float32]


def mfcc(waveform: Tensor) -> Tensor:
    """13 cepstral coefficients, their slopes and the slopes of those: (n,) -> (T, 39)."""
    frames = waveform.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(frames, FFT).abs().square()
    mel = (power @ mel_filters()).clamp_min(1e-10).log()
    n, k = torch.arange(MELS) + 0.5, torch.arange(CEPSTRA)[:, None]
    cosines = torch.cos(math.pi / MELS * k * n) * math.sqrt(2 / MELS)
    static = mel @ cosines.T
    first = _slope(static)
    return torch.cat([static, first, _slope(first)], -1)


def _slope(x: Tensor) -> Tensor:
    """Least-squares slope over 5 frames, the ends repeated."""
    padded = torch.cat([x[:1], x[:1], x, x[-1:], x[-1:]])
    T = len(x)
    ahead = 2 * (padded[4 : 4 + T] - padded[:T]) + padded[3 : 3 + T] - padded[1 : 1 + T]
    return ahead / 10


def cluster(frames: Floats, clusters: int, *, seed: int = 0) -> tuple[Floats, float]:
    """Centres of k-means (mini-batches of 10,000, best of 3 starts) and the inertia a frame."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(
        clusters, batch_size=10_000, n_init=3, max_iter=100, random_state=seed,
        max_no_improvement=50, reassignment_ratio=0.0,
    )  # fmt: skip
    means.fit(frames)
    return means.cluster_centers_.astype(np.float32), float(means.inertia_) / len(frames)


def stack(frames: Tensor, context: int) -> Tensor:
    """Each frame between its neighbours, ``context`` on either side, the ends repeated.

    (T, C) -> (T, (2 context + 1) C).
    """
    padded = torch.cat([frames[:1]] * context + [frames] + [frames[-1:]] * context)
    return padded.unfold(0, 2 * context + 1, 1).transpose(1, 2).flatten(1)


def assign(frames: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each frame, uint8 or int16."""
    nearest = (centres.square().sum(1) / 2 - frames @ centres.T).argmin(1)
    return nearest.to(torch.int16)
