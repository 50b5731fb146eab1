r"""The energy of a product of two tall or wide matrices, by the smaller of its Gram matrices.

For A (N, D1) and B (N, D2), exactly,

.. math::

    \|A^\top B\|_F^2 = \langle A A^\top, B B^\top \rangle, \qquad
    \tfrac 1 2 \nabla_A \|A^\top B\|_F^2 = B (B^\top A) = (B B^\top) A,

and without the diagonal of :math:`A^\top B`, which is :math:`c_i = a_i \cdot b_i` of the columns,
the energy has :math:`\sum_i c_i^2` less and the gradient :math:`B \operatorname{diag}(c)`. One side
is D1 x D2 and takes 3 products of N D1 D2 (forward and backward), the other is N x N and takes 4 of
N^2 D. The first is made a block of columns at a time and never exists whole.

The gradient is made in the forward pass, while these are at hand; kept are matrices of the inputs'
size. A second derivative goes through the formulas above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechft.distributed import all_reduce

BLOCK = 1024  # columns of A^T B at a time
CANCELLED = 1 / 64


def rows_are_fewer(n: int, d1: int, d2: int, *, gathered: bool = False) -> bool:
    """Whether N x N Gram matrices are the faster side: N <= D / 2 for D1 = D2 = D.

    Their products break even at N = 0.75 D with the gradient, and at D / 2 without. Of rows that
    ranks have to gather each makes the whole N x N, but only its part of D1 x D2: then N <= D / 4.
    """
    return n * (d1 + d2) * (2 if gathered else 1) <= d1 * d2


def cross_energy(a: Tensor, b: Tensor | None = None, *, off_diagonal: bool = False) -> Tensor:
    r"""Sum of the squares of :math:`A^\top B`, or of its entries off the diagonal.

    Args:
        a: (N, D1), float32 or float64.
        b: (N, D2), D1 = D2 with ``off_diagonal``; None: ``a`` again, for half the products.
        off_diagonal: leave the diagonal out.

    Accurate to rounding, and never negative. Where the N x N side would lose digits, because what
    is left over is below 1/64 of what cancels, the other side is taken on the CPU; on a GPU, where
    to look would be to wait, the error is then that of rounding the sum that cancels.
    """
    grad = torch.is_grad_enabled()
    need_b = grad and b is not None and b.requires_grad
    value, _, _ = torch.ops.speechft.cross_energy(
        a, b, off_diagonal, grad and a.requires_grad, need_b
    )
    return value  # type: ignore[no-any-return]


def cross_energy_of_ranks(
    a: Tensor, b: Tensor, group: Any | None, *, off_diagonal: bool = False
) -> Tensor:
    """:func:`cross_energy` of the rows of all ranks, from a sum of their D1 x D2 products."""
    product = all_reduce(a.T @ b, group)
    if off_diagonal:
        product = product - torch.diag(product.diagonal())
    return product.square().sum()


torch.library.define(
    "speechft::cross_energy",
    "(Tensor a, Tensor? b, bool off_diagonal, bool need_a, bool need_b) "
    "-> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("speechft::cross_energy", ("cpu", "cuda"))
def _cross_energy(
    a: Tensor, b: Tensor | None, off_diagonal: bool, need_a: bool, need_b: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(a.device.type, enabled=False):
        if rows_are_fewer(len(a), a.shape[1], (a if b is None else b).shape[1]):
            found = _by_rows(a, b, off_diagonal, need_a, need_b)
            if found is not None:
                return found
        return _by_columns(a, b, off_diagonal, need_a, need_b)


def _by_rows(
    a: Tensor, b: Tensor | None, off_diagonal: bool, need_a: bool, need_b: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """By N x N Gram matrices; None where too many digits cancel."""
    of_a = a @ a.T
    of_b = of_a if b is None else b @ b.T
    value = (of_a * of_b).sum(dtype=torch.float64)
    if off_diagonal:
        cancels = value
        diagonal = torch.linalg.vecdot(a, a if b is None else b, dim=0)
        value = value - diagonal.square().sum(dtype=torch.float64)
    else:  # the terms have both signs
        cancels = torch.linalg.vector_norm(of_a) * torch.linalg.vector_norm(of_b)
    if a.device.type == "cpu" and bool(value < CANCELLED * cancels):
        return None

    def gradient(gram: Tensor, of: Tensor, other: Tensor, needed: bool) -> Tensor:
        if not needed:
            return a.new_empty(0)
        scale = 4 if b is None else 2
        if off_diagonal:
            return torch.addmm(other * diagonal, gram, of, beta=-scale, alpha=scale)
        return (gram @ of).mul_(scale)

    da = gradient(of_b, a, a if b is None else b, need_a)
    db = a.new_empty(0) if b is None else gradient(of_a, b, a, need_b)
    return value.clamp(min=0).to(a.dtype), da, db


def _by_columns(
    a: Tensor, b: Tensor | None, off_diagonal: bool, need_a: bool, need_b: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """By D1 x D2, a block of its rows at a time."""
    other = a if b is None else b
    # Row-major whatever the inputs are: the blocks of the gradient are written into it.
    da = a.new_empty(a.shape if need_a else 0)
    db = a.new_zeros(other.shape if need_b else 0)
    value = torch.zeros((), dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], BLOCK):
        part = a[:, start : start + BLOCK]
        product = part.T @ other
        if off_diagonal:
            product.diagonal(start).zero_()
        value += torch.linalg.vector_norm(product, dim=1).double().square().sum()
        if need_a:
            torch.mm(other, product.T, out=da[:, start : start + BLOCK])
        if need_b:
            db.addmm_(part, product, alpha=2)
    return value.to(a.dtype), da.mul_(4 if b is None else 2), db


@torch.library.register_fake("speechft::cross_energy")
def _(a, b, off_diagonal, need_a, need_b):  # type: ignore[no-untyped-def]
    da = a.new_empty(a.shape if need_a else (0,))
    return a.new_empty(()), da, a.new_empty(b.shape if need_b else (0,))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    a, b, ctx.off_diagonal, _, _ = inputs
    ctx.save_for_backward(a, b, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _grad_da, _grad_db):  # type: ignore[no-untyped-def]
    a, b, da, db = ctx.saved_tensors
    none = (None, None, None)
    if grad is None:
        return None, None, *none
    need_a, need_b = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
        if b is None:
            return grad * _gradient(a, a, ctx.off_diagonal) * 2, None, *none
        da = _gradient(a, b, ctx.off_diagonal) if need_a else None
        db = _gradient(b, a, ctx.off_diagonal) if need_b else None
    return grad * da if need_a else None, grad * db if need_b else None, *none


def _gradient(a: Tensor, b: Tensor, off_diagonal: bool) -> Tensor:
    """By ``a``, in operations that have derivatives."""
    fewer = rows_are_fewer(len(a), a.shape[1], b.shape[1])
    half = (b @ b.T) @ a if fewer else b @ (b.T @ a)
    if off_diagonal:
        half = half - b * (a * b).sum(0)
    return 2 * half


torch.library.register_autograd("speechft::cross_energy", _backward, setup_context=_save)
