r"""The contrastive inverse difference moment of sequences, without an N x N matrix in memory.

The value of a sequence is a scalar, so its gradient is known up to a factor when the value is: it
is made in the forward pass, while the distances of a tile of pairs are at hand, and multiplied by
the incoming gradient in the backward pass. What is kept between is the size of the inputs.

Distances are sums of squared differences, never Gram products: those lose the digits of frames that
are nearly equal, where the square root is steepest, and neighbours in speech are nearly equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.functional import _temporal_idm_cpu
from speechft.functional._buffers import scaled
from speechft.functional._checks import (
    check_finite,
    check_floating,
    check_positive,
    check_reduction,
    check_weight,
)
from speechft.lengths import LengthsLike, check_lengths
from speechft.reference._reduce import reduce_batch

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# The kernels count lags in float32, exactly up to here.
_FARTHEST = 1 << 24

BACKENDS = backends.register(
    backends.OpBackends(
        op="temporal_idm",
        why_not={
            "reference": backends.always,
            "cpu": backends.why_not_cpu,
            "triton": backends.why_not_triton,
        },
        order={"cpu": ("cpu",), "cuda": ("triton",)},
        dtypes={"cpu": _FLOATS, "triton": _FLOATS},
    )
)


def temporal_idm(
    x: Tensor,
    lengths: LengthsLike | None = None,
    *,
    sigma: float = 0.0,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Temporal regularisation: frames far apart in time are pushed apart, near ones together.

    .. math::

        I(x) = \frac{1}{n^2} \sum_{i,j} \begin{cases}
            w_{ij} \max(0,\ m - d_{ij}) & |i - j| > \sigma, \\
            d_{ij} / w_{ij}             & |i - j| \le \sigma,
        \end{cases} \qquad
        w_{ij} = (i - j)^2 + 1, \quad d_{ij} = \lVert x_i - x_j \rVert.

    Args:
        x: sequences (B, T, D), floating point.
        lengths: n, the valid frames of each, 1 to T; all T if None. What lies beyond never matters.
        sigma: frames up to so many apart are near, 0 or above. With 0, as in LASER, none are: a
            frame's distance from itself is 0.
        margin: m, the distance that frames far apart in time are to have, above 0.
        reduction: over sequences: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        Tensor: a scalar, or (B,) with ``reduction="none"``; float32 (float64 for float64 inputs).
        A sequence of one frame gives 0. LASER takes a margin of 1.1 for HuBERT, 1.0 for WavLM.

    Raises:
        ArgumentError: a wrong rank or size, ``sigma < 0``, ``margin <= 0``, NaN.
        ArgumentTypeError: inputs that are not floating point, settings that are not numbers.
        LengthError: a length outside 1 to T.
        BackendError: the backend asked for cannot run here.

    Values of GPU tensors are checked only inside :func:`speechft.checked`. Autocast changes
    nothing: the op computes in float32. Frames that are equal get no gradient from each other. A
    second derivative goes through the reference, in its memory. Runs on the reference for float64.

    Memory beyond inputs and outputs: one float32 copy of ``x`` as gradient; on the CPU a tile of
    64 x 64 pairs and four of its frames a thread, and a float32 copy of inputs that are in half
    precision or not contiguous; on a GPU a copy of ``x`` (two, where
    features do not lie side by side) and, for the gradient, 64 MiB of weights of pairs, or those of
    one sequence, 4 T^2 bytes, if that is more.

    Source: Meghanani & Hain, "LASER", Interspeech 2024; contrastive-IDM: Haresh et al., "Learning
    by Aligning Videos in Time", CVPR 2021.

    >>> import torch
    >>> x = torch.tensor([[[0.0], [0.5], [9.0]]])
    >>> temporal_idm(x, [2])    # 2 (1 + 1) (1 - 0.5) / 4
    tensor(0.5000)
    """
    check_floating(x, "x", "(B, T, D)")
    n = check_lengths(
        lengths, batch=x.shape[0], steps=x.shape[1], device=x.device, argument="lengths"
    )
    check_weight(sigma, "sigma")
    check_positive(margin, "margin")
    check_reduction(reduction)
    check_finite(x, "x", n)
    if BACKENDS.choose(x.device, x.dtype) == "reference":
        return R.temporal_idm(x, n, sigma=sigma, margin=margin, reduction=reduction)
    # Lags are whole numbers: one above sigma is one above the whole part of sigma.
    near = math.floor(min(sigma, _FARTHEST))
    value, _ = torch.ops.speechft.temporal_idm(
        x, n, near, margin, torch.is_grad_enabled() and x.requires_grad
    )
    return reduce_batch(value, reduction)


torch.library.define(
    "speechft::temporal_idm",
    "(Tensor x, Tensor? lengths, int near, float margin, bool need_gradient) -> (Tensor, Tensor)",
)


@torch.library.impl("speechft::temporal_idm", "cpu")
def _temporal_idm(
    x: Tensor, lengths: Tensor | None, near: int, margin: float, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    return _temporal_idm_cpu.temporal_idm(x, lengths, near, margin, need_gradient)


@torch.library.impl("speechft::temporal_idm", "cuda")
def _temporal_idm_cuda(
    x: Tensor, lengths: Tensor | None, near: int, margin: float, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    from speechft.kernels import temporal_idm as kernels

    return kernels.temporal_idm(x, lengths, near, margin, need_gradient)  # type: ignore[no-any-return]


@torch.library.register_fake("speechft::temporal_idm")
def _(x, lengths, near, margin, need_gradient):  # type: ignore[no-untyped-def]
    gradient = x.new_empty(x.shape if need_gradient else (0,), dtype=torch.float32)
    return x.new_empty(x.shape[0], dtype=torch.float32), gradient


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, lengths, ctx.near, ctx.margin, _ = inputs
    ctx.save_for_backward(x, lengths, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _grad_gradient):  # type: ignore[no-untyped-def]
    x, lengths, gradient = ctx.saved_tensors
    none = (None,) * 4
    if grad is None:
        return None, *none
    if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
        value = R.temporal_idm(x, lengths, sigma=ctx.near, margin=ctx.margin, reduction="none")
        return *torch.autograd.grad(value, x, grad, create_graph=True), *none
    return scaled(gradient, grad).to(x.dtype), *none


torch.library.register_autograd("speechft::temporal_idm", _backward, setup_context=_save)
