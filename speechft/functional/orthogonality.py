"""Orthogonality of two subspaces, by the smaller Gram side."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.distributed import Gather, all_gather, all_reduce, group_of
from speechft.errors import ArgumentError
from speechft.functional._checks import check_finite, check_floating, check_same
from speechft.functional._gram import cross_energy, cross_energy_of_ranks, rows_are_fewer
from speechft.functional._views import rows_of
from speechft.reference._embeddings import wide
from speechft.reference._unit import unit

FORMS = ("feature", "sample")


def orthogonality(
    z1: Tensor,
    z2: Tensor,
    *,
    form: str = "feature",
    legacy: bool = False,
    gather: Gather = False,
) -> Tensor:
    r"""How far two subspaces of the same samples are from orthogonal, from 0 to 1.

    With rows of unit length, :math:`\hat Z_1` and :math:`\hat Z_2`,

    .. math::

        L_{\text{feature}} = \Bigl\| \tfrac 1 B \hat Z_1^\top \hat Z_2 \Bigr\|_F^2,
        \qquad
        L_{\text{sample}} = \frac 1 {B^2} \bigl\| \hat Z_1 \hat Z_2^\top \bigr\|_F^2.

    The first asks that no dimension of one subspace goes with one of the other over the samples;
    the second that no vector of one subspace has the direction of one of the other. Neither grows
    with the batch: a batch repeated has the same loss.

    Args:
        z1: embeddings (B, D1) of B samples in one subspace, floating point.
        z2: (B, D2) of the same samples in the other, of the dtype and device of ``z1``;
            ``form="sample"`` wants D1 = D2.
        form: ``"feature"`` or ``"sample"``.
        legacy: as published: the mean over the D1 x D2 entries of
            :math:`(\hat Z_1^\top \hat Z_2)^2` for ``"feature"``, which is
            :math:`B^2 / (D_1 D_2)` times the loss above and grows with the batch. Changes nothing
            for ``"sample"``.
        gather: the loss of the batches of all ranks of ``torch.distributed`` (True, or a process
            group), of one shape. Each rank returns the whole loss, and the gradient that
            ``DistributedDataParallel`` averages is that of one process.

    Returns:
        Tensor: a scalar; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, an unknown form, NaN, ``gather`` without a process
            group or with batches of unequal shapes.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.

    A zero vector is orthogonal to all, and its gradient finite: that of a vector of length 1.
    Values of GPU tensors are checked only inside :func:`speechft.checked`. Under autocast the loss
    is computed in float32. It has a second derivative, but not with ``gather``. On a GPU a value
    near 0 is off by the rounding of what cancels.

    Memory beyond inputs and gradients: four float32 tensors (B, D) and, of ``"feature"``, with D
    the harmonic mean of D1 and D2, two B x B where B <= D/2 or 1024 x D2 where not; of
    ``"sample"``, two D x D where B >= 2 D or 1024 x B where not. With ``gather``, B is that of all
    ranks where B <= D/4, or of ``"sample"`` B < 4 D; where not, nothing is gathered, and D x D
    products are summed over the ranks.

    Source: Bousmalis et al., "Domain Separation Networks", NeurIPS 2016, equation 5 (a sum, not
    scaled, of rows as they come); with unit rows and a mean, Cox & Barker, "Learning task-specific
    subspaces via interventional post-training of speech foundation models", Interspeech 2026,
    whose code had ``"sample"`` until June 2026 and has ``"feature"`` since, both ``legacy`` here.

    >>> import torch
    >>> speaker, text = torch.eye(4)[[0, 0, 1, 1]], torch.eye(4)[[2, 3, 2, 3]]
    >>> float(orthogonality(speaker, text, form="sample")), float(orthogonality(speaker, speaker))
    (0.0, 0.5)
    """
    group = group_of(gather)
    check_floating(z1, "z1", "(B, D1)")
    check_floating(z2, "z2", "(B, D2)")
    if form not in FORMS:
        raise ArgumentError("form", f"wants one of {', '.join(FORMS)}; got {form!r}")
    same = {0: "batch size"} if form == "feature" else {0: "batch size", 1: "feature size"}
    check_same(z1, z2, "z2", "z1", same)
    check_finite(z1, "z1")
    check_finite(z2, "z2")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit(wide(z1)), unit(wide(z2))
        rows, (d1, d2) = rows_of(z1, group), (z1.shape[1], z2.shape[1])
        alone = rows == len(z1)
        if form == "sample":
            if not alone and rows_are_fewer(d1, rows, rows, gathered=True):
                gram1, gram2 = all_reduce(torch.stack([z1.T @ z1, z2.T @ z2]), group)
                energy = (gram1 * gram2).sum().clamp(min=0)
            else:
                energy = cross_energy(all_gather(z1, group).T, all_gather(z2, group).T)
            loss: Tensor = energy / rows**2
            return loss
        if alone or rows_are_fewer(rows, d1, d2, gathered=True):
            energy = cross_energy(all_gather(z1, group), all_gather(z2, group))
        else:
            energy = cross_energy_of_ranks(z1, z2, group)
        return energy / (d1 * d2 if legacy else rows**2)
