"""The checks at the door of every op: each names the argument, what it got and what it wants."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.reference._reduce import REDUCTIONS


def check_floating(tensor: Tensor, argument: str, shape: str) -> None:
    """A floating-point tensor of the rank that ``shape``, such as ``"(B, T, D)"``, shows.

    No dimension may be empty.
    """
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(argument, f"wants a tensor {shape}, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise ArgumentTypeError(argument, f"wants floating point, got {tensor.dtype}")
    if tensor.dim() != shape.count(",") + 1:
        raise ArgumentError(argument, f"wants shape {shape}, got {tuple(tensor.shape)}")
    if 0 in tensor.shape:
        raise ArgumentError(argument, f"is empty: shape {tuple(tensor.shape)}")


def check_same(a: Tensor, b: Tensor, argument: str, of: str, dims: dict[int, str]) -> None:
    """``b`` has the dtype and device of ``a``, and its sizes in ``dims`` (index to meaning)."""
    if b.dtype != a.dtype:
        raise ArgumentTypeError(argument, f"wants the dtype of {of}, {a.dtype}, got {b.dtype}")
    if b.device != a.device:
        raise ArgumentError(argument, f"wants the device of {of}, {a.device}, got {b.device}")
    for dim, meaning in dims.items():
        if b.shape[dim] != a.shape[dim]:
            raise ArgumentError(
                argument,
                f"wants the {meaning} of {of}, {a.shape[dim]}, got {b.shape[dim]} "
                f"(shapes {tuple(a.shape)} and {tuple(b.shape)})",
            )


def check_positive(value: float, argument: str) -> float:
    """A finite number above zero."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ArgumentTypeError(argument, f"wants a number, got {type(value).__name__}")
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(argument, f"wants a finite number above 0, got {value}")
    return float(value)


def check_weight(value: float, argument: str) -> float:
    """A finite number, zero or above."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ArgumentTypeError(argument, f"wants a number, got {type(value).__name__}")
    if not (value >= 0 and math.isfinite(value)):
        raise ArgumentError(argument, f"wants a finite number, 0 or above; got {value}")
    return float(value)


def check_scale(value: float | Tensor, argument: str, like: Tensor) -> Tensor:
    """A finite number above zero, or a tensor of one such: a 0-d tensor on the device of ``like``.

    float32, or float64 where ``like`` is.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(value, Tensor):
        return torch.full((), check_positive(value, argument), dtype=dtype, device=like.device)
    if not value.is_floating_point():
        raise ArgumentTypeError(argument, f"wants floating point, got {value.dtype}")
    if value.numel() != 1:
        raise ArgumentError(argument, f"wants one number, got shape {tuple(value.shape)}")
    if values_are_checked(value):
        check_positive(value.item(), argument)
    return value.reshape(()).to(device=like.device, dtype=dtype)


def check_labels(
    labels: Tensor | None, argument: str, of: Tensor | None, name: str, *, factors: bool = False
) -> None:
    """Integers from 0, or -1 for unknown: (N,) of the N rows of ``of``, or (N, K) of factors."""
    if labels is None or of is None:
        return
    shape = "(N, K)" if factors else "(N,)"
    if not isinstance(labels, Tensor):
        raise ArgumentTypeError(argument, f"wants a tensor {shape}, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ArgumentTypeError(argument, f"wants integers, got {labels.dtype}")
    if labels.dim() != 1 + factors or len(labels) != len(of):
        raise ArgumentError(
            argument,
            f"wants {shape}, one a row of {name} {tuple(of.shape)}; got {tuple(labels.shape)}",
        )
    if labels.device != of.device:
        raise ArgumentError(
            argument, f"wants the device of {name}, {of.device}, got {labels.device}"
        )
    if values_are_checked(labels) and bool((labels < -1).any()):
        where = (labels < -1).nonzero()[0].tolist()
        raise ArgumentError(
            argument,
            f"wants numbers from 0, or -1 for unknown; got {int(labels[tuple(where)])} at {where}",
        )


def check_reduction(reduction: str) -> None:
    """One of the known reductions."""
    if reduction not in REDUCTIONS:
        raise ArgumentError("reduction", f"wants one of {', '.join(REDUCTIONS)}; got {reduction!r}")


def check_finite_inputs(
    results: Iterable[Tensor], inputs: Iterable[tuple[Tensor, str]], lengths: Tensor | None = None
) -> None:
    """:func:`check_finite` of the inputs, if what was made of them is not finite.

    For ops whose results NaN and infinity reach: their inputs are not read once more.
    """
    for result in results:
        if not values_are_checked(result):
            return
        if not bool(torch.isfinite(result.detach().sum())):
            for tensor, argument in inputs:
                check_finite(tensor, argument, lengths)
            return


def check_finite(tensor: Tensor, argument: str, *lengths: Tensor | None) -> None:
    """No NaN and no infinity within the lengths (one for each dimension after the first)."""
    if not values_are_checked(tensor) or bool(torch.isfinite(tensor.detach().sum())):
        return
    bad = ~torch.isfinite(tensor.detach())
    for dim, length in enumerate(lengths, start=1):
        if length is not None:
            steps = torch.arange(tensor.shape[dim], device=tensor.device) < length[:, None]
            shape = [1] * tensor.dim()
            shape[0], shape[dim] = steps.shape
            bad = bad & steps.view(shape)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise NonFiniteError(
            argument, f"holds {tensor[where].item()} at {where}; wants finite values"
        )
