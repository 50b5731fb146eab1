"""DINO's loss and Sinkhorn's assignment as they are computed today, written from their formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def eager_dino(
    student: Tensor, teacher: Tensor, center: Tensor, *, tau_s: float = 0.1, tau_t: float = 0.04
) -> Tensor:
    """One pair of views, as DINOv2 writes it: a softmax, a log-softmax, a product, a mean."""
    with torch.no_grad():
        target = ((teacher.float() - center) / tau_t).softmax(-1)
    return -(target * (student.float() / tau_s).log_softmax(-1)).sum(-1).mean()


def swav_sinkhorn(logits: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """The loop of SwAV, DINOv2 and Spin: e^(x / epsilon), scaled by columns and rows in place."""
    Q = torch.exp(logits.to(torch.promote_types(logits.dtype, torch.float32)) / epsilon).t()
    K, B = Q.shape
    Q /= Q.sum()
    for _ in range(iterations):
        Q /= Q.sum(1, keepdim=True)
        Q /= K
        Q /= Q.sum(0, keepdim=True)
        Q /= B
    Q *= B
    return Q.t()
