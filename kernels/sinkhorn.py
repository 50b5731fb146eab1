r"""Triton kernels of Sinkhorn's assignment, in the log domain.

Half an iteration reads the logits twice: by rows, for their normalisers, unless there is no
centre yet, and by columns. The programs of the columns own some codes, and some of the rows
where there are few codes. They walk over tiles of rows with the codes' maxima so far and
compensated sums of exponentials below these, from the last row to the first, because the last are
what the kernel of the rows has left in the cache. A row's normaliser is two numbers, its largest
logit and the log-sum-exp below that (see ``_softmax_rows.py``): no digits are lost to large logits.
No maximum is a guess, so the result is that of the log domain whatever the logits are, and parts
are merged in one order.

The assignments take one kernel: a program goes over the codes of its rows and back again, which
reads from L2 and writes.

What to expect, by arithmetic and **not measured**: 2048 rows, K = 65536, bfloat16, on an H100 SXM
at 3.35 TB/s: a read of the logits, 268 MB, is 0.08 ms. Three iterations from no centre are five
reads, 0.40 ms; L2 holds a sixth of such logits, so little of that is spared. 1.3e8 exponentials, at
16 a clock and multiprocessor, are 0.04 ms a read. Spin's 12,800 rows of 2048 codes in float32 are
105 MB, 0.03 ms a read. The assignments are a read and a float32 write, 0.24 ms at K = 65536.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from speechft.kernels._softmax_rows import (
    LOG2E,
    Tile,
    add,
    biased,
    lie_even,
    loaded,
    long_tile,
    most_registers,
    parts_of,
    row_statistics,
    stages_of,
    with_rows,
    within,
)
from torch import Tensor


def columns_tile(codes: int) -> Tile:
    """Tile of the kernel of the columns, 32 elements a thread."""
    return Tile(32 if lie_even(codes) else 16, 128, 4)


def sinkhorn_columns(
    logits: Tensor, bias: Tensor | None, epsilon: Tensor, valid: Tensor | None
) -> Tensor:
    r"""Of each code :math:`\epsilon \log \sum_b e^{(x_{bk} - a_b) / \epsilon}`, float32.

    Args:
        logits: (N, K), float32, float16 or bfloat16.
        bias: (K,), float32, in the units of the logits; each row's a is epsilon times the
            log-sum-exp with these added. None: 0.
        epsilon: float32, 0-d, above 0, on the device, where it is read.
        valid: (N,) booleans; other rows are left out, and not read. None: all.
    """
    N, K = logits.shape
    device = logits.device
    if N == 0:
        return torch.full((K,), -torch.inf, device=device)
    logits = with_rows(logits)
    largest = lse = None
    if bias is not None:
        block = logits[None]
        largest, lse, *_ = row_statistics(block, block, 1, bias.contiguous()[None], valid, epsilon)
    tile = columns_tile(K)
    blocks = triton.cdiv(K, tile.codes)
    tiles = triton.cdiv(N, tile.rows)
    parts, part_tiles = parts_of(tiles, blocks, device)
    found = torch.empty(parts, K, device=device)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        columns_kernel[(blocks * parts,)](
            logits,
            largest,
            lse,
            valid,
            found,
            N,
            K,
            logits.stride(0),
            part_tiles,
            epsilon,
            EVEN=K % tile.codes == 0,
            BLOCK_ROWS=tile.rows,
            BLOCK_CODES=tile.codes,
            STAGES=stages_of(K),
            num_warps=tile.num_warps,
            maxnreg=most_registers(tile),
        )
    return found[0] if parts == 1 else epsilon * (found / epsilon).logsumexp(0)


def sinkhorn_assign(logits: Tensor, bias: Tensor, epsilon: Tensor, valid: Tensor | None) -> Tensor:
    r"""(N, K) :math:`\mathrm{softmax}_k((x_{bk} + b_k) / \epsilon)`, float32; 0 in rows not valid.

    Args:
        logits: as in :func:`sinkhorn_columns`, and so are all others.
        bias: likewise, and not None.
        epsilon: likewise.
        valid: likewise.
    """
    N, K = logits.shape
    logits = with_rows(logits)
    found = torch.empty(N, K, device=logits.device)
    tile = long_tile(K)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        assign_kernel[(triton.cdiv(N, tile.rows),)](
            logits,
            bias.contiguous(),
            valid,
            found,
            N,
            K,
            logits.stride(0),
            epsilon,
            EVEN=K % tile.codes == 0,
            BLOCK_ROWS=tile.rows,
            BLOCK_CODES=tile.codes,
            STAGES=stages_of(K),
            num_warps=tile.num_warps,
            maxnreg=most_registers(tile),
        )
    return found


# ---------------------------------------------------------------------------------- kernels


@triton.jit(do_not_specialize=["rows", "part_tiles"])  # type: ignore[untyped-decorator]
def columns_kernel(
    logits: tl.tensor,
    largest: tl.tensor,
    lse: tl.tensor,
    valid: tl.tensor,
    found: tl.tensor,
    rows: int,
    codes: int,
    row_stride: int,
    part_tiles: int,
    temperature: tl.tensor,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    blocks = tl.cdiv(codes, BLOCK_CODES)
    part = tl.program_id(0) // blocks  # the first has the last rows
    code = (tl.program_id(0) % blocks) * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    begin = part * part_tiles

    # Exponents times epsilon: differences of raw logits, which are scaled last.
    epsilon = tl.load(temperature)
    power = tl.div_rn(LOG2E, epsilon)
    most = tl.full((BLOCK_CODES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_CODES,), dtype=tl.float32)
    lost = tl.zeros((BLOCK_CODES,), dtype=tl.float32)
    end = tl.minimum(begin + part_tiles, tiles)
    for done in tl.range(begin, end, num_stages=STAGES):
        row = (tiles - 1 - done) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        counts = row < rows
        if valid is not None:
            counts = counts & (tl.load(valid + row, mask=counts, other=0) != 0)
        mask = loaded(counts, code, codes, EVEN)
        offset = row.to(tl.int64)[:, None] * row_stride + code[None, :]
        x = tl.load(logits + offset, mask=mask, other=0.0).to(tl.float32)
        if largest is not None:
            raw = tl.load(largest + row, mask=counts, other=0.0)
            level = tl.load(lse + row, mask=counts, other=0.0)
            x = (x - raw[:, None]) - (level * epsilon)[:, None]
        x = tl.where(mask, x, float("-inf"))
        new = tl.maximum(most, tl.max(x, axis=0))
        finite = tl.where(new == float("-inf"), 0.0, new)  # a difference of infinities would be NaN
        shrink = tl.exp2((most - finite) * power)
        e = tl.exp2((x - finite[None, :]) * power)
        total, lost = add(total * shrink, lost * shrink, tl.sum(e, axis=0))
        most = new
    lse_of_code = most + epsilon * tl.log(total)
    tl.store(found + part.to(tl.int64) * codes + code, lse_of_code, mask=code < codes)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def assign_kernel(
    logits: tl.tensor,
    bias: tl.tensor,
    valid: tl.tensor,
    found: tl.tensor,
    rows: int,
    codes: int,
    row_stride: int,
    temperature: tl.tensor,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    counts = is_row
    if valid is not None:
        counts = is_row & (tl.load(valid + row, mask=is_row, other=0) != 0)
    logits += row.to(tl.int64)[:, None] * row_stride
    found += row.to(tl.int64)[:, None] * codes

    power = tl.div_rn(LOG2E, tl.load(temperature))
    raw = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS, BLOCK_CODES), dtype=tl.float32)
    for start in tl.range(0, codes, BLOCK_CODES, num_stages=STAGES):
        code = start + tl.arange(0, BLOCK_CODES)
        x = tl.load(logits + code[None, :], mask=loaded(counts, code, codes, EVEN), other=0.0)
        x = biased(x, bias, code, codes, EVEN)
        new = tl.maximum(raw, tl.max(within(x, code, codes, float("-inf"), EVEN), axis=1))
        total *= tl.exp2((raw - new) * power)[:, None]
        total += within(tl.exp2((x - new[:, None]) * power), code, codes, 0.0, EVEN)
        raw = new
    share = 1.0 / tl.sum(total, axis=1)

    chunks = tl.cdiv(codes, BLOCK_CODES)
    for done in tl.range(0, chunks, num_stages=STAGES):
        code = (chunks - 1 - done) * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
        mask = loaded(counts, code, codes, EVEN)
        x = tl.load(logits + code[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
        x = biased(x, bias, code, codes, EVEN)
        probability = tl.exp2((x - raw[:, None]) * power) * share[:, None]
        tl.store(
            found + code[None, :],
            tl.where(counts[:, None], probability, 0.0),
            mask=loaded(is_row, code, codes, EVEN),
            eviction_policy="evict_first",
        )
