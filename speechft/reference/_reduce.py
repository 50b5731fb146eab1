"""Reductions over the batch, with the names of ``torch.nn.functional``."""

from __future__ import annotations

from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def reduce_batch(values: Tensor, reduction: str) -> Tensor:
    """``values`` (B,) as they are, or their mean or sum."""
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()
