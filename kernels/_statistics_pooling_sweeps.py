"""The Triton kernels of statistics pooling; what they are for, and why so, is with the launchers in
``statistics_pooling.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x, of a difference of scores: log2(e), rounded, would be off by more on a score itself."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _finite(most):  # type: ignore[no-untyped-def]
    """A maximum of scores to take differences to: of infinities, they would be NaN."""
    return tl.where(most == float("-inf"), 0.0, most)


@triton.jit
def _length(lengths, utterance, frames):  # type: ignore[no-untyped-def]
    length = frames
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + utterance), frames).to(tl.int32)
    return length


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    most,
    total,
    high,
    low,
    squares,
    x,
    weights,
    row,
    left,
    is_channel,
    MODE: tl.constexpr,
    MASKED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Take up one tile: STEPS frames a slot. ``x`` and ``weights`` are its pointers, and ``left``
    the frames that are left, of which all of the tile must be valid where it is not MASKED.
    """
    mask = is_channel[None, None, :]
    if MASKED:
        mask = mask & (row < left)[:, :, None]
    if EVEN and not MASKED:
        values = tl.load(x).to(tl.float32)
    else:
        values = tl.load(x, mask=mask, other=0.0).to(tl.float32)

    if MODE == 2:
        if EVEN and not MASKED:
            scores = tl.load(weights).to(tl.float32)
        else:
            scores = tl.load(weights, mask=mask, other=float("-inf")).to(tl.float32)
        new = tl.maximum(most, tl.max(scores, axis=0))
        finite = _finite(new)
        shrink = _exp(most - finite)
        most = new
        total *= shrink
        squares *= shrink
        w = _exp(scores - finite[None, :, :])
        more = tl.sum(w, axis=0)
    elif MODE == 1:
        if MASKED:
            w = tl.load(weights, mask=row < left, other=0.0)
        else:
            w = tl.load(weights)
        w = w.to(tl.float32)
        more = tl.sum(w, axis=0)[:, None]
        w = w[:, :, None]
    elif MASKED:
        w = tl.where(mask, 1.0, 0.0)
        more = tl.sum(w, axis=0)
    else:
        w = 1.0
        more = values.shape[0] * 1.0

    share = tl.where(more > 0, 1.0 / more, 0.0)
    d = values - high[None, :, :]
    delta = tl.sum(w * d, axis=0) * share
    d -= delta[None, :, :]
    wd = w * d
    rest = tl.sum(wd, axis=0) * share  # what the rounding of delta left: 0 but in the first tile
    own = tl.sum(wd * d, axis=0) - more * rest * rest

    before = total
    total += more
    part = tl.where(before > 0, more / total, 1.0)
    delta -= low
    squares += own + (delta + rest) * (delta + rest) * part * before
    low += delta * part
    new_high = high + low
    low = (low - (new_high - high)) + rest * part
    return most, total, new_high, low, squares


@triton.jit  # type: ignore[untyped-decorator]
def _together(most, total, high, low, squares, MODE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Put states along the first dimension together, in two passes."""
    top = tl.max(most, axis=0)
    if MODE == 2:
        shrink = _exp(most - _finite(top)[None, :])
        total *= shrink
        squares *= shrink
    all_total = tl.sum(total, axis=0)
    share = tl.where(all_total > 0, 1.0 / all_total, 0.0)
    centre = tl.sum(total * high, axis=0) * share
    d = (high - centre[None, :]) + low
    rest = tl.sum(total * d, axis=0) * share
    d -= rest[None, :]
    all_squares = tl.sum(squares + total * d * d, axis=0)
    all_high = centre + rest
    return top, all_total, all_high, rest - (all_high - centre), all_squares


@triton.jit  # type: ignore[untyped-decorator]
def _finish(  # type: ignore[no-untyped-def]
    most,
    total,
    high,
    low,
    squares,
    mean,
    std,
    totals,
    length,
    utterance,
    group,
    groups,
    channels,
    channel,
    epsilon,
    correction,
    MODE: tl.constexpr,
):
    is_channel = channel < channels
    out = (utterance * groups + group) * channels + channel
    if MODE == 0:
        variance = squares / (length - correction).to(tl.float32)
    else:
        variance = squares / total
    # A maximum that keeps NaN, such as that of no weight at all.
    variance = tl.where(variance <= epsilon, epsilon, variance)
    tl.store(mean + out, tl.where(total > 0, high + low, float("nan")), mask=is_channel)
    tl.store(std + out, tl.sqrt_rn(variance), mask=is_channel)
    if MODE == 2:
        tl.store(totals + out, most + tl.log(total), mask=is_channel)
    else:
        tl.store(totals + utterance * groups + group + channel, total, mask=channel == 0)


# Sizes that change from batch to batch: no kernel is compiled anew where one happens to be 1
# or a multiple of 16. Strides and channels are left to specialise, for they allow wide loads.
_CHANGING = ["batch", "frames", "groups", "splits", "split_frames", "correction"]


@triton.jit(do_not_specialize=_CHANGING)  # type: ignore[untyped-decorator]
def forward_kernel(
    x: tl.tensor,
    weights: tl.tensor,
    lengths: tl.tensor,
    mean: tl.tensor,
    std: tl.tensor,
    totals: tl.tensor,
    parts: tl.tensor,
    batch: int,
    frames: int,
    channels: int,
    groups: int,
    x_batch: int,
    x_frame: int,
    x_channel: int,
    weight_batch: int,
    weight_frame: int,
    weight_channel: int,
    split_frames: int,
    epsilon: float,
    correction: int,
    MODE: tl.constexpr,
    EVEN: tl.constexpr,
    STEPS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    group_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0) % group_blocks
    group = (tl.program_id(0) // group_blocks % groups).to(tl.int64)
    utterance = (tl.program_id(0) // group_blocks // groups).to(tl.int64)
    length = _length(lengths, utterance, frames)
    split = tl.program_id(1)
    begin = split * split_frames
    end = tl.maximum(tl.minimum(begin + split_frames, length), begin)
    TILE: tl.constexpr = STEPS * SLOTS
    whole = begin + (end - begin) // TILE * TILE

    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    row = tl.arange(0, STEPS)[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    far = row.to(tl.int64)[:, :, None]
    across = channel.to(tl.int64)[None, None, :]
    x += utterance * x_batch + group * channels * x_channel
    x_tile = x + far * x_frame + across * x_channel
    weight_tile = x_tile
    if MODE == 1:
        weights += utterance * weight_batch + group * weight_channel
        weight_tile = weights + row.to(tl.int64) * weight_frame
    if MODE == 2:
        weight_tile = weights + utterance * weight_batch + far * weight_frame
        weight_tile += across * weight_channel

    high = tl.zeros((SLOTS, BLOCK_CHANNELS), dtype=tl.float32)
    low = tl.zeros((SLOTS, BLOCK_CHANNELS), dtype=tl.float32)
    squares = tl.zeros((SLOTS, BLOCK_CHANNELS), dtype=tl.float32)
    most = tl.full((SLOTS, BLOCK_CHANNELS), float("-inf"), dtype=tl.float32)
    total = tl.zeros((SLOTS, BLOCK_CHANNELS), dtype=tl.float32)
    if MODE == 1:
        total = tl.zeros((SLOTS, 1), dtype=tl.float32)
    if MODE == 0:
        total = 0.0  # until the last tile, each slot had the same number of frames
    for start in tl.range(begin, whole, TILE, num_stages=2):
        at = tl.cast(start, tl.int64)
        most, total, high, low, squares = _step(
            most, total, high, low, squares, x_tile + at * x_frame,
            weight_tile + at * weight_frame, row, end - start, is_channel, MODE, False, EVEN,
        )  # fmt: skip
    if MODE == 0:
        total += tl.zeros((SLOTS, BLOCK_CHANNELS), dtype=tl.float32)
    if whole < end:
        at = tl.cast(whole, tl.int64)
        most, total, high, low, squares = _step(
            most, total, high, low, squares, x_tile + at * x_frame,
            weight_tile + at * weight_frame, row, end - whole, is_channel, MODE, True, EVEN,
        )  # fmt: skip

    if MODE == 1:
        total += tl.zeros((SLOTS, BLOCK_CHANNELS), dtype=tl.float32)
    most, all_total, all_high, all_low, all_squares = _together(
        most, total, high, low, squares, MODE
    )
    if parts is None:
        _finish(
            most, all_total, all_high, all_low, all_squares, mean, std, totals, length, utterance,
            group, groups, channels, channel, epsilon, correction, MODE,
        )  # fmt: skip
    else:
        size = tl.cast(batch, tl.int64) * groups * channels
        step = tl.num_programs(1) * size
        out = parts + split * size + (utterance * groups + group) * channels + channel
        tl.store(out, most, mask=is_channel)
        tl.store(out + step, all_total, mask=is_channel)
        tl.store(out + 2 * step, all_high, mask=is_channel)
        tl.store(out + 3 * step, all_low, mask=is_channel)
        tl.store(out + 4 * step, all_squares, mask=is_channel)


@triton.jit(do_not_specialize=_CHANGING)  # type: ignore[untyped-decorator]
def merge_kernel(
    lengths: tl.tensor,
    parts: tl.tensor,
    mean: tl.tensor,
    std: tl.tensor,
    totals: tl.tensor,
    batch: int,
    frames: int,
    channels: int,
    groups: int,
    splits: int,
    epsilon: float,
    correction: int,
    MODE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    group_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0) % group_blocks
    group = (tl.program_id(0) // group_blocks % groups).to(tl.int64)
    utterance = (tl.program_id(0) // group_blocks // groups).to(tl.int64)
    length = _length(lengths, utterance, frames)

    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    split = tl.arange(0, BLOCK_SPLITS)
    size = tl.cast(batch, tl.int64) * groups * channels
    step = splits * size
    parts += (utterance * groups + group) * channels
    parts += split.to(tl.int64)[:, None] * size + channel[None, :]
    mask = (split < splits)[:, None] & (channel < channels)[None, :]
    most, total, high, low, squares = _together(
        tl.load(parts, mask=mask, other=float("-inf")),
        tl.load(parts + step, mask=mask, other=0.0),
        tl.load(parts + 2 * step, mask=mask, other=0.0),
        tl.load(parts + 3 * step, mask=mask, other=0.0),
        tl.load(parts + 4 * step, mask=mask, other=0.0),
        MODE,
    )
    _finish(
        most, total, high, low, squares, mean, std, totals, length, utterance, group, groups,
        channels, channel, epsilon, correction, MODE,
    )  # fmt: skip


@triton.jit(do_not_specialize=_CHANGING)  # type: ignore[untyped-decorator]
def backward_kernel(
    x: tl.tensor,
    weights: tl.tensor,
    lengths: tl.tensor,
    mean: tl.tensor,
    std: tl.tensor,
    totals: tl.tensor,
    g_mean: tl.tensor,
    g_std: tl.tensor,
    of_x: tl.tensor,
    of_weights: tl.tensor,
    batch: int,
    frames: int,
    channels: int,
    groups: int,
    x_batch: int,
    x_frame: int,
    x_channel: int,
    weight_batch: int,
    weight_frame: int,
    weight_channel: int,
    epsilon: float,
    correction: int,
    MODE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_FRAMES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    group_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    frame_blocks = tl.cdiv(frames, BLOCK_FRAMES)
    block = tl.program_id(0) % group_blocks
    rest = tl.program_id(0) // group_blocks
    group = (rest % groups).to(tl.int64)
    rest = rest // groups
    start = (rest % frame_blocks).to(tl.int64) * BLOCK_FRAMES
    utterance = (rest // frame_blocks).to(tl.int64)
    length = _length(lengths, utterance, frames)

    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    frame = start + tl.arange(0, BLOCK_FRAMES)
    is_valid = frame < length
    across = group * channels + channel
    mask = is_valid[:, None] & is_channel[None, :]
    x += utterance * x_batch + frame[:, None] * x_frame + across[None, :] * x_channel
    if MODE > 0:
        weights += utterance * weight_batch
    if MODE == 1:
        weights += group * weight_channel + frame * weight_frame
    if MODE == 2:
        weights += frame[:, None] * weight_frame + across[None, :] * weight_channel

    # Without a mask along the frames, they are loaded wide where they lie side by side.
    if (start + BLOCK_FRAMES <= length) & EVEN:
        d = tl.load(x).to(tl.float32)
        if MODE == 2:
            scores = tl.load(weights).to(tl.float32)
    else:
        d = tl.load(x, mask=mask, other=0.0).to(tl.float32)
        if MODE == 2:
            scores = tl.load(weights, mask=mask, other=0.0).to(tl.float32)

    of_channel = utterance * groups * channels + across
    deviation = tl.load(std + of_channel, mask=is_channel, other=1.0)
    a = tl.load(g_mean + of_channel, mask=is_channel, other=0.0)
    b = tl.load(g_std + of_channel, mask=is_channel, other=0.0) / deviation
    b = tl.where(deviation <= tl.sqrt_rn(epsilon + tl.zeros_like(deviation)), 0.0, b)
    d -= tl.load(mean + of_channel, mask=is_channel, other=0.0)[None, :]

    if MODE == 2:
        lse = tl.load(totals + of_channel, mask=is_channel, other=0.0)
        alpha = _exp(scores - lse[None, :])
    elif MODE == 1:
        inverse = 1.0 / tl.load(totals + utterance * groups + group)
        w = tl.load(weights, mask=is_valid, other=0.0).to(tl.float32)
        alpha = (w * inverse)[:, None]
    else:
        alpha = 1.0 / length.to(tl.float32)
        b *= length.to(tl.float32) / (length - correction).to(tl.float32)

    is_stored = (frame < frames)[:, None] & is_channel[None, :]
    out = (utterance * frames + frame)[:, None] * (groups * channels) + across[None, :]
    if of_x is not None:
        g = tl.where(mask, alpha * (a[None, :] + b[None, :] * d), 0.0)
        tl.store(of_x + out, g.to(of_x.dtype.element_ty), mask=is_stored)
    if of_weights is not None:
        half = b * 0.5
        variance = deviation * deviation
        g = a[None, :] * d + half[None, :] * (d * d - variance[None, :])
        if MODE == 2:
            g = tl.where(mask, alpha * g, 0.0)
            tl.store(of_weights + out, g.to(of_weights.dtype.element_ty), mask=is_stored)
        else:
            row = tl.sum(tl.where(mask, g, 0.0), axis=1) * inverse
            out = ((block * tl.cast(batch, tl.int64) + utterance) * frames + frame) * groups + group
            tl.store(of_weights + out, row, mask=frame < frames)
