"""Cases of ``F.statistics_pooling``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechft import functional as F
from speechft import reference as R

from .contrastive import on_backend
from .machine import Machine
from .peers import pooling
from .registry import FORWARD, Case, Floor, Inputs, Provider, register

OP = "statistics_pooling"


def frames(
    shape: tuple[int, int, int], number: int, dtype: torch.dtype, *, channels_first: bool = False
) -> Callable[[bool], Inputs]:
    """Make ``number`` tensors (B, T, C); ``channels_first``: in memory they are (B, C, T)."""

    def make(tiny: bool) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        B, T, C = (2, 8, 16) if tiny else shape
        size = (B, C, T) if channels_first else (B, T, C)
        made = (torch.randn(size, generator=generator).to(dtype) for _ in range(number))
        return Inputs(tuple(t.transpose(1, 2) if channels_first else t for t in made))

    return make


def floor(
    shape: tuple[int, int, int], number: int, dtype: torch.dtype
) -> Callable[[Machine, str], Floor]:
    """All that comes in is read once forward, and once more backward, where as much is written."""

    def state(machine: Machine, mode: str) -> Floor:
        times = number * (1 if mode == FORWARD else 3)
        moved = float(shape[0] * shape[1] * shape[2]) * times * (torch.finfo(dtype).bits // 8)
        return Floor(
            1e3 * moved / machine.bandwidth,
            f"{moved / 1e6:.4g} MB / {machine.bandwidth / 1e9:.4g} GB/s, rate {machine.source}",
        )

    return state


def add(
    name: str,
    device: str,
    *shape: int,
    channels_first: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Register a case of frames (B, T, C)."""
    B, T, C = shape

    def of(op: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
        return lambda inputs: op(inputs.leaves[0])

    def eager(x: Tensor) -> Tensor:
        return pooling.tstp(x.transpose(1, 2))

    def ours(x: Tensor) -> Tensor:
        return F.statistics_pooling(x, correction=1)

    providers = {
        "speechft": Provider(on_backend(of(ours), "cpu" if device == "cpu" else "triton")),
        "wespeaker's formula": Provider(of(eager)),
    }
    if device == "cuda":
        providers["torch.compile"] = Provider(torch.compile(of(eager)))
    providers["reference"] = Provider(of(lambda x: R.statistics_pooling(x, correction=1)))
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=frames((B, T, C), 1, dtype, channels_first=channels_first),
            providers=providers,
            truth=of(lambda x: R.statistics_pooling(x, correction=1)),
            truth_samples=2,
            floor=floor((B, T, C), 1, dtype),
            **options,
        )
    )


add("16 x 1500 x 1536", "cpu", 16, 1500, 1536, quick=True)
add("16 x 1500 x 1536, channels first", "cpu", 16, 1500, 1536, channels_first=True)
add("64 x 200 x 768", "cpu", 64, 200, 768)
add("GPU bf16 64 x 1500 x 1536", "cuda", 64, 1500, 1536, dtype=torch.bfloat16, quick=True,
    tolerance=0.1)  # fmt: skip
