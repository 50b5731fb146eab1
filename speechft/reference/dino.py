r"""DINO's loss, by its definition: a student is to have the distribution of a sharper teacher.

With student logits :math:`s_v` of view v, teacher logits :math:`t_u` of view u and a centre
:math:`c`,

.. math::

    P_u = \mathrm{softmax}\Bigl(\frac{t_u - c}{\tau_t}\Bigr), \qquad
    L = \frac{1}{|\mathcal P|} \sum_{(u, v) \in \mathcal P}
        - \sum_k P_u(k) \log \mathrm{softmax}(s_v / \tau_s)_k,

where :math:`\mathcal P` are the pairs of a teacher and a student view that are not the same crop
(Caron et al. 2021, algorithm 1; for utterances, Cho et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechft.reference._reduce import reduce_batch

Views = Tensor | Sequence[Tensor]


class DINOTerms(NamedTuple):
    """A loss, and what the same read of the teacher's logits tells."""

    loss: Tensor
    cross_entropy: Tensor  # the mean over rows, whatever the reduction of the loss
    teacher_entropy: Tensor  # the mean over rows and views, in nats
    teacher_mean: Tensor  # (K,) the mean of the raw logits over rows and views
    rows: Tensor  # how many samples, or valid frames


def dino_terms(
    student: Views,
    teacher: Views,
    *,
    center: Tensor | None = None,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    student_lengths: Tensor | None = None,
    skip_same: bool = True,
    reduction: str = "mean",
) -> DINOTerms:
    """See :func:`speechft.functional.dino_terms`. Memory: several times the logits."""
    of_student, of_teacher = (_stacked(views) for views in (student, teacher))
    with torch.no_grad():
        raw = of_teacher.detach()
        if center is None:
            centred = raw
        else:  # one for all views, or one for each
            centred = raw - center.view(-1, *[1] * (raw.dim() - 2), raw.shape[-1])
        log_target = (centred / teacher_temperature).log_softmax(-1)
        target = log_target.exp()
    log_found = (of_student / student_temperature).log_softmax(-1)
    pairs = [
        (u, v)
        for u in range(len(target))
        for v in range(len(log_found))
        if not (skip_same and u == v)
    ]
    values = sum((-(target[u] * log_found[v]).sum(-1) for u, v in pairs), start=torch.tensor(0.0))
    values = values / len(pairs)  # (B,) or (B, T)
    counted = torch.ones_like(values, dtype=torch.bool)
    if student_lengths is not None:
        steps = torch.arange(values.shape[1], device=values.device)
        counted = steps < student_lengths[:, None]
        values = torch.where(counted, values, 0.0)
    rows = counted.sum()
    entropy = torch.where(counted, -(target * log_target).sum(-1), 0.0).sum() / (len(target) * rows)
    mean = torch.where(counted[..., None], raw, 0.0).flatten(0, -2).sum(0) / (len(target) * rows)
    cross_entropy = values.sum() / rows
    loss = cross_entropy if reduction == "mean" else reduce_batch(values, reduction)
    return DINOTerms(loss, cross_entropy.detach(), entropy, mean, rows.to(values.dtype))


def dino(
    student: Views,
    teacher: Views,
    *,
    center: Tensor | None = None,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    student_lengths: Tensor | None = None,
    skip_same: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """The loss of :func:`dino_terms`; see :func:`speechft.functional.dino`."""
    return dino_terms(
        student, teacher, center=center, student_temperature=student_temperature,
        teacher_temperature=teacher_temperature, student_lengths=student_lengths,
        skip_same=skip_same, reduction=reduction,
    ).loss  # fmt: skip


def _stacked(views: Views) -> Tensor:
    """(V, B, K) or (V, B, T, K), in float32 at least."""
    stacked = views if isinstance(views, Tensor) else torch.stack(list(views))
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))
