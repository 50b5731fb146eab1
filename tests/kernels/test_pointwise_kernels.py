"""The Triton kernel of the steps on each sample apart: against the reference in the interpreter (on
the GPU where there is one), and compiled ahead of time for the GPUs that are not here.

Without a level each operation rounds as in the reference, and the samples have its bits. Levels are
summed in another order: there the error against the float64 truth is at most twice the
reference's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import triton_aot
from kernel_devices import GPU, needs_compiler, on, on_each_device
from torch import Tensor

from speechft import reference as R
from speechft.reference.pointwise import (
    Clip,
    Mix,
    MuLaw,
    PointwiseStep,
    Quantise,
    Scale,
    Silence,
)

INFINITY = float("inf")
LENGTHS = [430, 1, 129, 256, 300]  # the longest, the least, a tile of 128 and one, whole ones
BATCH = len(LENGTHS)
# Clips of one sample, shorter than a tile, of a tile, longer; and one that is silent.
COUNTS = [1, 90, 128, 300, 1500, 40]
SILENT = 5
SMALL = {"TILE": 128, "TILES_A_PROGRAM": 2, "MOST_PARTS": 2}
CHAINS: dict[str, list[str]] = {
    "nothing": [],
    "usual": ["scale", "scale", "mix", "clip", "silence", "quantise"],
    "clips": ["clip", "scale", "clip", "mu_law", "clip"],
    "mixes": ["mix", "silence", "babble", "scale", "mix16"],
    "babble": ["babble", "clip", "quantise"],
    "five mixes": ["mix16", "mix", "mix16", "no voice", "mix", "clip"],
    "all": ["quantise", "mix16", "silence", "mu_law", "clip", "scale", "mix", "clip", "silence"],
}


def bank(dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    counts = torch.tensor(COUNTS)
    samples = torch.randn(int(counts.sum()), generator=generator) * 3000
    samples[-COUNTS[SILENT] :] = 0
    clips = samples.split(COUNTS)
    levels = torch.stack([clip.square().mean().sqrt() for clip in clips])
    levels[SILENT] = 1
    return {
        "samples": samples.round().to(dtype), "offsets": counts.cumsum(0) - counts,
        "counts": counts, "levels": levels,
    }  # fmt: skip


def some_step(name: str, generator: torch.Generator, batch: int = BATCH) -> PointwiseStep:
    """A step whose rows have each of the values that matter, turned round at random."""
    draw = functools.partial(torch.randint, generator=generator)
    turn = int(draw(0, batch, ()))

    def rows(*values: Any) -> Tensor:
        return torch.tensor([values[(row + turn) % len(values)] for row in range(batch)])

    if name == "scale":
        return Scale(torch.randn(batch, generator=generator))
    if name == "clip":
        return Clip(rows(0.5, 1.0, 0.0, 0.9, 3.0, 0.2))
    if name == "silence":
        first = draw(-20, 430, (batch, 3))
        end = first + draw(-30, 300, (batch, 3))
        first[0, 0], end[0, 0] = -1, 2000
        return Silence(first, end)
    if name == "quantise":
        return Quantise(rows(8, 0, 16, 2, 24, 12))
    if name == "mu_law":
        return MuLaw(rows(True, False))
    voices = {"mix": 1, "mix16": 1, "babble": 3, "no voice": 0}[name]
    clips = draw(-1, len(COUNTS), (batch, voices))
    if voices == 1:  # each of the clips, and none
        clips = rows(4, -1, 1, 3, 0, 2, SILENT)[:, None]
    starts = draw(0, 2**40, (batch, voices)) % torch.tensor(COUNTS)[clips.clamp(min=0)]
    dtype = torch.float32 if name == "mix" else torch.int16
    snr = rows(10.0, -5.0, 20.0, INFINITY, 0.0, 3.0)
    return Mix(**bank(dtype, generator), clips=clips, starts=starts, snr=snr)


def some_steps(names: list[str], seed: int) -> list[PointwiseStep]:
    generator = torch.Generator().manual_seed(seed)
    return [some_step(name, generator) for name in names]


def mapped(step: PointwiseStep, function: Callable[[Tensor], Tensor]) -> PointwiseStep:
    fields = dataclasses.fields(step)
    return dataclasses.replace(step, **{it.name: function(getattr(step, it.name)) for it in fields})


def some_waveforms(width: int, seed: int = 0, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, generator=generator) * 0.3


@contextmanager
def sizes(**constants: int) -> Iterator[Any]:
    """The launcher's module, with tiles small enough for a test to have many."""
    from speechft.kernels import pointwise as kernels

    with ExitStack() as stack:
        for name, value in constants.items():
            stack.enter_context(mock.patch.object(kernels, name, value))
        yield kernels


def launched(
    device: str, x: Tensor, lengths: Tensor, steps: list[PointwiseStep], **constants: int
) -> tuple[Tensor, Tensor]:
    """The kernel's results for waveforms with NaN in their padding, whose rows lie apart."""
    beyond = torch.arange(x.shape[1]) >= lengths[:, None]
    x = x.masked_fill(beyond, torch.nan)
    apart = torch.cat([x, torch.full((len(x), 5), torch.nan)], 1).to(device)[:, : x.shape[1]]
    with sizes(**constants) as kernels:
        steps = [mapped(step, lambda it: it.to(device)) for step in steps]
        y, skipped = kernels.pointwise(apart, lengths.to(device), steps)
    assert y.dtype == torch.float32
    assert y.is_contiguous()
    assert skipped.dtype == torch.bool
    y = y.cpu()
    assert (y[beyond] == 0).all()
    return y, skipped.cpu()


def compare(
    device: str, x: Tensor, lengths: Tensor, steps: list[PointwiseStep], **constants: int
) -> Tensor:
    """Results as the reference's; its booleans are returned."""
    y, skipped = launched(device, x, lengths, steps, **constants)
    same, same_skipped = R.pointwise(x, lengths, steps)
    assert torch.equal(skipped, same_skipped)
    exact = [mapped(it, lambda t: t.double() if t.is_floating_point() else t) for it in steps]
    truth, _ = R.pointwise(x.double(), lengths, exact)
    rounds = [it for it, step in enumerate(steps) if isinstance(step, (Quantise, MuLaw))]
    levels = [it for it, step in enumerate(steps) if isinstance(step, (Clip, Mix))]
    if not levels:
        assert torch.equal(y, same)
    elif rounds and rounds[-1] > levels[0]:
        # Where a sample lies between two steps, its last digit decides. That is rare.
        close = torch.isclose(y, same, rtol=1e-6, atol=1e-6)
        assert close.double().mean() > 0.999
    else:
        torch.testing.assert_close(y, same, rtol=1e-6, atol=1e-6)
        for size in (lambda it: it.square().mean().sqrt(), lambda it: it.abs().max()):
            bound = 2 * size(same - truth) + 4 * torch.finfo(y.dtype).eps * size(truth)
            assert size(y - truth) <= bound
    return same_skipped


def check(*, device: str, names: list[str], seed: int = 0, **constants: int) -> None:
    x, lengths = some_waveforms(LENGTHS[0], seed), torch.tensor(LENGTHS)
    compare(device, x, lengths, some_steps(names, seed), **(constants or SMALL))


@on_each_device
@pytest.mark.parametrize(
    "name", ["scale", "clip", "mix", "mix16", "babble", "no voice", "silence", "quantise", "mu_law"]
)
def test_each_step(device: str, name: str) -> None:
    on(device, check, names=[name])


@on_each_device
@pytest.mark.parametrize("chain", [it for it in CHAINS if it != "five mixes"])
def test_chains(device: str, chain: str) -> None:
    on(device, check, names=CHAINS[chain], seed=list(CHAINS).index(chain))


@on_each_device
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("chain", CHAINS)
def test_chains_of_many_values(device: str, chain: str, seed: int) -> None:
    on(device, check, names=CHAINS[chain], seed=100 + seed)
    on(device, check, names=CHAINS[chain], seed=seed, TILE=256, TILES_A_PROGRAM=1, MOST_PARTS=2)


def check_as_launched(*, device: str, names: list[str], width: int) -> None:
    """Tiles of the size that they have; rows that are aligned, and rows that are not."""
    lengths = torch.tensor([width, width // 2 + 1, 1])
    generator = torch.Generator().manual_seed(2)
    steps = [some_step(name, generator, batch=3) for name in names]
    compare(device, some_waveforms(width, batch=3), lengths, steps)


@on_each_device
@pytest.mark.parametrize("width", [1, 3333])
def test_tiles_of_the_true_size(device: str, width: int) -> None:
    on(device, check_as_launched, names=CHAINS["usual"], width=width)


@on_each_device
@pytest.mark.slow
def test_more_tiles_than_parts(device: str) -> None:
    on(device, check_as_launched, names=CHAINS["usual"], width=70_000)
    on(device, check_as_launched, names=CHAINS["usual"], width=2320)


def check_rounding(*, device: str) -> None:
    """Every tie, every bit pattern near the ends, and what is no number at all."""
    halves = torch.arange(-300, 300) / 2
    x = torch.cat([halves, halves + 2**-12, halves * 2**15, halves * 2**22 + 0.5, halves + 2**22])
    x = torch.cat([x, torch.tensor([0.0, -0.0, INFINITY, -INFINITY, torch.nan])])
    for bits in (2, 8, 16, 24):
        rows = (x / 2.0 ** (bits - 1))[None]
        steps: list[PointwiseStep] = [Quantise(torch.tensor([bits]))]
        lengths = torch.tensor([rows.shape[1]])
        y, _ = launched(device, rows, lengths, steps)
        expected = R.pointwise(rows, lengths, steps)[0]
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    magnitudes = torch.arange(0, 8300, 0.25) / 8192
    rows = torch.stack([magnitudes, -magnitudes])
    lengths = torch.tensor([rows.shape[1]] * 2)
    compare(device, rows, lengths, [MuLaw(torch.tensor([True, True]))])


@on_each_device
def test_rounding_is_exact(device: str) -> None:
    on(device, check_rounding)


def check_not_finite(*, device: str) -> None:
    """A sample that is no number makes the peak none, and all that is clipped at it."""
    x = some_waveforms(300, batch=3)
    x[0, 170], x[1, 20] = torch.nan, INFINITY
    lengths = torch.tensor([300, 300, 200])
    steps: list[PointwiseStep] = [
        Clip(torch.tensor([0.5, 0.5, 0.5])),
        dataclasses.replace(
            some_step("mix", torch.Generator(), batch=3), snr=torch.tensor([INFINITY] * 3)
        ),
    ]
    y, skipped = launched(device, x, lengths, steps, **SMALL)
    expected, same_skipped = R.pointwise(x, lengths, steps)
    assert expected[0].isnan().all()
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(skipped, same_skipped)
    # Infinity times the zeros of the padding would be no number.
    y, _ = launched(device, x, lengths, [Scale(torch.tensor([1.0, 1.0, INFINITY]))], **SMALL)
    assert (y[2, :200].abs() == INFINITY).all()


@on_each_device
def test_what_is_not_finite_stays(device: str) -> None:
    on(device, check_not_finite)


def check_levels_of_zero(*, device: str) -> None:
    """Silent rows, silent clips, no clip, no bank: unchanged and counted, but where not asked."""
    x = some_waveforms(400, batch=6)
    x[:2] = 0
    lengths = torch.tensor([400, 300, 30, 400, 400, 400])
    mix = some_step("mix16", torch.Generator().manual_seed(1), batch=6)
    assert isinstance(mix, Mix)
    rows = {
        "clips": torch.tensor([[4, 1], [3, -1], [SILENT, -1], [-1, -1], [4, 0], [SILENT, 2]]),
        "starts": torch.tensor([[1499, 89], [0, 0], [39, 0], [0, 0], [7, 0], [3, 127]]),
        "snr": torch.tensor([5.0, INFINITY, 5.0, 5.0, 5.0, -20.0]),
    }
    some = dataclasses.replace(mix, **rows)
    skipped = compare(device, x, lengths, [Scale(torch.ones(6)), some], **SMALL)
    assert skipped[:, 0].tolist() == [True, False, True, True, False, False]

    none = torch.zeros(0)
    whole, short = none.long(), none.short()
    absent = rows["clips"] * 0 - 1
    no_bank = Mix(short, whole, whole, none, absent, rows["starts"], rows["snr"])
    y, skipped = launched(device, x, lengths, [no_bank], **SMALL)
    assert torch.equal(y, R.pointwise(x, lengths, [])[0])
    assert skipped[:, 0].tolist() == [True, False, True, True, True, True]


@on_each_device
def test_levels_of_zero(device: str) -> None:
    on(device, check_levels_of_zero)


def check_extreme_ratios(*, device: str) -> None:
    """Waveforms of 1e-15, whose energies no float32 holds, and ratios to 1e9."""
    x = some_waveforms(500, batch=4) * torch.tensor([1e-15, 1e-25, 1e10, 1.0])[:, None]
    mix = some_step("mix", torch.Generator().manual_seed(1), batch=4)
    clips = torch.tensor([[4], [3], [1], [0]])
    snr = torch.tensor([-30.0, 0.0, 120.0, 180.0])
    mix = dataclasses.replace(mix, clips=clips, starts=clips * 0, snr=snr)
    y, skipped = launched(device, x, torch.tensor([500] * 4), [mix], **SMALL)
    exact = mapped(mix, lambda it: it.double() if it.is_floating_point() else it)
    truth, _ = R.pointwise(x.double(), torch.tensor([500] * 4), [exact])
    assert not skipped.any()
    error = (y - truth).abs().amax(1) / truth.abs().amax(1)
    assert (error < 3e-7).all()


@on_each_device
def test_extreme_ratios(device: str) -> None:
    on(device, check_extreme_ratios)


def check_bits(*, device: str) -> None:
    """The same bits twice, for a row alone, with other rows, and with more padding."""
    x, lengths = some_waveforms(LENGTHS[0]), torch.tensor(LENGTHS)
    steps = some_steps(["mix", "clip", "babble"], 3)
    first = launched(device, x, lengths, steps, **SMALL)
    again = launched(device, x, lengths, steps, **SMALL)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    longer = torch.cat([x, torch.zeros(BATCH, 300)], 1)
    padded = launched(device, longer, lengths, steps, **SMALL)
    assert torch.equal(first[0], padded[0][:, : x.shape[1]])
    assert torch.equal(first[1], padded[1])
    for row in (4,):
        banks = ("samples", "offsets", "counts", "levels")
        own = [
            dataclasses.replace(
                step,
                **{
                    field.name: getattr(step, field.name)[row : row + 1]
                    for field in dataclasses.fields(step)
                    if field.name not in banks
                },
            )
            for step in steps
        ]
        length = lengths[row : row + 1]
        alone = launched(device, x[row : row + 1, : int(length)], length, own, **SMALL)
        assert torch.equal(alone[0][0], first[0][row, : int(length)])
        assert torch.equal(alone[1][0], first[1][row])


@on_each_device
def test_rows_have_their_bits_in_any_batch(device: str) -> None:
    on(device, check_bits)


def check_strides(*, device: str) -> None:
    """Samples that lie apart, per-row values that lie apart or are one, of other dtypes."""
    x, lengths = some_waveforms(300, batch=2), torch.tensor([300, 200])
    table = torch.tensor([[0.5, 3.0], [0.25, 7.0]])
    narrow = [
        Scale(table[:, 0]),
        Quantise(torch.tensor(9).expand(2)),
        Scale(torch.tensor([0.1, 0.7], dtype=torch.float64)),
    ]
    transposed = x.t().contiguous().t().to(device)
    with sizes(**SMALL) as kernels:
        on_device = [mapped(step, lambda it: it.to(device)) for step in narrow]
        y, _ = kernels.pointwise(transposed, lengths.to(device), on_device)
    assert torch.equal(y.cpu(), R.pointwise(x, lengths, narrow)[0])


@on_each_device
def test_strides(device: str) -> None:
    on(device, check_strides)


def check_far(*, device: str) -> None:
    """Rows and clips that lie more than 2^31 numbers from the first."""
    stride = 2**30 + 16
    far = torch.empty(2 * stride + 200, dtype=torch.float32, device=device)
    far = far.as_strided((3, 200), (stride, 1))
    near = some_waveforms(200, batch=3).to(device)
    far.copy_(near)
    samples = torch.empty(2**31 + 400, dtype=torch.int16, device=device)
    last = torch.randint(-9999, 9999, (300,), generator=torch.Generator().manual_seed(1))
    samples[-300:] = last.to(samples)
    offsets = torch.tensor([2**31 + 100])
    rows = (torch.tensor([0]), torch.tensor([300]), torch.tensor([5000.0]))
    mixes = []
    for bank_samples, offset in ((samples, offsets), (last.to(samples), offsets * 0)):
        mix = Mix(
            bank_samples, offset, rows[1], rows[2], rows[0].expand(3)[:, None],
            torch.tensor([[0], [20], [290]]), torch.tensor([3.0, 5.0, 0.0]),
        )  # fmt: skip
        mixes.append(mapped(mix, lambda it: it.to(device)))
    lengths = torch.tensor([200, 150, 200], device=device)
    with sizes(**SMALL) as kernels:
        one, _ = kernels.pointwise(far, lengths, [mixes[0]])
        other, _ = kernels.pointwise(near, lengths, [mixes[1]])
    assert torch.equal(one, other)


@on_each_device
@pytest.mark.slow
def test_offsets_beyond_32_bits(device: str) -> None:
    on(device, check_far)


@pytest.mark.parametrize("device", [GPU])
def test_runs_in_a_graph(device: str) -> None:
    from speechft.kernels import pointwise as kernels

    steps = [mapped(it, lambda t: t.to(device)) for it in some_steps(CHAINS["all"], 5)]
    lengths = torch.tensor(LENGTHS, device=device)
    x = some_waveforms(LENGTHS[0]).to(device)
    kernels.pointwise(x, lengths, steps)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = kernels.pointwise(x, lengths, steps)
    x.copy_(some_waveforms(LENGTHS[0], seed=9))
    graph.replay()
    assert torch.equal(y, kernels.pointwise(x, lengths, steps)[0])


# ---------------------------------------------------------------------------------- launches


def launches_of(names: list[str], batch: int = 64, width: int = 160_000) -> list[Any]:
    from speechft.kernels import pointwise as kernels

    steps = some_steps(names, 0)
    meta = [
        mapped(step, lambda it: torch.empty(batch, *it.shape[1:], dtype=it.dtype, device="meta"))
        for step in steps
    ]
    waveforms = torch.empty(batch, width, device="meta")
    lengths = torch.empty(batch, dtype=torch.int64, device="meta")
    with mock.patch.object(triton_aot, "_specialise", specialise_tuple):
        with triton_aot.recorded_launches(kernels) as launches:
            kernels.pointwise(waveforms, lengths, meta)
    return launches


_specialise = triton_aot._specialise
_TYPES = triton_aot._TYPES | {torch.int16: "i16", torch.float64: "fp64"}


def specialise_tuple(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """:func:`triton_aot._specialise`, where one argument is a tuple of tuples."""
    place = kernel.arg_names.index("steps")
    launch = _specialise(kernel, grid, (*args[:place], None, *args[place + 1 :]), kwargs)
    constexprs: dict[Any, Any] = {k: it for k, it in launch.constexprs.items() if k != "steps"}
    types = []
    for i, step in enumerate(args[place]):
        of_step = []
        for j, value in enumerate(step):
            if isinstance(value, Tensor):
                of_step.append("*" + _TYPES[value.dtype])
            elif value == 1:
                of_step.append("constexpr")
                constexprs[place, i, j] = 1
            else:
                of_step.append("i32")
        types.append(tuple(of_step))
    signature: dict[str, Any] = launch.signature | {"steps": tuple(types)}
    return dataclasses.replace(launch, signature=signature, constexprs=constexprs)


@needs_compiler
@pytest.mark.parametrize(
    ("chain", "writes"),
    [
        ("nothing", [True]),
        ("usual", [False, False, True]),  # 4 bytes of a clip, once: to write is no less
        ("clips", [False, False, False, True]),
        ("mixes", [False, True, True, True]),  # 4 bytes, twice; then 6 of three clips
        ("babble", [False, True, True]),
    ],
)
def test_a_launch_for_each_level_and_one(chain: str, writes: list[bool]) -> None:
    launches = launches_of(CHAINS[chain])
    assert [launch.constexprs["WRITES"] for launch in launches] == writes


def assert_compile_without_spills(
    capabilities: tuple[int, ...], names: list[str], width: int = 160_000
) -> None:
    for launch in launches_of(names, width=width):
        launch.assert_compiles_without_spills(capabilities)


@needs_compiler
@pytest.mark.parametrize("capability", triton_aot.CAPABILITIES)
def test_the_usual_chain_compiles_and_spills_nothing(capability: int) -> None:
    assert_compile_without_spills((capability,), CHAINS["usual"])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("width", [160_000, 159_999])
@pytest.mark.parametrize("chain", CHAINS)
def test_each_chain_compiles(chain: str, width: int) -> None:
    assert_compile_without_spills(triton_aot.CAPABILITIES, CHAINS[chain], width)
