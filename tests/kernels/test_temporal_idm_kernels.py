"""The Triton kernels of the contrastive inverse difference moment: against float64 in the
interpreter (on the GPU where there is one), and compiled ahead of time for the GPUs that are not
here.

The oracle: the error against the float64 truth is at most twice that of the same-dtype reference,
plus four machine epsilons.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import triton_aot
from kernel_devices import needs_compiler, on, on_each_device
from torch import Tensor

from speechft import reference as R

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (B, T, D): one of everything; tails in each dimension; whole tiles; several of them and a tail.
SHAPES = [(1, 1, 1), (2, 7, 3), (1, 64, 64), (2, 130, 5), (1, 70, 67)]


def problem(
    shape: tuple[int, int, int], dtype: torch.dtype, *, kind: str = ""
) -> tuple[Tensor, Tensor]:
    """Frames, about as far apart as the margin, and lengths; NaN beyond them.

    Args:
        shape: (B, T, D).
        dtype: of the frames.
        kind: ``"near"``: a slow walk far from 0, with some frames twice; ``"split"``: two clusters
            farther apart than the margin; ``"alike"``: features that are the same.
    """
    B, T, D = shape
    generator = torch.Generator().manual_seed(T + D)
    x = 0.8 * torch.randn(shape, generator=generator) / D**0.5
    if kind == "near":
        x = 2 + 1e-3 * x.cumsum(1)
        x[:, 1::5] = x[:, : x[:, 1::5].shape[1] * 5 : 5]
    if kind == "split":
        x[:, T // 2 :] += 3
    if kind == "alike":
        x = x[..., :1].expand(shape)
    x = x.to(dtype)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    lengths[0] = T
    return x.masked_fill(~(torch.arange(T) < lengths[:, None])[..., None], torch.nan), lengths


def reference(x: Tensor, lengths: Tensor, sigma: float, margin: float) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    value = R.temporal_idm(leaf, lengths, sigma=sigma, margin=margin, reduction="none")
    return [value.detach(), torch.autograd.grad(value.sum(), leaf)[0]]


def assert_as_exact(value: Tensor, same: Tensor, truth: Tensor, epsilon: float, what: str) -> None:
    """The oracle of the contract suite, on the root mean square and on the largest error."""
    value, same = value.cpu().double(), same.double()
    assert torch.isfinite(value).all(), f"{what} is not finite"
    for name, size in (("rms", rms), ("largest", largest)):
        bound = 2 * size(same - truth) + 4 * epsilon * size(truth)
        error = size(value - truth)
        assert error <= bound, f"{what}: {name} error {error:.3e}, allowed {bound:.3e}"


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def largest(values: Tensor) -> float:
    return float(values.abs().max())


def check(
    *,
    device: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    near: int = 0,
    margin: float = 1.0,
    layout: str = "",
    workspace: int | None = None,
    twice: bool = False,
    **of_problem: Any,
) -> None:
    from speechft.kernels import temporal_idm as kernels

    x, lengths = problem(shape, dtype, **of_problem)
    exact = reference(x.double(), lengths, near, margin)
    same = reference(x, lengths, near, margin)
    ours = x.to(device)
    if layout == "transposed":
        ours = ours.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "spread":
        ours = torch.stack([ours, torch.full_like(ours, torch.nan)], -1)[..., 0]
    arguments = (ours, lengths.to(device), near, margin)
    with mock.patch.object(kernels, "_WORKSPACE_BYTES", workspace or kernels._WORKSPACE_BYTES):
        value, gradient = kernels.temporal_idm(*arguments, True)
    alone, nothing = kernels.temporal_idm(*arguments, False)
    assert torch.equal(alone, value)
    assert nothing.numel() == 0
    assert value.dtype == gradient.dtype == torch.float32
    assert not gradient.cpu()[~(torch.arange(shape[1]) < lengths[:, None])].any()
    assert_as_exact(value, same[0], exact[0], torch.finfo(torch.float32).eps, "value")
    assert_as_exact(gradient.to(dtype), same[1], exact[1], torch.finfo(dtype).eps, "gradient")
    if twice:
        for one, two in zip((value, gradient), kernels.temporal_idm(*arguments, True), strict=True):
            assert torch.equal(one, two)


@on_each_device
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(device: str, shape: tuple[int, int, int]) -> None:
    on(device, check, shape=shape, twice=True)


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision(device: str, dtype: torch.dtype) -> None:
    on(device, check, shape=(2, 70, 9), dtype=dtype)


@on_each_device
@pytest.mark.parametrize(("near", "margin"), [(1, 1.1), (5, 0.3), (100, 1.0)])
def test_settings(device: str, near: int, margin: float) -> None:
    on(device, check, shape=(2, 70, 9), near=near, margin=margin)


@on_each_device
@pytest.mark.parametrize("kind", ["near", "split"])
def test_frames_of_each_kind(device: str, kind: str) -> None:
    on(device, check, shape=(2, 140, 9), kind=kind, near=1)


@on_each_device
def test_sums_of_many_squares(device: str) -> None:
    """Each is rounded in the same way by a sum that grows."""
    on(device, check, shape=(2, 2, 600), kind="alike", near=1)


def check_scale(*, device: str, exponent: int) -> None:
    from speechft.kernels import temporal_idm as kernels

    x, lengths = (t.to(device) for t in problem((2, 70, 9), torch.float32))
    factor = 2.0**exponent
    value, gradient = kernels.temporal_idm(x, lengths, 1, 1.0, True)
    of_scaled = kernels.temporal_idm(factor * x, lengths, 1, factor, True)
    assert torch.equal(of_scaled[0], factor * value)
    assert torch.equal(of_scaled[1], gradient)


@on_each_device
@pytest.mark.parametrize("exponent", [-100, 100])
def test_squares_out_of_range(device: str, exponent: int) -> None:
    """Frames and margin times a power of two: bit for bit the same."""
    on(device, check_scale, exponent=exponent)


@on_each_device
@pytest.mark.parametrize("layout", ["transposed", "spread"])
def test_any_strides(device: str, layout: str) -> None:
    on(device, check, shape=(2, 70, 9), layout=layout)


@on_each_device
def test_a_sequence_at_a_time(device: str) -> None:
    """Where the weights of two do not fit in memory."""
    on(device, check, shape=(3, 70, 9), workspace=1)


@on_each_device
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["", "near", "split"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 300, 130)], ids=str)
def test_each_shape_of_each_kind(
    device: str, shape: tuple[int, int, int], kind: str, dtype: torch.dtype
) -> None:
    on(device, check, shape=shape, kind=kind, dtype=dtype, near=2)


def launches_of(
    shape: tuple[int, int, int], dtype: torch.dtype, *, gradient: bool, transposed: bool = False
) -> list[Any]:
    from speechft.kernels import temporal_idm as kernels

    B, T, D = shape
    x = torch.empty(B, D, T, dtype=dtype, device="meta").transpose(1, 2)
    x = x if transposed else torch.empty(shape, dtype=dtype, device="meta")
    lengths = torch.empty(B, dtype=torch.int64, device="meta")
    with triton_aot.recorded_launches(kernels) as launches:
        kernels.temporal_idm(x, lengths, 0, 1.1, gradient)
    return launches


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_kernels_compile_and_spill_nothing(dtype: torch.dtype) -> None:
    launches = launches_of((64, 500, 256), dtype, gradient=True)
    # 64 weights of 512 x 512 are 64 MiB, in one go.
    assert [it.kernel.__name__ for it in launches] == ["pairs_kernel", "gradient_kernel"]
    assert [it.grid for it in launches] == [(64 * 8 * 8,), (64 * 8 * 4,)]
    for launch in launches:
        for usage in launch.assert_compiles_without_spills():
            # Three blocks of 128 threads, of the 65536 registers of a multiprocessor; or two.
            most_registers = 168 if usage.capability >= 90 else 255
            assert usage.registers <= most_registers, f"{launch.kernel.__name__}: {usage}"


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(64, 500, 256), (2, 3000, 768), (8, 301, 100), (8, 300, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_compile_for_each_shape(
    dtype: torch.dtype, shape: tuple[int, int, int], transposed: bool, gradient: bool
) -> None:
    for launch in launches_of(shape, dtype, gradient=gradient, transposed=transposed)[:2]:
        launch.assert_compiles_without_spills()
