r"""What the kernels on rows of logits share: running sums of exponentials, and statistics of rows.

A row's distribution is :math:`\mathrm{softmax}((x + b) / \tau)`. A temperature is small: of a logit
of 1e4, :math:`x / \tau` has few digits left. So differences come before they are scaled. With
:math:`x' = x + b`, a row is known by :math:`\rho = \max_k x'_k` and
:math:`\ell = \log \sum_k e^{(x'_k - \rho) / \tau}`, and a probability is
:math:`e^{(x'_k - \rho) / \tau - \ell}`.

Programs make the statistics of tiles of rows by codes. A program has some rows and a part of the
codes, as many parts as fill the GPU, whether there are few long rows or many short ones; a second
kernel merges the parts. A tile's column sums are at hand too, and are written for each group of
rows; the groups are added up after, in one order.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# The merge holds a row's parts at once.
_MOST_PARTS = 64
# A part has this many tiles at least.
_LEAST_TILES = 4


# ---------------------------------------------------------------------------------- helpers


# Exponentials are powers of two: the temperature's factor turns the one to the other.
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def add(total, lost, more):  # type: ignore[no-untyped-def]
    """Kahan's sum."""
    more -= lost
    new = total + more
    return new, (new - total) - more


@triton.jit
def view_of(first, rest, number, view_stride):  # type: ignore[no-untyped-def]
    """Where view ``number`` begins: the first may lie elsewhere than the rest."""
    pointer = first
    if number > 0:
        pointer = rest + (number - 1).to(tl.int64) * view_stride
    return pointer


@triton.jit  # type: ignore[untyped-decorator]
def loaded(counts, code, codes, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which places of a tile are read: rows that count, codes that there are. EVEN: all codes."""
    mask = counts[:, None]
    if not EVEN:
        mask = mask & (code < codes)[None, :]
    return mask


@triton.jit  # type: ignore[untyped-decorator]
def within(x, code, codes, other, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile, with ``other`` beyond the last code."""
    if not EVEN:
        x = tl.where((code < codes)[None, :], x, other)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def biased(x, bias, code, codes, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of logits, float32, with their bias, if any."""
    x = x.to(tl.float32)
    if bias is not None:
        if EVEN:
            b = tl.load(bias + code)
        else:
            b = tl.load(bias + code, mask=code < codes, other=0.0)
        x += b[None, :]
    return x


# ---------------------------------------------------------------------------------- kernels


@triton.jit(do_not_specialize=["rows", "parts", "part_tiles"])  # type: ignore[untyped-decorator]
def statistics_kernel(
    first: tl.tensor,
    rest: tl.tensor,
    bias: tl.tensor,
    counted: tl.tensor,
    temperature: tl.tensor,
    found: tl.tensor,
    column_sums: tl.tensor,
    rows: int,
    codes: int,
    row_stride: int,
    view_stride: int,
    bias_stride: int,
    parts: int,
    part_tiles: int,
    ENTROPY: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    # Groups of rows in their order, for the last rows to be those that the cache holds after.
    part = tl.program_id(0) % parts
    group = tl.program_id(0) // parts
    view = tl.program_id(1)
    row = group * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    counts = is_row
    if counted is not None:
        counts = is_row & (tl.load(counted + row, mask=is_row, other=0) != 0)
    tau = tl.load(temperature)
    power = tl.div_rn(LOG2E, tau)
    logits = view_of(first, rest, view, view_stride)
    logits += row.to(tl.int64)[:, None] * row_stride
    if bias is not None:
        bias += view * bias_stride

    raw = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    lost = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    inner = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    inner_lost = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    tiles = tl.cdiv(codes, BLOCK_CODES)
    begin = part * part_tiles
    end = tl.minimum(begin + part_tiles, tiles)
    for tile in tl.range(begin, end, num_stages=STAGES):
        code = tile * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
        x = tl.load(logits + code[None, :], mask=loaded(counts, code, codes, EVEN), other=0.0)
        if column_sums is not None:
            groups = tl.cdiv(rows, BLOCK_ROWS)
            out = column_sums + (view * groups + group).to(tl.int64) * codes + code
            tl.store(out, tl.sum(x.to(tl.float32), axis=0), mask=code < codes)
        x = biased(x, bias, code, codes, EVEN)
        new = tl.maximum(raw, tl.max(within(x, code, codes, float("-inf"), EVEN), axis=1))
        fall = raw - new
        raw = new
        below = x - raw[:, None]
        e = within(tl.exp2(below * power), code, codes, 0.0, EVEN)
        shrink = tl.exp2(fall * power)
        if ENTROPY:
            # The sum of e (x' - raw). The first tile's fall is -inf, from a sum of nothing.
            inner += tl.where(total > 0, fall * total, 0.0)
            inner, inner_lost = add(inner * shrink, inner_lost * shrink, tl.sum(e * below, axis=1))
        total, lost = add(total * shrink, lost * shrink, tl.sum(e, axis=1))

    plane = tl.num_programs(1).to(tl.int64) * parts * rows
    found += (view * parts + part).to(tl.int64) * rows + row
    tl.store(found, raw, mask=is_row)
    tl.store(found + plane, total, mask=is_row)
    if ENTROPY:
        tl.store(found + 2 * plane, inner, mask=is_row)


@triton.jit(do_not_specialize=["rows", "parts", "views"])  # type: ignore[untyped-decorator]
def merge_kernel(
    found: tl.tensor,
    counted: tl.tensor,
    temperature: tl.tensor,
    largest: tl.tensor,
    lse: tl.tensor,
    entropy: tl.tensor,
    rows: int,
    parts: int,
    views: int,
    ENTROPY: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    part = tl.arange(0, BLOCK_PARTS)
    is_row = row < rows
    is_part = is_row[:, None] & (part < parts)[None, :]
    tau = tl.load(temperature)
    power = tl.div_rn(LOG2E, tau)
    plane = tl.cast(views, tl.int64) * parts * rows
    of_views = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for view in range(views):
        at = found + (view * parts + part).to(tl.int64)[None, :] * rows + row[:, None]
        raws = tl.load(at, mask=is_part, other=float("-inf"))
        # 0 for the rows beyond the last
        raw = tl.where(is_row, tl.max(raws, axis=1), 0.0)
        fall = raws - raw[:, None]
        shrink = tl.exp2(fall * power)
        totals = tl.load(at + plane, mask=is_part, other=0.0)
        total = tl.where(is_row, tl.sum(totals * shrink, axis=1), 1.0)
        out = tl.cast(view, tl.int64) * rows + row
        tl.store(largest + out, raw, mask=is_row)
        tl.store(lse + out, tl.log(total), mask=is_row)
        if ENTROPY:
            inner = tl.load(at + 2 * plane, mask=is_part, other=0.0)
            inner += tl.where(shrink > 0, fall * totals, 0.0)
            of_views += tl.log(total) - tl.sum(inner * shrink, axis=1) / total / tau
    if ENTROPY:
        counts = tl.load(counted + row, mask=is_row, other=0) != 0
        tl.store(entropy + row, tl.where(counts, of_views / views, 0.0), mask=is_row)


# ---------------------------------------------------------------------------------- launchers


class Tile(NamedTuple):
    """Shape of a tile, and the warps that share it."""

    rows: int
    codes: int
    num_warps: int


def lie_even(codes: int) -> bool:
    """Whether rows begin where several numbers can be loaded at once. Where they do not, each
    number takes its own address, and tiles are half as large, to spill no register.
    """
    return codes % 16 == 0


def stages_of(codes: int) -> int:
    """Tiles in flight, counting the one at work."""
    return 3 if lie_even(codes) else 1


def statistics_tile(rows: int, codes: int) -> Tile:
    """Tile of the statistics: tall, for few groups have column sums to be added up."""
    if not lie_even(codes):
        return Tile(32, 128, 8) if rows > 32 else Tile(16, 128, 4)
    return Tile(64, 128, 8) if rows > 32 else Tile(16, 256, 4)


def most_registers(tile: Tile) -> int:
    """All a thread can have. Left to itself ptxas takes fewer, to fit one more block on a
    multiprocessor, and may spill the difference.
    """
    return min(2**16 // (32 * tile.num_warps), 255)


def long_tile(codes: int) -> Tile:
    """Tile of kernels whose programs go over all codes of their rows, several where these are
    short: 8 elements a thread. Where a tile is a whole row, and there is no next one to prefetch,
    several small programs share a multiprocessor.
    """
    size = 4096 if codes > 2048 else 2048 if codes > 1024 else 1024
    num_warps = size // 256
    if not lie_even(codes):
        size //= 2
    width = min(max(1 << (codes - 1).bit_length(), 64), size)
    return Tile(size // width, width, num_warps)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def parts_of(steps: int, programs: int, device: torch.device, *, least: int = 1) -> tuple[int, int]:
    """In how many parts to go over so many steps, and steps a part, for 4 programs a
    multiprocessor.
    """
    parts = max(1, min(4 * multiprocessors(device) // max(programs, 1), steps // least))
    each = triton.cdiv(steps, parts)
    return triton.cdiv(steps, each), each


def with_rows(logits: Tensor) -> Tensor:
    """Codes side by side, and where rows can begin at multiples of 16, they do."""
    strides, codes = logits.stride(), logits.shape[-1]
    if strides[-1] != 1 and codes > 1:
        return logits.contiguous()
    even = logits.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in strides[:-1])
    return logits if even or not lie_even(codes) else logits.contiguous()


class Statistics(NamedTuple):
    """Of each view's rows: the largest x' and the log-sum-exp below it, (V, N) each; the mean
    entropy of the views (N,), and sums of columns over some rows (groups, K), where asked for.
    """

    largest: Tensor
    lse: Tensor
    entropy: Tensor | None
    column_sums: Tensor | None


def row_statistics(
    first: Tensor,
    rest: Tensor,
    views: int,
    bias: Tensor | None,
    counted: Tensor | None,
    temperature: Tensor,
    *,
    entropy: bool = False,
) -> Statistics:
    """Launch the statistics and the merge.

    Args:
        first: (., N, K) with the first view, codes side by side.
        rest: (., N, K) with all other views, of the strides of ``first``.
        views: how many.
        bias: (1 or views, K) float32, contiguous, or None.
        counted: (N,) rows that count are not 0 here, and only these are read. None: all.
        temperature: 0-d, float32, on the device, where it is read.
        entropy: also the entropies, and the columns' sums. Wants ``counted``.
    """
    _, N, K = first.shape
    device = first.device
    tile = statistics_tile(N, K)
    groups = triton.cdiv(N, tile.rows)
    tiles = triton.cdiv(K, tile.codes)
    most = min(_MOST_PARTS, max(tiles // _LEAST_TILES, 1))
    parts, part_tiles = parts_of(tiles, groups * views, device, least=triton.cdiv(tiles, most))
    found = torch.empty(3 if entropy else 2, views, parts, N, device=device)
    largest, lse = (torch.empty(views, N, device=device) for _ in range(2))
    of_rows = torch.empty(N, device=device) if entropy else None
    of_columns = torch.empty(views * groups, K, device=device) if entropy else None
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        statistics_kernel[(groups * parts, views)](
            first,
            rest,
            bias,
            counted,
            temperature,
            found,
            of_columns,
            N,
            K,
            first.stride(1),
            rest.stride(0),
            0 if bias is None or len(bias) == 1 else K,
            parts,
            part_tiles,
            ENTROPY=entropy,
            EVEN=K % tile.codes == 0,
            BLOCK_ROWS=tile.rows,
            BLOCK_CODES=tile.codes,
            STAGES=stages_of(K),
            num_warps=tile.num_warps,
            maxnreg=most_registers(tile),
        )
        merge_kernel[(triton.cdiv(N, 32),)](
            found,
            counted,
            temperature,
            largest,
            lse,
            of_rows,
            N,
            parts,
            views,
            ENTROPY=entropy,
            BLOCK_ROWS=32,
            BLOCK_PARTS=max(1 << (parts - 1).bit_length(), 2),
            num_warps=4,
        )
    return Statistics(largest, lse, of_rows, of_columns)
