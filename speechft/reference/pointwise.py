r"""A list of steps that change each sample of a waveform apart, with levels over its true length.

For row :math:`b` with :math:`n` valid samples, one step after another:

==================  ==========================================================================
:class:`Scale`      :math:`x_t \leftarrow g x_t`
:class:`Clip`       :math:`x_t \leftarrow \min(\max(x_t, -l), l)`,
                    :math:`l = s \max_{t < n} |x_t|`; none where :math:`s \ge 1`
:class:`Mix`        :math:`x_t \leftarrow x_t + 10^{-\mathrm{SNR}/20} \sqrt{E(x) / E(v)}\, v_t`,
                    :math:`v_t = \sum_k c_k[(a_k + t) \bmod |c_k|] / r_k`,
                    :math:`E(x) = \sum_{t < n} x_t^2`; none where :math:`\mathrm{SNR} = \infty`
:class:`Silence`    :math:`x_t \leftarrow 0` for :math:`a \le t < e`
:class:`Quantise`   :math:`x_t \leftarrow \min(\max(\lfloor 2^{b-1} x_t \rceil, -2^{b-1}),
                    2^{b-1} - 1) / 2^{b-1}`, half to even; none where :math:`b = 0`
:class:`MuLaw`      :math:`x_t \leftarrow \mathrm{sign}(x_t)\,(d(\min(8192 |x_t|, 8158) + 33) - 33)
                    / 8192`, where :math:`d` keeps the four bits after the first and puts
                    a one after them: G.711
==================  ==========================================================================

Everything is IEEE arithmetic of one rounding a step but for the levels, so devices differ only by
how they sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

# G.711: the bias that makes the first segment as the others, and the loudest before it.
MU_BIAS, MU_PEAK, MU_SCALE = 33.0, 8158.0, 8192.0


@dataclass(frozen=True)
class PointwiseStep:
    """A step, with a value a row."""

    may_skip: ClassVar[bool] = False  # whether some rows cannot be changed


@dataclass(frozen=True)
class Scale(PointwiseStep):
    """Multiply.

    Args:
        factor: (B,).
    """

    factor: Tensor


@dataclass(frozen=True)
class Clip(PointwiseStep):
    """Clip at a share of the peak of the valid part.

    Args:
        share: (B,), from 0; 1 and more: not.
    """

    share: Tensor


@dataclass(frozen=True)
class Mix(PointwiseStep):
    """Add the sum of some clips of a bank, at a signal-to-noise ratio over the true length.

    Clips go round: after the last sample comes the first. Rows where the waveform or the sum is
    silent have no such ratio: they pass unchanged and are counted as skipped.

    Args:
        samples: all clips one after another, float32 or int16.
        offsets: int64 (C,), where each begins.
        counts: int64 (C,), samples in each.
        levels: float32 (C,), what each is divided by: its root mean square, so that all count
            alike.
        clips: int64 (B, K), those of each row; -1 for none.
        starts: int64 (B, K), where in a clip the row begins: 0 to ``counts - 1``.
        snr: float32 (B,), decibels; infinity: not.
    """

    may_skip: ClassVar[bool] = True
    samples: Tensor
    offsets: Tensor
    counts: Tensor
    levels: Tensor
    clips: Tensor
    starts: Tensor
    snr: Tensor


@dataclass(frozen=True)
class Silence(PointwiseStep):
    """Zero some spans.

    Args:
        first: int64 (B, S).
        end: int64 (B, S), one past the last; at or before ``first``: nothing.
    """

    first: Tensor
    end: Tensor


@dataclass(frozen=True)
class Quantise(PointwiseStep):
    """Round to a number of bits.

    Args:
        bits: int64 (B,), 2 to 24; 0: not.
    """

    bits: Tensor


@dataclass(frozen=True)
class MuLaw(PointwiseStep):
    """To 8 bits of G.711's mu-law and back.

    Args:
        applied: bool (B,).
    """

    applied: Tensor


def pointwise(
    waveforms: Tensor, lengths: Tensor, steps: Sequence[PointwiseStep]
) -> tuple[Tensor, Tensor]:
    """Apply the steps in order; see the module.

    Args:
        waveforms: (B, T), floating point; what is in the padding is not read.
        lengths: int64 (B,).
        steps: in order.

    Returns:
        (B, T) with zero padding, and (B, M) booleans: where each of the M steps that may skip did.
    """
    valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    x = torch.where(valid, waveforms, torch.zeros_like(waveforms))
    skipped = []
    for step in steps:
        if isinstance(step, Mix):
            x, skips = _mix(x, valid, step)
            skipped.append(skips)
        else:
            x = _apply(x, step)
    shape = (len(x), len(skipped))
    return x, torch.stack(skipped, dim=1) if skipped else lengths.new_zeros(shape).bool()


def _apply(x: Tensor, step: PointwiseStep) -> Tensor:
    if isinstance(step, Scale):
        return x * step.factor.to(x.dtype)[:, None]
    if isinstance(step, Clip):
        share = step.share.to(x.dtype)
        limit = share * x.abs().amax(dim=1)
        limit = limit.masked_fill(share >= 1, float("inf"))[:, None]
        return torch.minimum(torch.maximum(x, -limit), limit)
    if isinstance(step, Silence):
        time = torch.arange(x.shape[1], device=x.device)
        for first, end in zip(step.first.unbind(1), step.end.unbind(1), strict=True):
            x = x.masked_fill((first[:, None] <= time) & (time < end[:, None]), 0.0)
        return x
    if isinstance(step, Quantise):
        bits = step.bits[:, None]
        steps = torch.exp2((bits - 1).to(x.dtype))
        rounded = torch.minimum(torch.maximum((x * steps).round(), -steps), steps - 1) / steps
        return torch.where(bits > 0, rounded, x)
    if isinstance(step, MuLaw):
        return torch.where(step.applied[:, None], _mu_law(x), x)
    raise TypeError(f"no step of pointwise: {type(step).__name__}")


def _mix(x: Tensor, valid: Tensor, step: Mix) -> tuple[Tensor, Tensor]:
    time = torch.arange(x.shape[1], device=x.device)
    noise = torch.zeros_like(x)
    for clip, start in zip(step.clips.unbind(1), step.starts.unbind(1), strict=True):
        present = clip >= 0
        clip = clip.clamp(min=0)
        where = (start[:, None] + time) % step.counts[clip][:, None]
        voice = step.samples[step.offsets[clip][:, None] + where].to(x.dtype)
        gain = torch.where(present, step.levels[clip].to(x.dtype).reciprocal(), 0.0)
        noise = noise + voice * gain.to(x.dtype)[:, None]
    noise = torch.where(valid, noise, 0.0)
    of_speech, of_noise = (part.double().square().sum(dim=1) for part in (x, noise))
    wanted = step.snr < float("inf")
    possible = (of_speech > 0) & (of_noise > 0)
    ratio = torch.where(possible, of_speech / of_noise, 0.0).sqrt()
    scale = torch.where(wanted & possible, ratio * 10 ** (-step.snr.double() / 20), 0.0)
    return x + scale.to(x.dtype)[:, None] * noise, wanted & ~possible


def _mu_law(x: Tensor) -> Tensor:
    # Also for float64: the four bits are those of a float32, which 14 bits fit.
    magnitude = (x.abs() * MU_SCALE).clamp(max=MU_PEAK).to(torch.float32) + MU_BIAS
    bits = magnitude.view(torch.int32)
    kept = ((bits & ~0x7FFFF) | 0x40000).view(torch.float32)
    return torch.copysign(((kept - MU_BIAS) / MU_SCALE).to(x.dtype), x)
