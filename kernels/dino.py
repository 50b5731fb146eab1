r"""Triton kernels of DINO's loss, whose forward writes the gradient by the student's logits.

1. The teacher's rows are read once for their log-sum-exps and entropies and the sums of the
   columns, which the centre wants (see ``_softmax_rows.py``).
2. One program has one row of one student view (some rows where they are short). It goes over the
   codes, building the row's maximum :math:`m`, :math:`S = \sum_k e^{y_k}` and
   :math:`D = \sum_k T_k y_k`, with :math:`y_k = (s_k - m) / \tau_s` and the target :math:`T`, the
   sum of the distributions of its teachers, made again from their logits. With c teachers the loss
   is :math:`c \log S - D`, where no term is of another sign, so that nothing cancels. Then it goes
   back, from the last code to the first, because what was read last is still in the cache, and
   writes :math:`(c\, e^y / S - T) / \tau_s` times the row's weight.

Student views with all teachers and those that lack their own crop's take a launch each, so that no
program makes a distribution that it does not use; programs of the same sample run side by side and
read the teacher's rows from L2. The sums are in an order that the shapes and the GPU fix; there are
no atomics.

The backward is free: a second kernel multiplies by what comes in for each row's loss, and leaves at
once where that is 1.

What to expect, by arithmetic and **not measured**: B = 1024, K = 65536, 2 views of each, bfloat16,
on an H100 SXM at 3.35 TB/s. A view of logits is 134 MB. The least is to read four views and to
write two: 0.24 ms. The kernels read the teacher twice, 0.32 ms, and the way back reads what L2 has
lost. Registers allow one program a multiprocessor, which prefetches its next tiles; 132 programs
with two rows each hold 34 MB of L2's 50 MB, so that is little. Compiled for sm_90 the loops have 46
instructions an element of the student, to and fro, and 19 of the teacher: 8.7e9 at 128 a clock and
multiprocessor are 0.29 ms, beside the memory's time; 6.7e8 exponentials at 16 a clock 0.18 ms. So
0.35 to 0.5 ms. In float32 the bytes are twice as many, 0.64 ms, and 69 MB in flight are more than
L2 holds: 0.75 to 0.85 ms. A list of V student views is V launches: each reads its teachers' rows
from memory again, where one block of V views finds them in L2.

Memory beyond inputs and outputs: K float32 for each 64 teacher rows (16 where there are few), for
the columns' sums, and at most 200 numbers a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from speechft.kernels._softmax_rows import (
    LOG2E,
    biased,
    loaded,
    long_tile,
    most_registers,
    row_statistics,
    stages_of,
    view_of,
    with_rows,
    within,
)
from torch import Tensor

from speechft.functional._dino_op import LIFT


def dino(
    student: list[Tensor],
    teacher: list[Tensor],
    bias: Tensor | None,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    weights: Tensor,
    skip_same: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Losses, entropies, sums of teacher logits, and the gradient by the student's logits.

    Args:
        student: blocks (v, N, K) of views, of one N and K; float32, float16 or bfloat16.
        teacher: likewise, of the student's dtype.
        bias: float32, (1 or V_t, K), contiguous: added to the teacher's logits.
        student_temperature: float32, 0-d, on the device, where it is read.
        teacher_temperature: likewise.
        weights: float32, (N,), of the rows. Rows of weight 0 are padding, and never read.
        skip_same: no student view meets the teacher view of its number.
        need_gradient: make the gradient.

    Returns:
        Weighted losses (N,); mean entropies of the teacher's views (N,), 0 where the weight is;
        sums of raw teacher logits over views and rows (K,); all float32; and the gradient of the
        losses' sum, blocks like ``student``, contiguous, for float16 times ``LIFT``. None: [].
    """
    student = [with_rows(block) for block in student]
    first, rest, V_t = _teacher(teacher)
    _, N, K = first.shape
    V_s = sum(len(block) for block in student)
    pairs = V_s * V_t - (min(V_s, V_t) if skip_same else 0)
    found = row_statistics(first, rest, V_t, bias, weights, teacher_temperature, entropy=True)
    assert found.entropy is not None
    assert found.column_sums is not None

    losses = torch.empty(V_s, N, device=first.device)
    gradients = [
        torch.empty(block.shape, dtype=block.dtype, device=block.device)
        for block in (student if need_gradient else [])
    ]
    tile = long_tile(K)
    lift = LIFT if first.dtype == torch.float16 else 1.0
    begin = 0
    for i, block in enumerate(student):
        end = begin + len(block)
        lacking = min(max(V_t - begin, 0), len(block)) if skip_same else 0
        for low, high, skips in ((0, lacking, True), (lacking, len(block), False)):
            if low == high:
                continue
            with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
                student_kernel[(triton.cdiv(N, tile.rows) * (high - low),)](
                    block[low:high],
                    first,
                    rest,
                    bias,
                    found.largest,
                    found.lse,
                    student_temperature,
                    teacher_temperature,
                    weights,
                    losses[begin + low : begin + high],
                    gradients[i][low:high] if need_gradient else None,
                    N,
                    K,
                    block.stride(1),
                    block.stride(0),
                    first.stride(1),
                    rest.stride(0),
                    0 if bias is None or len(bias) == 1 else K,
                    high - low,
                    begin + low,
                    1 / pairs,
                    lift,
                    TEACHERS=V_t - skips,
                    SKIPS=skips,
                    EVEN=K % tile.codes == 0,
                    BLOCK_ROWS=tile.rows,
                    BLOCK_CODES=tile.codes,
                    STAGES=_stages(K, first.dtype, V_t - skips, bias is not None),
                    num_warps=tile.num_warps,
                    maxnreg=most_registers(tile),
                )
        begin = end
    return losses.sum(0), found.entropy, found.column_sums.sum(0), gradients


def dino_scale_(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply row n of each gradient by ``factor[n]``, in place.

    Args:
        gradients: blocks (v, N, K), contiguous.
        factor: (N,), float32.
    """
    factor = factor.contiguous()
    for gradient in gradients:
        views, N, K = gradient.shape
        tile = long_tile(K)
        with torch.cuda.device_of(gradient):  # type: ignore[no-untyped-call]
            scale_kernel[(triton.cdiv(views * N, tile.rows), triton.cdiv(K, 4 * tile.codes))](
                gradient,
                factor,
                views * N,
                N,
                K,
                BLOCK_ROWS=tile.rows,
                BLOCK_CODES=tile.codes,
                num_warps=tile.num_warps,
            )


def _stages(codes: int, dtype: torch.dtype, teachers: int, has_bias: bool) -> int:
    """Tiles in flight, counting the one at work, of as much as lies in the shared memory of every
    GPU (99 KiB on sm_86 and sm_89).
    """
    tile = long_tile(codes)
    of_code = (1 + teachers) * dtype.itemsize + (teachers * 4 if has_bias else 0)
    ahead: int = 96 * 1024 // (tile.rows * tile.codes * of_code)
    most: int = stages_of(codes)
    return min(1 + ahead, most)


def _teacher(blocks: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """The block with the first view, the one with the others, and the number of views. Only three
    or more views in several blocks are copied.
    """
    blocks = [with_rows(block) for block in blocks]
    views = sum(len(block) for block in blocks)
    if len(blocks) > 1 and views > 2:
        blocks = [torch.cat(blocks)]
    if len(blocks) == 1:
        return blocks[0], blocks[0][1:] if views > 1 else blocks[0], views
    first, rest = blocks
    if first.stride(1) != rest.stride(1):
        first, rest = first.contiguous(), rest.contiguous()
    return first, rest, views


# ---------------------------------------------------------------------------------- kernels


@triton.jit  # type: ignore[untyped-decorator]
def _target(  # type: ignore[no-untyped-def]
    first,
    rest,
    view_stride,
    offsets,
    mask,
    bias,
    bias_stride,
    code,
    codes,
    largest,
    lse,
    row,
    rows,
    counts,
    tau,
    power,
    number,
    TEACHERS: tl.constexpr,
    SKIPS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Sum of the teachers' distributions over a tile; beyond the last code, anything."""
    target = tl.zeros(offsets.shape, dtype=tl.float32)
    for j in tl.static_range(TEACHERS):
        u = tl.cast(j, tl.int32)
        if SKIPS:
            u = j + (number <= j).to(tl.int32)  # all but the student's number
        x = tl.load(view_of(first, rest, u, view_stride) + offsets, mask=mask, other=0.0)
        at = tl.cast(u, tl.int64) * rows + row
        raw = tl.load(largest + at, mask=counts, other=0.0)
        level = tl.load(lse + at, mask=counts, other=0.0)
        of_view = bias
        if bias is not None:
            of_view = bias + u * bias_stride
        x = biased(x, of_view, code, codes, EVEN)
        target += tl.exp2((x - raw[:, None]) * power - (level * LOG2E)[:, None])
    return target


@triton.jit(do_not_specialize=["rows", "views", "number"])  # type: ignore[untyped-decorator]
def student_kernel(
    student: tl.tensor,
    first: tl.tensor,
    rest: tl.tensor,
    bias: tl.tensor,
    largest: tl.tensor,
    lse: tl.tensor,
    student_temperature: tl.tensor,
    teacher_temperature: tl.tensor,
    weights: tl.tensor,
    losses: tl.tensor,
    gradient: tl.tensor,
    rows: int,
    codes: int,
    student_stride: int,
    student_view_stride: int,
    teacher_stride: int,
    teacher_view_stride: int,
    bias_stride: int,
    views: int,
    number: int,
    of_pair: float,
    lift: float,
    TEACHERS: tl.constexpr,
    SKIPS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    view = tl.program_id(0) % views
    row = (tl.program_id(0) // views) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    number += view
    is_row = row < rows
    weight = tl.load(weights + row, mask=is_row, other=0.0)
    counts = weight != 0
    wide_row = row.to(tl.int64)
    student += view.to(tl.int64) * student_view_stride + wide_row[:, None] * student_stride
    teacher_rows = wide_row[:, None] * teacher_stride
    student_tau = tl.load(student_temperature)
    inverse = tl.div_rn(1.0, student_tau)
    power = tl.div_rn(LOG2E, student_tau)
    tau = tl.load(teacher_temperature)
    teacher_power = tl.div_rn(LOG2E, tau)

    raw = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    # Each place of a tile has its own sums, which are added up after the last.
    total = tl.zeros((BLOCK_ROWS, BLOCK_CODES), dtype=tl.float32)
    mass = tl.zeros((BLOCK_ROWS, BLOCK_CODES), dtype=tl.float32)
    dot = tl.zeros((BLOCK_ROWS, BLOCK_CODES), dtype=tl.float32)
    for start in tl.range(0, codes, BLOCK_CODES, num_stages=STAGES):
        code = start + tl.arange(0, BLOCK_CODES)
        mask = loaded(counts, code, codes, EVEN)
        s = tl.load(student + code[None, :], mask=mask, other=0.0).to(tl.float32)
        target = _target(
            first, rest, teacher_view_stride, teacher_rows + code[None, :], mask,
            bias, bias_stride, code, codes, largest, lse, row, rows, counts, tau, teacher_power,
            number, TEACHERS, SKIPS, EVEN,
        )  # fmt: skip
        new = tl.maximum(raw, tl.max(within(s, code, codes, float("-inf"), EVEN), axis=1))
        fall = raw - new
        y = s - new[:, None]
        target = within(target, code, codes, 0.0, EVEN)
        total *= tl.exp2(fall * power)[:, None]
        total += within(tl.exp2(y * power), code, codes, 0.0, EVEN)
        dot += mass * tl.where(raw == float("-inf"), 0.0, fall)[:, None]
        dot += target * y
        mass += target
        raw = new
    sum_of_e = tl.sum(total, axis=1)
    loss = TEACHERS * tl.log(sum_of_e) - tl.sum(dot, axis=1) * inverse
    loss = tl.where(counts, loss * (weight * of_pair), 0.0)
    tl.store(losses + view.to(tl.int64) * rows + row, loss, mask=is_row)

    if gradient is not None:
        gradient += (view.to(tl.int64) * rows + wide_row)[:, None] * codes
        found = TEACHERS / sum_of_e
        factor = weight * (of_pair * lift) * inverse
        chunks = tl.cdiv(codes, BLOCK_CODES)
        for done in tl.range(0, chunks, num_stages=STAGES):
            code = (chunks - 1 - done) * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
            mask = loaded(counts, code, codes, EVEN)
            s = tl.load(
                student + code[None, :], mask=mask, other=0.0, eviction_policy="evict_first"
            ).to(tl.float32)
            target = _target(
                first, rest, teacher_view_stride, teacher_rows + code[None, :], mask,
                bias, bias_stride, code, codes, largest, lse, row, rows, counts, tau, teacher_power,
                number, TEACHERS, SKIPS, EVEN,
            )  # fmt: skip
            g = tl.exp2((s - raw[:, None]) * power) * found[:, None] - target
            # of a row that is not read the target is the bias's, and may be infinite
            g = tl.where(counts[:, None], g * factor[:, None], 0.0)
            tl.store(
                gradient + code[None, :],
                g.to(gradient.dtype.element_ty),
                mask=loaded(is_row, code, codes, EVEN),
                eviction_policy="evict_first",
            )


@triton.jit(do_not_specialize=["rows", "samples"])  # type: ignore[untyped-decorator]
def scale_kernel(
    gradient: tl.tensor,
    factor: tl.tensor,
    rows: int,
    samples: int,
    codes: int,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    by = tl.load(factor + row % samples, mask=row < rows, other=1.0)
    changes = by != 1.0
    if tl.max(changes.to(tl.int32), axis=0) > 0:
        of_rows = gradient + row[:, None] * codes
        for k in tl.static_range(4):
            code = (tl.program_id(1) * 4 + k) * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
            mask = changes[:, None] & (code < codes)[None, :]
            g = tl.load(of_rows + code[None, :], mask=mask, other=0.0)
            scaled = (g.to(tl.float32) * by[:, None]).to(g.dtype)
            tl.store(of_rows + code[None, :], scaled, mask=mask)
