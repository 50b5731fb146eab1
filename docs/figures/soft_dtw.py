"""The picture of docs/ops/soft_dtw.md: one sentence at two speeds, and how soft-DTW aligns it.

python docs/figures/soft_dtw.py        # needs matplotlib
"""

from pathlib import Path

import torch
from matplotlib import pyplot
from matplotlib.colors import LogNorm
from torch.nn.functional import normalize

from speechft import functional as F
from speechft.augment import Speed
from speechft.data import embedded_corpus, load_audio
from speechft.reference.soft_dtw import squared_euclidean

HOP = 320  # 20 ms at 16 kHz, as the encoders have it


def features(waveform: torch.Tensor) -> torch.Tensor:
    """Log power in 40 bands up to 4 kHz, each band to zero mean, each frame to unit length."""
    window = torch.hann_window(640)
    spectrum = torch.stft(waveform, 640, HOP, window=window, return_complex=True).abs().square()
    bands = spectrum[:160].reshape(40, 4, -1).sum(1).add(1e-4).log()
    return normalize((bands - bands.mean(1, keepdim=True)).T, dim=-1)


def main() -> None:
    """Draw it."""
    row = embedded_corpus().filter(language="en")[0]
    waveform = torch.from_numpy(load_audio(row))[None, : 2 * 16_000]
    faster, length = Speed(factors=(1.3,))(waveform, None, torch.tensor([0]))
    x, y = features(waveform[0]), features(faster[0, : int(length[0])])
    cost = squared_euclidean(x[None], y[None])

    figure, axes = pyplot.subplots(1, 4, figsize=(11, 3.1), sharey=True, layout="constrained")
    seconds = HOP / 16_000
    extent = (0, len(y) * seconds, 0, len(x) * seconds)
    options = {"origin": "lower", "aspect": "auto", "extent": extent, "interpolation": "nearest"}
    axes[0].imshow(cost[0], cmap="gray", **options)
    axes[0].set_title("cost")
    axes[0].set_ylabel("speed 1, s")
    for axis, gamma in zip(axes[1:], (0.01, 0.1, 1.0), strict=True):
        leaf = cost.clone().requires_grad_()
        (alignment,) = torch.autograd.grad(F.soft_dtw_from_cost(leaf, gamma=gamma), leaf)
        drawn = axis.imshow(alignment[0], cmap="magma", norm=LogNorm(1e-6, 1, clip=True), **options)
        axis.set_title(f"alignment, γ = {gamma:g}")
    for axis in axes:
        axis.set_xlabel("speed 1.3, s")
    figure.colorbar(drawn, ax=axes, pad=0.01)
    figure.savefig(Path(__file__).parent.parent / "ops" / "soft_dtw.png", dpi=110)


if __name__ == "__main__":
    main()
