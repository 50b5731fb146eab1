"""The mean and the maximum of the valid frames."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.functional._checks import check_finite, check_floating
from speechft.lengths import LengthsLike, check_lengths


def mean_pooling(x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
    r"""The mean of the valid frames, :math:`\frac 1 n \sum_{t < n} x_t`.

    Args:
        x: (B, T, C), floating point.
        lengths: (B,) valid frames; those beyond have no part and get no gradient.

    Returns:
        Tensor: (B, C), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank, NaN.
        ArgumentTypeError: inputs that are not floating point.
        LengthError: a length of 0 or beyond T.

    >>> import torch
    >>> mean_pooling(torch.tensor([[[1.0], [3.0], [99.0]]]), [2])
    tensor([[2.]])
    """
    valid, found = _valid(x, lengths)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if valid is None or found is None:
        return x.mean(1, dtype=dtype)
    return torch.where(valid, x, 0.0).sum(1, dtype=dtype) / found[:, None]


def max_pooling(x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
    """The largest value of each channel over the valid frames.

    Args:
        x: (B, T, C), floating point.
        lengths: (B,) valid frames; those beyond have no part and get no gradient.

    Returns:
        Tensor: (B, C), of the dtype of ``x``. Of several largest values the first gets the
        gradient.

    Raises:
        ArgumentError: a wrong rank, NaN.
        ArgumentTypeError: inputs that are not floating point.
        LengthError: a length of 0 or beyond T.

    >>> import torch
    >>> max_pooling(torch.tensor([[[1.0], [3.0], [99.0]]]), [2])
    tensor([[3.]])
    """
    valid, _ = _valid(x, lengths)
    values = x if valid is None else torch.where(valid, x, -torch.inf)
    return values.max(1).values


def _valid(x: Tensor, lengths: LengthsLike | None) -> tuple[Tensor | None, Tensor | None]:
    """(B, T, 1) booleans and lengths, or None for all."""
    check_floating(x, "x", "(B, T, C)")
    found = check_lengths(
        lengths, batch=x.shape[0], steps=x.shape[1], device=x.device, argument="lengths"
    )
    check_finite(x, "x", found)
    if found is None:
        return None, None
    return (torch.arange(x.shape[1], device=x.device) < found[:, None])[..., None], found
