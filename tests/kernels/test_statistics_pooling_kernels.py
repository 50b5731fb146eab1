"""The Triton kernels of statistics pooling: against float64 in the interpreter (on the GPU where
there is one), and compiled ahead of time for the GPUs that are not here.

The oracle: the error against the float64 truth is at most twice that of the same-dtype reference,
plus four machine epsilons. In the interpreter the ops themselves run, with the launchers in the
place of their CPU kernels, so that what their backward makes of incoming gradients is tested too.
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
from speechft.reference.statistics_pooling import EPSILON

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (B, T, C): one of everything; tails in each dimension; whole tiles; several of them and a tail.
SHAPES = [(1, 1, 1), (2, 7, 3), (3, 150, 20), (1, 128, 64), (2, 200, 80), (1, 600, 5)]
SETTINGS: dict[str, dict[str, Any]] = {
    "equal": {"kind": "equal"},
    "correction": {"kind": "equal", "correction": 1},
    "weights": {"kind": "weights"},
    "heads": {"kind": "weights", "heads": True},
    "scores": {"kind": "scores"},
}
MEANS = {torch.float32: 1e4, torch.bfloat16: 30.0, torch.float16: 300.0}


@contextmanager
def launchers(device: str, *, most_splits: int | None = None) -> Iterator[None]:
    """The ops run on the launchers, also on tensors of the CPU.

    Tests have few programs, so that each has one tile of frames; with ``most_splits=1`` it has all
    frames of its channels.
    """
    from speechft.kernels import statistics_pooling as kernels

    from speechft.functional import _pooling_cpu

    with ExitStack() as stack:
        if device == "cpu":
            for name in ("statistics", "attentive_statistics"):
                for of in (name, f"{name}_backward"):
                    put = mock.patch.object(_pooling_cpu, of, getattr(kernels, of))
                    stack.enter_context(put)
        if most_splits is not None:
            stack.enter_context(mock.patch.object(kernels, "_MOST_SPLITS", most_splits))
        yield


def op(
    x: Tensor, rest: list[Tensor], lengths: Tensor | None, kind: str, correction: int
) -> list[Tensor]:
    """Mean, deviation and total or log-sum-exp: the ops without their doors, where values would be
    checked and the backend chosen.
    """
    if kind == "scores":
        return list(torch.ops.speechft.attentive_statistics(x, rest[0], lengths, EPSILON))
    weights = rest[0] if rest else None
    return list(torch.ops.speechft.statistics(x, weights, lengths, correction, EPSILON))


def reference(
    x: Tensor, rest: list[Tensor], lengths: Tensor | None, kind: str, correction: int
) -> list[Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    frames = torch.arange(x.shape[1])[None, :, None]
    valid = frames < (torch.tensor([x.shape[1]]) if lengths is None else lengths)[:, None, None]
    if kind == "scores":
        value = R.attentive_statistics_pooling(x, rest[0], lengths, epsilon=EPSILON)
        total = rest[0].to(wide).masked_fill(~valid, -torch.inf).logsumexp(1)
    else:
        value = R.statistics_pooling(
            x, lengths, weights=rest[0] if rest else None, correction=correction, epsilon=EPSILON
        )
        weights = rest[0] if rest else torch.ones_like(x[..., :1])
        total = torch.where(valid, weights.to(wide), 0.0).sum(1)
    return [*value.chunk(2, 1), total]


def values_and_gradients(
    function: Callable[..., list[Tensor]], inputs: list[Tensor], *arguments: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """What is returned, and the gradients of a random sum of means and deviations."""
    leaves = [it.detach().requires_grad_() for it in inputs]
    values = function(leaves[0], leaves[1:], *arguments)
    generator = torch.Generator().manual_seed(7)
    incoming = [torch.randn(it.shape, generator=generator).to(it) for it in values[:2]]
    gradients = torch.autograd.grad(values[:2], leaves, incoming)
    return [it.detach() for it in values], list(gradients)


def assert_as_exact(value: Tensor, same: Tensor, truth: Tensor, epsilon: float, what: str) -> None:
    """The oracle of the contract suite, on the root mean square and on the largest error."""
    value, same = value.cpu().double(), same.cpu().double()
    assert torch.isfinite(value).all(), f"{what} is not finite"
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
    kind: str,
    *,
    correction: int = 0,
    heads: bool = False,
    lengths: bool = True,
    mean: float = 0.3,
    largest_score: float = 0.0,
    left_out: bool = False,
    jump: float = 0.0,
    constant: bool = False,
) -> tuple[list[Tensor], Tensor | None]:
    """Frames and weights or scores, NaN beyond the lengths.

    Args:
        shape: (B, T, C).
        dtype: of frames, weights and scores.
        kind: of ``SETTINGS``.
        correction: that each length must be above.
        heads: weights of several groups of channels.
        lengths: have some.
        mean: of the frames.
        largest_score: the scores reach to it.
        left_out: the first frames of a few tiles, and some others, have no weight.
        jump: added to the frames from half of the time on.
        constant: all frames of the first channel are the same.
    """
    B, T, C = shape
    generator = torch.Generator().manual_seed(T + C)
    x = torch.randn(shape, generator=generator) + mean
    x[:, T // 2 :] += jump
    if constant:
        x[..., 0] = mean + 0.1
    rest = []
    out = torch.rand(shape, generator=generator) < 0.2
    out[:, : T // 2] = True
    out[:, -1] = False
    if kind == "weights":
        groups = next(n for n in (4, 3, 2, 1) if C % n == 0) if heads else 1
        weights = torch.rand(B, T, groups, generator=generator) + 0.1
        rest.append(weights.masked_fill(out[..., :groups], 0.0) if left_out else weights)
    if kind == "scores":
        scores = 2 * torch.randn(shape, generator=generator)
        if largest_score:
            scores *= largest_score / scores.abs().max()
        rest.append(scores.masked_fill(out, -torch.inf) if left_out else scores)
    inputs = [it.to(dtype) for it in (x, *rest)]
    if not lengths:
        return inputs, None
    found = torch.randint(1 + correction, T + 1, (B,), generator=generator)
    if left_out:
        found[:] = T
    found[0] = T
    beyond = torch.arange(T) >= found[:, None]
    for it in inputs:
        it[beyond] = torch.nan
    return inputs, found


def strided_like(tensor: Tensor, layout: str) -> Tensor:
    """Other strides: transposed from (B, C, T), or nothing side by side."""
    if layout == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "spread":
        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]
    return tensor


def check(
    *,
    device: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    kind: str,
    correction: int = 0,
    layouts: tuple[str, str] = ("", ""),
    most_splits: int | None = None,
    twice: bool = False,
    **of_problem: Any,
) -> None:
    inputs, lengths = problem(shape, dtype, kind, correction=correction, **of_problem)
    how = (kind, correction)
    exact = values_and_gradients(reference, [it.double() for it in inputs], lengths, *how)
    wide = values_and_gradients(reference, inputs, lengths, *how)
    ours = [
        strided_like(it.to(device), layout) for it, layout in zip(inputs, layouts, strict=False)
    ]
    on_device = None if lengths is None else lengths.to(device)
    with launchers(device, most_splits=most_splits):
        values, gradients = values_and_gradients(op, ours, on_device, *how)
        if twice:
            again = values_and_gradients(op, ours, on_device, *how)
            for first, second in zip([*values, *gradients], [*again[0], *again[1]], strict=True):
                assert torch.equal(first, second), "not the same bits twice"
    epsilon = torch.finfo(torch.float32).eps
    for i, name in enumerate(("mean", "deviation", "total")):
        assert values[i].dtype == torch.float32
        assert_as_exact(values[i], wide[0][i], exact[0][i], epsilon, name)
    # The backward takes differences to a mean and to a log-sum-exp of float32, of which the last
    # digit is that of a frame and of a score.
    epsilon *= sum(of_problem.get(name, 0.0) for name in ("mean", "jump", "largest_score"))
    epsilon += torch.finfo(dtype).eps
    for i, name in enumerate(("frames", kind)[: len(inputs)]):
        assert gradients[i].dtype == dtype
        assert gradients[i].shape == inputs[i].shape
        assert_as_exact(gradients[i], wide[1][i], exact[1][i], epsilon, f"gradient by {name}")
        if lengths is not None:
            beyond = torch.arange(shape[1]) >= lengths[:, None]
            assert (gradients[i].cpu()[beyond] == 0).all(), "padding has a gradient"


def check_clamped(*, device: str, dtype: torch.dtype, kind: str) -> None:
    """A constant channel has the least deviation, of which nothing comes back."""
    inputs, lengths = problem((2, 150, 6), dtype, kind, constant=True)
    leaves = [it.to(device).requires_grad_() for it in inputs]
    found = None if lengths is None else lengths.to(device)
    with launchers(device):
        mean, std, _ = op(leaves[0], leaves[1:], found, kind, 0)
        least = torch.tensor(EPSILON).sqrt().to(device)
        torch.testing.assert_close(std[:, 0], least.expand(2), rtol=1e-6, atol=0)
        torch.testing.assert_close(mean[:, 0].cpu(), inputs[0][:, 0, 0].float(), rtol=1e-6, atol=0)
        assert (std[:, 1:] > 0.1).all()
        of_constant = torch.autograd.grad(std[:, 0].sum(), leaves, retain_graph=True)
        of_others = torch.autograd.grad(std[:, 1:].sum(), leaves)
    for gradient in of_constant:
        assert (gradient == 0).all()
    for gradient in of_others:
        assert (gradient != 0).any()


def check_sides(*, device: str, kind: str, transposed: bool) -> None:
    """The gradient of one input alone is that of both; an incoming gradient may have strides."""
    from speechft.kernels import statistics_pooling as kernels

    (x, weights), lengths = problem((2, 70, 12), torch.float32, kind, heads=True)
    x, weights = x.to(device), weights.to(device)
    if transposed:
        x = strided_like(x, "transposed")
    lengths = None if lengths is None else lengths.to(device)
    incoming = torch.randn(2, 24, generator=torch.Generator().manual_seed(1)).to(device)
    g_mean, g_std = incoming.chunk(2, 1)
    run: Callable[..., tuple[Tensor, Tensor]]
    if kind == "scores":
        saved = kernels.attentive_statistics(x, weights, lengths, EPSILON)
        run = partial(
            kernels.attentive_statistics_backward,
            x, weights, lengths, *saved, g_mean, g_std, EPSILON,
        )  # fmt: skip
    else:
        saved = kernels.statistics(x, weights, lengths, 0, EPSILON)
        run = partial(
            kernels.statistics_backward,
            x, weights, lengths, *saved, g_mean, g_std, 0, EPSILON,
        )  # fmt: skip
    both = run(True, True)
    for alone, nothing, together in (
        (run(True, False)[0], run(True, False)[1], both[0]),
        (run(False, True)[1], run(False, True)[0], both[1]),
    ):
        assert nothing.shape == (0,)
        assert alone.is_contiguous()
        assert torch.equal(alone, together)


def check_no_weight(*, device: str) -> None:
    """Where no frame has a weight there are no statistics; other samples keep theirs."""
    x = torch.randn(2, 70, 4, generator=torch.Generator().manual_seed(1)).to(device)
    for kind, none in (("weights", 0.0), ("scores", -torch.inf)):
        weights = torch.ones_like(x) if kind == "scores" else torch.ones_like(x[..., :1])
        weights[0] = none
        for most_splits in (1, None):
            with launchers(device, most_splits=most_splits):
                mean, std, _ = op(x, [weights], None, kind, 0)
            assert mean[0].isnan().all()
            assert std[0].isnan().all()
            torch.testing.assert_close(mean[1], x[1].mean(0))
            torch.testing.assert_close(std[1], x[1].std(0, correction=0))


@on_each_device
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_the_reference(
    device: str, shape: tuple[int, int, int], setting: str
) -> None:
    if setting == "correction" and shape[1] == 1:
        pytest.skip("one frame has no corrected deviation")
    turn = SHAPES.index(shape) + list(SETTINGS).index(setting)
    # The interpreter is slow: each setting and each shape meets each dtype, if not both at once.
    dtypes = DTYPES if device == "cuda" else [DTYPES[turn % 3]]
    for dtype in dtypes:
        on(
            device, check, shape=shape, dtype=dtype, most_splits=(1, 2, None)[turn % 3],
            lengths=turn % 4 != 3, **SETTINGS[setting],
        )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("setting", SETTINGS)
def test_any_strides(device: str, setting: str) -> None:
    turn = list(SETTINGS).index(setting)
    for i, layouts in enumerate(
        (("transposed", "transposed"), ("transposed", ""), ("spread", "spread"))
    ):
        dtypes = DTYPES if device == "cuda" else [DTYPES[(turn + i) % 3]]
        for dtype in dtypes:
            on(
                device, check, shape=(2, 150, 24), dtype=dtype, layouts=layouts,
                most_splits=1, **SETTINGS[setting],
            )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_large_mean_takes_no_digits_of_the_deviation(
    device: str, dtype: torch.dtype, setting: str
) -> None:
    for most_splits in (1, None):
        on(
            device, check, shape=(1, 300, 64), dtype=dtype, mean=MEANS[dtype],
            most_splits=most_splits, **SETTINGS[setting],
        )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("setting", ["equal", "heads", "scores"])
def test_frames_may_jump(device: str, setting: str) -> None:
    on(
        device, check, shape=(1, 300, 64), dtype=torch.float32, jump=1e3, most_splits=1,
        **SETTINGS[setting],
    )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("setting", ["heads", "scores"])
def test_frames_may_be_left_out(device: str, setting: str) -> None:
    for i, dtype in enumerate((torch.float32, torch.bfloat16)):
        on(
            device, check, shape=(1, 300, 48), dtype=dtype, left_out=True, jump=MEANS[dtype],
            most_splits=(1, None)[i], **SETTINGS[setting],
        )  # fmt: skip
    on(device, check_no_weight)


@on_each_device
def test_large_scores(device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        on(
            device, check, shape=(2, 150, 16), dtype=dtype, largest_score=1e4, most_splits=1,
            **SETTINGS["scores"],
        )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("kind", ["equal", "weights", "scores"])
def test_a_constant_channel_has_the_least_deviation(device: str, kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        on(device, check_clamped, dtype=dtype, kind=kind)


@on_each_device
@pytest.mark.parametrize("kind", ["weights", "scores"])
def test_one_gradient_alone(device: str, kind: str) -> None:
    for transposed in (False, True):
        on(device, check_sides, kind=kind, transposed=transposed)


@on_each_device
@pytest.mark.parametrize("setting", ["equal", "heads", "scores"])
def test_the_same_bits_twice(device: str, setting: str) -> None:
    on(
        device, check, shape=(1, 150, 80), dtype=torch.bfloat16, twice=True, **SETTINGS[setting]
    )  # fmt: skip


def test_frames_are_split_where_programs_are_few() -> None:
    """Of 4 x 512 channels each sample's frames; of the 64 x 1536 channels that fill a GPU none."""
    for shape, splits in (((4, 1500, 512), 12), ((64, 1500, 1536), 1)):
        launches = launches_of(torch.bfloat16, shape, "scores")
        forward, *merge = (it for it in launches if it.kernel.__name__ != "backward_kernel")
        assert forward.grid == (shape[0] * shape[2] // 64, splits)
        assert bool(merge) == (splits > 1)


def launches_of(
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    kind: str,
    *,
    transposed: bool = False,
    groups: int = 1,
) -> list[Any]:
    """Launches of a forward and of the backward, for both gradients where there are two."""
    from speechft.kernels import statistics_pooling as kernels

    B, T, C = shape

    def tensor(channels: int) -> Tensor:
        if transposed:
            return torch.empty(B, channels, T, dtype=dtype, device="meta").transpose(1, 2)
        return torch.empty(B, T, channels, dtype=dtype, device="meta")

    x = tensor(C)
    lengths = torch.empty(B, dtype=torch.int64, device="meta")
    incoming = [torch.empty(B, C, device="meta") for _ in range(2)]
    with triton_aot.recorded_launches(kernels) as launches:
        if kind == "scores":
            scores = tensor(C)
            saved = kernels.attentive_statistics(x, scores, lengths, EPSILON)
            kernels.attentive_statistics_backward(
                x, scores, lengths, *saved, *incoming, EPSILON, True, True
            )
        else:
            weights = tensor(groups) if kind == "weights" else None
            correction = int(weights is None)
            saved = kernels.statistics(x, weights, lengths, correction, EPSILON)
            kernels.statistics_backward(
                x, weights, lengths, *saved, *incoming, correction, EPSILON, True, True
            )
    return launches


def assert_compile_without_spills(
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    kind: str,
    *,
    most_registers: int = 255,
    **arguments: Any,
) -> None:
    for launch in launches_of(dtype, shape, kind, **arguments):
        for usage in launch.assert_compiles_without_spills():
            assert usage.registers <= most_registers, f"{launch.kernel.__name__}: {usage}"


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "transposed", "kind"),
    [
        (torch.bfloat16, False, "scores"),
        (torch.bfloat16, True, "weights"),
        (torch.float32, False, "weights"),
        (torch.float32, True, "scores"),
    ],
    ids=str,
)
def test_kernels_compile_and_spill_nothing(dtype: torch.dtype, transposed: bool, kind: str) -> None:
    # Three blocks of 128 threads, of the 65536 registers of a multiprocessor.
    assert_compile_without_spills(
        dtype, (64, 1500, 1536), kind, most_registers=168, transposed=transposed
    )


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["equal", "weights", "scores"])
@pytest.mark.parametrize("transposed", [False, True])
# Of x-vectors; split; loaded wide where transposed; channels that end in a tile; few of them.
@pytest.mark.parametrize(
    "shape",
    [(64, 1500, 1536), (4, 1500, 512), (64, 1504, 1536), (8, 300, 100), (8, 300, 3)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_compile_for_each_shape(
    dtype: torch.dtype, shape: tuple[int, int, int], transposed: bool, kind: str
) -> None:
    groups = 4 if shape[2] % 4 == 0 else 1
    assert_compile_without_spills(dtype, shape, kind, transposed=transposed, groups=groups)
