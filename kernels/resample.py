r"""Triton kernel of playback at a speed for each row: one launch for the batch.

Output :math:`m` of a clip at speed :math:`p/q` is a product of :math:`2 \cdot reach + 1` inputs,
from :math:`\lfloor m p / q \rfloor - reach` on, with the taps of its phase, :math:`m \bmod q`
(:mod:`speechft.augment.resample`). One tap at a time would be two loads for each multiplication,
and the first cache has room for one load in four.

So outputs are taken as a matrix. A row of it is a period: the fewest outputs, a multiple of
:math:`q`, that fill whole groups of ``PHASES`` columns but for a sixteenth. A program makes one
group of ``PERIODS`` periods as the product of two matrices, in float32 and with no TF32: the
clip's samples from each period's first input on, which lie in the first cache as periods overlap,
and the taps of the group, which are shared by all of its periods and by all rows at that speed.
Both pass through shared memory, ``BLOCK`` inputs at a time, and a thread makes 8 x 4 outputs of 8 +
4 numbers. A row at speed 1, or with no choice, is copied.

What a group costs: its last output begins :math:`31 p / q` inputs after its first, so a sixth of
the products are with the zeros at either end of the taps. Then come the columns that no period
fills and the end of the last block of inputs, less than a tenth each.

The table of taps is made from ``filter_bank`` on the CPU, in float64, and rounded once. It is made
and copied at the first call for some speeds on a device, and kept; a later call never waits for the
host or the device, and can be recorded in a graph. What a row gives depends on nothing but its own
samples, its length and its speed: each output is summed in one order, and what lies beyond the
length is not read.

What moves, by arithmetic and **not measured**: 64 x 160000 at speeds 0.9 and 1.1 reads and writes
41 MB each, 0.025 ms at an H100's 3.35 TB/s. 161 and 177 taps of 10 M outputs are 1.7 G products,
2.3 G with the zeros: 0.07 ms at 33.5 T products a second. The loop compiled for sm_90 has 724
instructions for 512 products, so 0.1 ms. Of these 724 cycles, for a warp on each of the four parts
of a multiprocessor, the shared memory is busy for some 600: 16 reads of taps and 32 of samples a
warp, whose 4 periods lie in the same banks. The first cache gives 7 samples an output, 0.01 ms.
Three programs at once on a multiprocessor cover one another's waiting.

Memory beyond inputs and outputs: the table, 128 bytes for each input of each group (27 KiB a group
at the usual speeds, one to four groups).
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechft.augment.resample import filter_bank

PERIODS = 128  # of a program: rows of its tile
PHASES = 32  # of a group: columns of a tile
BLOCK = 16  # inputs at a time
COPIED = 4096  # samples of a program that copies

_FIELDS = tl.constexpr(8)


class _Plan(NamedTuple):
    """How rows at one speed are made, as the kernel reads it: 8 numbers of 64 bits."""

    numerator: int
    denominator: int
    period_in: int
    period_out: int
    groups: int  # of a period; 0 where the row is copied
    inputs: int  # of a group, a multiple of BLOCK
    reach: int
    first: int  # of its taps in the table


class _Table(NamedTuple):
    plans: tuple[_Plan, ...]
    numbers: Tensor  # the plans, int64 (speeds, 8)
    taps: Tensor  # float32; (inputs, PHASES) for each group of each speed


def resample_choices(
    waveforms: Tensor,
    lengths: Tensor,
    choices: Tensor,
    fractions: tuple[Fraction, ...],
    zero_crossings: int,
    steps: int,
) -> Tensor:
    """Play each row at the speed of its choice; see :mod:`speechft.augment.resample`.

    Args:
        waveforms: (B, T) float32, any strides; what is in the padding is not read.
        lengths: int64 (B,), up to T.
        choices: int64 (B,), of the speeds; -1 passes a row's bits as they are.
        fractions: the speeds.
        zero_crossings: of the sinc, on each side.
        steps: samples of the result that are wanted, below 2^30 as T is.

    Returns:
        (B, steps), contiguous, zero beyond each row's new length.
    """
    batch, width = waveforms.shape
    source = waveforms.detach()
    source = source if source.stride(1) == 1 or width == 1 else source.contiguous()
    result = torch.empty(batch, steps, dtype=torch.float32, device=source.device)
    if result.numel() == 0:
        return result
    table = _table(fractions, zero_crossings, source.device, PHASES, BLOCK)
    tiles = max([triton.cdiv(steps, COPIED), *(_tiles(plan, steps) for plan in table.plans)])
    with torch.cuda.device_of(source):  # type: ignore[no-untyped-call]
        resample_kernel[(batch * tiles,)](
            source,
            lengths.contiguous(),
            choices.contiguous(),
            table.numbers,
            table.taps,
            result,
            width,
            steps,
            source.stride(0),
            tiles,
            PERIODS=PERIODS,
            PHASES=PHASES,
            BLOCK=BLOCK,
            COPIED=COPIED,
            num_warps=4,
            num_stages=3,
            enable_fp_fusion=True,
        )
    return result


def _tiles(plan: _Plan, steps: int) -> int:
    """Programs that make ``steps`` outputs."""
    return triton.cdiv(steps, plan.period_out * PERIODS) * plan.groups if plan.groups else 0


@functools.lru_cache(maxsize=16)
def _table(
    fractions: tuple[Fraction, ...],
    zero_crossings: int,
    device: torch.device,
    phases: int,
    block: int,
) -> _Table:
    """What the kernel needs for some speeds, on a device."""
    plans, parts = [], [torch.zeros(0)]
    first = 0
    with torch.inference_mode(False):
        for speed in fractions:
            p, q = speed.numerator, speed.denominator
            if speed == 1:
                plans.append(_Plan(p, q, 1, 1, groups=0, inputs=0, reach=0, first=first))
                continue
            taps, reach = _taps(speed, zero_crossings)
            repeats, groups = _period(q, phases)
            matrices = _groups(taps, speed, groups, phases, block)
            inputs = matrices.shape[1]
            plans.append(_Plan(p, q, p * repeats, q * repeats, groups, inputs, reach, first))
            parts.append(matrices.flatten().float())
            first += matrices.numel()
        numbers = torch.tensor(plans, dtype=torch.int64).reshape(len(plans), len(_Plan._fields))
        return _Table(tuple(plans), numbers.to(device), torch.cat(parts).to(device))


def _period(denominator: int, phases: int) -> tuple[int, int]:
    """How often ``denominator`` outputs are repeated in a period, and the groups that it makes."""
    repeats = 1
    while True:
        groups = -(-denominator * repeats // phases)
        # With as many repeats as phases nothing is left over.
        if groups * phases * 15 <= denominator * repeats * 16:
            return repeats, groups
        repeats += 1


def _taps(speed: Fraction, zero_crossings: int) -> tuple[Tensor, int]:
    """The taps of each phase, from its first input on: float64 (q, 2 reach + 1)."""
    before, after, reach = filter_bank(speed, zero_crossings, torch.float64, torch.device("cpu"))
    bank = torch.cat([before, after])
    phase = torch.arange(speed.denominator)[:, None]
    first = phase * speed.numerator // speed.denominator
    return bank[first + torch.arange(2 * reach + 1), phase], reach


def _groups(taps: Tensor, speed: Fraction, groups: int, phases: int, block: int) -> Tensor:
    """The matrices of a period's groups, (groups, inputs, phases).

    Columns that no period fills have taps as well; what they give is not stored.
    """
    outputs = torch.arange(groups * phases).view(groups, phases)
    first = outputs * speed.numerator // speed.denominator
    first = first - first[:, :1]
    inputs = -(-(int(first.max()) + taps.shape[1]) // block) * block
    matrices = taps.new_zeros(groups, phases, inputs)
    tap = torch.arange(taps.shape[1])
    matrices.scatter_(2, first[..., None] + tap, taps[outputs % speed.denominator])
    return matrices.transpose(1, 2)


@triton.jit(do_not_specialize=["tiles"])  # type: ignore[untyped-decorator]
def resample_kernel(
    waveforms: tl.tensor,
    lengths: tl.tensor,
    choices: tl.tensor,
    plans: tl.tensor,
    taps: tl.tensor,
    result: tl.tensor,
    width: int,
    steps: int,
    stride: int,
    tiles: int,
    PERIODS: tl.constexpr,
    PHASES: tl.constexpr,
    BLOCK: tl.constexpr,
    COPIED: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    tile = program % tiles
    waveforms += row * stride
    result += row * steps
    length = tl.minimum(tl.load(lengths + row), width).to(tl.int32)
    choice = tl.load(choices + row)
    plans += choice * _FIELDS
    groups = 0
    if choice >= 0:
        groups = tl.load(plans + 4).to(tl.int32)

    if groups == 0:
        at = tile * COPIED + tl.arange(0, COPIED)
        x = tl.load(waveforms + at, mask=at < length, other=0.0)
        tl.store(result + at, x, mask=at < steps)
    else:
        numerator = tl.load(plans)
        denominator = tl.load(plans + 1)
        period_in = tl.load(plans + 2).to(tl.int32)
        period_out = tl.load(plans + 3).to(tl.int32)
        inputs = tl.load(plans + 5).to(tl.int32)
        group = tile % groups
        period = tile // groups * PERIODS + tl.arange(0, PERIODS)
        phase = group * PHASES + tl.arange(0, PHASES)
        after = (length * denominator + numerator - 1) // numerator  # 64 bits
        after = tl.minimum(after, steps).to(tl.int32)
        made = tl.zeros((PERIODS, PHASES), dtype=tl.float32)
        if tile // groups * PERIODS * period_out + group * PHASES < after:
            first = group * PHASES * numerator // denominator - tl.load(plans + 6)
            lane = tl.arange(0, BLOCK)
            samples = first.to(tl.int32) + period[:, None] * period_in + lane[None, :]
            taps += tl.load(plans + 7) + group * inputs * PHASES
            tap = lane[:, None] * PHASES + tl.arange(0, PHASES)[None, :]
            for block in tl.range(0, inputs, BLOCK):
                # Without a sign what lies before the clip lies far behind it: one comparison.
                at = samples + block
                valid = at.to(tl.uint32, bitcast=True) < length.to(tl.uint32, bitcast=True)
                x = tl.load(waveforms + at, mask=valid, other=0.0)
                w = tl.load(taps + block * PHASES + tap)
                made = tl.dot(x, w, made, input_precision="ieee")
        m = period[:, None] * period_out + phase[None, :]
        made = tl.where(m < after, made, 0.0)
        tl.store(result + m, made, mask=(phase < period_out)[None, :] & (m < steps))
