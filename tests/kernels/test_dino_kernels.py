"""The Triton kernels of DINO's loss: against float64 in the interpreter (on the GPU where there is
one), and compiled ahead of time for the GPUs that are not here.

The oracle: the error against the float64 truth is at most twice that of the same-dtype reference,
plus machine epsilon. In the interpreter the op itself runs, with the launchers in the place of its
CPU kernels.
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
# (V_s, V_t, N, K): one of everything; short rows, several a program, with tails of rows and codes;
# more views, and no tails; several tiles of codes a row; several groups of rows.
SHAPES = [(2, 2, 1, 1), (2, 2, 21, 144), (5, 3, 3, 512), (2, 2, 1, 4208), (2, 1, 70, 20)]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "center": {"bias": "center"},
    "center, all pairs": {"bias": "center", "skip_same": False},
    "of each view": {"bias": "of each view"},
    "all pairs": {"skip_same": False},
}


@contextmanager
def launchers(device: str, *, multiprocessors: int | None = None) -> Iterator[None]:
    """The op runs on the launchers, also on tensors of the CPU.

    With one multiprocessor a program of the statistics goes over all codes; with more than there
    are tiles, as in the interpreter, over the least that a part has.
    """
    from speechft.kernels import _softmax_rows, dino

    from speechft.functional import _softmax_cpu

    with ExitStack() as stack:
        if device == "cpu":
            stack.enter_context(mock.patch.object(_softmax_cpu, "dino", dino.dino))
            always_kernels = mock.patch(
                "speechft.backends.OpBackends.choose", return_value="triton"
            )
            stack.enter_context(always_kernels)
        if multiprocessors is not None:
            stack.enter_context(
                mock.patch.object(_softmax_rows, "multiprocessors", return_value=multiprocessors)
            )
        yield


def assert_as_exact(
    value: Tensor, same: Tensor, truth: Tensor, epsilon: float, what: str, factor: float = 2
) -> None:
    """The oracle of the contract suite, on the root mean square and on the largest error."""
    value, same = value.cpu().double(), same.cpu().double()
    for name, size in (("rms", rms), ("largest", largest)):
        bound = factor * size(same - truth) + 4 * epsilon * size(truth)
        error = size(value - truth)
        assert error <= bound, f"{what}: {name} error {error:.3e}, allowed {bound:.3e}"


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def largest(values: Tensor) -> float:
    return float(values.abs().max())


def problem(
    shape: tuple[int, int, int, int], dtype: torch.dtype, largest_logit: float | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (V, N, K) of student and teacher, which agree in part."""
    V_s, V_t, N, K = shape
    generator = torch.Generator().manual_seed(N + K)
    common = torch.randn(N, K, generator=generator)
    student, teacher = (
        (common + torch.randn(V, N, K, generator=generator)) * 0.5 for V in (V_s, V_t)
    )
    if largest_logit is not None:
        student, teacher = (it * (largest_logit / it.abs().max()) for it in (student, teacher))
    return student.to(dtype), teacher.to(dtype)


def results(
    function: Callable[..., Any], student: list[Tensor], teacher: list[Tensor], **arguments: Any
) -> dict[str, Tensor]:
    """Losses, entropy, mean, and the gradient of all student views of a random sum of losses."""
    leaves = [it.detach().requires_grad_() for it in student]
    # One block where there is one, else a list of views.
    given = leaves[0] if leaves[0].dim() > 2 else leaves
    terms = function(given, teacher[0] if len(teacher) == 1 else teacher, **arguments)
    generator = torch.Generator().manual_seed(7)
    incoming = torch.randn(terms.loss.shape, generator=generator).to(terms.loss)
    gradients = torch.autograd.grad(terms.loss, leaves, incoming)
    return {
        "losses": terms.loss.detach(),
        "entropy": terms.teacher_entropy,
        "mean": terms.teacher_mean,
        "gradient": gradients[0] if len(leaves) == 1 else torch.stack(gradients),
    }


def check(
    *,
    device: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    bias: str = "",
    skip_same: bool = True,
    largest_logit: float | None = None,
    temperatures: tuple[float, float] = (0.1, 0.04),
    multiprocessors: int | None = None,
    reduction: str = "none",
    strided: bool = False,
) -> None:
    from speechft import functional as F

    student, teacher = problem(shape, dtype, largest_logit)
    rest: dict[str, Any] = {
        "student_temperature": temperatures[0], "teacher_temperature": temperatures[1],
        "skip_same": skip_same, "reduction": reduction,
    }  # fmt: skip
    V_t, K = shape[1], shape[3]
    row = torch.randn(V_t, K, generator=torch.Generator().manual_seed(3))
    if bias:
        rest["center"] = row if bias == "of each view" else row[0]
    exact_rest = {k: it.double() if isinstance(it, Tensor) else it for k, it in rest.items()}
    truth = results(R.dino_terms, [student.double()], [teacher.double()], **exact_rest)
    same = results(R.dino_terms, [student], [teacher], **rest)
    on_device = {k: it.to(device) if isinstance(it, Tensor) else it for k, it in rest.items()}
    ours = [student.to(device), teacher.to(device)]
    if strided:  # rows lie apart, of the teacher also codes
        ours[0] = torch.cat([ours[0], ours[0] + 1], 2)[:, :, :K]
        ours[1] = torch.stack([ours[1], -ours[1]], 3)[..., 0]
    with launchers(device, multiprocessors=multiprocessors):
        found = results(F.dino_terms, ours[:1], ours[1:], **on_device)
    for name, value in found.items():
        is_gradient = name == "gradient"
        assert value.dtype == (dtype if is_gradient else torch.float32)
        epsilon = torch.finfo(value.dtype).eps
        # The log of a sum that begins with 1 has the digits of 1, also where an entropy is near 0.
        more = 1 if name == "entropy" else 0
        three = (it[name].cpu().double() + more for it in (found, same, truth))
        assert_as_exact(*three, epsilon, name)


@on_each_device
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_the_reference(
    device: str, shape: tuple[int, int, int, int], setting: str
) -> None:
    turn = SHAPES.index(shape) + list(SETTINGS).index(setting)
    # The interpreter is slow: each setting and each shape meets each dtype, if not both at once.
    for dtype in DTYPES if device == "cuda" else [DTYPES[turn % 3]]:
        multiprocessors = None if turn % 2 else 1
        on(
            device, check, shape=shape, dtype=dtype, multiprocessors=multiprocessors,
            **SETTINGS[setting],
        )  # fmt: skip


@on_each_device
def test_one_view_each(device: str) -> None:
    for dtype in DTYPES:
        on(device, check, shape=(1, 1, 5, 40), dtype=dtype, skip_same=False, reduction="mean")


@on_each_device
def test_each_reduction(device: str) -> None:
    for reduction in ("mean", "sum"):
        on(device, check, shape=(2, 2, 5, 40), dtype=torch.float32, reduction=reduction)


@on_each_device
@pytest.mark.parametrize("bias", ["", "center"])
def test_large_logits_keep_their_digits(device: str, bias: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for rows, codes in ((6, 112), (1, 8192)):
            on(
                device, check, shape=(2, 2, rows, codes), dtype=dtype, bias=bias, largest_logit=1e4,
                multiprocessors=1,
            )  # fmt: skip


@on_each_device
def test_the_maximum_may_come_last(device: str) -> None:
    on(device, check_ascending, codes=4208)


def check_ascending(*, device: str, codes: int) -> None:
    """Each tile has larger logits than all before, far larger in some rows."""
    from speechft import functional as F

    steps = torch.linspace(0, 1, codes) * torch.tensor([1.0, 30.0, 1000.0])[:, None]
    student, teacher = steps.expand(2, -1, -1).contiguous(), steps.expand(2, -1, -1).contiguous()
    truth = results(R.dino_terms, [student.double()], [teacher.double()], reduction="none")
    same = results(R.dino_terms, [student], [teacher], reduction="none")
    with launchers(device, multiprocessors=1):
        found = results(F.dino_terms, [student.to(device)], [teacher.to(device)], reduction="none")
    for name, value in found.items():
        assert_as_exact(value, same[name], truth[name], torch.finfo(torch.float32).eps, name)


@on_each_device
def test_rows_and_codes_with_strides(device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        on(device, check, shape=(2, 2, 9, 70), dtype=dtype, strided=True)


def check_padding(*, device: str, dtype: torch.dtype) -> None:
    """Rows of weight 0 hold NaN, and nothing comes of them."""
    from speechft import functional as F

    lengths = torch.tensor([4, 1, 6])
    student, teacher = (it.unflatten(1, (3, 6)).clone() for it in problem((3, 2, 18, 90), dtype))
    beyond = torch.arange(6) >= lengths[:, None]
    # Of a centre this far off, a row of zeros would have infinite exponentials.
    center = torch.randn(90, generator=torch.Generator().manual_seed(3)) - 20
    rest: dict[str, Any] = {"reduction": "none", "center": center}
    rest["student_lengths"] = lengths
    student[:, beyond] = teacher[:, beyond] = 0
    exact_rest = rest | {"center": rest["center"].double()}
    truth = results(R.dino_terms, [student.double()], [teacher.double()], **exact_rest)
    same = results(R.dino_terms, [student], [teacher], **rest)
    student[:, beyond] = teacher[:, beyond] = torch.nan
    on_device = {k: it.to(device) if isinstance(it, Tensor) else it for k, it in rest.items()}
    with launchers(device):
        found = results(F.dino_terms, [student.to(device)], [teacher.to(device)], **on_device)
    assert (found["losses"].cpu()[beyond] == 0).all()
    assert (found["gradient"].cpu()[:, beyond] == 0).all()
    for name, value in found.items():
        assert_as_exact(value, same[name], truth[name], torch.finfo(value.dtype).eps, name)


@on_each_device
def test_padding_has_no_part(device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        on(device, check_padding, dtype=dtype)


def check_blocks(*, device: str, views: tuple[int, int], skip_same: bool) -> None:
    """Views in a list, one of them with rows apart, and in one block have the same bits, twice."""
    from speechft.kernels.dino import dino

    student, teacher = (it.to(device) for it in problem((*views, 9, 80), torch.bfloat16))
    # The first view of each in a memory of its own, with other strides.
    apart = [torch.cat([it[:1], it[:1]], 2)[:, :, :80] for it in (student, teacher)]
    bias = torch.randn(views[1], 80, generator=torch.Generator().manual_seed(3)).to(device)
    weights = torch.linspace(0, 1, 9, device=device)
    temperatures = [torch.tensor(it, device=device) for it in (0.1, 0.04)]
    runs = [
        dino(of_student, of_teacher, bias, *temperatures, weights, skip_same, True)
        for of_student, of_teacher in (
            ([student], [teacher]),
            ([student], [teacher]),
            ([apart[0], *student[1:, None]], [apart[1], *teacher[1:, None]]),
        )
    ]
    first, _, of_list = runs
    assert [tuple(it.shape) for it in of_list[3]] == [(1, 9, 80)] * views[0]
    assert all(it.is_contiguous() for it in of_list[3])
    for run in runs[1:]:
        for one, other in zip(first[:3], run[:3], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(torch.cat(first[3]), torch.cat(run[3]))
    losses, entropy, total, nothing = dino(
        [student], [teacher], bias, *temperatures, weights, skip_same, False
    )
    assert nothing == []
    for one, other in zip(first[:3], (losses, entropy, total), strict=True):
        assert torch.equal(one, other)


@on_each_device
@pytest.mark.parametrize(("views", "skip_same"), [((2, 2), True), ((3, 3), True), ((3, 1), False)])
def test_a_list_of_views_is_a_block(device: str, views: tuple[int, int], skip_same: bool) -> None:
    on(device, check_blocks, views=views, skip_same=skip_same)


def check_weights(*, device: str) -> None:
    """Weights scale losses and gradients, and no entropy; float16's gradient is lifted."""
    from speechft.kernels.dino import dino

    from speechft.functional._dino_op import LIFT

    student, teacher = (it.to(device) for it in problem((2, 2, 5, 70), torch.float16))
    temperatures = [torch.tensor(it, device=device) for it in (0.1, 0.04)]
    weights = torch.tensor([1.0, 0.0, 0.25, 1.0, -2.0], device=device)
    ones = torch.ones(5, device=device)
    plain = dino([student], [teacher], None, *temperatures, ones, True, True)
    found = dino([student], [teacher], None, *temperatures, weights, True, True)
    lifted = dino([student], [teacher], None, *temperatures, ones / 1024, True, True)
    wide = [it.float() for it in (student, teacher)]
    exact = dino([wide[0]], [wide[1]], None, *temperatures, ones / 1024, True, True)
    torch.testing.assert_close(found[0], plain[0] * weights)
    assert found[0][1] == 0
    assert torch.equal(found[1], plain[1] * (weights != 0))
    counted = teacher.float()[:, weights != 0].sum((0, 1))
    torch.testing.assert_close(found[2], counted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[3][0], plain[3][0] * weights[:, None].half())
    torch.testing.assert_close(lifted[3][0].float() / LIFT, exact[3][0], rtol=1e-3, atol=2e-10)


@on_each_device
def test_weights(device: str) -> None:
    on(device, check_weights)


def check_scale(*, device: str, dtype: torch.dtype, codes: int, rows: int) -> None:
    """Rows are scaled in place by their factors; a factor of 1 leaves any bits as they are."""
    from speechft.kernels.dino import dino_scale_

    before = [torch.randn(v, rows, codes, device=device).to(dtype) for v in (2, 1)]
    factor = torch.randn(rows, device=device)
    factor[-1] = 0
    factor[::3] = 1
    gradients = [it.clone() for it in before]
    dino_scale_(gradients, factor)
    for it, gradient in zip(before, gradients, strict=True):
        assert torch.equal(gradient[:, ::3], it[:, ::3])
        # the interpreter cuts to bfloat16, where a GPU rounds
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(
            gradient.float(), it.float() * factor[:, None], rtol=rounding, atol=rounding / 1e3
        )
    ones = [it.clone() for it in before]
    dino_scale_(ones, torch.ones(rows, device=device))
    assert all(torch.equal(*pair) for pair in zip(ones, before, strict=True))


@on_each_device
@pytest.mark.parametrize(("rows", "codes"), [(1, 1), (23, 70), (3, 5000), (2, 17000)])
def test_scale(device: str, rows: int, codes: int) -> None:
    for dtype in DTYPES:
        on(device, check_scale, dtype=dtype, codes=codes, rows=rows)


def check_far_rows(*, device: str) -> None:
    """Rows that lie 2^31 numbers from the first, and farther."""
    from speechft.kernels.dino import dino
    from speechft.kernels.sinkhorn import sinkhorn_assign, sinkhorn_columns

    stride = 2**30 + 16
    memory = torch.empty(2 * stride + 400, dtype=torch.float16, device=device)
    far = memory.as_strided((4, 3, 100), (100, stride, 1))
    near = torch.randn(4, 3, 100, device=device).half()
    far.copy_(near)
    temperatures = [torch.tensor(it, device=device) for it in (0.1, 0.04)]
    bias, weights = torch.randn(100, device=device), torch.ones(3, device=device)
    found, same = (
        dino([it[:2]], [it[2:]], None, *temperatures, weights, True, True) for it in (far, near)
    )
    for one, other in zip([*found[:3], *found[3]], [*same[:3], *same[3]], strict=True):
        assert torch.equal(one, other)
    for op in (sinkhorn_columns, sinkhorn_assign):
        one, other = (op(it[0], bias, temperatures[1], None) for it in (far, near))
        assert torch.equal(one, other)


@on_each_device
@pytest.mark.slow
def test_offsets_beyond_32_bits(device: str) -> None:
    on(device, check_far_rows)


def launches_of(
    dtype: torch.dtype, codes: int, *, bias: bool, views: tuple[int, int], gradient: bool = True
) -> list[Any]:
    """Launches of the op and of its backward."""
    from speechft.kernels import _softmax_rows, dino

    empty = partial(torch.empty, device="meta")
    N = 1024
    student, teacher = (empty(V, N, codes, dtype=dtype) for V in views)
    with ExitStack() as stack:
        launches = [
            stack.enter_context(triton_aot.recorded_launches(it)) for it in (dino, _softmax_rows)
        ]
        dino.dino(
            [student], [teacher], empty(1, codes) if bias else None, empty(()), empty(()),
            empty(N), True, gradient,
        )  # fmt: skip
        dino.dino_scale_([student], empty(N))
    return [it for of_module in launches for it in of_module]


def assert_compile_without_spills(
    capabilities: tuple[int, ...], dtype: torch.dtype, codes: int, **arguments: Any
) -> None:
    for launch in launches_of(dtype, codes, **arguments):
        for usage in launch.assert_compiles_without_spills(capabilities):
            assert usage.shared_bytes <= 99 * 1024  # of sm_86 and sm_89


@needs_compiler
@pytest.mark.parametrize(
    ("capability", "dtype", "bias"), [(80, torch.bfloat16, True), (90, torch.float32, False)]
)
def test_kernels_compile_and_spill_nothing(capability: int, dtype: torch.dtype, bias: bool) -> None:
    assert_compile_without_spills((capability,), dtype, 65536, bias=bias, views=(3, 2))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("bias", "gradient"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("codes", [256, 65536, 65537])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_compile_for_each_size(
    dtype: torch.dtype, codes: int, bias: bool, gradient: bool
) -> None:
    assert_compile_without_spills(
        triton_aot.CAPABILITIES, dtype, codes, bias=bias, views=(3, 2), gradient=gradient
    )
