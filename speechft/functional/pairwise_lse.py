r"""Pairwise log-sum-exp: what all softmax losses of contrastive learning are made of.

The N x M matrix of logits exists a tile at a time, forward and backward: the backward makes each
tile again. What is kept between the passes is the size of the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional import _pairwise_lse_cpu
from speechft.functional._checks import (
    check_finite,
    check_floating,
    check_labels,
    check_same,
    check_scale,
)
from speechft.reference.pairwise_lse import PairwiseLSE

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

BACKENDS = backends.register(
    backends.OpBackends(
        op="pairwise_lse",
        why_not={
            "reference": backends.always,
            "cpu": backends.why_not_cpu,
            "triton": backends.why_not_triton,
        },
        order={"cpu": ("cpu",), "cuda": ("triton",)},
        dtypes={"cpu": _FLOATS, "triton": _FLOATS},
    )
)


def pairwise_lse(
    query: Tensor,
    key: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    self_offset: int | None = None,
    columns: bool = False,
    own: bool = False,
) -> PairwiseLSE:
    r"""Log-sum-exp of the logits :math:`s_{ij} = \sigma\, q_i \cdot k_j`, by kind of pair.

    A pair (i, j) is *left out* where ``j = i + self_offset`` or either label is -1; it is
    *positive* where both labels are the same, and *negative* otherwise; without labels no pair is
    positive. With :math:`\mathcal N_i` and :math:`\mathcal P_i` the negative and positive keys of
    query i,

    .. math::

        n_i = \log \sum_{j \in \mathcal N_i} e^{s_{ij}}, \qquad
        p_i = \log \sum_{j \in \mathcal P_i} e^{s_{ij}}, \qquad
        a_i = \sum_{j \in \mathcal P_i} s_{ij},

    or, with ``own``, :math:`a_i = \sum_{j \in \mathcal P_i} \log\sigma(s_{ij} - n_i)`. The softmax
    denominators in use are :math:`\log(e^{n_i} + e^{p_i})` (SupCon), each positive pair's own with
    all negative ones (NT-Xent; ``own``), and :math:`n_i` alone (decoupled).

    Args:
        query: (N, D), floating point. Nothing is normalised.
        key: (M, D), of the dtype and device of ``query``; None: the queries are the keys, which
            takes half the time.
        scale: the inverse of the temperature, above 0; a tensor of one number gets a gradient.
        query_labels: (N,) integers from 0, or -1 for unknown.
        key_labels: (M,); with ``key``, given where ``query_labels`` is.
        self_offset: query i is key ``i + self_offset``, and that pair is left out.
        columns: also the log-sum-exp over the negative pairs of each key.
        own: make of each positive pair its log-probability against all negative ones.

    Returns:
        PairwiseLSE: ``negatives``, ``positives``, ``positive_sum`` (N,) and ``column_negatives``
        (M,) or None; ``-inf`` (and 0 for the sum) where there is no such pair. float32 (float64
        for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, ``scale <= 0``, labels below -1, NaN.
        ArgumentTypeError: inputs that are not floating point or differ in dtype, labels that are.
        BackendError: the backend asked for cannot run here.

    Values of GPU tensors are checked only inside :func:`speechft.checked`. Autocast changes
    nothing: products are of the dtype of the inputs, sums are float32. A second derivative goes
    through the reference. Runs on the reference for float64.

    Memory beyond inputs and outputs: on the CPU, one tile of 512 x 512, float32 copies of
    half-precision inputs, and gradients in float32.

    >>> import torch
    >>> unit = torch.eye(3)
    >>> pairwise_lse(unit, scale=2.0, self_offset=0).negatives   # log(1 + 1)
    tensor([0.6931, 0.6931, 0.6931])
    """
    check_floating(query, "query", "(N, D)")
    if key is None:
        if key_labels is not None:
            raise ArgumentError("key_labels", "wants a key; without one the queries are the keys")
    else:
        check_floating(key, "key", "(M, D)")
        check_same(query, key, "key", "query", {1: "feature size"})
        if (query_labels is None) != (key_labels is None):
            missing = "query_labels" if query_labels is None else "key_labels"
            raise ArgumentError(missing, "are missing: the other side has labels")
    check_labels(query_labels, "query_labels", query, "query")
    check_labels(key_labels, "key_labels", key, "key")
    if self_offset is not None and not isinstance(self_offset, int):
        raise ArgumentTypeError("self_offset", f"wants a whole number, got {self_offset!r}")
    if own and query_labels is None:
        raise ArgumentError("own", "wants labels: without them no pair is positive")
    check_finite(query, "query")
    if key is not None:
        check_finite(key, "key")
    scale = check_scale(scale, "scale", query)
    if key is None and self_offset:  # pairs left out off the diagonal are not their own mirror
        key, key_labels = query, query_labels

    if BACKENDS.choose(query.device, query.dtype) == "reference":
        return R.pairwise_lse(
            query, key, scale=scale, query_labels=query_labels, key_labels=key_labels,
            self_offset=self_offset, columns=columns, own=own,
        )  # fmt: skip
    negatives, positives, positive_sum, _, of_columns = torch.ops.speechft.pairwise_lse(
        query, key, scale, query_labels, key_labels, self_offset, columns, own
    )
    return PairwiseLSE(negatives, positives, positive_sum, of_columns if columns else None)


# The op also returns the sum over positive pairs of sigmoid(negatives - s), which is minus the
# derivative of the positive sum by the negatives, and which only the backward wants.
torch.library.define(
    "speechft::pairwise_lse",
    "(Tensor query, Tensor? key, Tensor scale, Tensor? query_labels, Tensor? key_labels, "
    "int? self_offset, bool columns, bool own) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "speechft::pairwise_lse_backward",
    "(Tensor query, Tensor? key, Tensor scale, Tensor? query_labels, Tensor? key_labels, "
    "int? self_offset, bool own, Tensor[] rows, Tensor[] columns, bool need_query, bool need_key) "
    "-> (Tensor, Tensor)",
)


@torch.library.impl("speechft::pairwise_lse", "cpu")
def _pairwise_lse(
    query: Tensor,
    key: Tensor | None,
    scale: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    columns: bool,
    own: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        return _pairwise_lse_cpu.pairwise_lse(
            query, key, scale, query_labels, key_labels, self_offset, columns, own
        )


@torch.library.impl("speechft::pairwise_lse_backward", "cpu")
def _pairwise_lse_backward(
    query: Tensor,
    key: Tensor | None,
    scale: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    own: bool,
    rows: list[Tensor],
    columns: list[Tensor],
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        return _pairwise_lse_cpu.pairwise_lse_backward(
            query, key, scale, query_labels, key_labels, self_offset, own, rows, columns,
            need_query, need_key,
        )  # fmt: skip


@torch.library.impl("speechft::pairwise_lse", "cuda")
def _pairwise_lse_cuda(
    query: Tensor,
    key: Tensor | None,
    scale: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    columns: bool,
    own: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from speechft.kernels import pairwise_lse as kernels

    with torch.autocast("cuda", enabled=False):
        return kernels.pairwise_lse(  # type: ignore[no-any-return]
            query, key, scale, query_labels, key_labels, self_offset, columns, own
        )


@torch.library.impl("speechft::pairwise_lse_backward", "cuda")
def _pairwise_lse_backward_cuda(
    query: Tensor,
    key: Tensor | None,
    scale: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    own: bool,
    rows: list[Tensor],
    columns: list[Tensor],
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor]:
    from speechft.kernels import pairwise_lse as kernels

    with torch.autocast("cuda", enabled=False):
        return kernels.pairwise_lse_backward(  # type: ignore[no-any-return]
            query, key, scale, query_labels, key_labels, self_offset, own, rows, columns,
            need_query, need_key, atomics=backends.atomics_allowed(),
        )  # fmt: skip


@torch.library.register_fake("speechft::pairwise_lse")
def _(query, key, scale, query_labels, key_labels, self_offset, columns, own):  # type: ignore[no-untyped-def]
    rows = [query.new_empty(query.shape[0], dtype=torch.float32) for _ in range(4)]
    size = (query if key is None else key).shape[0] if columns else 0
    return (*rows, query.new_empty(size, dtype=torch.float32))


@torch.library.register_fake("speechft::pairwise_lse_backward")
def _(  # type: ignore[no-untyped-def]
    query, key, scale, query_labels, key_labels, self_offset, own, rows, columns, need_query,
    need_key,
):  # fmt: skip
    dq = query.new_empty(query.shape if need_query or key is None else (0,), dtype=torch.float32)
    shape = key.shape if need_key and key is not None else (0,)
    return dq, query.new_empty(shape, dtype=torch.float32)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, key, scale, query_labels, key_labels, ctx.self_offset, ctx.columns, ctx.own = inputs
    negatives, positives, _, weight, of_columns = output
    ctx.save_for_backward(
        query, key, scale, query_labels, key_labels, negatives, positives, weight, of_columns
    )
    ctx.mark_non_differentiable(weight)
    ctx.set_materialize_grads(False)


def _backward(ctx, g_negatives, g_positives, g_sum, _g_weight, g_columns):  # type: ignore[no-untyped-def]
    query, key, scale, query_labels, key_labels, *outputs = ctx.saved_tensors
    negatives, positives, weight, of_columns = outputs
    need_query, need_key, need_scale = ctx.needs_input_grad[:3]
    if not ctx.columns:  # an empty tensor, and so is what comes in for it
        g_columns = None
    incoming = (g_negatives, g_positives, g_sum, g_columns)
    none = (None,) * 5
    if all(g is None for g in incoming):
        return None, None, None, *none
    if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
        values = R.pairwise_lse(
            query, key, scale=scale, query_labels=query_labels, key_labels=key_labels,
            self_offset=ctx.self_offset, columns=ctx.columns, own=ctx.own,
        )  # fmt: skip
        pairs = zip(values, incoming, strict=True)
        used = [(v, g) for v, g in pairs if v is not None and g is not None]
        needed = ctx.needs_input_grad[:3]
        inputs = [t for t, need in zip((query, key, scale), needed, strict=True) if need]
        outputs, weights = [v for v, _ in used], [g for _, g in used]
        found = torch.autograd.grad(outputs, inputs, weights, create_graph=True, allow_unused=True)
        grads = iter(found)
        return *(next(grads) if need else None for need in needed), *none
    g_negatives, g_positives, g_sum = (
        torch.zeros_like(negatives) if g is None else g for g in (g_negatives, g_positives, g_sum)
    )
    if ctx.own:  # log sigmoid(s - n) also has a derivative by n
        g_negatives = g_negatives - g_sum * weight
    side = [] if g_columns is None else [of_columns, g_columns]
    if key is None and g_columns is not None:  # the columns are the rows again
        g_negatives, side = g_negatives + g_columns, []
    dq, dk = torch.ops.speechft.pairwise_lse_backward(
        query, key, scale, query_labels, key_labels, ctx.self_offset, ctx.own,
        [negatives, g_negatives, positives, g_positives, g_sum], side,
        need_query or (need_scale and not need_key), need_key,
    )  # fmt: skip
    d_scale = None
    if need_scale:  # sum_ij G_ij s_ij / scale, and dq_i . q_i is row i of sum_j G_ij s_ij
        if key is None:
            d_scale = _dot(dq, query) / (2 * scale)  # every pair is in it from both sides
        else:
            d_scale = (_dot(dq, query) if dq.numel() else _dot(dk, key)) / scale
        d_scale = d_scale.to(scale.dtype)
    return (
        dq.to(query.dtype) if need_query else None,
        dk.to(key.dtype) if need_key else None,
        d_scale,
        *none,
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, a vector at a time and then in float64: its terms cancel."""
    rows: Tensor = torch.linalg.vecdot(a, b.to(a.dtype))
    return rows.sum(dtype=torch.float64)


torch.library.register_autograd("speechft::pairwise_lse", _backward, setup_context=_save)
