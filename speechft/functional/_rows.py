"""What the ops on rows of logits share: their door, and which rows count."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional._checks import check_finite


def check_row(
    row: Tensor | None, argument: str, like: Tensor, codes: int, *, views: int | None = None
) -> None:
    """(K,) floating point without gradient, or (views, K) where that is given; finite."""
    if row is None:
        return
    if not isinstance(row, Tensor) or not row.is_floating_point():
        got = row.dtype if isinstance(row, Tensor) else type(row).__name__
        raise ArgumentTypeError(argument, f"wants a floating-point tensor (K,), got {got}")
    shapes = [(codes,)] if views is None else [(codes,), (views, codes)]
    if tuple(row.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ArgumentError(argument, f"wants shape {wanted}, got {tuple(row.shape)}")
    if row.device != like.device:
        raise ArgumentError(argument, f"wants the device of the logits, {like.device}, "
                                      f"got {row.device}")  # fmt: skip
    if row.requires_grad and torch.is_grad_enabled():
        raise ArgumentError(argument, "requires grad, and gets none; detach it")
    check_finite(row, argument)


def valid_rows(lengths: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor | None:
    """Which rows of logits (..., B, T, K) are frames within the lengths; None: all."""
    if lengths is None:
        return None
    valid = torch.arange(shape[-2], device=device) < lengths[:, None]
    return valid.expand(shape[:-1]).reshape(-1)
