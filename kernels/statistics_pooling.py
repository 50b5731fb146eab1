r"""Triton kernels of statistics pooling: one read of the frames, with the variance of two passes.

A program has an utterance and a block of channels, and walks over its frames, as far as its length,
a tile at a time. A tile is STEPS x SLOTS frames: each of the slots takes its own frames, with its
own running mean and squares, so that sums over a tile stay inside a thread: no shuffle and no
barrier in the loop. With weights :math:`w` (1, given, or :math:`e^{s - m}` below a running maximum
:math:`m` of the scores) and the running mean :math:`\mu`, STEPS frames have, in two passes over
registers,

.. math::
    d_t = x_t - \mu, \qquad \delta = \frac{\sum w_t d_t}{\sum w_t}, \qquad
    q = \sum w_t (d_t - \delta)^2,

and are put to the :math:`n` so far, of squares :math:`Q`, by Chan's formula:

.. math::
    n' = n + \sum w_t, \qquad \mu' = \mu + \delta \frac{n' - n}{n'}, \qquad
    Q' = Q + q + \delta^2\, \frac{n\,(n' - n)}{n'}.

No term cancels, as those of E[x^2] - mean^2 would. The mean is held as a sum of two float32: where
it is 1e4 times the deviation, its rounding would show in :math:`\delta`. Slots are put together at
the end, about their common mean.

Channel blocks never reach into a next group of channels, so that a tile has one weight a frame.
Where utterances and channel blocks are too few for the GPU, the frames of each are split over
programs, whose states a second, small kernel puts together as slots are.

The backward makes alpha again, from the total or the log-sum-exp, in elementwise tiles; beyond an
utterance's length it writes zeros and reads nothing. It takes differences to the mean and to the
log-sum-exp as they are returned, in float32: to the last digit of a frame and of a score. The
gradient by weights is a sum over channels: each block of channels writes its part and ``torch.sum``
adds them, without atomics. All sums are in an order that the shapes and the GPU fix.

What to expect, by arithmetic and **not measured**: B = 64, T = 1500, C = 1536, bfloat16, on an
H100 SXM. A pass over 147e6 numbers of two bytes is 0.088 ms at 3.35 TB/s. With scores the forward
reads two, 0.176 ms; the backward reads two and writes two, 0.352 ms: 0.53 ms together; without
weights 0.088 and 0.176 ms. As compiled for sm_90, a thread's 32 numbers take 868 instructions of
the forward's loop with scores, 378 without weights, and 16 take some 620 of the backward: at four
a clock and multiprocessor, 0.13, 0.06 and 0.19 ms, during which memory works too where it has
enough to do. Three blocks fit on a multiprocessor, each with the next 16 KiB under way
(``num_stages=2``) while it computes: 48 KiB, where 18 KiB cover a latency of 0.7 us. So 0.18 to
0.3 ms forward and 0.35 to 0.5 ms backward.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from speechft.kernels._statistics_pooling_sweeps import (
    backward_kernel,
    forward_kernel,
    merge_kernel,
)
from torch import Tensor

_EQUAL, _WEIGHTS, _SCORES = 0, 1, 2  # where the weights of frames come from

# What the forward takes for a multiprocessor to be busy, and in how many parts it splits at most.
_PROGRAMS_A_MULTIPROCESSOR = 4
_MOST_SPLITS = 32


class Blocks(NamedTuple):
    """A forward tile of steps x slots frames, or a backward tile of slots frames."""

    steps: int
    slots: int
    channels: int
    num_warps: int = 4

    @property
    def frames(self) -> int:
        return self.steps * self.slots


def forward_blocks(channels: int, dtype: torch.dtype, *, frames_inner: bool) -> Blocks:
    """Tile of the forward: 4096 numbers in rows of 128 bytes, where there are so many channels.

    A thread of 128 has the STEPS frames of its slots and channels where slots x channels is at
    least 128 loads of 16 bytes; more would not fit in its registers.
    """
    numbers = 512 if dtype == torch.float32 else 1024
    steps = 8 if dtype == torch.float32 else 4
    most = numbers // 64 if frames_inner else 64
    block = min(most, triton.next_power_of_2(channels))
    return Blocks(steps, min(64, numbers // block), block)


def backward_blocks(channels: int, dtype: torch.dtype, *, frames_inner: bool) -> Blocks:
    """Tile of the backward."""
    block = min(32 if frames_inner else 64, triton.next_power_of_2(channels))
    numbers = 1024 if frames_inner and dtype == torch.float32 else 2048
    return Blocks(1, min(128, numbers // block), block)


def statistics(
    x: Tensor, weights: Tensor | None, lengths: Tensor | None, correction: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Means and deviations over valid frames, with equal or given weights.

    Args:
        x: (B, T, C), float32, float16 or bfloat16, any strides.
        weights: (B, T, G) of numbers from 0, likewise, where G divides C: a weight for C / G
            channels next to each other. None: 1 for all.
        lengths: (B,) int64, at least 1, or None.
        correction: the squares are divided by the frames less this; without weights.
        epsilon: the least variance.

    Returns:
        Mean and deviation (B, C), and the sum of the weights (B, G), float32.
    """
    if weights is None:
        return _forward(x, None, lengths, correction, epsilon, _EQUAL)
    return _forward(x, weights, lengths, 0, epsilon, _WEIGHTS)


def attentive_statistics(
    x: Tensor, scores: Tensor, lengths: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Means and deviations over valid frames, weighed by a softmax over time.

    Args:
        x: (B, T, C), float32, float16 or bfloat16, any strides.
        scores: likewise; -inf leaves a frame out.
        lengths: (B,) int64, at least 1, or None.
        epsilon: the least variance.

    Returns:
        Mean, deviation and the log-sum-exp of the scores (B, C), float32.
    """
    return _forward(x, scores, lengths, 0, epsilon, _SCORES)


def statistics_backward(
    x: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    mean: Tensor,
    std: Tensor,
    total: Tensor,
    g_mean: Tensor,
    g_std: Tensor,
    correction: int,
    epsilon: float,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by frames and weights, of their dtypes and contiguous; empty where not needed.

    Args:
        x: as in :func:`statistics`, and so are ``weights``, ``lengths``, ``correction`` and
            ``epsilon``.
        weights: likewise.
        lengths: likewise.
        mean: what :func:`statistics` returned, and so are ``std`` and ``total``.
        std: likewise.
        total: likewise.
        g_mean: (B, C) float32, what comes in for the mean.
        g_std: likewise for the deviation.
        correction: likewise.
        epsilon: likewise.
        need_x: make the gradient by the frames.
        need_weights: make the gradient by the weights.
    """
    if weights is None:
        return _backward(
            x, None, lengths, mean, std, None, g_mean, g_std, correction, epsilon, need_x, False,
            _EQUAL,
        )  # fmt: skip
    return _backward(
        x, weights, lengths, mean, std, total, g_mean, g_std, 0, epsilon, need_x, need_weights,
        _WEIGHTS,
    )  # fmt: skip


def attentive_statistics_backward(
    x: Tensor,
    scores: Tensor,
    lengths: Tensor | None,
    mean: Tensor,
    std: Tensor,
    lse: Tensor,
    g_mean: Tensor,
    g_std: Tensor,
    epsilon: float,
    need_x: bool,
    need_scores: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by frames and scores, of their dtypes and contiguous; empty where not needed.

    Args:
        x: as in :func:`attentive_statistics`, and so are ``scores``, ``lengths`` and ``epsilon``.
        scores: likewise.
        lengths: likewise.
        mean: what :func:`attentive_statistics` returned, and so are ``std`` and ``lse``.
        std: likewise.
        lse: likewise.
        g_mean: (B, C) float32, what comes in for the mean.
        g_std: likewise for the deviation.
        epsilon: likewise.
        need_x: make the gradient by the frames.
        need_scores: make the gradient by the scores.
    """
    return _backward(
        x, scores, lengths, mean, std, lse, g_mean, g_std, 0, epsilon, need_x, need_scores, _SCORES
    )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _frames_inner(x: Tensor) -> bool:
    """Whether frames, and not channels, lie side by side, as in a transposed (B, C, T)."""
    return x.stride(1) == 1 and x.stride(2) != 1


def _groups(weights: Tensor | None, mode: int) -> int:
    return weights.shape[2] if weights is not None and mode == _WEIGHTS else 1


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if tensor is None else tensor.stride()


def _forward(
    x: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    correction: int,
    epsilon: float,
    mode: int,
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach()
    B, T, C = x.shape
    groups = _groups(weights, mode)
    channels = C // groups
    blocks = forward_blocks(channels, x.dtype, frames_inner=_frames_inner(x))
    group_blocks = triton.cdiv(channels, blocks.channels)
    programs = B * groups * group_blocks
    steps = triton.cdiv(T, blocks.frames)
    wanted = triton.cdiv(_PROGRAMS_A_MULTIPROCESSOR * _multiprocessors(x.device), max(programs, 1))
    steps_each = triton.cdiv(steps, min(wanted, steps, _MOST_SPLITS))
    splits = triton.cdiv(steps, steps_each)

    new = functools.partial(torch.empty, dtype=torch.float32, device=x.device)
    mean, std = new(B, C), new(B, C)
    total = new(B, C if mode == _SCORES else groups)
    parts = None if splits == 1 else new(5, splits, B, C)
    lengths = None if lengths is None else lengths.contiguous()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        forward_kernel[(programs, splits)](
            x,
            None if weights is None else weights.detach(),
            lengths,
            mean,
            std,
            total,
            parts,
            B,
            T,
            channels,
            groups,
            *_strides(x),
            *_strides(weights),
            steps_each * blocks.frames,
            epsilon,
            correction,
            MODE=mode,
            EVEN=channels % blocks.channels == 0,
            STEPS=blocks.steps,
            SLOTS=blocks.slots,
            BLOCK_CHANNELS=blocks.channels,
            num_warps=blocks.num_warps,
        )
        if parts is not None:
            merge_kernel[(programs,)](
                lengths,
                parts,
                mean,
                std,
                total,
                B,
                T,
                channels,
                groups,
                splits,
                epsilon,
                correction,
                MODE=mode,
                BLOCK_SPLITS=triton.next_power_of_2(splits),
                BLOCK_CHANNELS=blocks.channels,
                num_warps=blocks.num_warps,
            )
    return mean, std, total


def _backward(
    x: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    mean: Tensor,
    std: Tensor,
    total: Tensor | None,
    g_mean: Tensor,
    g_std: Tensor,
    correction: int,
    epsilon: float,
    need_x: bool,
    need_weights: bool,
    mode: int,
) -> tuple[Tensor, Tensor]:
    B, T, C = x.shape
    groups = _groups(weights, mode)
    channels = C // groups
    blocks = backward_blocks(channels, x.dtype, frames_inner=_frames_inner(x))
    group_blocks = triton.cdiv(channels, blocks.channels)
    programs = B * triton.cdiv(T, blocks.frames) * groups * group_blocks

    of_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_x else None
    of_weights = None
    if weights is not None and need_weights:
        if mode == _SCORES:
            of_weights = torch.empty(weights.shape, dtype=weights.dtype, device=x.device)
        else:
            of_weights = torch.empty(group_blocks, B, T, groups, device=x.device)
    if of_x is not None or of_weights is not None:
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            backward_kernel[(programs,)](
                x.detach(),
                None if weights is None else weights.detach(),
                None if lengths is None else lengths.contiguous(),
                mean.contiguous(),
                std.contiguous(),
                None if total is None else total.contiguous(),
                g_mean.contiguous(),
                g_std.contiguous(),
                of_x,
                of_weights,
                B,
                T,
                channels,
                groups,
                *_strides(x),
                *_strides(weights),
                epsilon,
                correction,
                MODE=mode,
                EVEN=channels % blocks.channels == 0,
                BLOCK_FRAMES=blocks.frames,
                BLOCK_CHANNELS=blocks.channels,
                num_warps=blocks.num_warps,
            )
    if of_weights is not None and weights is not None and mode == _WEIGHTS:
        of_weights = of_weights.sum(0).to(weights.dtype)
    nothing = x.new_empty(0)
    return nothing if of_x is None else of_x, x.new_empty(0) if of_weights is None else of_weights
