r"""Triton kernel of the steps on each sample apart: a launch for each level wanted, and one more.

A :class:`Clip` wants the peak of the row before it, a :class:`Mix` two energies. A launch takes the
samples through the steps, in registers, as far as the next such step, and leaves the partial sums
or maxima of each program in a small workspace. The launches after it add these up, each program for
its own row and always in one order, and go on. The last launch writes.

Steps are cheap and memory is not: a launch begins again at the waveforms, rather than to read
what one before it wrote, as long as that moves fewer bytes. To write the samples once, in place of
the result, costs 4 bytes a sample; to begin again costs the clips of each Mix so far, once a
launch. So the samples are written where the Mixes so far, times the launches to come, read more
than 4 bytes a sample.

A launch that sums splits a row into at most ``MOST_PARTS`` parts of whole tiles, according to the
row's own length. So a row gives the same bits beside other rows and with more padding. Rows that a
step leaves alone (no clipping, an infinite signal-to-noise ratio) are not read for its level, nor
are clips for them. Beyond a row's length nothing is read, and zeros are written.

The list of steps is a constant of the compilation: kinds as the octal digits of a number, for not
every Triton indexes constant tuples, and what each step needs in a tuple of pointers. Lists of the
same kinds share a kernel, whatever their values. A clip goes round by a subtraction where it is at
least as long as a tile, for there the end comes once in a tile, and by a remainder of 32 bits where
it is shorter.

What moves, by arithmetic and **not measured**: [Scale, Scale, Mix of one clip a row, Clip, Silence,
Quantise], 64 x 160000, all rows changed by each step. A pass over the waveforms is 41 MB, over the
clips 41 MB in float32 and 20 MB in int16. Three launches (energies, peak, result) read both and the
last one writes: 287 MB for float32 clips, 225 MB for int16. Written before the last launch, the
samples would move 287 and 246 MB. The floor, if a row could wait for its levels on the chip, is 123
and 102 MB. Every second launch goes over the rows backwards, and so begins with what the launch
before it left in L2, where an H100 has 50 MB: some 40 MB of each of two launches need not come from
memory. At 3.35 TB/s and 287 - 80 MB: 0.06 ms, and 0.09 ms without the cache.

Memory beyond inputs and outputs: a row takes 1 KiB for each Mix, 256 bytes for each Clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechft.reference.pointwise import (
    Clip,
    Mix,
    MuLaw,
    PointwiseStep,
    Quantise,
    Scale,
    Silence,
)

TILE = 1024  # samples at a time: 8 a thread, or 4
TILES_A_PROGRAM = 4  # in the last launch, where parts need not follow the row's length
MOST_PARTS = 64  # of a row in a launch that sums, and so numbers to add up in the next

_SCALE, _CLIP, _MIX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_SILENCE, _QUANTISE, _MU_LAW = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
_NONE = tl.constexpr(7)  # the last launch: no level is wanted
_KINDS = {
    Scale: _SCALE, Clip: _CLIP, Mix: _MIX, Silence: _SILENCE, Quantise: _QUANTISE, MuLaw: _MU_LAW
}  # fmt: skip
_SAMPLE_BYTES = 4
_POWER_A_DECIBEL = tl.constexpr(-math.log2(10) / 20)


class _Launch(NamedTuple):
    """Steps ``first`` to ``end - 1`` applied to what was written last, in one launch."""

    first: int
    end: int
    sums: bool  # for the level of step ``end``; else the last launch
    writes: bool


def pointwise(
    waveforms: Tensor, lengths: Tensor, steps: Sequence[PointwiseStep]
) -> tuple[Tensor, Tensor]:
    """Apply the steps in order; see :mod:`speechft.reference.pointwise`.

    Args:
        waveforms: (B, T) float32, any strides; what is in the padding is not read.
        lengths: int64 (B,), 1 to T.
        steps: in order.

    Returns:
        (B, T) with zero padding, contiguous, and (B, M) booleans: where each Mix was skipped.
    """
    batch, width = waveforms.shape
    source = waveforms.detach()
    source = source if source.stride(1) == 1 or width == 1 else source.contiguous()
    lengths = lengths.contiguous()
    result = torch.empty(batch, width, dtype=torch.float32, device=source.device)
    mixes = sum(isinstance(step, Mix) for step in steps)
    skipped = torch.empty(batch, mixes, dtype=torch.bool, device=source.device)
    if result.numel() == 0:
        return result, skipped
    columns = iter(skipped.unbind(1))
    operands = [_operands(step, columns, batch) for step in steps]
    kinds = [int(_KINDS[type(step)].value) for step in steps]
    tiles = triton.cdiv(width, TILE)
    with torch.cuda.device_of(source):  # type: ignore[no-untyped-call]
        for number, launch in enumerate(_launches(steps)):
            first, end = launch.first, launch.end
            programs = min(tiles, MOST_PARTS) if launch.sums else -(-tiles // TILES_A_PROGRAM)
            # Two sums of 64 bits take registers: half as many samples a thread.
            num_warps = 8 if launch.sums and isinstance(steps[end], Mix) else 4
            # Left to itself ptxas takes fewer for some lists, and spills the difference.
            mixed = any(isinstance(step, Mix) for step in steps[first:end])
            registers = 96 if num_warps == 4 else 80 if mixed else 72
            pointwise_kernel[(batch * programs,)](
                source,
                lengths,
                result,
                tuple(operands[first : end + launch.sums]),
                width,
                source.stride(0),
                mixes,
                programs,
                KINDS=sum(kind * 8**place for place, kind in enumerate(kinds[first:end])),
                COUNT=end - first,
                WANTED=kinds[end] if launch.sums else _NONE.value,
                WRITES=launch.writes,
                BACKWARDS=number % 2 == 1,
                TILE=TILE,
                TILES=TILES_A_PROGRAM,
                MOST_PARTS=MOST_PARTS,
                num_warps=num_warps,
                maxnreg=registers,
                # Each operation rounds on its own, as in the reference.
                enable_fp_fusion=False,
            )
            if launch.writes:
                source = result
    return result, skipped


def _launches(steps: Sequence[PointwiseStep]) -> list[_Launch]:
    """As many as steps that want a level, and one. See the module for which of them write."""
    ends = [place for place, step in enumerate(steps) if isinstance(step, (Clip, Mix))]
    launches = []
    first = 0
    for number, end in enumerate(ends):
        mixed = [step for step in steps[first:end] if isinstance(step, Mix)]
        again = sum(step.clips.shape[1] * step.samples.element_size() for step in mixed)
        writes = again * (len(ends) - number) > _SAMPLE_BYTES
        launches.append(_Launch(first, end, sums=True, writes=writes))
        first = end if writes else first
    return [*launches, _Launch(first, len(steps), sums=False, writes=True)]


def _operands(step: PointwiseStep, columns: Any, batch: int) -> tuple[Any, ...]:
    """What the kernel takes for a step, in the order in which it unpacks them.

    Args:
        step: one.
        columns: of the result's booleans, (B,) each, the next one for the next Mix.
        batch: B.
    """
    if isinstance(step, Scale):
        return (step.factor.contiguous(),)
    if isinstance(step, Clip):
        # Maxima as the bits of their float32: numbers not below 0 are in the order of their bits.
        peaks = torch.empty(batch, MOST_PARTS, dtype=torch.int32, device=step.share.device)
        return step.share.contiguous(), peaks
    if isinstance(step, Mix):
        sums = torch.empty(batch, 2, MOST_PARTS, dtype=torch.float64, device=step.snr.device)
        bank = (step.samples, step.offsets, step.counts, step.levels)
        rows = (step.clips, step.starts, step.snr)
        tensors = [tensor.contiguous() for tensor in (*bank, *rows)]
        return *tensors, step.clips.shape[1], sums, next(columns)
    if isinstance(step, Silence):
        return step.first.contiguous(), step.end.contiguous(), step.first.shape[1]
    if isinstance(step, Quantise):
        return (step.bits.contiguous(),)
    if isinstance(step, MuLaw):
        return (step.applied.contiguous(),)
    raise TypeError(f"no step of pointwise: {type(step).__name__}")


# ---------------------------------------------------------------------------------- levels


@triton.jit  # type: ignore[untyped-decorator]
def _wants(step, row, WANTED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether a step changes a row if the row's level lets it."""
    if WANTED == _CLIP:
        share = tl.load(step[0] + row).to(tl.float32)
        wants = (share >= 1) == 0  # also where it is NaN
    else:
        wants = tl.load(step[6] + row).to(tl.float32) < float("inf")
    return wants


@triton.jit  # type: ignore[untyped-decorator]
def _level(  # type: ignore[no-untyped-def]
    step,
    row,
    parts,
    begin,
    mixes,
    KIND: tl.constexpr,
    MOST_PARTS: tl.constexpr,
):
    """The one number, float32, that a step has for a row; 0 for spans of silence."""
    part = tl.arange(0, MOST_PARTS)
    is_part = part < parts
    if KIND == _SCALE:
        level = tl.load(step[0] + row).to(tl.float32)
    elif KIND == _CLIP:
        share = tl.load(step[0] + row).to(tl.float32)
        bits = tl.load(step[1] + row * MOST_PARTS + part, mask=is_part, other=0)
        peak = tl.max(bits, axis=0).to(tl.float32, bitcast=True)
        level = tl.where(share >= 1, float("inf"), share * peak)
    elif KIND == _MIX:
        snr = tl.load(step[6] + row).to(tl.float64)
        sums = step[8] + row * (2 * MOST_PARTS) + part
        of_speech = tl.sum(tl.load(sums, mask=is_part, other=0.0), axis=0)
        of_noise = tl.sum(tl.load(sums + MOST_PARTS, mask=is_part, other=0.0), axis=0)
        # Where it is not wanted nothing was summed, and the sums are whatever lay there.
        wanted = snr < float("inf")
        possible = wanted & (of_speech > 0) & (of_noise > 0)
        ratio = tl.sqrt(tl.where(possible, of_speech / of_noise, 0.0))
        scale = ratio * tl.exp2(snr * _POWER_A_DECIBEL)
        level = tl.where(possible, scale, 0.0).to(tl.float32)
        tl.store(step[9] + row * mixes, wanted & (possible == 0), mask=begin == 0)
    elif KIND == _QUANTISE:
        # 2^(bits - 1), put together from its exponent: no rounding of an exp2.
        bits = tl.load(step[0] + row).to(tl.int32)
        level = tl.where(bits > 0, (bits + 126) << 23, 0).to(tl.float32, bitcast=True)
    elif KIND == _MU_LAW:
        level = tl.where(tl.load(step[0] + row) != 0, 1.0, 0.0)
    else:
        level = 0.0
    return level


@triton.jit  # type: ignore[untyped-decorator]
def _levels(  # type: ignore[no-untyped-def]
    steps,
    row,
    parts,
    begin,
    mixes,
    KINDS: tl.constexpr,
    COUNT: tl.constexpr,
    MOST_PARTS: tl.constexpr,
):
    levels = ()
    for i in tl.static_range(COUNT):
        level = _level(steps[i], row, parts, begin, mixes, (KINDS // 8**i) % 8, MOST_PARTS)
        levels += (level,)  # type: ignore[assignment]
    return levels


# ---------------------------------------------------------------------------------- steps


@triton.jit  # type: ignore[untyped-decorator]
def _noise(step, row, start, lane, valid, TILE: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of a row's clips over the tile that begins at sample ``start``."""
    voices = step[7]
    noise = tl.zeros((TILE,), dtype=tl.float32)
    for voice in range(voices):
        clip = tl.load(step[4] + row * voices + voice).to(tl.int64)
        if clip >= 0:
            count = tl.load(step[2] + clip).to(tl.int64)
            at = tl.load(step[5] + row * voices + voice).to(tl.int64) + start
            if at >= count:  # seldom: 64 bits divide slowly
                at = at % count
            clips = step[0] + tl.load(step[1] + clip).to(tl.int64)
            left = tl.minimum(count - at, TILE).to(tl.int32)
            if left < TILE:
                # After the end comes the beginning, often where the clip is shorter than a tile.
                period = tl.minimum(count, TILE).to(tl.int32)
                where = tl.where(lane < left, at + lane, ((lane - left) % period).to(tl.int64))
                values = tl.load(clips + where, mask=valid, other=0)
            elif MASKED:
                values = tl.load(clips + at + lane, mask=valid, other=0)
            else:
                values = tl.load(clips + at + lane)
            gain = tl.div_rn(1.0, tl.load(step[3] + clip).to(tl.float32))
            noise += values.to(tl.float32) * gain
    return noise


@triton.jit
def _between(x, least, most):  # type: ignore[no-untyped-def]
    """Clamp, and keep what is not a number."""
    x = tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _quantised(x, steps):  # type: ignore[no-untyped-def]
    """Rounded to multiples of 1 / steps, a power of two: all but the rounding itself is exact."""
    scaled = x * steps
    # 2^23 leaves no bit for a fraction; to add it rounds half to even. Beyond it all are whole.
    whole = tl.where(scaled < 0, -8388608.0, 8388608.0)
    rounded = tl.where(tl.abs(scaled) < 8388608.0, (scaled + whole) - whole, scaled)
    return _between(rounded, -steps, steps - 1) * tl.div_rn(1.0, steps)


@triton.jit
def _mu_law(x):  # type: ignore[no-untyped-def]
    magnitude = tl.minimum(tl.abs(x) * 8192.0, 8158.0, propagate_nan=tl.PropagateNan.ALL) + 33.0
    bits = magnitude.to(tl.int32, bitcast=True)
    kept = ((bits & -524288) | 262144).to(tl.float32, bitcast=True)  # ~0x7FFFF, 0x40000
    value = (kept - 33.0) * 0.0001220703125  # 1 / 8192
    return tl.where(x.to(tl.int32, bitcast=True) < 0, -value, value)


@triton.jit  # type: ignore[untyped-decorator]
def _changed(  # type: ignore[no-untyped-def]
    x,
    step,
    level,
    row,
    start,
    lane,
    valid,
    KIND: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """A tile after one step."""
    if KIND == _SCALE:
        x *= level
    elif KIND == _CLIP:
        x = _between(x, -level, level)
    elif KIND == _MIX:
        if level != 0:
            x += level * _noise(step, row, start, lane, valid, TILE, MASKED)
    elif KIND == _QUANTISE:
        if level > 0:
            x = _quantised(x, level)
    elif KIND == _MU_LAW:
        if level > 0:
            x = _mu_law(x)
    elif KIND == _SILENCE:
        spans = step[2]
        for span in range(spans):
            first = tl.load(step[0] + row * spans + span).to(tl.int64)
            end = tl.load(step[1] + row * spans + span).to(tl.int64)
            # In 32 bits, counted from the tile.
            first = tl.minimum(tl.maximum(first - start, 0), TILE).to(tl.int32)
            end = tl.minimum(tl.maximum(end - start, 0), TILE).to(tl.int32)
            x = tl.where((lane >= first) & (lane < end), 0.0, x)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def _tile(  # type: ignore[no-untyped-def]
    source,
    result,
    steps,
    levels,
    peaks,
    of_speech,
    of_noise,
    row,
    start,
    length,
    width,
    KINDS: tl.constexpr,
    COUNT: tl.constexpr,
    WANTED: tl.constexpr,
    WRITES: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take a tile through the steps; all of it is valid where it is not MASKED.

    Without a mask samples are loaded and stored several at once, where they lie so.
    """
    lane = tl.arange(0, TILE)
    valid = start + lane < length
    if MASKED:
        x = tl.load(source + start + lane, mask=valid, other=0.0)
    else:
        x = tl.load(source + start + lane)
    for i in tl.static_range(COUNT):
        x = _changed(
            x, steps[i], levels[i], row, start, lane, valid, (KINDS // 8**i) % 8, TILE, MASKED
        )
    if MASKED:
        x = tl.where(valid, x, 0.0)
    if WRITES:
        if MASKED:
            tl.store(result + start + lane, x, mask=start + lane < width)
        else:
            tl.store(result + start + lane, x)
    if WANTED == _CLIP:
        peaks = tl.maximum(peaks, tl.abs(x).to(tl.int32, bitcast=True))
    if WANTED == _MIX:
        wide = x.to(tl.float64)
        of_speech += wide * wide
        wide = _noise(steps[COUNT], row, start, lane, valid, TILE, MASKED).to(tl.float64)
        of_noise += wide * wide
    return peaks, of_speech, of_noise


@triton.jit(do_not_specialize=["mixes", "programs"])  # type: ignore[untyped-decorator]
def pointwise_kernel(
    source: tl.tensor,
    lengths: tl.tensor,
    result: tl.tensor,
    steps: tl.tuple,
    width: int,
    source_stride: int,
    mixes: int,
    programs: int,
    KINDS: tl.constexpr,
    COUNT: tl.constexpr,
    WANTED: tl.constexpr,
    WRITES: tl.constexpr,
    BACKWARDS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    MOST_PARTS: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    if BACKWARDS:
        program = tl.num_programs(0) - 1 - program
    row = (program // programs).to(tl.int64)
    part = program % programs
    length = tl.minimum(tl.load(lengths + row), width).to(tl.int32)
    source += row * source_stride
    result += row * width

    part_samples = tl.cdiv(length, TILE * MOST_PARTS) * TILE
    parts = tl.cdiv(length, part_samples)
    samples = TILE * TILES
    if WANTED != _NONE:
        samples = part_samples
    begin = part * samples
    end = tl.minimum(begin + samples, length)
    whole = begin + tl.maximum(end - begin, 0) // TILE * TILE

    at_work = begin < length
    if WANTED != _NONE and not WRITES:
        at_work = at_work & _wants(steps[COUNT], row, WANTED)
    if at_work:
        levels = _levels(steps, row, parts, begin, mixes, KINDS, COUNT, MOST_PARTS)
        peaks = 0
        of_speech = 0.0
        of_noise = 0.0
        if WANTED == _CLIP:
            peaks = tl.zeros((TILE,), dtype=tl.int32)
        if WANTED == _MIX:
            of_speech = tl.zeros((TILE,), dtype=tl.float64)
            of_noise = tl.zeros((TILE,), dtype=tl.float64)
        for start in tl.range(begin, whole, TILE):
            peaks, of_speech, of_noise = _tile(
                source, result, steps, levels, peaks, of_speech, of_noise, row, start, length,
                width, KINDS, COUNT, WANTED, WRITES, TILE, False,
            )  # fmt: skip
        if whole < end:
            peaks, of_speech, of_noise = _tile(
                source, result, steps, levels, peaks, of_speech, of_noise, row, whole, length,
                width, KINDS, COUNT, WANTED, WRITES, TILE, True,
            )  # fmt: skip
        if WANTED == _CLIP:
            tl.store(steps[COUNT][1] + row * MOST_PARTS + part, tl.max(peaks, axis=0))
        if WANTED == _MIX:
            sums = steps[COUNT][8] + row * (2 * MOST_PARTS) + part
            tl.store(sums, tl.sum(of_speech, axis=0))
            tl.store(sums + MOST_PARTS, tl.sum(of_noise, axis=0))

    if WANTED == _NONE:
        lane = tl.arange(0, TILE)
        padding = tl.maximum(begin, tl.cdiv(length, TILE) * TILE)
        for start in tl.range(padding, tl.minimum(begin + samples, width), TILE):
            zeros = tl.zeros((TILE,), dtype=tl.float32)
            tl.store(result + start + lane, zeros, mask=start + lane < width)
