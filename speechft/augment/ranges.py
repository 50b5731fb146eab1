"""Ranges that values are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechft.augment.keys import randint, uniform
from speechft.errors import ArgumentError, ArgumentTypeError

Range = Sequence[float]


def check_range(
    value: float | Range, argument: str, lowest: float, highest: float
) -> tuple[float, float]:
    """A number, or the least and the most of a range, within bounds.

    Raises:
        ArgumentTypeError: neither a number nor two.
        ArgumentError: out of bounds, or the most before the least.
    """
    parts = (value, value) if isinstance(value, (int, float)) else value
    if (
        not isinstance(parts, (tuple, list))
        or len(parts) != 2
        or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in parts)
    ):
        raise ArgumentTypeError(
            argument, f"wants a number, or a range of two (least, most), got {value!r}"
        )
    low, high = float(parts[0]), float(parts[1])
    if not lowest <= low <= high <= highest:
        raise ArgumentError(
            argument, f"wants {lowest:g} to {highest:g}, the least first; got {value!r}"
        )
    return low, high


def check_whole_range(
    value: int | Sequence[int], argument: str, lowest: int, highest: int
) -> tuple[int, int]:
    """:func:`check_range` of integers."""
    low, high = check_range(value, argument, lowest, highest)
    if low != int(low) or high != int(high):
        raise ArgumentTypeError(argument, f"wants whole numbers, got {value!r}")
    return int(low), int(high)


def draw(keys: Tensor, stream: int, bounds: tuple[float, float], count: int = 1) -> Tensor:
    """``count`` numbers a key, evenly spread in the range: float64 (B, count)."""
    low, high = bounds
    return low + uniform(keys, stream, count, dtype=torch.float64) * (high - low)


def draw_whole(keys: Tensor, stream: int, bounds: tuple[int, int], count: int = 1) -> Tensor:
    """``count`` integers a key from the range, both ends included: int64 (B, count)."""
    low, high = bounds
    return low + randint(keys, stream, count, high=high - low + 1)


def shown(bounds: tuple[float, float]) -> str:
    """A range as an argument that makes it."""
    return f"{bounds[0]:g}" if bounds[0] == bounds[1] else f"({bounds[0]:g}, {bounds[1]:g})"
