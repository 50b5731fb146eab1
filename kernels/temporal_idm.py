r"""Triton kernels of the contrastive inverse difference moment: weights of pairs, and the gradient.

With :math:`d_{ij} = |x_i - x_j|`, what a pair gives to the value is a function of :math:`d_{ij}`
and of the lag, and the gradient by a frame is

.. math::
    \frac{\partial I}{\partial x_i} = \frac{2}{n^2} \sum_j c_{ij}\, (x_i - x_j), \qquad
    c_{ij} = \frac{1}{d_{ij}} \cdot \begin{cases}
        -w_{ij} & |i - j| > \sigma,\ d_{ij} < m, \\
        0 & |i - j| > \sigma,\ d_{ij} \ge m, \\
        1 / w_{ij} & |i - j| \le \sigma.
    \end{cases}

Both are sums of differences, and not products with the tensor cores: from a Gram matrix, frames
that are nearly equal would have no distance, and :math:`x_i \sum_j c_{ij} - \sum_j c_{ij} x_j`
would be a small difference of large numbers, for :math:`c` is largest where the difference is
smallest.

The first kernel holds the squared distances of a tile of pairs in registers while the features go
by, of frames copied so that a feature of neighbours in time lies together. It makes the tiles on
and above the diagonal, writes the tile's part of the value, and, where a gradient is wanted, c of
the tile and of its mirror image, and whether c is anything but 0 there: far from the diagonal most
frames are farther apart than the margin. The second holds the gradient of a tile of frames by
features while the other frames go by, skips tiles of zeros, and scales by :math:`2 / n^2`. Neither
has atomics: the order of sums is fixed by the shapes.

Squares are summed 16 at a time, and then these sums: one long sum would lose digits, in the same
direction at each step where features are alike. Frames are divided by a power of two, found on the
device, that takes the largest number to below 1: no square is out of range, and no digit is lost.

What to expect, by arithmetic and **not measured**: B = 64, T = 500, D = 256 on an H100 SXM. Of each
pair and feature the distances take a subtraction and a multiply-add, for half of the pairs, and the
gradient the same for all of them, where no tile is skipped: 1.3e10 lanes' instructions, at 128 a
clock and multiprocessor (2.9e13 a second) 0.45 ms. The weights, 64 MB, are written once and read
four times, mostly from L2: 0.1 ms at 3.35 TB/s if none were, beside it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Weights of pairs in memory at once, unless one sequence has more.
_WORKSPACE_BYTES = 64 * 2**20

_TILE = 64  # frames of either side
_UNROLLED = 4  # features at a time
_CHAIN = 16  # features whose squares are summed by themselves
_FEATURES = 64  # of a tile of the gradient


def temporal_idm(
    x: Tensor, lengths: Tensor | None, near: int, margin: float, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Values (B,), and their gradient by ``x`` (empty where not needed), float32.

    Args:
        x: (B, T, D), float32, float16 or bfloat16, any strides.
        lengths: (B,) int64, at least 1, or None.
        near: the largest lag of frames that are near.
        margin: what frames farther apart in time are to be apart.
        need_gradient: make it.
    """
    x = x.detach()
    if x.stride(2) != 1:  # the gradient's loop reads a frame at a time
        x = x.contiguous()
    batch, steps, features = x.shape
    device = x.device
    n = lengths.contiguous() if lengths is not None else torch.full((batch,), steps, device=device)
    frames = _by_feature(x, n)
    unit = _unit(frames)
    tiles = triton.cdiv(steps, _TILE)
    padded = tiles * _TILE
    values = torch.zeros(batch, tiles, tiles, device=device)
    gradient = torch.empty(x.shape if need_gradient else (0,), device=device)
    zeros = torch.zeros(_TILE, _TILE, device=device)
    weights = active = None
    at_once = batch
    if need_gradient:
        at_once = max(1, min(batch, _WORKSPACE_BYTES // (4 * padded * padded)))
        weights = torch.empty(at_once, padded, padded, device=device)
        active = torch.empty(at_once, tiles, tiles, dtype=torch.int32, device=device)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        for start in range(0, batch, at_once):
            some = slice(start, min(start + at_once, batch))
            count = some.stop - some.start
            pairs_kernel[(count * tiles * tiles,)](
                frames[some],
                n[some],
                unit[some],
                values[some],
                weights,
                active,
                zeros,
                tiles,
                frames.shape[1],
                near,
                margin,
                TILE=_TILE,
                UNROLLED=_UNROLLED,
                CHAIN=_CHAIN,
                num_warps=4,
            )
            if need_gradient:
                gradient_kernel[(count * tiles * triton.cdiv(features, _FEATURES),)](
                    x[some],
                    n[some],
                    unit[some],
                    weights,
                    active,
                    gradient[some],
                    tiles,
                    steps,
                    features,
                    x.stride(0),
                    x.stride(1),
                    TILE=_TILE,
                    FEATURES=_FEATURES,
                    num_warps=4,
                )
    return (values.sum((1, 2), dtype=torch.float64) / n.square()).float(), gradient


def _by_feature(x: Tensor, n: Tensor) -> Tensor:
    """The valid frames as (B, D, T), with zeros up to whole tiles, for loads without a mask."""
    batch, steps, features = x.shape
    shape = (batch, _whole(features, _UNROLLED), _whole(steps, _TILE))
    frames = torch.zeros(shape, dtype=x.dtype, device=x.device)
    frames[:, :features, :steps].copy_(x.transpose(1, 2))
    beyond = torch.arange(shape[2], device=x.device) >= n[:, None]
    return frames.masked_fill_(beyond[:, None], 0.0)


def _whole(size: int, unit: int) -> int:
    return triton.cdiv(size, unit) * unit  # type: ignore[no-any-return]


def _unit(frames: Tensor) -> Tensor:
    """(B,) powers of two above every number of a sequence, whose inverse is in range too."""
    most = torch.linalg.vector_norm(frames, torch.inf, dim=(1, 2)).float()
    exponent = torch.frexp(most).exponent.clamp(-126, 126)
    return torch.ldexp(torch.ones_like(most), exponent)


# Sizes that change from batch to batch: no kernel is compiled anew where one happens to be 1 or a
# multiple of 16. Strides are left to specialise, for they allow wide loads.
@triton.jit(do_not_specialize=["tiles", "features", "near"])  # type: ignore[untyped-decorator]
def pairs_kernel(
    frames: tl.tensor,
    lengths: tl.tensor,
    units: tl.tensor,
    values: tl.tensor,
    weights: tl.tensor,
    active: tl.tensor,
    zeros: tl.tensor,
    tiles: int,
    features: int,
    near: int,
    margin: float,
    TILE: tl.constexpr,
    UNROLLED: tl.constexpr,
    CHAIN: tl.constexpr,
) -> None:
    pair = tl.program_id(0) % (tiles * tiles)
    sequence = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
    row_tile = pair // tiles
    column_tile = pair % tiles
    length = tl.load(lengths + sequence).to(tl.int32)
    if (row_tile > column_tile) | (column_tile * TILE >= length):
        return  # the mirror image of another, or padding alone
    width = tl.cast(tiles, tl.int64) * TILE
    row = row_tile * TILE + tl.arange(0, TILE)
    column = column_tile * TILE + tl.arange(0, TILE)
    unit = tl.load(units + sequence)
    scale = 1.0 / unit

    at = frames + sequence * features * width
    # Zeros that are loaded: what follows lies in registers as a load of a tile would, four columns
    # by eight rows a thread. Left to itself the compiler takes a column of 32 rows, and loads each.
    first = tl.arange(0, TILE)
    squares = tl.load(zeros + first[:, None] * TILE + first[None, :])
    for start in range(0, features, CHAIN):
        part = tl.zeros((TILE, TILE), dtype=tl.float32)  # for long sums to lose no digits
        for _step in range(start, tl.minimum(start + CHAIN, features), UNROLLED):
            for _feature in tl.static_range(UNROLLED):
                a = tl.load(at + row).to(tl.float32) * scale
                b = tl.load(at + column).to(tl.float32) * scale
                d = a[:, None] - b[None, :]
                part += d * d
                at += width
        squares += part

    scaled = tl.sqrt_rn(squares)
    distance = scaled * unit
    lag = column[None, :] - row[:, None]
    far = tl.abs(lag) > near
    weight = lag.to(tl.float32) * lag.to(tl.float32) + 1.0
    left = margin - distance
    value = tl.where(far, weight * tl.maximum(left, 0.0), distance / weight)
    inside = (row < length)[:, None] & (column < length)[None, :]
    total = tl.sum(tl.where(inside, value, 0.0))
    total *= tl.where(row_tile == column_tile, 1.0, 2.0)
    tl.store(values + sequence * tiles * tiles + pair, total)
    if weights is not None:
        slope = tl.where(far, tl.where(left > 0, -weight, 0.0), 1.0 / weight)
        slope = tl.where(inside & (scaled > 0), slope / scaled, 0.0)
        # Within a tile 32 bits are enough for offsets, and take half the registers.
        weights += sequence * width * width
        across = first[:, None] * (tiles * TILE) + first[None, :]
        down = first[None, :] * (tiles * TILE) + first[:, None]
        tl.store(weights + row_tile * TILE * width + column_tile * TILE + across, slope)
        tl.store(weights + column_tile * TILE * width + row_tile * TILE + down, slope)
        some = tl.max((slope != 0).to(tl.int32))
        active += sequence * tiles * tiles
        tl.store(active + pair, some)
        tl.store(active + column_tile * tiles + row_tile, some)


@triton.jit(do_not_specialize=["tiles", "steps", "features"])  # type: ignore[untyped-decorator]
def gradient_kernel(
    x: tl.tensor,
    lengths: tl.tensor,
    units: tl.tensor,
    weights: tl.tensor,
    active: tl.tensor,
    gradient: tl.tensor,
    tiles: int,
    steps: int,
    features: int,
    batch_stride: int,
    frame_stride: int,
    TILE: tl.constexpr,
    FEATURES: tl.constexpr,
) -> None:
    parts = tl.cdiv(features, FEATURES)
    tile = tl.program_id(0) // parts % tiles
    sequence = (tl.program_id(0) // parts // tiles).to(tl.int64)
    length = tl.load(lengths + sequence).to(tl.int32)
    row = tile * TILE + tl.arange(0, TILE)
    feature = tl.program_id(0) % parts * FEATURES + tl.arange(0, FEATURES)
    is_feature = feature < features
    width = tl.cast(tiles, tl.int64) * TILE
    scale = 1.0 / tl.load(units + sequence)

    x += sequence * batch_stride + feature
    here = (row < length)[:, None] & is_feature[None, :]
    frame = row.to(tl.int64)[:, None] * frame_stride
    own = tl.load(x[None, :] + frame, mask=here, other=0.0).to(tl.float32) * scale
    # The weights are symmetric: those of a tile of frames with another lie together.
    weights += sequence * width * width + row
    active += sequence * tiles * tiles + tile * tiles
    total = tl.zeros((TILE, FEATURES), dtype=tl.float32)
    for other in range(0, tl.where(tile * TILE < length, tl.cdiv(length, TILE), 0)):
        if tl.load(active + other) != 0:
            part = tl.zeros((TILE, FEATURES), dtype=tl.float32)
            for j in range(other * TILE, tl.minimum(other * TILE + TILE, length)):
                at = tl.cast(j, tl.int64)
                frames = tl.load(x + at * frame_stride, mask=is_feature, other=0.0)
                c = tl.load(weights + at * width)
                part += c[:, None] * (own - (frames.to(tl.float32) * scale)[None, :])
            total += part

    n = length.to(tl.float32)
    gradient += sequence * steps * features + row.to(tl.int64)[:, None] * features
    inside = (row < steps)[:, None] & is_feature[None, :]
    tl.store(gradient + feature[None, :], total * (2.0 / n / n), mask=inside)
