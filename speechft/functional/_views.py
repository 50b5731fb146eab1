"""What the losses on two views of a batch share: their door, and moments over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechft.distributed import all_reduce, check_shapes, place_of
from speechft.errors import ArgumentError
from speechft.functional._checks import check_finite, check_floating, check_same


def check_views(z1: Tensor, z2: Tensor, group: Any | None) -> None:
    """Two tensors (N, D) of one shape, finite, with at least 2 rows over all ranks."""
    check_floating(z1, "z1", "(N, D)")
    check_floating(z2, "z2", "(N, D)")
    check_same(z1, z2, "z2", "z1", {0: "batch size", 1: "feature size"})
    rows = len(z1) * place_of(group)[1]
    if rows < 2:
        raise ArgumentError(
            "z1", f"wants 2 samples or more, because one has no variance; got {tuple(z1.shape)}"
        )
    check_finite(z1, "z1")
    check_finite(z2, "z2")


def rows_of(z: Tensor, group: Any | None) -> int:
    """Rows of all ranks, each of which has a tensor of the shape of ``z``."""
    ranks = place_of(group)[1]
    if ranks > 1:
        check_shapes(z, group, "gather")
    return len(z) * ranks


def centre(z1: Tensor, z2: Tensor, group: Any | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both (N, D) less the means of all ranks, and the sums of their squares (D,) over all ranks.

    In two passes, so that a large mean takes no digits from a small variance.
    """
    rows = len(z1) * place_of(group)[1]
    mean1, mean2 = all_reduce(torch.stack([z1.sum(0), z2.sum(0)]), group) / rows
    z1, z2 = z1 - mean1, z2 - mean2
    of_1, of_2 = all_reduce(torch.stack([z1.square().sum(0), z2.square().sum(0)]), group)
    return z1, z2, of_1, of_2
