"""The Triton kernel of playback at a speed for each row: against the definition in float64, in the
interpreter (on the GPU where there is one), and compiled ahead of time for GPUs that are not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any
from unittest import mock

import pytest
import torch
import triton_aot
from kernel_devices import GPU, needs_compiler, on, on_each_device
from torch import Tensor

import speechft
from speechft.augment import Pitch, Speed
from speechft.augment.keys import make_keys
from speechft.augment.resample import resample, resampled_length

# Slower and faster, whole numbers, more phases than a group has columns, and no change.
SPEEDS = (
    Fraction(9, 10), Fraction(1), Fraction(11, 10), Fraction(46, 41), Fraction(1, 2), Fraction(3),
)  # fmt: skip
LENGTHS = [400, 1, 2, 37, 233, 312, 399]
SMALL = {"PERIODS": 8, "PHASES": 16, "BLOCK": 16, "COPIED": 128}
ZERO_CROSSINGS = 16


@contextmanager
def sizes(**constants: int) -> Iterator[Any]:
    """The launcher's module, with tiles small enough for a test to have many."""
    from speechft.kernels import resample as kernels

    with ExitStack() as stack:
        for name, value in constants.items():
            stack.enter_context(mock.patch.object(kernels, name, value))
        yield kernels


def some_waveforms(lengths: list[int], seed: int = 0) -> Tensor:
    """(B, T) with NaN in the padding; T is no length."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), max(lengths) + 3, generator=generator) * 0.3
    return x.masked_fill(torch.arange(x.shape[1]) >= torch.tensor(lengths)[:, None], torch.nan)


def launched(
    device: str,
    x: Tensor,
    lengths: list[int],
    choices: list[int],
    steps: int,
    speeds: tuple[Fraction, ...] = SPEEDS,
    zero_crossings: int = ZERO_CROSSINGS,
    **constants: int,
) -> Tensor:
    """The kernel's result for waveforms whose rows lie apart, with NaN between them."""
    apart = torch.cat([x, torch.full((len(x), 5), torch.nan)], 1).to(device)[:, : x.shape[1]]
    with sizes(**constants) as kernels:
        y = kernels.resample_choices(
            apart,
            torch.tensor(lengths, device=device),
            torch.tensor(choices, device=device),
            speeds,
            zero_crossings,
            steps,
        )
    assert y.dtype == torch.float32
    assert y.is_contiguous()
    return y.cpu()


def defined(
    x: Tensor, length: int, speed: Fraction, steps: int, zero_crossings: int = ZERO_CROSSINGS
) -> Tensor:
    """What a clip alone gives, cut or padded."""
    y = resample(x[None, :length], speed, zero_crossings=zero_crossings)[0, :steps]
    return torch.nn.functional.pad(y, (0, steps - len(y)))


def check_as_defined(
    *, device: str, steps: int, turn: int = 0, seed: int = 0, **constants: int
) -> None:
    """Rows of each length, each at a speed; some of them as they are."""
    x = some_waveforms(LENGTHS, seed)
    choices = [(row + turn) % (len(SPEEDS) + 1) - 1 for row in range(len(LENGTHS))]
    y = launched(device, x, LENGTHS, choices, steps, **(constants or SMALL))
    for row, (length, choice) in enumerate(zip(LENGTHS, choices, strict=True)):
        speed = SPEEDS[choice] if choice >= 0 else Fraction(1)
        same = defined(x[row], length, speed, steps)
        if speed == 1:
            assert torch.equal(y[row], same)
            continue
        truth = defined(x[row].double(), length, speed, steps)
        assert (y[row, resampled_length(length, speed) :] == 0).all()
        torch.testing.assert_close(y[row].double(), truth, rtol=0, atol=5e-7)
        bound = 2 * (same - truth).norm() + 4 * torch.finfo(y.dtype).eps * truth.norm()
        assert (y[row] - truth).norm() <= bound


@on_each_device
@pytest.mark.parametrize("turn", range(len(SPEEDS) + 1))
def test_equals_each_clip_alone(device: str, turn: int) -> None:
    on(device, check_as_defined, steps=850, turn=turn)


@on_each_device
@pytest.mark.parametrize("steps", [1, 200])
def test_fewer_steps_than_there_are(device: str, steps: int) -> None:
    on(device, check_as_defined, steps=steps, turn=steps % 7)


@on_each_device
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_equals_each_clip_alone_in_other_tiles(device: str, seed: int) -> None:
    for turn in range(len(SPEEDS) + 1):
        arguments = {"steps": 1111 + seed, "turn": turn, "seed": seed}
        on(device, check_as_defined, **arguments, PERIODS=16, PHASES=4, BLOCK=32, COPIED=256)
        on(device, check_as_defined, **arguments, PERIODS=4, PHASES=64, BLOCK=8, COPIED=64)


def check_as_launched(*, device: str, speeds: tuple[Fraction, ...], zero_crossings: int) -> None:
    """Tiles of the size that they have."""
    lengths = [9001] * len(speeds)
    x = some_waveforms(lengths)
    steps = 9001 + 1200
    choices = list(range(len(speeds)))
    y = launched(device, x, lengths, choices, steps, speeds, zero_crossings)
    for row, speed in enumerate(speeds):
        truth = defined(x[row].double(), lengths[row], speed, steps, zero_crossings)
        torch.testing.assert_close(y[row].double(), truth, rtol=0, atol=1e-6)


@on_each_device
def test_tiles_of_the_true_size(device: str) -> None:
    on(device, check_as_launched, speeds=SPEEDS[:4], zero_crossings=80)


@on_each_device
@pytest.mark.slow
@pytest.mark.parametrize("cents", [10, 53, 67, 85, 97, 101, 113, 130, 150, 199, 1000])
def test_many_speeds(device: str, cents: int) -> None:
    speeds = (Fraction(cents, 100), Fraction(100, cents), Fraction(cents + 1, 97))
    on(device, check_as_launched, speeds=speeds, zero_crossings=80)


def check_bits(*, device: str) -> None:
    """The same bits twice, for a row alone, with other rows, more padding and other speeds."""
    x = some_waveforms(LENGTHS)
    choices = [0, 3, -1, 2, 5, 3, 4]
    first = launched(device, x, LENGTHS, choices, 850, **SMALL)
    assert torch.equal(first, launched(device, x, LENGTHS, choices, 850, **SMALL))
    longer = torch.cat([x, torch.full((len(x), 300), torch.nan)], 1)
    assert torch.equal(first, launched(device, longer, LENGTHS, choices, 850, **SMALL))
    for row in (0, 5):
        length, speed = LENGTHS[row], SPEEDS[choices[row]]
        steps = resampled_length(length, speed)
        clip = x[row : row + 1, :length]
        alone = launched(device, clip, [length], [0], steps, (speed,), **SMALL)
        assert torch.equal(alone[0], first[row, :steps])


@on_each_device
def test_rows_have_their_bits_in_any_batch(device: str) -> None:
    on(device, check_bits)


def check_copies(*, device: str) -> None:
    """Every bit, of what is no number too, where nothing is resampled."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2, 500), generator=generator).int()
    bits[:, :3] = torch.tensor([-(2**31), 0x7FC00001, -1])
    x = bits.view(torch.float32)
    for speeds, choices in ((SPEEDS, [-1, 1]), ((Fraction(1),), [0, -1])):
        y = launched(device, x, [500, 123], choices, 600, speeds, **SMALL).view(torch.int32)
        assert torch.equal(y[0, :500], bits[0])
        assert torch.equal(y[1, :123], bits[1, :123])
        assert not y[0, 500:].any()
        assert not y[1, 123:].any()


@on_each_device
def test_a_speed_of_one_passes_the_bits(device: str) -> None:
    on(device, check_copies)


def check_strides(*, device: str) -> None:
    """Samples that lie apart, rows that are one, lengths and choices that lie apart or are one."""
    x = some_waveforms([300, 300])[:, :300]
    expected = launched(device, x, [300, 200], [0, 2], 400, **SMALL)
    table = torch.tensor([[300, 0], [200, 2]], device=device)
    with sizes(**SMALL) as kernels:
        transposed = x.t().contiguous().t().to(device)
        y = kernels.resample_choices(
            transposed, table[:, 0], table[:, 1], SPEEDS, ZERO_CROSSINGS, 400
        )
        assert torch.equal(y.cpu(), expected)
        row = x[:1].to(device).expand(3, -1)
        ones = table[0].expand(3, -1)
        y = kernels.resample_choices(row, ones[:, 0], ones[:, 1], SPEEDS, ZERO_CROSSINGS, 400)
        assert torch.equal(y.cpu(), expected[:1].expand(3, -1))
        none = kernels.resample_choices(
            row[:0], ones[:0, 0], ones[:0, 1], SPEEDS, ZERO_CROSSINGS, 400
        )
        assert none.shape == (0, 400)


@on_each_device
def test_strides(device: str) -> None:
    on(device, check_strides)


def check_far(*, device: str) -> None:
    """Rows that lie more than 2^31 numbers from the first, and a result as large."""
    stride = 2**30 + 16
    far = torch.empty(2 * stride + 200, dtype=torch.float32, device=device)
    far = far.as_strided((3, 200), (stride, 1))
    near = some_waveforms([200] * 3).to(device)[:, :200]
    far.copy_(near)
    lengths = torch.tensor([200, 150, 200], device=device)
    choices = torch.tensor([0, 1, 3], device=device)
    with sizes(**SMALL) as kernels:
        one = kernels.resample_choices(far, lengths, choices, SPEEDS, ZERO_CROSSINGS, 250)
        other = kernels.resample_choices(near, lengths, choices, SPEEDS, ZERO_CROSSINGS, 250)
    assert torch.equal(one, other)


@on_each_device
@pytest.mark.slow
def test_offsets_beyond_32_bits(device: str) -> None:
    on(device, check_far)


def check_augmentations(*, device: str) -> None:
    """Speed and Pitch with the kernel and without, on the CPU as if they were on a GPU."""
    from speechft.augment import base, pitch, resample_choices, speed

    lengths = torch.tensor([2000, 1, 1300, 1999])
    x = some_waveforms(lengths.tolist())[:, :2000].to(device)
    keys = make_keys(0, 0, torch.arange(4)).to(device)
    for module in (Speed(zero_crossings=16), Pitch((-2, 0, 2)), Speed((0.9, 1.1), p=0.5)):
        with speechft.use_backend("reference"):
            expected, expected_after = module(x.cpu(), lengths, keys.cpu())
        triton = dataclasses.replace(resample_choices.BACKENDS, order={device: ("triton",)})
        with ExitStack() as stack:
            for place in (base, pitch, speed):
                stack.enter_context(
                    mock.patch.object(place, "values_are_at_hand", return_value=False)
                )
            stack.enter_context(mock.patch.object(resample_choices, "BACKENDS", triton))
            with mock.patch.object(resample_choices, "resample", side_effect=AssertionError):
                got, after = module(x, lengths.to(device), keys)
        assert torch.equal(after.cpu(), expected_after)
        kept = got.cpu()[:, : expected.shape[1]]
        torch.testing.assert_close(kept, expected, rtol=0, atol=2e-6)
        assert not got[:, expected.shape[1] :].any()


@on_each_device
def test_augmentations_play_with_it(device: str) -> None:
    on(device, check_augmentations)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 850])
def test_the_way_without_a_kernel(dtype: torch.dtype, steps: int) -> None:
    from speechft.augment.resample_choices import BACKENDS, resample_choices

    assert BACKENDS.choose(torch.device("cpu"), torch.float32) == "reference"
    assert speechft.backends.OPS["resample"] is BACKENDS
    x = some_waveforms(LENGTHS).to(dtype)
    for turn in range(len(SPEEDS) + 1):
        choices = [(row + turn) % (len(SPEEDS) + 1) - 1 for row in range(len(LENGTHS))]
        y = resample_choices(
            x, torch.tensor(LENGTHS), torch.tensor(choices), SPEEDS, ZERO_CROSSINGS, steps
        )
        for row, (length, choice) in enumerate(zip(LENGTHS, choices, strict=True)):
            speed = SPEEDS[choice] if choice >= 0 else Fraction(1)
            same = defined(x[row], length, speed, steps)
            torch.testing.assert_close(y[row], same, rtol=0, atol=5e-7)
            assert speed != 1 or torch.equal(y[row], same)


@pytest.mark.parametrize("device", [GPU])
def test_runs_in_a_graph(device: str) -> None:
    from speechft.kernels import resample as kernels

    x = some_waveforms(LENGTHS).to(device)
    rows = torch.tensor(LENGTHS, device=device), torch.tensor([0, 1, 2, 3, 4, 5, -1], device=device)
    kernels.resample_choices(x, *rows, SPEEDS, ZERO_CROSSINGS, 850)  # compiled, and the table made
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.resample_choices(x, *rows, SPEEDS, ZERO_CROSSINGS, 850)
    x.copy_(some_waveforms(LENGTHS, seed=9))
    graph.replay()
    assert torch.equal(y, kernels.resample_choices(x, *rows, SPEEDS, ZERO_CROSSINGS, 850))


@needs_compiler
def test_a_period_leaves_few_columns_empty() -> None:
    from speechft.kernels.resample import _period

    for phases in (16, 32):
        for denominator in range(1, 101):
            repeats, groups = _period(denominator, phases)
            outputs = repeats * denominator
            assert (groups - 1) * phases < outputs <= groups * phases
            assert outputs >= groups * phases * 15 / 16
            assert repeats <= phases


# ---------------------------------------------------------------------------------- launches


def launch_of(
    steps: int = 177_778, width: int = 160_000, change: Callable[[Tensor], Tensor] = lambda it: it
) -> triton_aot.Launch:
    from speechft.kernels import resample as kernels

    waveforms = change(torch.empty(64, width, device="meta"))
    rows = torch.empty(64, dtype=torch.int64, device="meta")
    with triton_aot.recorded_launches(kernels) as launches:
        kernels.resample_choices(waveforms, rows, rows, SPEEDS[:4], 80, steps)
    (launch,) = launches
    return launch


@needs_compiler
@pytest.mark.parametrize("capability", triton_aot.CAPABILITIES)
def test_one_launch_that_compiles_and_spills_nothing(capability: int) -> None:
    (usage,) = launch_of().assert_compiles_without_spills((capability,))
    assert usage.registers <= 168  # three programs at once on a multiprocessor


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("steps", "width"), [(177_777, 159_999), (1, 160_000), (160_000, 1)])
def test_other_launches_compile(steps: int, width: int) -> None:
    launch_of(steps, width).assert_compiles_without_spills()
    launch_of(steps, width, lambda it: it[:, :1]).assert_compiles_without_spills()


@needs_compiler
def test_programs_cover_what_is_wanted() -> None:
    """Rows of each speed have the programs that they want, and few that they do not."""
    from speechft.kernels import resample as kernels

    table = kernels._table(SPEEDS, 80, torch.device("cpu"), kernels.PHASES, kernels.BLOCK)
    tile = kernels.PERIODS * kernels.PHASES
    for plan, speed in zip(table.plans, SPEEDS, strict=True):
        assert (plan.groups == 0) == (speed == 1)
        if plan.groups:
            programs = kernels._tiles(plan, 160_000)
            assert 160_000 <= programs * tile <= 1.2 * 160_000 + plan.groups * tile
            assert plan.inputs <= 2 * plan.reach + 1 + 32 * speed + kernels.BLOCK
