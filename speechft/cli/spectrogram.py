"""Waveforms and spectrograms one above the other, as a PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechft.data.audio import SAMPLE_RATE
from speechft.errors import ConfigError

_WAVE, _FULL_SCALE, _COLOURS = "#1f6f8b", "#d1495b", "magma"


def draw(clips: Sequence[tuple[str, Any]], title: str, path: Path) -> None:
    """Draw clips, each a title and its samples, on one axis of time and one scale of levels."""
    plt = pyplot()
    images = [_spectrogram(samples) for _, samples in clips]
    # Above 80 Hz, and but for a few cells: neither hum nor a click decides what can be seen.
    loudest = math.ceil(max(float(np.percentile(image[2:], 99.9)) for image in images))
    seconds = max(len(samples) for _, samples in clips) / SAMPLE_RATE
    peak = max(1e-3, *(float(np.abs(samples).max()) for _, samples in clips))
    fig, axes = plt.subplots(
        2 * len(clips), 1, sharex=True, figsize=(9, 0.7 + 3.1 * len(clips)),
        gridspec_kw={"height_ratios": [1, 2.6] * len(clips)}, layout="constrained",
    )  # fmt: skip
    fig.get_layout_engine().set(h_pad=0.02, hspace=0.01)
    drawn = None
    for number, ((name, samples), image) in enumerate(zip(clips, images, strict=True)):
        wave, spectrum = axes[2 * number], axes[2 * number + 1]
        time, low, high = _outline(samples)
        wave.fill_between(time, low, high, color=_WAVE, linewidth=0.4)
        wave.set_ylim(-1.08 * peak, 1.08 * peak)
        wave.set_ylabel("amplitude")
        wave.set_title("\n".join(textwrap.wrap(name, 105)), fontsize=9.5, loc="left")
        wave.spines[["top", "right"]].set_visible(False)
        if peak > 1:
            for full_scale in (-1, 1):
                wave.axhline(full_scale, color=_FULL_SCALE, linewidth=0.8, linestyle=":")
        drawn = spectrum.imshow(
            image, origin="lower", aspect="auto", interpolation="nearest",
            extent=(0, len(samples) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000),
            cmap=plt.get_cmap(_COLOURS, 64), vmin=loudest - 60, vmax=loudest,
        )  # fmt: skip
        spectrum.set_facecolor("0.92")  # where a shorter clip has ended
        spectrum.set_ylabel("kHz")
        spectrum.set_yticks(range(0, SAMPLE_RATE // 2000 + 1, 2))
    axes[-1].set_xlim(0, seconds)
    axes[-1].set_xlabel("seconds")
    bar = fig.colorbar(
        drawn, ax=axes, fraction=0.025, pad=0.015, aspect=16 * len(clips), extend="both"
    )
    bar.set_label("dB of full scale")
    fig.suptitle("\n".join(textwrap.wrap(title, 90)), fontsize=11)
    fig.align_ylabels(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(fig, path)
    plt.close(fig)


def _save(fig: Any, path: Path) -> None:
    """A PNG of the colours that are in it, and their blends with white: a third of the size."""
    from matplotlib import colormaps
    from PIL import Image

    ramps = [np.linspace((0, 0, 0), (1, 1, 1), 32)]
    ramps += [np.linspace(_rgb(colour), (1, 1, 1), 12) for colour in (_WAVE, _FULL_SCALE)]
    colours = np.concatenate([colormaps[_COLOURS].resampled(64)(range(64))[:, :3], *ramps])
    palette = Image.new("P", (1, 1))
    palette.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    memory = io.BytesIO()
    fig.savefig(memory, dpi=100, format="png")
    picture = Image.open(memory).convert("RGB")
    picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    picture.save(path, format="png", optimize=True)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[first : first + 2], 16) / 255 for first in (1, 3, 5))


def _spectrogram(samples: Any) -> Any:
    """Decibels of full scale (a sine of amplitude 1 is 0), frequencies by frames of 25 ms."""
    window = torch.hann_window(SAMPLE_RATE // 40, dtype=torch.float64)
    hop = max(SAMPLE_RATE // 100, len(samples) // 2000)
    signal = torch.from_numpy(samples).double()
    signal = torch.nn.functional.pad(signal, (len(window) // 2,) * 2)
    frames: Tensor = signal.unfold(0, len(window), hop) * window
    magnitude = torch.fft.rfft(frames).abs() * (2 / window.sum())
    return (20 * magnitude.clamp(min=1e-7).log10()).float().T.numpy()


def _outline(samples: Any) -> tuple[Any, Any, Any]:
    """Times, and the least and the most of the samples around each: a line that a page can show."""
    size = max(1, len(samples) // 2000)
    firsts = np.arange(0, len(samples), size)
    low, high = (one.reduceat(samples, firsts) for one in (np.minimum, np.maximum))
    return firsts / SAMPLE_RATE, low, high


def pyplot() -> Any:
    """Matplotlib, drawing into files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as drawing

    return drawing
