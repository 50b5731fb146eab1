r"""Attentive statistics pooling in one read of frames and scores; no weight is ever stored.

As :mod:`speechft.functional.statistics_pooling`, with a running maximum of the scores of each
channel. The backward needs the log-sum-exp of each channel, the mean and the deviation, and reads
frames and scores once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.errors import ArgumentError, NonFiniteError
from speechft.functional import _pooling_cpu, statistics_pooling  # noqa: F401 (registers its op)
from speechft.functional._checks import check_finite, check_floating, check_positive, check_same
from speechft.lengths import LengthsLike, check_lengths
from speechft.reference.statistics_pooling import EPSILON

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

BACKENDS = backends.register(
    backends.OpBackends(
        op="attentive_statistics_pooling",
        why_not={
            "reference": backends.always,
            "cpu": backends.why_not_cpu,
            "triton": backends.why_not_triton,
        },
        order={"cpu": ("cpu",), "cuda": ("triton",)},
        dtypes={"cpu": _FLOATS, "triton": _FLOATS},
    )
)


def attentive_statistics_pooling(
    x: Tensor,
    scores: Tensor,
    lengths: LengthsLike | None = None,
    *,
    epsilon: float = EPSILON,
) -> Tensor:
    r"""Mean and standard deviation over the valid frames, weighed by a softmax over time.

    .. math::

        \alpha = \mathrm{softmax}_t(s), \qquad \mu = \sum_t \alpha_t x_t, \qquad
        \sigma = \sqrt{\max\Bigl(\sum_t \alpha_t (x_t - \mu)^2,\ \epsilon\Bigr)}.

    Args:
        x: (B, T, C), floating point.
        scores: (B, T, C), of each channel its own; (B, T, 1), of all channels together; or
            (B, T, G) for G groups of channels, next to each other: heads. Of the dtype and device
            of ``x``. ``-inf`` leaves a frame out.
        lengths: (B,) valid frames; those beyond have no part and get no gradient.
        epsilon: the least variance, where the gradient of the deviation ends.

    Returns:
        Tensor: (B, 2 C), means then deviations; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, NaN, a row of scores that leaves out every frame.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.
        LengthError: a length of 0 or beyond T.
        BackendError: the backend asked for cannot run here.

    Values of GPU tensors are checked only inside :func:`speechft.checked`. Autocast changes
    nothing: sums are float32, on the CPU over blocks in float64. A second derivative goes through
    the reference. Runs on the reference for float64. Memory beyond inputs and outputs: on the CPU,
    float32 copies of inputs that are in half precision or not contiguous, and a block a thread.

    Source: Okabe et al., Interspeech 2018; Desplanques et al., "ECAPA-TDNN", Interspeech 2020.

    >>> import torch
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> attentive_statistics_pooling(x, torch.zeros(1, 3, 1), [2])
    tensor([[2., 1.]])
    """
    check_floating(x, "x", "(B, T, C)")
    check_floating(scores, "scores", "(B, T, G)")
    check_same(x, scores, "scores", "x", {0: "batch size", 1: "number of frames"})
    if x.shape[2] % scores.shape[2]:
        raise ArgumentError(
            "scores",
            f"are of {scores.shape[2]} groups, which {x.shape[2]} channels do not divide into",
        )
    found = check_lengths(
        lengths, batch=x.shape[0], steps=x.shape[1], device=x.device, argument="lengths"
    )
    check_positive(epsilon, "epsilon")
    if BACKENDS.choose(x.device, x.dtype) == "reference":
        value = R.attentive_statistics_pooling(x, scores, found, epsilon=epsilon)
    elif scores.shape[2] < x.shape[2]:  # few weights: as given ones, in float32
        wide = scores.float()
        if found is not None:
            steps = torch.arange(x.shape[1], device=x.device)
            wide = wide.masked_fill((steps >= found[:, None])[..., None], -torch.inf)
        mean, std, _ = torch.ops.speechft.statistics(x, wide.softmax(1), found, 0, epsilon)
        value = torch.cat([mean, std], dim=1)
    else:
        mean, std, _ = torch.ops.speechft.attentive_statistics(x, scores, found, epsilon)
        value = torch.cat([mean, std], dim=1)
    if backends.values_are_checked(value) and not bool(torch.isfinite(value.detach().sum())):
        check_finite(x, "x", found)
        _check_scores(scores, found)
    return value


def _check_scores(scores: Tensor, lengths: Tensor | None) -> None:
    """Finite, or -inf but for one frame at least."""
    if not backends.values_are_checked(scores):
        return
    values = scores.detach()
    if bool(torch.isfinite(values.sum())):
        return
    if lengths is not None:
        valid = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        values = values.masked_fill(~valid[..., None], -torch.inf)
    bad = values.isnan() | (values == torch.inf)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise NonFiniteError("scores", f"holds {values[where].item()} at {where}")
    none = (values == -torch.inf).all(1)
    if bool(none.any()):
        sample, channel = none.nonzero()[0].tolist()
        raise ArgumentError(
            "scores", f"of sample {sample}, channel {channel} are all -inf: no frame is left"
        )


torch.library.define(
    "speechft::attentive_statistics",
    "(Tensor x, Tensor scores, Tensor? lengths, float epsilon) "
    "-> (Tensor mean, Tensor std, Tensor lse)",
)
torch.library.define(
    "speechft::attentive_statistics_backward",
    "(Tensor x, Tensor scores, Tensor? lengths, Tensor mean, Tensor std, Tensor lse, "
    "Tensor g_mean, Tensor g_std, float epsilon, bool need_x, bool need_scores) "
    "-> (Tensor, Tensor)",
)


@torch.library.impl("speechft::attentive_statistics", "cpu")
def _attentive(
    x: Tensor, scores: Tensor, lengths: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _pooling_cpu.attentive_statistics(x, scores, lengths, epsilon)


@torch.library.impl("speechft::attentive_statistics_backward", "cpu")
def _attentive_backward(*arguments) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return _pooling_cpu.attentive_statistics_backward(*arguments)


@torch.library.impl("speechft::attentive_statistics", "cuda")
def _attentive_cuda(
    x: Tensor, scores: Tensor, lengths: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    from speechft.kernels import statistics_pooling as kernels

    return kernels.attentive_statistics(x, scores, lengths, epsilon)  # type: ignore[no-any-return]


@torch.library.impl("speechft::attentive_statistics_backward", "cuda")
def _attentive_backward_cuda(*arguments) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    from speechft.kernels import statistics_pooling as kernels

    return kernels.attentive_statistics_backward(*arguments)  # type: ignore[no-any-return]


@torch.library.register_fake("speechft::attentive_statistics")
def _(x, scores, lengths, epsilon):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape[0], x.shape[2], dtype=torch.float32) for _ in range(3))


@torch.library.register_fake("speechft::attentive_statistics_backward")
def _(  # type: ignore[no-untyped-def]
    x, scores, lengths, mean, std, lse, g_mean, g_std, epsilon, need_x, need_scores
):
    dx = x.new_empty(x.shape if need_x else (0,))
    return dx, x.new_empty(scores.shape if need_scores else (0,))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, scores, lengths, ctx.epsilon = inputs
    ctx.save_for_backward(x, scores, lengths, *output)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, g_mean, g_std, _g_lse):  # type: ignore[no-untyped-def]
    x, scores, lengths, mean, std, lse = ctx.saved_tensors
    need_x, need_scores = ctx.needs_input_grad[:2]
    if g_mean is None and g_std is None:
        return (None,) * 4
    g_mean = torch.zeros_like(mean) if g_mean is None else g_mean
    g_std = torch.zeros_like(std) if g_std is None else g_std
    if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
        value = R.attentive_statistics_pooling(x, scores, lengths, epsilon=ctx.epsilon)
        needed = [t for t, need in ((x, need_x), (scores, need_scores)) if need]
        incoming = torch.cat([g_mean, g_std], 1)
        found = iter(torch.autograd.grad(value, needed, incoming, create_graph=True))
        return *(next(found) if need else None for need in (need_x, need_scores)), None, None
    dx, dscores = torch.ops.speechft.attentive_statistics_backward(
        x, scores, lengths, mean, std, lse, g_mean.float(), g_std.float(), ctx.epsilon, need_x,
        need_scores,
    )  # fmt: skip
    return dx if need_x else None, dscores if need_scores else None, None, None


torch.library.register_autograd("speechft::attentive_statistics", _backward, setup_context=_save)
