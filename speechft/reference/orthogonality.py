r"""How far two subspaces of the same samples are from orthogonal, by the definition.

With rows of unit length, :math:`\hat Z_1` (B, D1) and :math:`\hat Z_2` (B, D2),

.. math::

    L_{\text{feature}} = \Bigl\| \tfrac 1 B \hat Z_1^\top \hat Z_2 \Bigr\|_F^2,
    \qquad
    L_{\text{sample}} = \frac 1 {B^2} \bigl\| \hat Z_1 \hat Z_2^\top \bigr\|_F^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.reference._unit import unit


def orthogonality(z1: Tensor, z2: Tensor, *, form: str = "feature", legacy: bool = False) -> Tensor:
    """The loss of two subspaces; see :func:`speechft.functional.orthogonality`."""
    dtype = torch.promote_types(z1.dtype, torch.float32)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit(z1.to(dtype)), unit(z2.to(dtype))
        if form == "sample":
            return (z1 @ z2.T).square().mean()
        if legacy:
            return (z1.T @ z2).square().mean()
        return (z1.T @ z2 / len(z1)).square().sum()
