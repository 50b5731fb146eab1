"""Cases of ``F.barlow_twins``: two views, wide embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechft import functional as F
from speechft import reference as R

from .contrastive import embeddings
from .machine import Machine
from .peers import redundancy
from .registry import FORWARD, Case, Floor, Inputs, Provider, register

OP = "barlow_twins"


def floor(n: int, d: int, dtype: torch.dtype) -> Callable[[Machine, str], Floor]:
    """Floor by the smaller side, with inputs and gradients moved once.

    By rows: two N x N Gram matrices, half of each by symmetry, and a product for each gradient. By
    columns: one D x D product, and one for each gradient.
    """

    def state(machine: Machine, mode: str) -> Floor:
        gradients = 0 if mode == FORWARD else 2
        flop = 2.0 * min(n * n * d * (1 + gradients), n * d * d * (1 + gradients))
        moved = 2.0 * n * d * (torch.finfo(dtype).bits // 8) * (1 if mode == FORWARD else 2)
        rate = machine.flops[torch.float32]
        seconds = flop / rate + moved / machine.bandwidth
        return Floor(
            1e3 * seconds,
            f"GEMMs {flop / 1e9:.4g} GFLOP / {rate / 1e9:.4g} GFLOP/s + {moved / 1e6:.4g} MB / "
            f"{machine.bandwidth / 1e9:.4g} GB/s, rates {machine.source}",
        )

    return state


def add(
    name: str, device: str, n: int, d: int, *, dtype: torch.dtype = torch.float32, **options: Any
) -> None:
    """Register a case of two (N, D)."""

    def of(op: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
        return lambda inputs: op(*inputs.leaves)

    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=embeddings(n, d, sides=2, dtype=dtype),
            providers={
                "speechft": Provider(of(F.barlow_twins)),
                "lightly's formula": Provider(of(redundancy.lightly_barlow_twins)),
                "authors' formula": Provider(of(redundancy.authors_barlow_twins)),
            },
            truth=of(R.barlow_twins),
            floor=floor(n, d, dtype),
            **options,
        )
    )


# lightly divides by the unbiased deviation: 2 / N off, which the tolerance lets through.
add("N=256 D=8192", "cpu", 256, 8192, quick=True, tolerance=0.05)
add("N=1024 D=1024", "cpu", 1024, 1024, tolerance=0.05)
add("N=32 D=64", "cpu", 32, 64, quick=True, tolerance=0.2)
add("GPU N=512 D=8192", "cuda", 512, 8192, quick=True, tolerance=0.05)
