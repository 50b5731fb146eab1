r"""Statistics pooling in one read of the frames, with the variance of two passes.

Frames go by a block at a time: mean and squares about that mean of each block are exact in two
passes over what the cache holds, and blocks are put together by Chan's formula, of which no term
cancels. E[x^2] - mean^2, as it is usually computed, loses all digits where the mean is large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.errors import ArgumentError, LengthError
from speechft.functional import _pooling_cpu
from speechft.functional._checks import (
    check_finite,
    check_finite_inputs,
    check_floating,
    check_positive,
    check_same,
)
from speechft.lengths import LengthsLike, check_lengths
from speechft.reference.statistics_pooling import EPSILON

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

BACKENDS = backends.register(
    backends.OpBackends(
        op="statistics_pooling",
        why_not={
            "reference": backends.always,
            "cpu": backends.why_not_cpu,
            "triton": backends.why_not_triton,
        },
        order={"cpu": ("cpu",), "cuda": ("triton",)},
        dtypes={"cpu": _FLOATS, "triton": _FLOATS},
    )
)


def statistics_pooling(
    x: Tensor,
    lengths: LengthsLike | None = None,
    *,
    weights: Tensor | None = None,
    correction: int = 0,
    epsilon: float = EPSILON,
) -> Tensor:
    r"""Mean and standard deviation of each channel over the valid frames.

    .. math::

        \mu = \sum_t \alpha_t x_t, \qquad
        \sigma = \sqrt{\max\Bigl(\sum_t \alpha_t (x_t - \mu)^2,\ \epsilon\Bigr)}, \qquad
        \alpha_t = \frac{w_t}{\sum_{t'} w_{t'}},

    with :math:`w = 1` where no weights are given.

    Args:
        x: (B, T, C), floating point.
        lengths: (B,) valid frames; those beyond have no part and get no gradient.
        weights: (B, T) numbers from 0, such as speaker activity, with a gradient; or (B, T, G) for
            G groups of channels, next to each other: heads. Each sample (and group) needs a weight
            above 0 within its length.
        correction: 1 divides the squares by n - 1 frames in place of n, as ``torch.var`` does by
            default; without ``weights``.
        epsilon: the least variance, where the gradient of the deviation ends.

    Returns:
        Tensor: (B, 2 C), means then deviations; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, weights that are negative or all 0, NaN.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.
        LengthError: a length of 0 or beyond T; of 1, with ``correction=1``.
        BackendError: the backend asked for cannot run here.

    Values of GPU tensors are checked only inside :func:`speechft.checked`. Autocast changes
    nothing: sums are float32, on the CPU over blocks in float64. A second derivative goes through
    the reference. Runs on the reference for float64. Memory beyond inputs and outputs: on the CPU,
    a float32 copy of inputs that are in half precision or not contiguous.

    Source: Snyder et al., "X-vectors", ICASSP 2018.

    >>> import torch
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> statistics_pooling(x, [2])
    tensor([[2., 1.]])
    """
    check_floating(x, "x", "(B, T, C)")
    found = check_lengths(
        lengths, batch=x.shape[0], steps=x.shape[1], device=x.device, argument="lengths"
    )
    check_positive(epsilon, "epsilon")
    if correction not in (0, 1):
        raise ArgumentError("correction", f"wants 0 or 1, got {correction!r}")
    if weights is not None:
        check_floating(weights, "weights", "(B, T, G)" if weights.dim() == 3 else "(B, T)")
        check_same(x, weights, "weights", "x", {0: "batch size", 1: "number of frames"})
        if weights.dim() == 2:
            weights = weights[..., None]
        if x.shape[2] % weights.shape[2]:
            raise ArgumentError(
                "weights",
                f"are of {weights.shape[2]} groups, which {x.shape[2]} channels do not divide into",
            )
        if correction:
            raise ArgumentError("correction", "is of equal weights; weighted frames have none")
        _check_weights(weights, found)
    elif correction:
        _check_two(x, found)
    if BACKENDS.choose(x.device, x.dtype) == "reference":
        value = R.statistics_pooling(
            x, found, weights=weights, correction=correction, epsilon=epsilon
        )
    else:
        mean, std, _ = torch.ops.speechft.statistics(x, weights, found, correction, epsilon)
        value = torch.cat([mean, std], dim=1)
    check_finite_inputs([value], [(x, "x")], found)
    return value


def _check_weights(weights: Tensor, lengths: Tensor | None) -> None:
    check_finite(weights, "weights", lengths)
    if not backends.values_are_checked(weights):
        return
    kept = weights.detach()
    if lengths is not None:
        valid = torch.arange(kept.shape[1], device=kept.device) < lengths[:, None]
        kept = torch.where(valid[..., None], kept, 0.0)
    if bool((kept < 0).any()):
        where = tuple((kept < 0).nonzero()[0].tolist())
        raise ArgumentError("weights", f"are below 0 at {where}: {kept[where].item()}")
    none = kept.sum(1) <= 0
    if bool(none.any()):
        raise ArgumentError(
            "weights", f"of sample {int(none.nonzero()[0, 0])} are all 0: it has no statistics"
        )


def _check_two(x: Tensor, lengths: Tensor | None) -> None:
    short = x.shape[1] < 2
    where = 0
    if lengths is not None and backends.values_are_checked(lengths):
        short = bool((lengths < 2).any())
        where = int((lengths < 2).nonzero()[0, 0]) if short else 0
    if short:
        raise LengthError(
            "lengths", f"sample {where} has one frame, which has no deviation with correction=1"
        )


# total (B, G): the sum of the weights, or the number of frames.
torch.library.define(
    "speechft::statistics",
    "(Tensor x, Tensor? weights, Tensor? lengths, int correction, float epsilon) "
    "-> (Tensor mean, Tensor std, Tensor total)",
)
torch.library.define(
    "speechft::statistics_backward",
    "(Tensor x, Tensor? weights, Tensor? lengths, Tensor mean, Tensor std, Tensor total, "
    "Tensor g_mean, Tensor g_std, int correction, float epsilon, bool need_x, bool need_weights) "
    "-> (Tensor, Tensor)",
)


@torch.library.impl("speechft::statistics", "cpu")
def _statistics(
    x: Tensor, weights: Tensor | None, lengths: Tensor | None, correction: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _pooling_cpu.statistics(x, weights, lengths, correction, epsilon)


@torch.library.impl("speechft::statistics_backward", "cpu")
def _statistics_backward(*arguments) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return _pooling_cpu.statistics_backward(*arguments)


@torch.library.impl("speechft::statistics", "cuda")
def _statistics_cuda(
    x: Tensor, weights: Tensor | None, lengths: Tensor | None, correction: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    from speechft.kernels import statistics_pooling as kernels

    return kernels.statistics(x, weights, lengths, correction, epsilon)  # type: ignore[no-any-return]


@torch.library.impl("speechft::statistics_backward", "cuda")
def _statistics_backward_cuda(*arguments) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    from speechft.kernels import statistics_pooling as kernels

    return kernels.statistics_backward(*arguments)  # type: ignore[no-any-return]


@torch.library.register_fake("speechft::statistics")
def _(x, weights, lengths, correction, epsilon):  # type: ignore[no-untyped-def]
    B, _, C = x.shape
    groups = 1 if weights is None else weights.shape[2]
    return tuple(x.new_empty(B, size, dtype=torch.float32) for size in (C, C, groups))


@torch.library.register_fake("speechft::statistics_backward")
def _(  # type: ignore[no-untyped-def]
    x, weights, lengths, mean, std, total, g_mean, g_std, correction, epsilon, need_x, need_weights
):
    dx = x.new_empty(x.shape if need_x else (0,))
    like = x if weights is None else weights
    return dx, like.new_empty(like.shape if need_weights else (0,))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weights, lengths, ctx.correction, ctx.epsilon = inputs
    ctx.save_for_backward(x, weights, lengths, *output)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, g_mean, g_std, _g_total):  # type: ignore[no-untyped-def]
    x, weights, lengths, mean, std, total = ctx.saved_tensors
    need_x, need_weights = ctx.needs_input_grad[:2]
    none = (None,) * 3
    if g_mean is None and g_std is None:
        return None, None, *none
    g_mean = torch.zeros_like(mean) if g_mean is None else g_mean
    g_std = torch.zeros_like(std) if g_std is None else g_std
    if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
        value = R.statistics_pooling(
            x, lengths, weights=weights, correction=ctx.correction, epsilon=ctx.epsilon
        )
        needed = [t for t, need in ((x, need_x), (weights, need_weights)) if need]
        incoming = torch.cat([g_mean, g_std], 1)
        found = iter(torch.autograd.grad(value, needed, incoming, create_graph=True))
        return *(next(found) if need else None for need in (need_x, need_weights)), *none
    dx, dweights = torch.ops.speechft.statistics_backward(
        x, weights, lengths, mean, std, total, g_mean.float(), g_std.float(), ctx.correction,
        ctx.epsilon, need_x, need_weights,
    )  # fmt: skip
    return dx if need_x else None, dweights if need_weights else None, *none


torch.library.register_autograd("speechft::statistics", _backward, setup_context=_save)
