"""Vectors of unit length, where a zero vector stays one."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """``x`` over its length, along the last dimension.

    A zero vector has no direction: it stays zero, so its cosine with anything is 0, and its
    gradient is that of a vector of length 1, where dividing by a small number makes one of 1e12.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)
