"""Cases of ``F.temporal_idm``: sequences in which frames are the nearer the closer in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft import functional as F
from speechft import reference as R

from .contrastive import on_backend
from .machine import Machine
from .peers import temporal_idm as peers
from .registry import FORWARD, Case, Floor, Inputs, Provider, register
from .soft_dtw import peer as soft_dtw_peer

OP = "temporal_idm"
SETTINGS = {"sigma": 0.0, "margin": 1.1}  # LASER's for HuBERT
SCORE = {"gamma": 0.1, "divergence": True, "length_normalize": True}
WEIGHT = 0.15  # of the regulariser beside soft-DTW


def frames(
    shape: tuple[int, int, int], sides: int, common: float, dtype: torch.dtype
) -> Callable[[bool], Inputs]:
    """Make unit-norm sequences (B, T, D).

    A frame is a moving mean of noise over 8 frames, plus what a sequence has in common: with 0 all
    frames that are not neighbours are sqrt(2) apart, beyond the margin; with 2, all within it.
    """

    def make(tiny: bool) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        B, T, D = (2, 12, 16) if tiny else shape

        def side() -> Tensor:
            noise = torch.randn(B, T + 7, D, generator=generator) / D**0.5
            x = noise.unfold(1, 8, 1).mean(-1) * 8**0.5
            offset = torch.randn(B, 1, D, generator=generator) / D**0.5
            return normalize(x + common * offset, dim=-1).to(dtype)

        return Inputs(tuple(side() for _ in range(sides)))

    return make


def floor(shape: tuple[int, int, int], sides: int) -> Callable[[Machine, str], Floor]:
    """Floor of the distances, of half of the pairs, by a Gram matrix at the rate of GEMMs.

    That is less exact than the op; of the gradient, which pairs beyond the margin do not have, no
    more is counted than moving it. A soft-DTW beside it counts nothing.
    """

    def state(machine: Machine, mode: str) -> Floor:
        B, T, D = shape
        flop = float(B * T * T * D * sides)
        moved = 4.0 * B * T * D * sides * (1 if mode == FORWARD else 2)
        rate = machine.flops[torch.float32]
        return Floor(
            1e3 * (flop / rate + moved / machine.bandwidth),
            f"GEMMs {flop / 1e9:.4g} GFLOP / {rate / 1e9:.4g} GFLOP/s + {moved / 1e6:.4g} MB / "
            f"{machine.bandwidth / 1e9:.4g} GB/s, rates {machine.source}",
        )

    return state


def add(
    name: str,
    device: str,
    *shape: int,
    common: float = 0.0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Register a case of sequences (B, T, D)."""
    B, T, D = shape

    def of(op: Callable[..., Tensor], **settings: Any) -> Callable[[Inputs], Tensor]:
        return lambda inputs: op(inputs.leaves[0], **SETTINGS, **settings)

    ours = of(F.temporal_idm, reduction="none")
    truth = of(R.temporal_idm, reduction="none")
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=frames((B, T, D), 1, common, dtype),
            providers={
                "speechft": Provider(on_backend(ours, "cpu" if device == "cpu" else "triton")),
                "torch.cdist": Provider(of(peers.by_cdist)),
                "N x N x D": Provider(of(peers.by_difference), at_once=1, max_repeats=3),
                "reference": Provider(truth, at_once=1, max_repeats=2),
            },
            truth=truth,
            truth_samples=1,
            floor=floor((B, T, D), 1),
            **options,
        )
    )


def add_laser(name: str, *shape: int, **options: Any) -> None:
    """Register a case of LASER's whole loss: soft-DTW, and the regulariser of either side."""
    B, T, D = shape

    def of(
        soft_dtw: Callable[[Inputs], Tensor], moment: Callable[..., Tensor]
    ) -> Callable[[Inputs], Tensor]:
        def loss(inputs: Inputs) -> Tensor:
            x, y = inputs.leaves
            return soft_dtw(inputs) + WEIGHT * (moment(x, **SETTINGS) + moment(y, **SETTINGS))

        return loss

    def op_of(M: Any) -> Callable[[Inputs], Tensor]:
        return of(
            lambda inputs: M.soft_dtw(*inputs.leaves, reduction="none", **SCORE),
            lambda x, **settings: M.temporal_idm(x, reduction="none", **settings),
        )

    eager = {
        name: Provider(of(soft_dtw_peer("score", **SCORE), moment), at_once=1, needs="numba",
                       max_repeats=2)
        for name, moment in (("score + N x N x D", peers.by_difference),
                             ("score + torch.cdist", peers.by_cdist))
    }  # fmt: skip
    register(
        Case(
            op=OP,
            name=name,
            device="cpu",
            make=frames((B, T, D), 2, 0.0, torch.float32),
            providers={"speechft": Provider(on_backend(op_of(F), "cpu")), **eager},
            truth=op_of(R),
            truth_samples=1,
            floor=floor((B, T, D), 2),
            **options,
        )
    )


add("B=8 T=600 D=256", "cpu", 8, 600, 256, quick=True)
add("within the margin B=8 T=600 D=256", "cpu", 8, 600, 256, common=2.0)
add("short B=32 T=100 D=256", "cpu", 32, 100, 256)
add("long B=1 T=1500 D=64", "cpu", 1, 1500, 64)
add_laser("LASER B=8 T=600 D=256", 8, 600, 256, quick=True, tolerance=0.05)
add("GPU fp32 B=64 T=500 D=256", "cuda", 64, 500, 256, quick=True)
add("GPU bf16 B=64 T=500 D=256", "cuda", 64, 500, 256, dtype=torch.bfloat16, tolerance=0.05)
