"""The Triton kernels under soft-DTW: against float64 in the interpreter (on the GPU where there is
one), and compiled ahead of time for the GPUs that are not here.

The oracle: the error against the float64 truth is at most twice that of the same-dtype reference,
plus machine epsilon.
"""

from __future__ import annotations

import pytest
import torch
import triton_aot
from kernel_devices import needs_compiler, on, on_each_device
from torch import Tensor

# (B, N, M, D): one of everything; tails in each dimension; several tiles and several steps.
SHAPES = [(1, 1, 1, 1), (2, 1, 9, 5), (3, 7, 1, 80), (2, 33, 18, 16), (2, 70, 131, 80)]
LAYOUTS = ["contiguous", "feature-major", "time-major"]


def features(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    """Features (B, T, D) with an offset, so that the Gram matrix has something to cancel."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    values = values.to(dtype)
    if layout == "feature-major":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "time-major":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    return values


def ragged(batch: int, steps: int, seed: int) -> Tensor:
    """Lengths of which one is full and, where there is room, one is 1."""
    lengths = torch.randint(1, steps + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = steps
    lengths[-1] = 1 if batch > 1 else steps
    return lengths


def poison(values: Tensor, lengths: Tensor) -> Tensor:
    """The same with NaN for padding, in the same layout."""
    padding = torch.arange(values.shape[1]) >= lengths[:, None]
    return values.clone(memory_format=torch.preserve_format).masked_fill_(
        padding[:, :, None], float("nan")
    )


def clean(values: Tensor, lengths: Tensor) -> Tensor:
    """The same with zeros for padding."""
    valid = torch.arange(values.shape[1]) < lengths[:, None]
    return values.masked_fill(~valid[:, :, None], 0.0)


def cost_by_definition(x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor) -> Tensor:
    """The formula of the kernel, in the dtype of the features."""
    x, y = clean(x, x_lengths), clean(y, y_lengths)
    norms = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :]
    return (norms - 2 * x @ y.transpose(1, 2)) * valid_pairs(x, y, x_lengths, y_lengths)


def valid_pairs(x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor) -> Tensor:
    valid_x = torch.arange(x.shape[1]) < x_lengths[:, None]
    valid_y = torch.arange(y.shape[1]) < y_lengths[:, None]
    return valid_x[:, :, None] & valid_y[:, None, :]


def assert_as_exact(value: Tensor, reference: Tensor, truth: Tensor) -> None:
    """The oracle of the contract suite, on the root mean square and on the largest error."""
    error, allowed = value.double() - truth, reference.double() - truth
    epsilon = torch.finfo(torch.float32).eps
    for name, size in (("rms", rms), ("largest", largest)):
        bound = 2 * size(allowed) + epsilon * size(truth)
        assert size(error) <= bound, f"{name} error {size(error):.3e}, allowed {bound:.3e}"


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def largest(values: Tensor) -> float:
    return float(values.abs().max())


def check_cost(*, device: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    from speechft.kernels.soft_dtw import squared_euclidean

    batch, rows, columns, size = shape
    x = features((batch, rows, size), dtype, layout, 1)
    y = features((batch, columns, size), dtype, layout, 2)
    x_lengths, y_lengths = ragged(batch, rows, 3), ragged(batch, columns, 4)
    truth = cost_by_definition(x.double(), y.double(), x_lengths, y_lengths)
    reference = cost_by_definition(x.float(), y.float(), x_lengths, y_lengths)

    # NaN shows what is read or written where it should not be.
    out = torch.full((batch, rows, columns + 3), float("nan"), device=device)
    cost = squared_euclidean(
        poison(x, x_lengths).to(device),
        poison(y, y_lengths).to(device),
        x_lengths.to(device),
        y_lengths.to(device),
        out=out[:, :, :columns],
    )
    assert cost.data_ptr() == out.data_ptr()
    assert out[:, :, columns:].isnan().all()
    assert not cost.cpu()[~valid_pairs(x, y, x_lengths, y_lengths)].any()
    assert_as_exact(cost.cpu(), reference, truth)


def check_symmetric_cost(*, device: str, dtype: torch.dtype) -> None:
    from speechft.kernels.soft_dtw import squared_euclidean

    x = features((2, 150, 20), dtype, "contiguous", 1)
    lengths = ragged(2, 150, 3)
    truth = cost_by_definition(x.double(), x.double(), lengths, lengths)
    reference = cost_by_definition(x.float(), x.float(), lengths, lengths)
    x, lengths = poison(x, lengths).to(device), lengths.to(device)
    cost = squared_euclidean(
        x, x, lengths, lengths, out=torch.full((2, 150, 150), float("nan"), device=device)
    )
    assert torch.equal(cost, cost.transpose(1, 2))
    assert_as_exact(cost.cpu(), reference, truth)


def gradient_by_definition(
    alignment: Tensor, x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """By autograd, through the cost's formula."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    cost = cost_by_definition(x, y, x_lengths, y_lengths)
    by_x, by_y = torch.autograd.grad((alignment * cost).sum(), (x, y))
    return by_x, by_y


def check_gradient(
    *,
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    scaled: bool,
    accumulate: bool,
    near: bool = False,
    faint: bool = False,
) -> None:
    from speechft.kernels.soft_dtw import squared_euclidean_backward

    batch, rows, columns, size = shape
    x = features((batch, rows, size), dtype, layout, 1)
    y = features((batch, columns, size), dtype, layout, 2)
    if near:  # the gradient is then far smaller than its two terms
        x = (x + 100).to(dtype)
        y = (y + 100).to(dtype)
    x_lengths, y_lengths = ragged(batch, rows, 3), ragged(batch, columns, 4)
    pairs = valid_pairs(x, y, x_lengths, y_lengths)
    generator = torch.Generator().manual_seed(5)
    # Most of an alignment is next to nothing: spread it over twelve orders of magnitude.
    alignment = 10 ** (-12 * torch.rand(batch, rows, columns, generator=generator).sqrt())
    scale = torch.randn(batch, generator=generator) if scaled else None
    if faint:  # below what float16 holds, and made good by the scale
        alignment, scale = 1e-6 * alignment, torch.full((batch,), 1e6)
    factor = torch.ones(batch) if scale is None else scale
    weights = alignment * factor[:, None, None]
    truth = gradient_by_definition(
        alignment.double() * factor.double()[:, None, None],
        x.double(),
        y.double(),
        x_lengths,
        y_lengths,
    )
    reference = gradient_by_definition(weights, x.float(), y.float(), x_lengths, y_lengths)

    start = [torch.randn(it.shape, generator=generator) for it in (x, y)]
    out = [
        (s.clone() if accumulate else torch.full_like(s, float("nan"))).to(device) for s in start
    ]
    gradients = squared_euclidean_backward(
        alignment.masked_fill(~pairs, float("nan")).to(device),
        poison(x, x_lengths).to(device),
        poison(y, y_lengths).to(device),
        x_lengths.to(device),
        y_lengths.to(device),
        scale=None if scale is None else scale.to(device),
        out_x=out[0],
        out_y=out[1],
        accumulate=accumulate,
    )
    for i, lengths in enumerate((x_lengths, y_lengths)):
        value = gradients[i]
        assert value is not None
        assert value.data_ptr() == out[i].data_ptr()
        value = value.cpu()
        padding = torch.arange(value.shape[1]) >= lengths[:, None]
        before = start[i] if accumulate else torch.zeros_like(start[i])
        assert torch.equal(value[padding], before[padding])
        # The reference's result is rounded to the dtype of the features; so is the kernel's, by
        # its caller.
        final = torch.float32 if accumulate else dtype
        assert_as_exact(
            value.to(final),
            (before + reference[i]).to(final),
            before.double() + truth[i],
        )


def check_one_side(*, device: str) -> None:
    from speechft.kernels.soft_dtw import squared_euclidean, squared_euclidean_backward

    from speechft.errors import ArgumentError, ArgumentTypeError

    x = features((2, 20, 8), torch.float32, "contiguous", 1).to(device)
    y = features((2, 30, 8), torch.float32, "contiguous", 2).to(device)
    alignment = torch.rand(2, 20, 30, device=device)
    both = squared_euclidean_backward(alignment, x, y, scale=-0.5)
    by_x, nothing = squared_euclidean_backward(alignment, x, y, scale=-0.5, sides="x")
    assert nothing is None
    assert torch.equal(by_x, both[0])
    nothing, by_y = squared_euclidean_backward(alignment, x, y, scale=-0.5, sides="y")
    assert nothing is None
    assert torch.equal(by_y, both[1])
    # scale as one number is scale as a tensor of it
    same = squared_euclidean_backward(alignment, x, y, scale=torch.full((2,), -0.5, device=device))
    assert torch.equal(by_x, same[0])

    with pytest.raises(ArgumentTypeError, match="float64"):
        squared_euclidean(x.double(), y.double())
    with pytest.raises(ArgumentTypeError, match=r"y.*float16"):
        squared_euclidean(x, y.half())
    with pytest.raises(ArgumentError, match=r"y.*\(2, M, 8\)"):
        squared_euclidean(x, y[:, :, :5])
    with pytest.raises(ArgumentError, match=r"out.*\(2, 20, 30\)"):
        squared_euclidean(x, y, out=torch.empty(2, 30, 20, device=device))
    with pytest.raises(ArgumentError, match="alignment"):
        squared_euclidean_backward(alignment.transpose(1, 2), x, y)
    with pytest.raises(ArgumentError, match="out_x"):
        squared_euclidean_backward(alignment, x, y, accumulate=True)


def dtypes_of(device: str) -> list[torch.dtype]:
    """Triton's interpreter computes in numpy, which has no bfloat16."""
    halves = [torch.float16, torch.bfloat16] if device == "cuda" else [torch.float16]
    return [torch.float32, *halves]


@on_each_device
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cost_is_as_exact_as_the_reference(device: str, shape: tuple[int, ...]) -> None:
    for dtype in dtypes_of(device):
        for layout in LAYOUTS:
            on(device, check_cost, dtype=dtype, shape=shape, layout=layout)


@on_each_device
def test_cost_of_features_with_themselves_is_symmetric(device: str) -> None:
    for dtype in dtypes_of(device):
        on(device, check_symmetric_cost, dtype=dtype)


@on_each_device
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_is_as_exact_as_the_reference(device: str, shape: tuple[int, ...]) -> None:
    for dtype in dtypes_of(device):
        for layout, scaled, accumulate in zip(
            LAYOUTS, [False, True, True], [False, False, True], strict=True
        ):
            on(
                device,
                check_gradient,
                dtype=dtype,
                shape=shape,
                layout=layout,
                scaled=scaled,
                accumulate=accumulate,
            )


@on_each_device
def test_gradient_keeps_its_digits_where_its_terms_cancel(device: str) -> None:
    for dtype in dtypes_of(device):
        on(
            device,
            check_gradient,
            dtype=dtype,
            shape=(2, 40, 40, 24),
            layout="contiguous",
            scaled=False,
            accumulate=False,
            near=True,
        )


@on_each_device
def test_gradient_of_a_faint_alignment_keeps_its_digits(device: str) -> None:
    for dtype in dtypes_of(device):
        on(
            device,
            check_gradient,
            dtype=dtype,
            shape=(2, 20, 40, 24),
            layout="contiguous",
            scaled=False,
            accumulate=False,
            faint=True,
        )


@on_each_device
def test_one_side_scale_and_errors(device: str) -> None:
    on(device, check_one_side)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_real_sizes_are_exact_and_repeatable_on_the_gpu(dtype: torch.dtype) -> None:
    shape = (4, 500, 470, 256)
    check_cost(device="cuda", dtype=dtype, shape=shape, layout="contiguous")
    check_gradient(
        device="cuda", dtype=dtype, shape=shape, layout="contiguous", scaled=True, accumulate=False
    )
    from speechft.kernels.soft_dtw import squared_euclidean, squared_euclidean_backward

    x, y = (torch.randn(4, 500, 256, device="cuda", dtype=dtype) for _ in "xy")
    cost = squared_euclidean(x, y)
    assert torch.equal(cost, squared_euclidean(x, y))
    alignment = torch.rand_like(cost)
    once, twice = (squared_euclidean_backward(alignment, x, y) for _ in range(2))
    for first, second in zip(once, twice, strict=True):
        assert torch.equal(first, second)


# What training meets, for each dtype; then what makes the compiler's life harder: no lengths to
# mask by, and rows and features that are not aligned.
COMPILED = [
    (torch.bfloat16, (500, 500, 256), True, (80, 90)),
    (torch.float16, (500, 500, 256), True, (90,)),
    (torch.float32, (500, 500, 256), True, (80, 90)),
    (torch.bfloat16, (499, 475, 33), False, (80, 90)),
    (torch.float32, (499, 475, 33), False, (80, 90)),
]


@needs_compiler
@pytest.mark.parametrize(("dtype", "sizes", "ragged", "capabilities"), COMPILED, ids=str)
def test_kernels_compile_for_each_gpu_and_spill_nothing(
    dtype: torch.dtype, sizes: tuple[int, int, int], ragged: bool, capabilities: tuple[int, ...]
) -> None:
    from speechft.kernels import soft_dtw

    rows, columns, size = sizes
    x = torch.empty(4, rows, size, dtype=dtype, device="meta")
    y = torch.empty(4, columns, size, dtype=dtype, device="meta")
    lengths = torch.empty(4, dtype=torch.int64, device="meta") if ragged else None
    with triton_aot.recorded_launches(soft_dtw) as launches:
        cost = soft_dtw.squared_euclidean(x, y, lengths, lengths)
        soft_dtw.squared_euclidean(x, x, lengths, lengths)
        scale = torch.empty(4, device="meta")
        soft_dtw.squared_euclidean_backward(cost, x, y, lengths, lengths, scale=scale)
    assert len(launches) == 4
    for launch in launches:
        launch.assert_compiles_without_spills(capabilities)


@needs_compiler
def test_the_spill_check_sees_spills() -> None:
    from speechft.kernels import soft_dtw

    x = torch.empty(2, 256, 64, dtype=torch.bfloat16, device="meta")
    with triton_aot.recorded_launches(soft_dtw) as launches:
        soft_dtw.squared_euclidean(x, x.clone())
    (launch,) = launches
    launch.options["maxnreg"] = 64  # a thread has 64 accumulators alone
    with pytest.raises(AssertionError, match="spills"):
        launch.assert_compiles_without_spills((80,))
