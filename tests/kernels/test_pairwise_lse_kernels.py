"""The Triton kernels of pairwise log-sum-exp: against float64 in the interpreter (on the GPU where
there is one), and compiled ahead of time for the GPUs that are not here.

The oracle: the error against the float64 truth is at most twice that of the same-dtype reference,
plus machine epsilon. In the interpreter the op itself runs, with the launchers in the place of its
CPU kernels, so that what its backward makes of incoming gradients is tested too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import triton_aot
from kernel_devices import needs_compiler, on, on_each_device
from torch import Tensor

from speechft import reference as R

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (N, M, D): one of everything; tails in each dimension; several tiles of rows and of columns;
# more features than one program holds.
SHAPES = [(1, 1, 1), (5, 7, 3), (33, 70, 20), (70, 131, 80), (140, 70, 300)]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "columns": {"columns": True},
    "queue": {"self_offset": 3, "columns": True},
    "gathered": {"self_offset": -4, "labels": True},
    "labels": {"labels": True, "columns": True},
    "own": {"labels": True, "self_offset": 0, "columns": True, "own": True},
    "same": {"same": True, "self_offset": 0, "columns": True},
    "same, labels": {"same": True, "labels": True, "self_offset": 0, "columns": True},
    "same, shifted": {"same": True, "self_offset": 3},
    "same, own": {"same": True, "labels": True, "self_offset": 0, "own": True},
}


@contextmanager
def launchers(
    device: str, *, multiprocessors: int | None = None, workspace_bytes: int | None = None
) -> Iterator[None]:
    """The op runs on the launchers, also on tensors of the CPU.

    With one multiprocessor a program sweeps all columns; with more than there are blocks of
    columns, as in the interpreter, each sweeps one block. A workspace of 64 KiB holds 128 x 128
    gradients of float32 logits.
    """
    from speechft.kernels import pairwise_lse as kernels

    from speechft.backends import atomics_allowed
    from speechft.functional import _pairwise_lse_cpu

    def backward(*args: Any) -> tuple[Tensor, Tensor]:
        return kernels.pairwise_lse_backward(*args, atomics=atomics_allowed())

    with ExitStack() as stack:
        if device == "cpu":
            stack.enter_context(bfloat16_products())
            put = partial(mock.patch.object, _pairwise_lse_cpu)
            stack.enter_context(put("pairwise_lse", kernels.pairwise_lse))
            stack.enter_context(put("pairwise_lse_backward", backward))
        replace = partial(mock.patch.object, kernels)
        if multiprocessors is not None:
            stack.enter_context(replace("_multiprocessors", return_value=multiprocessors))
        if workspace_bytes is not None:
            stack.enter_context(replace("_WORKSPACE_BYTES", workspace_bytes))
        yield


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Triton's interpreter computes in numpy, which has no bfloat16: it would multiply the bits."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return TensorHandle(wide, tl.float32)

    def multiply(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, widened(a), widened(b), *rest)

    with mock.patch.object(InterpreterBuilder, "create_dot", multiply):
        yield


def op(
    query: Tensor,
    key: Tensor | None,
    *,
    scale: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    columns: bool,
    own: bool,
) -> list[Tensor]:
    """The op without its door, where values would be checked and the backend chosen."""
    negatives, positives, positive_sum, _, of_columns = torch.ops.speechft.pairwise_lse(
        query, key, scale, query_labels, key_labels, self_offset, columns, own
    )
    return [negatives, positives, positive_sum, *([of_columns] if columns else [])]


def reference(query: Tensor, key: Tensor | None, **arguments: Any) -> list[Tensor]:
    return [it for it in R.pairwise_lse(query, key, **arguments) if it is not None]


def values_and_gradients(
    function: Callable[..., list[Tensor]],
    inputs: list[Tensor],
    same: bool,
    incoming_scale: float = 1.0,
    **arguments: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    """What is returned, and the gradients by queries, keys and scale of a random sum of it."""
    leaves = [it.detach().requires_grad_() for it in inputs]
    query, key, scale = leaves[0], None if same else leaves[1], leaves[-1]
    values = function(query, key, scale=scale, **arguments)
    generator = torch.Generator().manual_seed(7)
    incoming = [
        (incoming_scale * torch.randn(it.shape, generator=generator)).to(it) for it in values
    ]
    return [it.detach() for it in values], list(torch.autograd.grad(values, leaves, incoming))


def assert_as_exact(value: Tensor, same: Tensor, truth: Tensor, epsilon: float, what: str) -> None:
    """The oracle of the contract suite, on the root mean square and on the largest error."""
    value, same = value.cpu().double(), same.cpu().double()
    infinite = truth.isinf()
    assert torch.equal(value[infinite], truth[infinite]), f"{what}: infinite elsewhere"
    value, same, truth = (it[~infinite] for it in (value, same, truth))
    if not truth.numel():
        return
    for name, size in (("rms", rms), ("largest", largest)):
        bound = 2 * size(same - truth) + 4 * epsilon * size(truth)
        error = size(value - truth)
        assert error <= bound, f"{what}: {name} error {error:.3e}, allowed {bound:.3e}"


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def largest(values: Tensor) -> float:
    return float(values.abs().max())


def problem(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    same: bool = False,
    labels: bool = False,
    label_dtype: torch.dtype = torch.int64,
    largest_logit: float | None = None,
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Features with an offset, and labels of which some are unknown and some of one side alone."""
    N, M, D = shape
    generator = torch.Generator().manual_seed(N + D)
    query, key = ((torch.randn(n, D, generator=generator) + 0.3).to(dtype) for n in (N, M))
    scale = torch.tensor(4 / D**0.5)
    if largest_logit is not None:
        scale = largest_logit / (query.float() @ (query if same else key).float().T).abs().max()
    of_query = of_key = None
    if labels:
        of_query = torch.randint(-1, 5, (N,), generator=generator).to(label_dtype)
        of_key = torch.randint(-1, 4, (M,), generator=generator).to(label_dtype)
    tensors = [query, scale] if same else [query, key, scale]
    return tensors, {"query_labels": of_query, "key_labels": None if same else of_key}


def check(
    *,
    device: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    same: bool = False,
    self_offset: int | None = None,
    columns: bool = False,
    own: bool = False,
    multiprocessors: int | None = None,
    workspace_bytes: int | None = None,
    incoming_scale: float = 1.0,
    given_labels: tuple[list[int], list[int] | None] | None = None,
    atomics: bool = False,
    strided: bool = False,
    twice: bool = False,
    **of_problem: Any,
) -> None:
    import speechft

    inputs, labels = problem(shape, dtype, same=same, **of_problem)
    if given_labels is not None:
        names = ("query_labels", "key_labels")
        labels = {
            name: None if it is None else torch.tensor(it)
            for name, it in zip(names, given_labels, strict=True)
        }
    rest: dict[str, Any] = {"self_offset": self_offset, "columns": columns, "own": own}
    rest["incoming_scale"] = incoming_scale
    exact = values_and_gradients(reference, [it.double() for it in inputs], same, **labels, **rest)
    wide = values_and_gradients(reference, inputs, same, **labels, **rest)
    ours = [it.to(device) for it in inputs]
    if strided:  # neither rows nor features lie side by side
        ours[:-1] = [torch.stack([it, -it], 2)[:, :, 0] for it in ours[:-1]]
        assert all(it.stride(1) != 1 for it in ours[:-1])
    on_device = {name: None if it is None else it.to(device) for name, it in labels.items()}
    with ExitStack() as stack:
        stack.enter_context(
            launchers(device, multiprocessors=multiprocessors, workspace_bytes=workspace_bytes)
        )
        if atomics:
            stack.enter_context(speechft.atomics())
        values, gradients = values_and_gradients(op, ours, same, **on_device, **rest)
        if twice:
            again = values_and_gradients(op, ours, same, **on_device, **rest)
            for first, second in zip([*values, *gradients], [*again[0], *again[1]], strict=True):
                assert torch.equal(first, second), "not the same bits twice"
    epsilon = torch.finfo(torch.float32).eps
    for i, value in enumerate(values):
        assert value.dtype == torch.float32
        assert_as_exact(value, wide[0][i], exact[0][i], epsilon, f"output {i}")
    # The backward makes the logits again, and has each to its last digit.
    epsilon = torch.finfo(dtype).eps + epsilon * (of_problem.get("largest_logit") or 0)
    for i, value in enumerate(gradients[:-1]):
        assert_as_exact(value, wide[1][i], exact[1][i], epsilon, f"gradient {i}")
    # Made of the gradient by the queries, whose terms were rounded to the dtype of the features.
    terms = (exact[1][0] * inputs[0]).sum(1).abs().sum() / inputs[-1]
    error = (gradients[-1].cpu() - exact[1][-1]).abs()
    bound = 2 * (wide[1][-1] - exact[1][-1]).abs() + 4 * epsilon * terms
    assert error <= bound, f"scale: error {error:.3e}, allowed {bound:.3e}"


def check_sides(*, device: str, dtype: torch.dtype, features: int) -> None:
    """The gradient of one side alone is that of both."""
    from speechft.kernels.pairwise_lse import pairwise_lse, pairwise_lse_backward

    (query, key, scale), _ = problem((20, 30, features), dtype)
    query, key, scale = query.to(device), key.to(device), scale.to(device)
    rows, columns = torch.randn(5, 20, device=device), torch.randn(2, 30, device=device)
    with launchers(device):
        rows[0], _, _, _, columns[0] = pairwise_lse(
            query, key, scale, None, None, None, True, False
        )
        dq, dk = (
            pairwise_lse_backward(
                query, key, scale, None, None, None, False, list(rows), list(columns), *needed
            )
            for needed in ((True, False), (False, True))
        )
        both = pairwise_lse_backward(
            query, key, scale, None, None, None, False, list(rows), list(columns), True, True
        )
    assert dq[1].shape == dk[0].shape == (0,)
    for alone, together in ((dq[0], both[0]), (dk[1], both[1])):
        assert alone.dtype == torch.float32
        rounding = (2 * torch.finfo(dtype).eps + 1e-5) * largest(together)
        torch.testing.assert_close(alone, together, rtol=0, atol=rounding)


@on_each_device
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_the_reference(
    device: str, shape: tuple[int, int, int], setting: str
) -> None:
    turn = SHAPES.index(shape) + list(SETTINGS).index(setting)
    # The interpreter is slow: each setting and each shape meets each dtype, if not both at once.
    dtypes = DTYPES if device == "cuda" else [DTYPES[turn % 3]]
    for dtype in dtypes:
        sweep_all = None if turn % 2 else 1
        on(device, check, shape=shape, dtype=dtype, multiprocessors=sweep_all, **SETTINGS[setting])


@on_each_device
def test_a_row_may_have_no_negatives_or_no_positives(device: str) -> None:
    # All keys are of class 0: a query of it has no negatives, one of class 1 no positives, an
    # unknown one neither; with the identity left out, so has the last.
    labels = ([0, 1, -1, 0, 0], [0, 0, -1])
    for own in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            on(
                device, check, shape=(5, 3, 4), dtype=dtype, given_labels=labels, own=own,
                columns=True,
            )  # fmt: skip
            on(
                device, check, shape=(4, 4, 4), dtype=dtype, given_labels=([0, 0, 1, -1], None),
                own=own, columns=True, same=True, self_offset=0,
            )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("setting", ["columns", "own", "same, labels"])
def test_large_logits_keep_their_digits(device: str, setting: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        on(
            device, check, shape=(20, 150, 16), dtype=dtype, largest_logit=1e4, multiprocessors=1,
            **SETTINGS[setting],
        )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("features", [16, 300])
def test_faint_gradients_in_float16(device: str, features: int) -> None:
    arguments: dict[str, Any] = {"shape": (20, 30, features), "incoming_scale": 1e-9}
    on(device, check, dtype=torch.float16, columns=True, **arguments)


@on_each_device
@pytest.mark.parametrize("setting", ["plain", "queue", "own"])
def test_atomics(device: str, setting: str) -> None:
    for dtype, features in ((torch.bfloat16, 80), (torch.float16, 16), (torch.float32, 8)):
        shape = (140, 70, features)
        on(device, check, shape=shape, dtype=dtype, atomics=True, **SETTINGS[setting])


@on_each_device
@pytest.mark.parametrize("setting", ["queue", "labels", "same, own"])
def test_the_workspace_may_hold_a_part(device: str, setting: str) -> None:
    on(
        device, check, shape=(140, 150, 8), dtype=torch.float32, workspace_bytes=2**16,
        **SETTINGS[setting],
    )  # fmt: skip


@on_each_device
def test_strides_and_types_of_labels(device: str) -> None:
    for dtype, label_dtype in (
        (torch.float32, torch.int32),
        (torch.bfloat16, torch.int16),
        (torch.float16, torch.int8),
    ):
        on(
            device, check, shape=(9, 70, 32), dtype=dtype, label_dtype=label_dtype, strided=True,
            **SETTINGS["own"],
        )  # fmt: skip
    # labels that differ above their lower 32 bits
    far = ([1, 2**32 + 1, 2**40, -1], [2**32 + 1, 1, 2**41])
    on(device, check, shape=(4, 3, 5), dtype=torch.float32, given_labels=far)


@on_each_device
def test_the_same_bits_twice(device: str) -> None:
    for dtype, features in ((torch.bfloat16, 16), (torch.float32, 16)):
        shape = (140, 70, features)
        on(device, check, shape=shape, dtype=dtype, twice=True, **SETTINGS["own"])


@on_each_device
def test_one_side_alone(device: str) -> None:
    for dtype, features in ((torch.bfloat16, 16), (torch.float32, 16), (torch.float16, 272)):
        on(device, check_sides, dtype=dtype, features=features)


def launches_of(dtype: torch.dtype, features: int, *, labels: bool, hopper: bool) -> list[Any]:
    """Launches of forward, columns, own, and of the backward of two towers, of one, by atomics."""
    from speechft.kernels import pairwise_lse as kernels

    N = 4096
    query, key = (torch.empty(N, features, dtype=dtype, device="meta") for _ in "qk")
    scale = torch.empty((), device="meta")
    classes = torch.empty(N, dtype=torch.int64, device="meta") if labels else None
    rows, columns = ([torch.empty(N, device="meta") for _ in range(n)] for n in (5, 2))
    pairs = (query, key, scale, classes, classes, 0)
    alone = (query, None, scale, classes, None, 0)
    with (
        triton_aot.recorded_launches(kernels) as launches,
        mock.patch.object(kernels, "_is_hopper", return_value=hopper),
    ):
        kernels.pairwise_lse(*pairs, True, labels)
        backward = partial(kernels.pairwise_lse_backward, need_query=True, need_key=True)
        backward(*pairs, labels, rows, columns)
        backward(*pairs, labels, rows, columns, atomics=True)
        backward(*alone, labels, rows, [])
    different = {str((it.kernel.__name__, it.constexprs, it.signature)): it for it in launches}
    return list(different.values())


def assert_compile_without_spills(dtype: torch.dtype, features: int, *, labels: bool) -> None:
    for capability in triton_aot.CAPABILITIES:
        for launch in launches_of(dtype, features, labels=labels, hopper=capability == 90):
            (usage,) = launch.assert_compiles_without_spills((capability,))
            if capability == 80:  # blocks of sm_86 and sm_89 have 99 KiB
                assert usage.shared_bytes <= 99 * 1024


@needs_compiler
def test_kernels_compile_and_spill_nothing() -> None:
    # Labels take the most registers, and the gradient of 256 features.
    assert_compile_without_spills(torch.bfloat16, 256, labels=True)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("features", [64, 100, 128, 256, 1024, 2048])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_compile_for_each_size(dtype: torch.dtype, features: int, labels: bool) -> None:
    assert_compile_without_spills(dtype, features, labels=labels)
