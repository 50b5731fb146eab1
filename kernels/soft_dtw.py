r"""Triton kernels around the soft-DTW recursion: the cost matrix, and its gradient.

The cost is the squared Euclidean distance through the Gram matrix,

.. math:: C_{ij} = |x_i|^2 + |y_j|^2 - 2\, x_i \cdot y_j,

and with the alignment :math:`E_{ij} = \partial v / \partial C_{ij}` the gradients are

.. math::
    \frac{\partial v}{\partial x_i} = 2 \Big( x_i \sum_j E_{ij} - \sum_j E_{ij}\, y_j \Big),
    \qquad
    \frac{\partial v}{\partial y_j} = 2 \Big( y_j \sum_i E_{ij} - \sum_i E_{ij}\, x_i \Big).

Why not ``torch.baddbmm``: on half-precision features it would round the cost to the input's dtype,
or need float32 copies of the features and a tenth of the tensor cores' rate. Here the features are
read in their own dtype, sums are float32, and the norms come from the tiles that the product has
loaded anyway, so the cost is written once and nothing else is. Lengths are read on the device.

Block shapes come from a small table of the dtype and the sizes. ``triton.autotune`` keyed by the
lengths would sweep again at each new length of a batch, which in training is nearly each batch.

What to expect, by arithmetic and **not measured**: B = 64, N = M = 500, D = 256 in bfloat16 on an
H100 SXM (3.35 TB/s; dense bfloat16 at 990 TFLOP/s, of which 600 is a fair hope for tiles with so
short an inner loop). Cost: 8.2 GFLOP are 14 µs; 33 MB are read (tiles read again by their
neighbours come from L2) and 64 MB written, which is 29 µs, or 36 µs at 80 % of the bandwidth.
Gradient, a side: 64 MB of alignment (its second reader, the other half of the features, finds it
in L2) and 33 MB of features are read, and 33 MB written: 39 µs; the two products are 16.4 GFLOP,
27 µs, and overlap in part: 0.04 to 0.06 ms. In all 0.12 to 0.16 ms, of the 0.6 ms that forward and
backward may take. In float32 the three products are 24.6 GFLOP on the CUDA cores (67 TFLOP/s): at
least 0.37 ms.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError

# Float16 has nothing below 6e-8. Lifted by this (a power of two, hence exactly), the lesser of an
# alignment's two terms keeps entries down to 3e-11.
_FLOAT16_ALIGNMENT_SCALE = 1024.0


class Blocks(NamedTuple):
    """Shape of a kernel's tile and how it is run: rows by columns, in steps of the inner size.

    ``maxnreg`` is the most registers a thread may have: what lets one more block fit on a
    multiprocessor where the kernel can do with it. Left to itself ptxas takes that step also where
    it cannot, and spills the difference.
    """

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int
    maxnreg: int = 255


def cost_blocks(
    rows: int,
    columns: int,
    features: int,
    dtype: torch.dtype,
    *,
    aligned: bool = True,
    symmetric: bool = False,
) -> Blocks:
    """Tile of :func:`squared_euclidean`: ``rows`` by ``columns`` of cost, ``inner`` features.

    The largest that spill no register on sm_80 and sm_90, which the tests hold them to. Features
    that are not ``aligned`` cannot be copied to shared memory asynchronously and pass through
    registers; a ``symmetric`` cost is addressed twice. Both take registers from the tile.
    """
    if dtype == torch.float32:
        # Without tensor cores the operands of a step lie in registers too.
        if not aligned:
            return Blocks(64, 64, 16, num_warps=8, num_stages=3)
        return Blocks(64, 64, 16, num_warps=8 if symmetric else 4, num_stages=3, maxnreg=168)
    inner = _power_of_two(features, 16, 64 if aligned else 32)
    if max(rows, columns) <= 64 or not aligned:
        return Blocks(64, 64, inner, num_warps=8 if symmetric else 4, num_stages=3)
    if symmetric:
        return Blocks(128, 64, inner, num_warps=8, num_stages=3)
    # At 128 registers two blocks share a multiprocessor: one multiplies while the other writes.
    return Blocks(128, 128, min(inner, 32), num_warps=8, num_stages=4, maxnreg=128)


def gradient_blocks(features: int, dtype: torch.dtype, *, aligned: bool = True) -> Blocks:
    """Tile of :func:`squared_euclidean_backward`: ``rows`` frames by ``columns`` features, summed
    over ``inner`` frames of the other side a step.

    A tile is wide, because each tile beside another reads the same alignment again (from L2).
    """
    if dtype == torch.float32:
        wide = _power_of_two(features, 16, 128 if aligned else 64)
        return Blocks(64, wide, 16, num_warps=8, num_stages=3, maxnreg=168 if aligned else 255)
    wide = _power_of_two(features, 16, 128 if aligned else 64)
    return Blocks(64, wide, 32, num_warps=4, num_stages=3)


def _is_aligned(features: Tensor) -> bool:
    """Whether Triton will find that each row starts at a multiple of 16 bytes or more."""
    _, row, feature = features.stride()
    return feature == 1 and row % 16 == 0


def _power_of_two(size: int, least: int, most: int) -> int:
    return min(max(1 << (size - 1).bit_length(), least), most)


# The sizes N and M change from batch to batch: a kernel is not compiled anew when one of them
# happens to be 1 or a multiple of 16. Strides are left to specialise, for they allow wide loads.
@triton.jit(do_not_specialize=["rows", "columns"])  # type: ignore[untyped-decorator]
def _squared_euclidean_kernel(
    x: tl.tensor,
    y: tl.tensor,
    x_lengths: tl.tensor,
    y_lengths: tl.tensor,
    cost: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    x_batch_stride: int,
    x_row_stride: int,
    x_feature_stride: int,
    y_batch_stride: int,
    y_row_stride: int,
    y_feature_stride: int,
    cost_batch_stride: int,
    cost_row_stride: int,
    cost_column_stride: int,
    SYMMETRIC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
) -> None:
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    program = tl.program_id(0)
    pair = (program // (row_tiles * column_tiles)).to(tl.int64)
    tile = program % (row_tiles * column_tiles)
    first_row = (tile // column_tiles) * BLOCK_ROWS
    first_column = (tile % column_tiles) * BLOCK_COLUMNS
    if SYMMETRIC:  # noqa: SIM102 - a constant, then a value of the device
        if first_column >= first_row + BLOCK_ROWS:
            return  # above the diagonal: written by the tile that mirrors it

    row_end = rows
    if x_lengths is not None:
        row_end = tl.minimum(tl.load(x_lengths + pair).to(tl.int32), rows)
    column_end = columns
    if y_lengths is not None:
        column_end = tl.minimum(tl.load(y_lengths + pair).to(tl.int32), columns)

    row = tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    feature = tl.arange(0, BLOCK_INNER)
    row_is_valid = first_row + row < row_end
    column_is_valid = first_column + column < column_end

    # Only the offset of a tile can pass 2^31 elements. Within it 32 bits are enough, and take half
    # the registers.
    x += pair * x_batch_stride + first_row.to(tl.int64) * x_row_stride
    y += pair * y_batch_stride + first_column.to(tl.int64) * y_row_stride
    x_offset = row[:, None] * x_row_stride + feature[None, :] * x_feature_stride
    y_offset = column[:, None] * y_row_stride + feature[None, :] * y_feature_stride
    advance = tl.full((), BLOCK_INNER, dtype=tl.int64)

    # A tile of padding alone takes no step and falls through to write its zeros.
    end = tl.where((first_row < row_end) & (first_column < column_end), features, 0)
    product = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    x_norm = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    y_norm = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    for start in range(0, end, BLOCK_INNER):
        is_feature = feature[None, :] < features - start
        # Masked, not multiplied by zero: padding may hold NaN.
        a = tl.load(x + x_offset, mask=row_is_valid[:, None] & is_feature, other=0.0)
        b = tl.load(y + y_offset, mask=column_is_valid[:, None] & is_feature, other=0.0)
        product = tl.dot(a, tl.trans(b), product, input_precision=PRECISION)
        wide_a = a.to(tl.float32)
        wide_b = b.to(tl.float32)
        x_norm += tl.sum(wide_a * wide_a, axis=1)
        y_norm += tl.sum(wide_b * wide_b, axis=1)
        x += advance * x_feature_stride
        y += advance * y_feature_stride

    value = x_norm[:, None] + y_norm[None, :] - 2.0 * product
    value = tl.where(row_is_valid[:, None] & column_is_valid[None, :], value, 0.0)
    cost += pair * cost_batch_stride
    cost_tile = (
        cost
        + first_row.to(tl.int64) * cost_row_stride
        + first_column.to(tl.int64) * cost_column_stride
    )
    inside = (first_row + row < rows)[:, None] & (first_column + column < columns)[None, :]
    if SYMMETRIC:
        below = (first_row + row)[:, None] > (first_column + column)[None, :]
        inside &= (first_row + row)[:, None] >= (first_column + column)[None, :]
    tl.store(
        cost_tile + row[:, None] * cost_row_stride + column[None, :] * cost_column_stride,
        value,
        mask=inside,
    )
    if SYMMETRIC:
        mirrored = (
            cost
            + first_column.to(tl.int64) * cost_row_stride
            + first_row.to(tl.int64) * cost_column_stride
        )
        tl.store(
            mirrored + column[None, :] * cost_row_stride + row[:, None] * cost_column_stride,
            value,
            mask=inside & below,
        )


@triton.jit(do_not_specialize=["rows", "columns"])  # type: ignore[untyped-decorator]
def _gradient_kernel(
    alignment: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    x_lengths: tl.tensor,
    y_lengths: tl.tensor,
    scale: tl.tensor,
    gradient: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    factor: float,
    alignment_batch_stride: int,
    alignment_row_stride: int,
    alignment_column_stride: int,
    x_batch_stride: int,
    x_row_stride: int,
    x_feature_stride: int,
    y_batch_stride: int,
    y_row_stride: int,
    y_feature_stride: int,
    gradient_batch_stride: int,
    gradient_row_stride: int,
    gradient_feature_stride: int,
    ACCUMULATE: tl.constexpr,
    SPLIT_ALIGNMENT: tl.constexpr,
    ALIGNMENT_SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
) -> None:
    feature_tiles = tl.cdiv(features, BLOCK_FEATURES)
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    program = tl.program_id(0)
    pair = (program // (row_tiles * feature_tiles)).to(tl.int64)
    tile = program % (row_tiles * feature_tiles)
    # Neighbours share rows, so that the second of them finds the alignment in L2.
    first_row = (tile // feature_tiles) * BLOCK_ROWS
    first_feature = (tile % feature_tiles) * BLOCK_FEATURES

    row_end = rows
    if x_lengths is not None:
        row_end = tl.minimum(tl.load(x_lengths + pair).to(tl.int32), rows)
    column_end = columns
    if y_lengths is not None:
        column_end = tl.minimum(tl.load(y_lengths + pair).to(tl.int32), columns)

    row = tl.arange(0, BLOCK_ROWS)
    inner = tl.arange(0, BLOCK_INNER)
    feature = tl.arange(0, BLOCK_FEATURES)
    row_is_valid = (first_row + row < row_end)[:, None]
    is_feature = (first_feature + feature < features)[None, :]

    alignment += pair * alignment_batch_stride + first_row.to(tl.int64) * alignment_row_stride
    y += pair * y_batch_stride + first_feature.to(tl.int64) * y_feature_stride
    alignment_offset = (
        row[:, None] * alignment_row_stride + inner[None, :] * alignment_column_stride
    )
    y_offset = inner[:, None] * y_row_stride + feature[None, :] * y_feature_stride
    advance = tl.full((), BLOCK_INNER, dtype=tl.int64)

    product = tl.zeros((BLOCK_ROWS, BLOCK_FEATURES), dtype=tl.float32)
    mass = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    end = tl.where(first_row < row_end, column_end, 0)
    for start in range(0, end, BLOCK_INNER):
        is_column = start + inner < column_end
        e = tl.load(
            alignment + alignment_offset,
            mask=row_is_valid & is_column[None, :],
            other=0.0,
        )
        b = tl.load(
            y + y_offset,
            mask=is_column[:, None] & is_feature,
            other=0.0,
        )
        alignment += advance * alignment_column_stride
        y += advance * y_row_stride
        if SPLIT_ALIGNMENT:
            e *= ALIGNMENT_SCALE
            high = e.to(b.dtype)
            low = (e - high.to(tl.float32)).to(b.dtype)
            product = tl.dot(low, b, product)
            product = tl.dot(high, b, product)
            mass += tl.sum(high.to(tl.float32) + low.to(tl.float32), axis=1)
        else:
            product = tl.dot(e, b, product, input_precision="ieee")
            mass += tl.sum(e, axis=1)

    here = row_is_valid & is_feature
    x += pair * x_batch_stride + first_row.to(tl.int64) * x_row_stride
    x_tile = x + row[:, None] * x_row_stride + (first_feature + feature)[None, :] * x_feature_stride
    a = tl.load(x_tile, mask=here, other=0.0).to(tl.float32)
    if scale is not None:
        factor *= tl.load(scale + pair).to(tl.float32)
    value = (2.0 * factor / ALIGNMENT_SCALE) * (mass[:, None] * a - product)
    gradient += pair * gradient_batch_stride + first_row.to(tl.int64) * gradient_row_stride
    gradient_tile = (
        gradient
        + row[:, None] * gradient_row_stride
        + (first_feature + feature)[None, :] * gradient_feature_stride
    )
    if ACCUMULATE:
        tl.store(gradient_tile, tl.load(gradient_tile, mask=here, other=0.0) + value, mask=here)
    else:
        inside = (first_row + row < rows)[:, None] & is_feature
        tl.store(gradient_tile, tl.where(row_is_valid, value, 0.0), mask=inside)


def squared_euclidean(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    r"""Cost :math:`C_{ij} = |x_i|^2 + |y_j|^2 - 2\, x_i \cdot y_j`, in float32.

    Where ``y`` is ``x`` itself (the same object), and so are the lengths, only what lies on and
    below the diagonal is computed, and mirrored: the cost is then symmetric bit for bit.

    Args:
        x: (B, N, D), float32, float16 or bfloat16, any strides.
        y: (B, M, D), of the dtype of ``x``, any strides.
        x_lengths: (B,) int64 on the device of ``x``, or None where all N frames are valid.
        y_lengths: (B,) int64, likewise for the M frames of ``y``.
        out: float32 (B, N, M), any strides, to write to instead of a new tensor.

    Returns:
        (B, N, M) float32. It is 0 where a frame of either side is padding, whatever the padding
        holds. Float32 features are multiplied in float32 (no TF32); the products of half-precision
        features are exact and their sum is float32. No memory but the result is allocated.

    Raises:
        ArgumentTypeError: a dtype that is not taken, or that differs between ``x`` and ``y``.
        ArgumentError: shapes that do not fit.
    """
    batch, rows, features = x.shape
    _check_features(x, y)
    columns = y.shape[1]
    cost = _output(out, (batch, rows, columns), x.device, "out")
    symmetric = y is x and y_lengths is x_lengths
    aligned = _is_aligned(x) and _is_aligned(y)
    blocks = cost_blocks(rows, columns, features, x.dtype, aligned=aligned, symmetric=symmetric)
    programs = batch * triton.cdiv(rows, blocks.rows) * triton.cdiv(columns, blocks.columns)
    if programs == 0:
        return cost
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _squared_euclidean_kernel[(programs,)](
            x,
            y,
            x_lengths,
            y_lengths,
            cost,
            rows,
            columns,
            features,
            *x.stride(),
            *y.stride(),
            *cost.stride(),
            SYMMETRIC=symmetric,
            PRECISION="ieee",
            BLOCK_ROWS=blocks.rows,
            BLOCK_COLUMNS=blocks.columns,
            BLOCK_INNER=blocks.inner,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
            maxnreg=blocks.maxnreg,
            enable_fp_fusion=True,
        )
    return cost


def squared_euclidean_backward(
    alignment: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    *,
    scale: Tensor | float | None = None,
    out_x: Tensor | None = None,
    out_y: Tensor | None = None,
    accumulate: bool = False,
    sides: Literal["both", "x", "y"] = "both",
) -> tuple[Tensor | None, Tensor | None]:
    r"""Gradients of :math:`s_b \sum_{ij} E_{bij} C_{bij}` by ``x`` and ``y``, in float32.

    Each side is one pass over the alignment, in an order fixed by the shapes, without atomics:
    the same inputs give the same bits.

    Half-precision features keep to the tensor cores: the alignment goes in as the sum of two terms
    of the features' dtype, whose products with the features are exact in float32. One term alone
    would round :math:`E` to 8 bits (11 in TF32), and the error :math:`\delta E_{ij}\, y_j` is
    relative to :math:`|y_j|`, not to the gradient :math:`E_{ij}\,(x_i - y_j)`, which is the smaller
    the better the sides are aligned. Two terms leave :math:`2^{-18}` of :math:`E` in bfloat16 and
    :math:`2^{-24}` in float16, for two products at full rate, the price of one in TF32, which would
    also need the features widened. The row sums are taken of the rounded terms too, so that what
    rounding is left multiplies :math:`x_i - y_j` and vanishes with it.

    Args:
        alignment: :math:`E`, float32 (B, N, M), any strides; the entries of an alignment lie in
            [0, 1], and with float16 features must stay below 63. Not read outside the lengths.
        x: (B, N, D), as in :func:`squared_euclidean`.
        y: (B, M, D), likewise.
        x_lengths: (B,) int64 or None, likewise.
        y_lengths: (B,) int64 or None, likewise.
        scale: :math:`s`, float32 (B,) on the device, or one number for all pairs, or None for 1.
        out_x: float32 (B, N, D), any strides, to write the gradient by ``x`` to.
        out_y: float32 (B, M, D), likewise by ``y``.
        accumulate: add to ``out_x`` and ``out_y`` instead of overwriting them.
        sides: compute the gradient of both sides, or of one and return None for the other. With
            ``y`` equal to ``x`` the alignment is symmetric, and the whole gradient is twice that
            of one side: call it with ``sides="x"`` and twice the scale.

    Returns:
        (gradient by ``x``, gradient by ``y``). Rows of padding are 0, or left as they were under
        ``accumulate``.

    Raises:
        ArgumentTypeError: a dtype that is not taken, or that differs between ``x`` and ``y``.
        ArgumentError: shapes that do not fit, or ``accumulate`` with nothing to add to.
    """
    batch, rows, features = x.shape
    columns = y.shape[1]
    _check_features(x, y)
    if alignment.shape != (batch, rows, columns):
        raise ArgumentError(
            "alignment", f"wants shape {(batch, rows, columns)}, got {tuple(alignment.shape)}"
        )
    if alignment.dtype != torch.float32:
        raise ArgumentTypeError("alignment", f"wants float32, got {alignment.dtype}")
    gradient_x = gradient_y = None
    if sides != "y":
        if accumulate and out_x is None:
            raise ArgumentError("out_x", "is needed with accumulate=True: there is nothing to add")
        gradient_x = _output(out_x, (batch, rows, features), x.device, "out_x")
        _launch_gradient(alignment, x, y, x_lengths, y_lengths, scale, gradient_x, accumulate)
    if sides != "x":
        if accumulate and out_y is None:
            raise ArgumentError("out_y", "is needed with accumulate=True: there is nothing to add")
        gradient_y = _output(out_y, (batch, columns, features), x.device, "out_y")
        transposed = alignment.transpose(1, 2)
        _launch_gradient(transposed, y, x, y_lengths, x_lengths, scale, gradient_y, accumulate)
    return gradient_x, gradient_y


def _launch_gradient(
    alignment: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    scale: Tensor | float | None,
    gradient: Tensor,
    accumulate: bool,
) -> None:
    batch, rows, features = x.shape
    columns = y.shape[1]
    blocks = gradient_blocks(features, x.dtype, aligned=_is_aligned(x) and _is_aligned(y))
    programs = batch * triton.cdiv(rows, blocks.rows) * triton.cdiv(features, blocks.columns)
    if programs == 0:
        return
    scales = scale if isinstance(scale, Tensor) else None
    factor = 1.0 if scale is None or isinstance(scale, Tensor) else float(scale)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _gradient_kernel[(programs,)](
            alignment,
            x,
            y,
            x_lengths,
            y_lengths,
            scales,
            gradient,
            rows,
            columns,
            features,
            factor,
            *alignment.stride(),
            *x.stride(),
            *y.stride(),
            *gradient.stride(),
            ACCUMULATE=accumulate,
            SPLIT_ALIGNMENT=x.dtype != torch.float32,
            ALIGNMENT_SCALE=_FLOAT16_ALIGNMENT_SCALE if x.dtype == torch.float16 else 1.0,
            BLOCK_ROWS=blocks.rows,
            BLOCK_FEATURES=blocks.columns,
            BLOCK_INNER=blocks.inner,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
            maxnreg=blocks.maxnreg,
            enable_fp_fusion=True,
        )


def _check_features(x: Tensor, y: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ArgumentTypeError("x", f"wants float32, float16 or bfloat16, got {x.dtype}")
    if y.dtype != x.dtype:
        raise ArgumentTypeError("y", f"wants the dtype of x, {x.dtype}, got {y.dtype}")
    if y.dim() != 3 or (y.shape[0], y.shape[2]) != (x.shape[0], x.shape[2]):
        raise ArgumentError(
            "y", f"wants shape ({x.shape[0]}, M, {x.shape[2]}), got {tuple(y.shape)}"
        )


def _output(
    out: Tensor | None, shape: tuple[int, int, int], device: torch.device, argument: str
) -> Tensor:
    if out is None:
        return torch.empty(shape, device=device, dtype=torch.float32)
    if out.shape != shape:
        raise ArgumentError(argument, f"wants shape {shape}, got {tuple(out.shape)}")
    if out.dtype != torch.float32:
        raise ArgumentTypeError(argument, f"wants float32, got {out.dtype}")
    return out
