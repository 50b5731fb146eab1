r"""Sinkhorn-Knopp assignment of rows to codes, in the log domain.

Scaling the rows and columns of :math:`e^{x_{bk} / \epsilon}` in turn, so that each code has
:math:`B / K` of the rows and each row the weight 1 (Cuturi 2013; SwAV, Caron et al. 2020), is the
search for numbers a of the rows and c of the codes,

.. math::

    c_k = \epsilon \log \sum_b e^{(x_{bk} - a_b) / \epsilon} - \epsilon \log \frac B K, \qquad
    a_b = \epsilon \log \sum_k e^{(x_{bk} - c_k) / \epsilon},

from :math:`a = 0`. After the last iteration the assignments are
:math:`\mathrm{softmax}_k((x_b - c) / \epsilon)`: c, a centre for which each code has its share,
says all. No exponential is of more than 0, so no logit is too large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.distributed import Gather, all_gather, all_reduce, group_of
from speechft.reference.dino import Views, dino


def sinkhorn_center(
    logits: Views,
    *,
    epsilon: float | Tensor = 0.05,
    iterations: int = 3,
    lengths: Tensor | None = None,
    gather: Gather = False,
) -> Tensor:
    """(K,) the centre of the codes; see :func:`speechft.functional.sinkhorn_center`."""
    rows, counted = _rows(logits, lengths)
    group = group_of(gather)
    number = all_reduce(counted.sum().to(rows.dtype), group)
    left_out = torch.where(counted, 0.0, -torch.inf).to(rows.dtype)[:, None]
    a = torch.zeros_like(rows[:, :1])
    for _ in range(iterations):
        of_rank = ((rows - a) / epsilon + left_out).logsumexp(0)
        of_all = all_gather(of_rank[None], group).logsumexp(0)
        c = epsilon * (of_all - (number / rows.shape[1]).log())
        a = epsilon * ((rows - c) / epsilon).logsumexp(1, keepdim=True)
    return c


def sinkhorn(
    logits: Tensor,
    *,
    epsilon: float | Tensor = 0.05,
    iterations: int = 3,
    lengths: Tensor | None = None,
    gather: Gather = False,
) -> Tensor:
    """Assignments of the shape of ``logits``; see :func:`speechft.functional.sinkhorn`."""
    center = sinkhorn_center(
        logits, epsilon=epsilon, iterations=iterations, lengths=lengths, gather=gather
    )
    rows, counted = _rows(logits, lengths)
    found = ((rows - center) / epsilon).softmax(1)
    return torch.where(counted[:, None], found, 0.0).view(logits.shape)


def swapped_prediction(
    logits1: Tensor,
    logits2: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    epsilon: float | Tensor = 0.02,
    iterations: int = 3,
    lengths: Tensor | None = None,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    """Spin's loss; see :func:`speechft.functional.swapped_prediction`."""
    views = [logits1, logits2]
    centers = [
        sinkhorn_center(
            view, epsilon=epsilon, iterations=iterations, lengths=lengths, gather=gather
        )
        for view in views
    ]
    return dino(
        views, views, center=torch.stack(centers), student_temperature=temperature,
        teacher_temperature=epsilon, student_lengths=lengths, reduction=reduction,
    )  # fmt: skip


def _rows(logits: Views, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, K) of all leading dimensions, in float32 at least, and which rows count."""
    logits = logits if isinstance(logits, Tensor) else torch.stack(list(logits))
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    rows = logits.reshape(-1, logits.shape[-1])
    if lengths is None:
        return rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    valid = torch.arange(logits.shape[-2], device=rows.device) < lengths[:, None]
    return rows, valid.expand(logits.shape[:-1]).reshape(-1)
