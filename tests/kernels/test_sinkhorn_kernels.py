"""The Triton kernels of Sinkhorn's assignment: against float64 in the interpreter (on the GPU where
there is one), and compiled ahead of time for the GPUs that are not here.

The oracle is that of ``test_dino_kernels.py``. In the interpreter the ops themselves run, with the
launchers in the place of their CPU kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import triton_aot
from kernel_devices import needs_compiler, on, on_each_device
from test_dino_kernels import DTYPES, assert_as_exact
from torch import Tensor

from speechft import reference as R

# (N, K): one of everything; short rows, several a program; tails of tiles of rows and of codes, in
# both kernels; rows of several tiles and columns of several.
SHAPES = [(1, 1), (5, 3), (33, 144), (70, 20), (3, 4208)]
EPSILON = torch.finfo(torch.float32).eps


@contextmanager
def launchers(device: str, *, multiprocessors: int | None = None) -> Iterator[None]:
    """The ops run on the launchers, also on tensors of the CPU.

    With one multiprocessor a program goes over all there is; with more than there are tiles, as in
    the interpreter, over the least that a part has.
    """
    from speechft.kernels import _softmax_rows, sinkhorn

    from speechft.functional import _softmax_cpu

    with ExitStack() as stack:
        if device == "cpu":
            put = partial(mock.patch.object, _softmax_cpu)
            stack.enter_context(put("sinkhorn_columns", sinkhorn.sinkhorn_columns))
            stack.enter_context(put("sinkhorn_assign", sinkhorn.sinkhorn_assign))
            always_kernels = mock.patch(
                "speechft.backends.OpBackends.choose", return_value="triton"
            )
            stack.enter_context(always_kernels)
        if multiprocessors is not None:
            stack.enter_context(
                mock.patch.object(_softmax_rows, "multiprocessors", return_value=multiprocessors)
            )
        yield


def logits_of(shape: tuple[int, int], dtype: torch.dtype, largest: float | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator) + torch.randn(shape[1], generator=generator)
    logits = logits / 4 if largest is None else logits * (largest / logits.abs().max())
    return logits.to(dtype)


def check(
    *,
    device: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    largest: float | None = None,
    factor: float = 2,
    epsilon: float = 0.05,
    iterations: int = 3,
    multiprocessors: int | None = None,
    strided: bool = False,
) -> None:
    from speechft import functional as F

    logits = logits_of(shape, dtype, largest)
    rest: dict[str, Any] = {"epsilon": epsilon, "iterations": iterations}
    ours = logits.to(device)
    if strided:
        ours = torch.stack([ours, -ours], 2)[..., 0]
    with launchers(device, multiprocessors=multiprocessors):
        center = F.sinkhorn_center(ours, **rest)
        found = F.sinkhorn(ours, **rest)
    assert center.dtype == found.dtype == torch.float32
    for name, value, reference in (
        ("center", center, R.sinkhorn_center),
        ("assignments", found, R.sinkhorn),
    ):
        same, truth = reference(logits, **rest), reference(logits.double(), **rest)
        assert_as_exact(value, same, truth, EPSILON, name, factor)


def check_half_iteration(
    *, device: str, shape: tuple[int, int], dtype: torch.dtype, multiprocessors: int | None
) -> None:
    """The ops alone, with a bias of any kind and with none, some rows left out."""
    logits = logits_of(shape, dtype)
    bias = torch.randn(shape[1], generator=torch.Generator().manual_seed(1)) / 4
    valid = torch.arange(shape[0]) % 3 != 1
    logits[~valid] = torch.nan
    epsilon = torch.tensor(0.07)

    def expected(precision: torch.dtype, with_bias: bool) -> tuple[Tensor, Tensor]:
        rows, of_codes, scale = (it.to(precision) for it in (logits[valid], bias, epsilon))
        a = scale * ((rows + of_codes) / scale).logsumexp(1, keepdim=True) if with_bias else 0
        assigned = torch.zeros(shape, dtype=precision)
        assigned[valid] = ((rows + of_codes) / scale).softmax(1)
        return scale * ((rows - a) / scale).logsumexp(0), assigned

    ours = logits.to(device), bias.to(device), epsilon.to(device), valid.to(device)
    for with_bias in (True, False):
        same, truth = (expected(it, with_bias) for it in (torch.float32, torch.float64))
        given = ours[1] if with_bias else None
        with launchers(device, multiprocessors=multiprocessors):
            columns = torch.ops.speechft.sinkhorn_columns(ours[0], given, *ours[2:])
        assert_as_exact(columns, same[0], truth[0], EPSILON, f"columns, {with_bias}")
    with launchers(device, multiprocessors=multiprocessors):
        assigned = torch.ops.speechft.sinkhorn_assign(*ours)
    assert (assigned[~ours[3]] == 0).all()
    assert_as_exact(assigned, same[1], truth[1], EPSILON, "assignments")


@on_each_device
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_the_reference(device: str, shape: tuple[int, int]) -> None:
    turn = SHAPES.index(shape)
    for dtype in DTYPES if device == "cuda" else [DTYPES[turn % 3]]:
        multiprocessors = None if turn % 2 else 1
        on(device, check, shape=shape, dtype=dtype, multiprocessors=multiprocessors)


@on_each_device
@pytest.mark.parametrize("multiprocessors", [None, 1])
def test_half_an_iteration_leaves_rows_out(device: str, multiprocessors: int | None) -> None:
    for dtype, shape in zip(DTYPES, [(33, 130), (70, 20), (3, 1100)], strict=True):
        on(device, check_half_iteration, shape=shape, dtype=dtype, multiprocessors=multiprocessors)


@on_each_device
@pytest.mark.parametrize("multiprocessors", [None, 1])
def test_large_logits_keep_their_digits(device: str, multiprocessors: int | None) -> None:
    # A logit of 1e4 has 1 / 1024 for its last digit, and so has its centre: 0.02 over epsilon.
    for dtype in (torch.float32, torch.bfloat16):
        on(
            device, check, shape=(70, 256), dtype=dtype, largest=1e4, iterations=2, factor=3,
            multiprocessors=multiprocessors,
        )  # fmt: skip


@on_each_device
def test_strides(device: str) -> None:
    on(device, check, shape=(9, 70), dtype=torch.bfloat16, strided=True, iterations=1)


def check_frames(*, device: str) -> None:
    """Frames beyond the lengths hold NaN, and have no part."""
    from speechft import functional as F

    lengths = torch.tensor([4, 1, 6])
    logits = logits_of((18, 30), torch.float32).view(3, 6, 30)
    beyond = torch.arange(6) >= lengths[:, None]
    logits[beyond] = 0
    same, truth = (R.sinkhorn(it, lengths=lengths) for it in (logits, logits.double()))
    logits[beyond] = torch.nan
    with launchers(device):
        found = F.sinkhorn(logits.to(device), lengths=lengths.to(device))
    assert (found.cpu()[beyond] == 0).all()
    assert_as_exact(found, same, truth, EPSILON, "assignments")


@on_each_device
def test_frames_beyond_the_lengths_have_no_part(device: str) -> None:
    on(device, check_frames)


def check_nothing_counts(*, device: str) -> None:
    """No row that counts, of a rank, say: the sums are of nothing, and nothing is NaN."""
    from speechft.kernels.sinkhorn import sinkhorn_assign, sinkhorn_columns

    logits = torch.full((40, 130), torch.nan, device=device)
    bias, epsilon = torch.zeros(130, device=device), torch.tensor(0.05, device=device)
    valid = torch.zeros(40, dtype=torch.bool, device=device)
    for given in (None, bias):
        assert (sinkhorn_columns(logits, given, epsilon, valid) == -torch.inf).all()
        assert (sinkhorn_columns(logits[:0], given, epsilon, valid[:0]) == -torch.inf).all()
    assert (sinkhorn_assign(logits, bias, epsilon, valid) == 0).all()


@on_each_device
def test_no_rows_that_count(device: str) -> None:
    on(device, check_nothing_counts)


def check_dead_codes(*, device: str) -> None:
    """Codes that no row is near have finite sums, as in float64."""
    from speechft.kernels.sinkhorn import sinkhorn_columns

    logits = logits_of((40, 20), torch.float32).to(device)
    logits[:, ::2] -= 1000
    epsilon = torch.tensor(0.05, device=device)
    found = sinkhorn_columns(logits, torch.zeros(20, device=device), epsilon, None)
    wide = logits.double() / epsilon
    truth = epsilon * (wide - wide.logsumexp(1, keepdim=True)).logsumexp(0)
    assert truth.min() < -900
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=1e-6)


@on_each_device
def test_dead_codes(device: str) -> None:
    on(device, check_dead_codes)


def check_ascending(*, device: str) -> None:
    """The second tile of a row has a larger maximum than the first."""
    from speechft.kernels.sinkhorn import sinkhorn_assign

    logits = torch.linspace(0, 1, 4208) * torch.tensor([[0.1], [3.0]])
    bias, epsilon = torch.zeros(4208, device=device), torch.tensor(0.05, device=device)
    found = sinkhorn_assign(logits.to(device), bias, epsilon, None)
    truth = (logits.double() / 0.05).softmax(1)
    torch.testing.assert_close(found.cpu().double(), truth, rtol=1e-5, atol=1e-9)


@on_each_device
def test_the_maximum_may_come_last(device: str) -> None:
    on(device, check_ascending)


def check_twice(*, device: str) -> None:
    from speechft.kernels.sinkhorn import sinkhorn_assign, sinkhorn_columns

    logits = logits_of((70, 140), torch.float32).to(device)
    bias, epsilon = torch.randn(140, device=device), torch.tensor(0.05, device=device)
    for op in (sinkhorn_columns, sinkhorn_assign):
        first, again = (op(logits, bias, epsilon, None) for _ in range(2))
        assert torch.equal(first, again)


@on_each_device
def test_the_same_bits_twice(device: str) -> None:
    on(device, check_twice)


def launches_of(dtype: torch.dtype, codes: int, *, valid: bool) -> list[Any]:
    """Launches with a bias, and without."""
    from speechft.kernels import _softmax_rows, sinkhorn

    empty = partial(torch.empty, device="meta")
    logits, bias, epsilon = empty(2048, codes, dtype=dtype), empty(codes), empty(())
    counted = empty(2048, dtype=torch.bool) if valid else None
    with ExitStack() as stack:
        launches = [
            stack.enter_context(triton_aot.recorded_launches(it))
            for it in (sinkhorn, _softmax_rows)
        ]
        sinkhorn.sinkhorn_columns(logits, bias, epsilon, counted)
        sinkhorn.sinkhorn_columns(logits, None, epsilon, counted)
        sinkhorn.sinkhorn_assign(logits, bias, epsilon, counted)
    return [it for of_module in launches for it in of_module]


def assert_compile_without_spills(
    capabilities: tuple[int, ...], dtype: torch.dtype, codes: int, *, valid: bool
) -> None:
    for launch in launches_of(dtype, codes, valid=valid):
        for usage in launch.assert_compiles_without_spills(capabilities):
            assert usage.shared_bytes <= 99 * 1024  # of sm_86 and sm_89


@needs_compiler
@pytest.mark.parametrize(
    ("capability", "dtype", "valid"), [(80, torch.bfloat16, True), (90, torch.float32, False)]
)
def test_kernels_compile_and_spill_nothing(
    capability: int, dtype: torch.dtype, valid: bool
) -> None:
    assert_compile_without_spills((capability,), dtype, 65536, valid=valid)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("codes", [256, 65536, 65537])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_compile_for_each_size(dtype: torch.dtype, codes: int, valid: bool) -> None:
    assert_compile_without_spills(triton_aot.CAPABILITIES, dtype, codes, valid=valid)
