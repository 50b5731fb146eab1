r"""Band-limited playback at a rational speed, as two matrix products.

A clip :math:`x` played :math:`p/q` times as fast is

.. math:: y[m] = \sum_i x[i] \, h(i - m p / q), \qquad 0 \le m < \lceil n q / p \rceil

with the Kaiser-windowed sinc (Smith, "Digital Audio Resampling Home Page"; Kaiser 1974)

.. math:: h(t) = c\,\mathrm{sinc}(c\,t)\; I_0(\beta \sqrt{1 - (t/w)^2}) / I_0(\beta), \qquad
          w = z \max(1, p/q)

whose stop band begins at the lower of the two Nyquist frequencies: nothing folds back.

The positions repeat every :math:`q` outputs and :math:`p` inputs. So with the clip cut into rows
:math:`A_j` of :math:`P` samples, a multiple of :math:`p` that is no less than the filter is long,
every row of :math:`Q = P q / p` outputs is :math:`A_j U + A_{j+1} V` for the same two matrices.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import TypeVar

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

STOPBAND_DECIBELS = 132.0  # what float32 has room for, and soxr's "HQ" reaches
ZERO_CROSSINGS, FEWEST_ZERO_CROSSINGS = 80, 16
MAX_DENOMINATOR = 100

# Kaiser's design formulas, for the attenuation above.
_KAISER_BETA = 0.1102 * (STOPBAND_DECIBELS - 8.7)
_KAISER_WIDTH = (STOPBAND_DECIBELS - 7.95) / (2.285 * 2 * math.pi)

Length = TypeVar("Length", int, Tensor)


def resampled_length(length: Length, speed: Fraction) -> Length:
    """``ceil(length * q / p)`` for a speed of ``p / q``, in integers."""
    return (length * speed.denominator + (speed.numerator - 1)) // speed.numerator


def resample(waveforms: Tensor, speed: Fraction, *, zero_crossings: int) -> Tensor:
    """Play ``waveforms`` at ``speed``: pitch and tempo change together.

    Args:
        waveforms: float32 or float64 of shape (B, T), zero where there is padding.
        speed: 11/10 is a tenth faster. A speed of 1 gives the same bits back.
        zero_crossings: of the sinc, on each side; see :func:`passband`.

    Returns:
        Tensor of shape (B, ``resampled_length(T, speed)``).
    """
    if speed == 1:
        return waveforms.clone()
    batch, steps = waveforms.shape
    outputs = resampled_length(steps, speed)
    # The user's switches for TF32 would cost 60 dB of the signal on a GPU; float64 has no such
    # switch, and rounds to the same float32 as the CPU but for one sample in millions.
    exact = torch.float64 if waveforms.device.type == "cuda" else waveforms.dtype
    first, second, reach = filter_bank(speed, zero_crossings, exact, waveforms.device)
    block_in, block_out = first.shape
    rows = -(-outputs // block_out)
    padded = torch_functional.pad(
        waveforms.to(exact), (reach, (rows + 1) * block_in - reach - steps)
    ).view(batch, rows + 1, block_in)
    played = torch.bmm(padded[:, :-1], first.expand(batch, -1, -1))
    played = torch.baddbmm(played, padded[:, 1:], second.expand(batch, -1, -1))
    return played.view(batch, rows * block_out)[:, :outputs].to(waveforms.dtype)


def passband(zero_crossings: int) -> float:
    """The frequencies that pass unchanged, as a share of the lower Nyquist frequency."""
    return 1 - _KAISER_WIDTH / zero_crossings


def nearest_fraction(value: float, *, cents: float | None = None) -> Fraction:
    """The nearest fraction with a small denominator.

    Args:
        value: positive.
        cents: if given, the fraction of the smallest denominator that is within so many cents
            (1200 to the octave); otherwise the nearest of those up to 100.
    """
    if cents is None:
        return Fraction(value).limit_denominator(MAX_DENOMINATOR)
    denominator = 1
    while True:
        candidate = Fraction(max(1, round(value * denominator)), denominator)
        if abs(1200 * math.log2(float(candidate) / value)) <= cents:
            return candidate
        denominator += 1


@functools.lru_cache(maxsize=128)
def filter_bank(
    speed: Fraction, zero_crossings: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """The matrices U and V, of shape (P, Q), and how far the filter reaches before its output.

    Kept outside of modules, so that ``module.bfloat16()`` cannot round the filters.
    """
    half_width = zero_crossings * max(1.0, float(speed))
    reach = math.ceil(half_width)
    repeats = -(-2 * reach // speed.numerator)
    block_in, block_out = repeats * speed.numerator, repeats * speed.denominator
    with torch.inference_mode(False):
        # In units of 1/q of a sample, so that what lies on the window's edge is decided exactly.
        inputs = (torch.arange(2 * block_in) - reach) * speed.denominator
        units = inputs[:, None] - torch.arange(block_out) * speed.numerator
        inside = units.abs() <= zero_crossings * max(speed.numerator, speed.denominator)
        offset = units.to(torch.float64) / speed.denominator
        cutoff = (1 - _KAISER_WIDTH / (2 * zero_crossings)) / max(1.0, float(speed))
        shape = (1 - (offset / half_width) ** 2).clamp(min=0).sqrt()
        window = torch.special.i0(_KAISER_BETA * shape) * inside
        taps = torch.sinc(cutoff * offset) * window
        # Each output's taps sum to one, so silence with an offset stays what it is.
        taps = (taps / taps.sum(dim=0)).to(device=device, dtype=dtype)
    return taps[:block_in].contiguous(), taps[block_in:].contiguous(), reach
