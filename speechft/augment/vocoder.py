r"""Time stretching by a phase vocoder: duration changes, pitch stays.

The short-time spectrum :math:`X_i` of a clip, taken every 128 samples with a Hann window of 512,
is read at the times :math:`i + \alpha = m / \rho` to make a clip :math:`\rho` times as long:

.. math:: |Y_m| = (1 - \alpha) |X_i| + \alpha |X_{i+1}|, \qquad
          \Phi_{m+1} = \Phi_m + \angle X_{i+1} - \angle X_i

With the phases :math:`\Phi` alone the bins of one partial drift apart and speech loses 3 to 4 dB.
So they are locked (Laroche and Dolson, "Improved phase vocoder time-scale modification of audio",
IEEE Transactions on Speech and Audio Processing, 1999): a bin :math:`k` keeps the phase it had
against the peak :math:`p(k)` that it belongs to,

.. math:: \angle Y_m[k] = \angle X_j[k] + (\Phi_m - \angle X_j)[p(k)]

where :math:`j` is :math:`i + \alpha` rounded (rounding down would make every event 4 ms late) and
:math:`p(k)` is found by climbing the magnitudes, at most two bins: a Hann window's half lobe.

Analysis and synthesis have the same hop, so the phase's advance is needed only modulo one turn and
is never unwrapped. It is summed in integers, a turn being a power of two: the sum wraps by itself,
stays exact however long the clip is, and is the same in whatever order a device adds.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

WINDOW, HOP = 512, 128

# Frames are centred on multiples of the hop, from two hops before the clip (which sees nothing of
# it) to the first at the end that sees nothing of it.
_FRAMES_BEFORE = WINDOW // (2 * HOP)

_HALF_TURN = 2**30
_UNITS_PER_RADIAN = _HALF_TURN / math.pi
_OVERLAP_GAIN = 1.5  # the sum of the squared Hann windows over any sample

Frames = tuple[Tensor, Tensor, Tensor]


def stretch(
    waveforms: Tensor, steps: int, numerator: int | Tensor, denominator: int | Tensor
) -> Tensor:
    """Make clips last ``numerator / denominator`` times as long.

    Args:
        waveforms: float32 or float64 of shape (B, T), zero where there is padding.
        steps: samples of the result that are wanted.
        numerator: of the stretch, an integer or int64 of shape (B, 1).
        denominator: of the stretch, likewise.

    Returns:
        Tensor of shape (B, steps).
    """
    return stretch_frames(analyse(waveforms), steps, numerator, denominator)


def stretch_frames(
    frames: Frames,
    steps: int,
    numerator: int | Tensor,
    denominator: int | Tensor,
    *,
    gain: Tensor | None = None,
) -> Tensor:
    """:func:`stretch` of what :func:`analyse` made, the frames filtered on the way.

    Args:
        frames: of the clips.
        steps: samples of the result that are wanted.
        numerator: of the stretch, an integer or int64 of shape (B, 1).
        denominator: of the stretch, likewise.
        gain: by which the magnitudes (B, F, bins) are multiplied. None: they stay.

    Returns:
        Tensor of shape (B, steps).
    """
    real, imaginary, magnitude = frames
    phase = _phase(real, imaginary, magnitude)
    loudness = magnitude if gain is None else magnitude * gain
    batch, count, bins = magnitude.shape

    outputs = _frames_that_see(steps)
    time = torch.arange(1 - _FRAMES_BEFORE, outputs - _FRAMES_BEFORE, device=real.device)
    time = time.expand(batch, -1) * denominator
    index = time // numerator
    fraction = ((time - index * numerator) / numerator).to(real.dtype)[..., None]
    row = torch.arange(batch, device=real.device)[:, None] * count

    def at(index: Tensor) -> Tensor:
        return ((index + _FRAMES_BEFORE).clamp(0, count - 1) + row).flatten()

    def read(values: Tensor, frame: Tensor) -> Tensor:
        return values.flatten(0, 1).index_select(0, frame).view(batch, -1, bins)

    here, there = at(index), at(index + 1)
    nearest = at((2 * time + numerator) // (2 * numerator))
    start = read(phase, here)
    advance = read(phase, there).sub_(start)
    angle = torch.cat([start[:, :1], advance[:, :-1]], dim=1).cumsum(dim=1, dtype=torch.int32)
    local = read(phase, nearest)
    angle = angle.sub_(local).gather(2, read(_peaks(magnitude), nearest)).add_(local)
    angle = angle.to(real.dtype).mul_(1 / _UNITS_PER_RADIAN)
    loud = torch.lerp(read(loudness, here), read(loudness, there), fraction)
    return _synthesise(loud * angle.cos(), loud * angle.sin(), steps)


def filter_frames(frames: Frames, steps: int, gain: Tensor) -> Tensor:
    """The clips of ``steps`` samples themselves, each frame filtered by a gain (B, F, bins)."""
    real, imaginary, _ = frames
    return _synthesise((real * gain)[:, 1:], (imaginary * gain)[:, 1:], steps)


def _phase(real: Tensor, imaginary: Tensor, magnitude: Tensor) -> Tensor:
    """The angle in units of 2**-31 of a turn, by the tangent of its half.

    torch.atan2 would be shorter, but its last bit depends on the number of threads.
    """
    tangent = imaginary / (magnitude + real.abs()).clamp_(min=torch.finfo(real.dtype).tiny)
    phase = tangent.atan_().mul_(2 * _UNITS_PER_RADIAN).to(torch.int32)
    return torch.where(real < 0, _HALF_TURN - phase, phase)


def _peaks(magnitude: Tensor) -> Tensor:
    """The bin that each bin belongs to: itself, or the louder one within two bins of it."""
    left, right = magnitude[..., :-1], magnitude[..., 1:]
    up = torch_functional.pad(right > left, (0, 1), value=False)
    down = torch_functional.pad(left > right, (1, 0), value=False)
    step = up.to(torch.int64) - (down & ~up).to(torch.int64)
    climbed = step + torch.arange(magnitude.shape[-1], device=magnitude.device)
    return climbed.gather(-1, climbed)


def _frames_that_see(steps: int) -> int:
    """Frames from the one before the clip to the one after it."""
    return -(-steps // HOP) + 2 * _FRAMES_BEFORE + 1


def analyse(waveforms: Tensor) -> Frames:
    """The short-time spectrum: real and imaginary part, and magnitude, each (B, F, bins).

    Args:
        waveforms: float32 or float64 of shape (B, T), zero where there is padding.
    """
    batch, steps = waveforms.shape
    frames = _frames_that_see(steps)
    samples = (frames - 1) * HOP + WINDOW
    padded = torch_functional.pad(waveforms, (WINDOW, samples - WINDOW - steps))
    windowed = padded.as_strided((batch, frames, WINDOW), (samples, HOP, 1)) * _window(
        waveforms.dtype, waveforms.device
    )
    spectrum = torch.fft.rfft(windowed)
    real, imaginary = spectrum.real.contiguous(), spectrum.imag.contiguous()
    return real, imaginary, (real * real + imaginary * imaginary).sqrt_()


def _synthesise(real: Tensor, imaginary: Tensor, steps: int) -> Tensor:
    """Overlap-add, from the first frame that sees the clip on: one hop after the one before it."""
    frames: Tensor = torch.fft.irfft(torch.complex(real, imaginary), n=WINDOW)
    frames.mul_(_window(real.dtype, real.device) / _OVERLAP_GAIN)
    batch, count, _ = frames.shape
    overlap = WINDOW // HOP
    hops = frames.view(batch, count, overlap, HOP)
    total = frames.new_zeros(batch, count + overlap - 1, HOP)
    for part in range(overlap):
        total[:, part : part + count] += hops[:, :, part]
    before = WINDOW - HOP
    return total.flatten(1)[:, before : before + steps]


@functools.lru_cache(maxsize=16)
def _window(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(WINDOW, dtype=torch.float64).to(device=device, dtype=dtype)
