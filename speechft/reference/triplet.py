r"""The triplet loss of cosine distances, by its definition.

With :math:`d(u, v) = 1 - \cos(u, v)` for anchors a, positives p and negatives n,

.. math::

    \ell_i = \max(0,\; d(a_i, p_i) - d(a_i, n_i) + m).
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.reference._reduce import reduce_batch
from speechft.reference._unit import unit


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """The loss of each triplet; see :func:`speechft.functional.triplet`."""
    dtype = torch.promote_types(anchor.dtype, torch.float32)
    with torch.autocast(anchor.device.type, enabled=False):
        a, p, n = (unit(x.to(dtype)) for x in (anchor, positive, negative))
        to_positive = 1 - (a * p).sum(-1)
        to_negative = 1 - (a * n).sum(-1)
        return reduce_batch(torch.relu(to_positive - to_negative + margin), reduction)
