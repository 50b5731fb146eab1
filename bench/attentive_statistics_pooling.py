"""Cases of ``F.attentive_statistics_pooling``: of scores at hand, and of the whole module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from speechft import functional as F
from speechft import reference as R
from speechft.pooling import AttentiveStatisticsPooling

from .contrastive import on_backend
from .peers import pooling
from .registry import Case, Inputs, Provider, register
from .statistics_pooling import floor, frames

OP = "attentive_statistics_pooling"


def all_frames(x: Tensor) -> Tensor:
    """Lengths of utterances that fill the batch, x (B, C, T)."""
    return torch.full((len(x),), x.shape[2], device=x.device)


def add(
    name: str,
    device: str,
    *shape: int,
    channels_first: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Register a case of frames and scores (B, T, C)."""
    B, T, C = shape

    def of(op: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
        return lambda inputs: op(*inputs.leaves)

    def theirs(op: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
        return lambda inputs: op(*(leaf.transpose(1, 2) for leaf in inputs.leaves))

    def speechbrain(x: Tensor, scores: Tensor) -> Tensor:
        return pooling.asp_statistics(x, scores, all_frames(x))

    ours = on_backend(of(F.attentive_statistics_pooling), "cpu" if device == "cpu" else "triton")
    providers = {
        "speechft": Provider(ours),
        "wespeaker's formula": Provider(theirs(pooling.astp_statistics)),
        "SpeechBrain's formula": Provider(theirs(speechbrain)),
    }
    if device == "cuda":
        providers["torch.compile"] = Provider(torch.compile(theirs(pooling.astp_statistics)))
    providers["reference"] = Provider(of(R.attentive_statistics_pooling))
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=frames((B, T, C), 2, dtype, channels_first=channels_first),
            providers=providers,
            truth=of(R.attentive_statistics_pooling),
            truth_samples=2,
            floor=floor((B, T, C), 2, dtype),
            **options,
        )
    )


def add_module(name: str, device: str, *shape: int, **options: Any) -> None:
    """Register a case of frames alone: bottleneck of 128, global context, scores and statistics."""
    B, T, C = shape
    kept: dict[tuple[bool, int, torch.dtype], nn.Module] = {}

    def of(ours: bool) -> Callable[[Inputs], Tensor]:
        def run(inputs: Inputs) -> Tensor:
            x = inputs.leaves[0]
            key = (ours, x.shape[2], x.dtype)
            if key not in kept:
                torch.manual_seed(0)
                made: nn.Module = pooling.ASTP(x.shape[2])
                if ours:
                    made = AttentiveStatisticsPooling.from_state_dict(made.state_dict())
                kept[key] = made.to(x)
            value: Tensor = kept[key](x if ours else x.transpose(1, 2))
            return value

        return run

    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=frames((B, T, C), 1, torch.float32),
            providers={
                "speechft": Provider(of(True)),
                "wespeaker's formula": Provider(of(False), max_repeats=3),
            },
            truth=of(False),
            truth_samples=1,
            floor=lambda machine, mode: None,
            **options,
        )
    )


add("16 x 1500 x 1536", "cpu", 16, 1500, 1536, quick=True)
add("16 x 1500 x 1536, channels first", "cpu", 16, 1500, 1536, channels_first=True)
add_module("module 16 x 1500 x 1536", "cpu", 16, 1500, 1536)
add("GPU bf16 64 x 1500 x 1536", "cuda", 64, 1500, 1536, dtype=torch.bfloat16, quick=True,
    tolerance=0.1)  # fmt: skip
