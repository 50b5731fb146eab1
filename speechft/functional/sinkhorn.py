r"""Sinkhorn's assignment of rows to codes, by a centre of the codes in the log domain.

Half an iteration is one op, which reads the logits once: it makes each row's normaliser and, while
the row is at hand, adds the row to the codes' sums. Nothing of the size of the logits is written
but the assignments, where these are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.distributed import Gather, all_gather, all_reduce, group_of
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional import _softmax_cpu
from speechft.functional._checks import (
    check_finite_inputs,
    check_floating,
    check_same,
    check_scale,
)
from speechft.functional._rows import valid_rows
from speechft.lengths import LengthsLike, check_lengths
from speechft.reference.dino import Views

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

BACKENDS = backends.register(
    backends.OpBackends(
        op="sinkhorn",
        why_not={
            "reference": backends.always,
            "cpu": backends.why_not_cpu,
            "triton": backends.why_not_triton,
        },
        order={"cpu": ("cpu",), "cuda": ("triton",)},
        dtypes={"cpu": _FLOATS, "triton": _FLOATS},
    )
)


def sinkhorn(
    logits: Tensor,
    *,
    epsilon: float | Tensor = 0.05,
    iterations: int = 3,
    lengths: LengthsLike | None = None,
    gather: Gather = False,
) -> Tensor:
    r"""Sinkhorn-Knopp assignments of rows to codes, each code with its share of the rows.

    What SwAV's loop makes of :math:`e^{x / \epsilon}`, scaling columns and rows in turn, times the
    number of rows: with the centre :math:`c` of :func:`sinkhorn_center`,

    .. math::

        q_b = \mathrm{softmax}\Bigl(\frac{x_b - c}{\epsilon}\Bigr).

    Args:
        logits: (..., K), floating point: rows of all leading dimensions. No gradient.
        epsilon: above 0; the temperature of the assignment, a number or a tensor of one.
        iterations: 1 or more.
        lengths: (B,) valid frames of logits (B, T, K); those beyond have no part, and 0.
        gather: the rows of all ranks are assigned together: True, or a process group. Each rank
            may have another number of rows.

    Returns:
        Tensor: of the shape of ``logits``; rows sum to 1. float32 (float64 for float64 inputs),
        without gradient.

    Raises:
        ArgumentError: a wrong rank or size, ``epsilon <= 0``, no iterations, NaN, ``gather``
            without a process group.
        ArgumentTypeError: logits that are not floating point.
        LengthError: a length of 0 or beyond T.
        BackendError: the backend asked for cannot run here.

    Finite for any finite logits. Values of GPU tensors are checked only inside
    :func:`speechft.checked`. Runs on the reference for float64. Memory beyond inputs and outputs:
    that of :func:`sinkhorn_center`.

    Source: Cuturi, NIPS 2013; Caron et al., "SwAV", NeurIPS 2020.

    >>> import torch
    >>> sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))    # one row each, as far as they tell
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    center = sinkhorn_center(
        logits, epsilon=epsilon, iterations=iterations, lengths=lengths, gather=gather
    )
    rows = logits.detach().reshape(-1, logits.shape[-1])
    found = None if lengths is None else _lengths(logits, lengths)
    valid = valid_rows(found, logits.shape, logits.device)
    scale = check_scale(epsilon, "epsilon", logits)
    if BACKENDS.choose(rows.device, rows.dtype) == "reference":
        shares = ((rows.to(center.dtype) - center) / scale).softmax(1)
        shares = shares if valid is None else torch.where(valid[:, None], shares, 0.0)
    else:
        shares = torch.ops.speechft.sinkhorn_assign(rows, -center, scale, valid)
    assigned: Tensor = shares.view(logits.shape)
    return assigned


def sinkhorn_center(
    logits: Views,
    *,
    epsilon: float | Tensor = 0.05,
    iterations: int = 3,
    lengths: LengthsLike | None = None,
    gather: Gather = False,
) -> Tensor:
    r"""The centre for which each code has its share: all that Sinkhorn's assignments need.

    From :math:`a = 0`, each iteration makes

    .. math::

        c_k = \epsilon \log \sum_b e^{(x_{bk} - a_b) / \epsilon}
              - \epsilon \log \frac B K, \qquad
        a_b = \epsilon \log \sum_k e^{(x_{bk} - c_k) / \epsilon},

    and reads the logits once. The assignments are :math:`\mathrm{softmax}((x_b - c) / \epsilon)`.
    For DINO with Sinkhorn's targets, give this centre to :func:`dino`, with epsilon for the
    teacher's temperature.

    Args:
        logits: as in :func:`sinkhorn`; or a list of views of one shape, whose rows are assigned
            together.
        epsilon: likewise.
        iterations: likewise.
        lengths: likewise.
        gather: likewise; each iteration gathers one number a code from each rank.

    Returns:
        Tensor: (K,), in the units of the logits, float32 (float64 for float64 inputs), without
        gradient.

    Raises:
        ArgumentError: as :func:`sinkhorn`.
        ArgumentTypeError: likewise.
        LengthError: likewise.
        BackendError: likewise.

    Memory beyond inputs and outputs: on the CPU, one row a thread, at most 33 x K sums, and a
    float32 copy of half-precision inputs; on a GPU, sums of rows and codes.

    >>> import torch
    >>> sinkhorn_center(torch.zeros(6, 2), epsilon=1.0, iterations=1)    # log(6) - log(6 / 2)
    tensor([0.6931, 0.6931])
    """
    views = [logits] if isinstance(logits, Tensor) else list(logits)
    if not views:
        raise ArgumentError("logits", "is an empty list of views")
    for view in views:
        dim = view.dim() if isinstance(view, Tensor) else 2
        check_floating(view, "logits", {3: "(B, T, K)", 4: "(V, B, T, K)"}.get(dim, "(B, K)"))
        check_same(views[0], view, "logits", "the first view", dict(enumerate(["size"] * dim)))
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise ArgumentTypeError("iterations", f"wants a whole number, got {iterations!r}")
    if iterations < 1:
        raise ArgumentError("iterations", f"wants 1 or more, got {iterations}")
    group = group_of(gather)
    like = views[0]
    scale = check_scale(epsilon, "epsilon", like).detach()
    found = None if lengths is None else _lengths(like, lengths)
    parts_of_it = [(p.detach(), "logits") for v in views for p in (v if v.dim() == 4 else (v,))]
    if BACKENDS.choose(like.device, like.dtype) == "reference":
        center = R.sinkhorn_center(
            logits, epsilon=scale, iterations=iterations, lengths=found, gather=gather
        )
        check_finite_inputs([center], parts_of_it, found)
        return center
    valid = valid_rows(found, like.shape, like.device)
    blocks = [view.detach().reshape(-1, view.shape[-1]) for view in views]
    rows = sum(len(block) for block in blocks)
    number = torch.full((), float(rows), device=like.device)
    if valid is not None:
        number = valid.sum().float() * len(views)
    share = scale * (all_reduce(number, group) / like.shape[-1]).log()
    bias: Tensor | None = None
    for _ in range(iterations):
        parts = [torch.ops.speechft.sinkhorn_columns(b, bias, scale, valid) for b in blocks]
        of_codes = parts[0]
        if len(parts) > 1 or group is not None:
            stacked = all_gather(torch.stack(parts), group)
            of_codes = scale * torch.logsumexp(stacked / scale, 0)
        bias = share - of_codes
    assert bias is not None
    check_finite_inputs([bias], parts_of_it, found)
    return -bias


def _lengths(logits: Tensor, lengths: LengthsLike) -> Tensor:
    if logits.dim() not in (3, 4):
        raise ArgumentError("lengths", f"wants logits (B, T, K), got {tuple(logits.shape)}")
    found = check_lengths(
        lengths, batch=logits.shape[-3], steps=logits.shape[-2], device=logits.device,
        argument="lengths",
    )  # fmt: skip
    assert found is not None
    return found


# With the bias b of each code, in the units of the logits: of each code epsilon times the log of
# the sum over rows of e^((x - a) / epsilon), where a normalises the row of x + b, or is 0 without.
torch.library.define(
    "speechft::sinkhorn_columns",
    "(Tensor logits, Tensor? bias, Tensor epsilon, Tensor? valid) -> Tensor",
)
torch.library.define(
    "speechft::sinkhorn_assign",
    "(Tensor logits, Tensor bias, Tensor epsilon, Tensor? valid) -> Tensor",
)


@torch.library.impl("speechft::sinkhorn_columns", "cpu")
def _columns(logits: Tensor, bias: Tensor | None, epsilon: Tensor, valid: Tensor | None) -> Tensor:
    return _softmax_cpu.sinkhorn_columns(logits, bias, epsilon, valid)


@torch.library.impl("speechft::sinkhorn_assign", "cpu")
def _assign(logits: Tensor, bias: Tensor, epsilon: Tensor, valid: Tensor | None) -> Tensor:
    return _softmax_cpu.sinkhorn_assign(logits, bias, epsilon, valid)


@torch.library.impl("speechft::sinkhorn_columns", "cuda")
def _columns_cuda(
    logits: Tensor, bias: Tensor | None, epsilon: Tensor, valid: Tensor | None
) -> Tensor:
    from speechft.kernels import sinkhorn as kernels

    return kernels.sinkhorn_columns(logits, bias, epsilon, valid)  # type: ignore[no-any-return]


@torch.library.impl("speechft::sinkhorn_assign", "cuda")
def _assign_cuda(logits: Tensor, bias: Tensor, epsilon: Tensor, valid: Tensor | None) -> Tensor:
    from speechft.kernels import sinkhorn as kernels

    return kernels.sinkhorn_assign(logits, bias, epsilon, valid)  # type: ignore[no-any-return]


@torch.library.register_fake("speechft::sinkhorn_columns")
def _(logits, bias, epsilon, valid):  # type: ignore[no-untyped-def]
    return logits.new_empty(logits.shape[1], dtype=torch.float32)


@torch.library.register_fake("speechft::sinkhorn_assign")
def _(logits, bias, epsilon, valid):  # type: ignore[no-untyped-def]
    return logits.new_empty(logits.shape, dtype=torch.float32)
