"""Soft-DTW on an NVIDIA GPU."""

from __future__ import annotations

from torch import Tensor


def soft_dtw(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    divergence: bool,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    raise RuntimeError


def soft_dtw_from_cost(
    cost: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    need_alignment: bool,
) -> tuple[Tensor, Tensor]:
    raise RuntimeError
