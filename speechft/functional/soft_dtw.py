r"""Soft-DTW: one public function, and the ops behind it.

The gradient is made in the forward pass, while the costs and the alignment of a few pairs are at
hand, and multiplied by the incoming gradient in the backward pass: the value of a pair is a scalar,
so its gradient is known up to that factor. What is kept between the passes is the size of the
inputs, never B x N x M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional import _soft_dtw_cpu, _soft_dtw_cuda
from speechft.functional._buffers import scaled
from speechft.functional._checks import (
    check_finite,
    check_floating,
    check_positive,
    check_reduction,
    check_same,
)
from speechft.lengths import LengthsLike, check_lengths
from speechft.reference._reduce import reduce_batch

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

BACKENDS = backends.register(
    backends.OpBackends(
        op="soft_dtw",
        why_not={
            "reference": backends.always,
            "cpu": backends.why_not_cpu,
            "cuda": backends.why_not_cuda,
        },
        order={"cpu": ("cpu",), "cuda": ("cuda",)},
        dtypes={"cpu": _FLOATS, "cuda": _FLOATS},
    )
)


def soft_dtw(
    x: Tensor,
    y: Tensor,
    x_lengths: LengthsLike | None = None,
    y_lengths: LengthsLike | None = None,
    *,
    gamma: float = 0.1,
    bandwidth: int | None = None,
    divergence: bool = False,
    length_normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Soft dynamic time warping between two batches of sequences.

    .. math::

        R_{ij} = \|x_i - y_j\|^2
               + \operatorname{softmin}_\gamma(R_{i-1,j-1}, R_{i-1,j}, R_{i,j-1}),
        \qquad \operatorname{sdtw}_\gamma(x, y) = R_{nm},

    with :math:`\operatorname{softmin}_\gamma(a) = -\gamma \log \sum_k e^{-a_k / \gamma}`.

    Args:
        x: sequences (B, N, D), floating point.
        y: sequences (B, M, D), of the dtype and device of ``x``.
        x_lengths: valid frames of each ``x``, 1 to N; all N if None. What lies beyond a length
            never matters.
        y_lengths: valid frames of each ``y``, 1 to M; all M if None.
        gamma: smoothing, above 0, in units of the cost; the limit 0 is DTW.
        bandwidth: admit only cells with ``|i m - j n| <= bandwidth * max(n, m)``, a Sakoe-Chiba
            band along the diagonal, in frames of the shorter sequence. At least 1, or 0 where both
            lengths of every pair are equal.
        divergence: return the soft-DTW divergence, sdtw(x, y) - (sdtw(x, x) + sdtw(y, y)) / 2,
            which is 0 for x = y and never negative.
        length_normalize: divide each pair by ``n + m``, as SCORE does.
        reduction: over pairs: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        Tensor: a scalar, or (B,) with ``reduction="none"``; float32 (float64 for float64 inputs).
        With ``divergence`` and ``length_normalize``, and ``gamma=0.1``, the loss of SCORE.

    Raises:
        ArgumentError: a wrong rank or size, ``gamma <= 0``, a band that admits no path, NaN.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.
        LengthError: a length outside 1 to N or M.
        BackendError: the backend asked for cannot run here.

    Values of GPU tensors are checked only inside :func:`speechft.checked`. Under autocast the op
    computes in float32. Gradients are those of the value returned; a second derivative goes
    through the reference. Runs on the reference for float64. On the CPU, alignments below 2^-40,
    which a float32 gradient cannot show, count as zero.

    Memory beyond inputs and outputs: one float32 copy of ``x`` and ``y`` as gradients, and, for
    the pairs in flight, 4 N M bytes of costs and 8 N M of weights. In flight are, on the CPU, the
    pairs of one vector (8 with AVX2) a thread, or 16 MiB of costs if that is more; on a GPU up
    to 2^29 cells of cost.

    Source: Cuturi & Blondel, "Soft-DTW", ICML 2017; the divergence: Blondel, Mensch & Vert, AISTATS
    2021; the normalisation: Meghanani & Hain, "SCORE", ICASSP 2024, equation 2.

    >>> import torch
    >>> x = torch.tensor([[[0.0], [1.0], [2.0]]])
    >>> float(soft_dtw(x, x, gamma=0.1, divergence=True))
    0.0
    """
    check_floating(x, "x", "(B, N, D)")
    check_floating(y, "y", "(B, M, D)")
    check_same(x, y, "y", "x", {0: "batch size", 2: "feature size"})
    n, m = _check_door(x, y.shape[1], x_lengths, y_lengths, gamma, bandwidth, reduction)
    check_finite(x, "x", n)
    check_finite(y, "y", m)

    if BACKENDS.choose(x.device, x.dtype) == "reference":
        return R.soft_dtw(
            x, y, n, m, gamma=gamma, bandwidth=bandwidth, divergence=divergence,
            length_normalize=length_normalize, reduction=reduction,
        )  # fmt: skip
    grad = torch.is_grad_enabled()
    value, _, _ = torch.ops.speechft.soft_dtw(
        x, y, n, m, gamma, bandwidth, divergence, grad and x.requires_grad, grad and y.requires_grad
    )
    if length_normalize:
        value = value / ((x.shape[1] if n is None else n) + (y.shape[1] if m is None else m))
    return reduce_batch(value, reduction)


def soft_dtw_from_cost(
    cost: Tensor,
    x_lengths: LengthsLike | None = None,
    y_lengths: LengthsLike | None = None,
    *,
    gamma: float = 0.1,
    bandwidth: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Soft-DTW of costs of your own, (B, N, M): the dynamic programme alone.

    The gradient by ``cost`` is the soft alignment: the probability, under the Gibbs distribution
    of the paths, that a path goes through the cell. The other arguments, the errors and the
    source are those of :func:`soft_dtw`. Memory beyond inputs and outputs: a float32 (B, N, M).

    >>> import torch
    >>> cost = torch.zeros(1, 2, 2, requires_grad=True)
    >>> soft_dtw_from_cost(cost, gamma=1.0).backward()   # three paths from corner to corner
    >>> cost.grad[0, 0, 1].item()                        # one of them turns here
    0.3333333432674408
    """
    check_floating(cost, "cost", "(B, N, M)")
    n, m = _check_door(cost, cost.shape[2], x_lengths, y_lengths, gamma, bandwidth, reduction)
    check_finite(cost, "cost", n, m)
    if BACKENDS.choose(cost.device, cost.dtype) == "reference":
        return R.soft_dtw_from_cost(
            cost, n, m, gamma=gamma, bandwidth=bandwidth, reduction=reduction
        )
    value, _ = torch.ops.speechft.soft_dtw_from_cost(
        cost, n, m, gamma, bandwidth, torch.is_grad_enabled() and cost.requires_grad
    )
    return reduce_batch(value, reduction)


def _check_door(
    first: Tensor,
    M: int,
    x_lengths: LengthsLike | None,
    y_lengths: LengthsLike | None,
    gamma: float,
    bandwidth: int | None,
    reduction: str,
) -> tuple[Tensor | None, Tensor | None]:
    batch, N, device = first.shape[0], first.shape[1], first.device
    n = check_lengths(x_lengths, batch=batch, steps=N, device=device, argument="x_lengths")
    m = check_lengths(y_lengths, batch=batch, steps=M, device=device, argument="y_lengths")
    check_positive(gamma, "gamma")
    check_reduction(reduction)
    if bandwidth is not None:
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, int):
            raise ArgumentTypeError("bandwidth", f"wants a whole number of frames, got {bandwidth}")
        if bandwidth < 0:
            raise ArgumentError("bandwidth", f"wants at least 0, got {bandwidth}")
        if bandwidth == 0:
            _check_equal_lengths(n, m, N, M, first)
    return n, m


def _check_equal_lengths(n: Tensor | None, m: Tensor | None, N: int, M: int, first: Tensor) -> None:
    differ = None
    if n is None and m is None:
        differ = None if N == M else 0
    elif backends.values_are_checked(first):
        rows = torch.full((len(first),), N) if n is None else n
        columns = torch.full((len(first),), M) if m is None else m
        unequal = (rows.cpu() != columns.cpu()).nonzero()
        differ = int(unequal[0, 0]) if len(unequal) else None
    if differ is not None:
        raise ArgumentError(
            "bandwidth",
            f"0 admits no path where the lengths differ, as in pair {differ}; use 1 or more",
        )


# torch.library.define and impl, not custom_op: what that wraps around a kernel imports
# torch._dynamo on the first call, seconds that nobody asked for.
torch.library.define(
    "speechft::soft_dtw",
    "(Tensor x, Tensor y, Tensor? x_lengths, Tensor? y_lengths, float gamma, int? bandwidth, "
    "bool divergence, bool need_x, bool need_y) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "speechft::soft_dtw_from_cost",
    "(Tensor cost, Tensor? x_lengths, Tensor? y_lengths, float gamma, int? bandwidth, "
    "bool need_alignment) -> (Tensor, Tensor)",
)


@torch.library.impl("speechft::soft_dtw", ("cpu", "cuda"))
def _soft_dtw(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    divergence: bool,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    run = _soft_dtw_cpu.soft_dtw if x.device.type == "cpu" else _soft_dtw_cuda.soft_dtw
    with torch.autocast(x.device.type, enabled=False):
        return run(x, y, x_lengths, y_lengths, gamma, bandwidth, divergence, need_x, need_y)


@torch.library.register_fake("speechft::soft_dtw")
def _(x, y, x_lengths, y_lengths, gamma, bandwidth, divergence, need_x, need_y):  # type: ignore[no-untyped-def]
    def gradient(of: Tensor, needed: bool) -> Tensor:
        return of.new_empty(of.shape if needed else (0,), dtype=torch.float32)

    value = x.new_empty(x.shape[0], dtype=torch.float32)
    return value, gradient(x, need_x), gradient(y, need_y)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, y, x_lengths, y_lengths, ctx.gamma, ctx.bandwidth, ctx.divergence, *_ = inputs
    ctx.save_for_backward(x, y, x_lengths, y_lengths, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _grad_dx, _grad_dy):  # type: ignore[no-untyped-def]
    x, y, x_lengths, y_lengths, dx, dy = ctx.saved_tensors
    needed = ctx.needs_input_grad[:2]
    none = (None,) * 7
    if grad is None:
        return None, None, *none
    if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
        value = R.soft_dtw(
            x, y, x_lengths, y_lengths, gamma=ctx.gamma, bandwidth=ctx.bandwidth,
            divergence=ctx.divergence, reduction="none",
        )  # fmt: skip
        inputs = [t for t, need in zip((x, y), needed, strict=True) if need]
        grads = iter(torch.autograd.grad(value, inputs, grad, create_graph=True))
        return *(next(grads) if need else None for need in needed), *none
    return (
        scaled(dx, grad).to(x.dtype) if needed[0] else None,
        scaled(dy, grad).to(y.dtype) if needed[1] else None,
        *none,
    )


torch.library.register_autograd("speechft::soft_dtw", _backward, setup_context=_save)


@torch.library.impl("speechft::soft_dtw_from_cost", ("cpu", "cuda"))
def _from_cost(
    cost: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    need_alignment: bool,
) -> tuple[Tensor, Tensor]:
    cpu = cost.device.type == "cpu"
    run = _soft_dtw_cpu.soft_dtw_from_cost if cpu else _soft_dtw_cuda.soft_dtw_from_cost
    return run(cost, x_lengths, y_lengths, gamma, bandwidth, need_alignment)


@torch.library.register_fake("speechft::soft_dtw_from_cost")
def _(cost, x_lengths, y_lengths, gamma, bandwidth, need_alignment):  # type: ignore[no-untyped-def]
    shape = cost.shape if need_alignment else (0,)
    return (
        cost.new_empty(cost.shape[0], dtype=torch.float32),
        cost.new_empty(shape, dtype=torch.float32),
    )


def _save_cost(ctx, inputs, output):  # type: ignore[no-untyped-def]
    cost, x_lengths, y_lengths, ctx.gamma, ctx.bandwidth, _ = inputs
    ctx.save_for_backward(cost, x_lengths, y_lengths, output[1])
    ctx.set_materialize_grads(False)


def _backward_cost(ctx, grad, _grad_alignment):  # type: ignore[no-untyped-def]
    cost, x_lengths, y_lengths, alignment = ctx.saved_tensors
    none = (None,) * 5
    if grad is None:
        return None, *none
    if torch.is_grad_enabled():
        value = R.soft_dtw_from_cost(
            cost, x_lengths, y_lengths, gamma=ctx.gamma, bandwidth=ctx.bandwidth, reduction="none"
        )
        return *torch.autograd.grad(value, cost, grad, create_graph=True), *none
    return scaled(alignment, grad).to(cost.dtype), *none


torch.library.register_autograd(
    "speechft::soft_dtw_from_cost", _backward_cost, setup_context=_save_cost
)
