"""Orthogonality of two subspaces as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.functional.orthogonality import orthogonality


class OrthogonalityLoss(nn.Module):
    r""":func:`speechft.functional.orthogonality` with its settings kept.

    .. math::

        L_{\text{feature}} = \Bigl\| \tfrac 1 B \hat Z_1^\top \hat Z_2 \Bigr\|_F^2,
        \qquad
        L_{\text{sample}} = \frac 1 {B^2} \bigl\| \hat Z_1 \hat Z_2^\top \bigr\|_F^2,

    with rows of unit length.

    Args:
        form: ``"feature"`` or ``"sample"``.
        legacy: as published: ``"feature"`` is a mean over entries, which grows with the batch.
        gather: the loss of the batches of all ranks: True, or a process group.

    Shape:
        z1 (B, D1) and z2 (B, D2), D1 = D2 for ``form="sample"``; a scalar.

    Source: Cox & Barker, Interspeech 2026, after Bousmalis et al., NeurIPS 2016.

    >>> import torch
    >>> OrthogonalityLoss("sample")(torch.eye(2)[[0, 0]], torch.eye(2)[[1, 1]])
    tensor(0.)
    """

    def __init__(
        self, form: str = "feature", *, legacy: bool = False, gather: Gather = False
    ) -> None:
        super().__init__()
        self.form = form
        self.legacy = legacy
        self.gather = gather

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two subspaces, row by row of the same samples."""
        return orthogonality(z1, z2, form=self.form, legacy=self.legacy, gather=self.gather)

    def extra_repr(self) -> str:
        return f"form={self.form!r}, legacy={self.legacy}, gather={self.gather}"
