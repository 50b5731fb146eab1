"""Cases of ``F.sinkhorn``: three iterations, and assignments written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechft import functional as F
from speechft import reference as R

from .contrastive import on_backend
from .machine import Machine
from .peers import softmax
from .registry import FORWARD, Case, Floor, Inputs, Provider, register

OP = "sinkhorn"
ITERATIONS, EPSILON = 3, 0.05


def floor(
    rows: int, codes: int, dtype: torch.dtype, center: bool
) -> Callable[[Machine, str], Floor]:
    """The logits are read once an iteration, and once more for the assignments."""

    def state(machine: Machine, mode: str) -> Floor:
        size = torch.finfo(dtype).bits // 8
        moved = float(rows) * codes * (ITERATIONS * size + (0 if center else size + 4))
        return Floor(
            1e3 * moved / machine.bandwidth,
            f"{moved / 1e6:.4g} MB / {machine.bandwidth / 1e9:.4g} GB/s, rate {machine.source}",
        )

    return state


def _less_mean(row: Tensor) -> Tensor:
    return row - row.mean()


def add(
    name: str,
    device: str,
    rows: int,
    codes: int,
    *,
    scale: float = 0.3,
    dtype: torch.dtype = torch.float32,
    center: bool = False,
    **options: Any,
) -> None:
    """Register a case of logits (B, K) with a standard deviation of ``scale``.

    With ``center`` what is made is the centre of the codes, less its mean: all that DINO's pass and
    the swapped prediction take. It can be read off any row of the assignments.
    """

    def make(tiny: bool) -> Inputs:
        B, K = (2, 64) if tiny else (rows, codes)
        x = scale * torch.randn(B, K, generator=torch.Generator().manual_seed(0))
        return Inputs((), constants=(x.to(dtype),))

    def of(op: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
        return lambda inputs: op(inputs.constants[0])

    def centred(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x: _less_mean(op(x))

    def read_off(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x: _less_mean(x[0] - EPSILON * op(x)[0].log()) if center else op(x)

    ours = centred(F.sinkhorn_center) if center else F.sinkhorn
    definition = centred(R.sinkhorn_center) if center else R.sinkhorn

    backend = "cpu" if device == "cpu" else "triton"
    providers = {
        "speechft": Provider(on_backend(of(ours), backend)),
        "SwAV's loop": Provider(of(read_off(softmax.swav_sinkhorn))),
    }
    if device == "cuda":
        providers["torch.compile"] = Provider(torch.compile(of(read_off(softmax.swav_sinkhorn))))
    providers["reference"] = Provider(of(definition))
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=make,
            providers=providers,
            truth=of(definition),
            floor=floor(rows, codes, dtype, center),
            modes=(FORWARD,),
            **options,
        )
    )


add("B=128 K=65536", "cpu", 128, 65_536, quick=True)
add("B=12800 K=256", "cpu", 12_800, 256)
add("centre, B=128 K=65536", "cpu", 128, 65_536, quick=True, center=True)
add("centre, B=12800 K=256", "cpu", 12_800, 256, center=True)
add("GPU bf16 B=1024 K=65536", "cuda", 1024, 65_536, dtype=torch.bfloat16, quick=True,
    tolerance=0.05)  # fmt: skip
add("GPU bf16 centre, B=1024 K=65536", "cuda", 1024, 65_536, dtype=torch.bfloat16, quick=True,
    tolerance=0.05, center=True)  # fmt: skip
