"""Cases of ``F.info_nce``: two towers of embeddings, as in CLIP."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from speechft import functional as F
from speechft import reference as R

from .contrastive import embeddings, floor, on_backend
from .registry import Case, Inputs, Provider, register

OP = "info_nce"
TEMPERATURE = 0.07


def eager(inputs: Inputs, *, symmetric: bool) -> Tensor:
    """As open_clip and most trainers write it: a matrix of logits and a cross-entropy."""
    query, key = (normalize(leaf, dim=-1) for leaf in inputs.leaves)
    logits = query @ key.T / TEMPERATURE
    own = torch.arange(len(query), device=query.device)
    value = cross_entropy(logits.float(), own)
    return (value + cross_entropy(logits.T.float(), own)) / 2 if symmetric else value


def memeff(inputs: Inputs) -> Tensor:
    """The Triton loss of the package memeff; its default scales the gradient by another number."""
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(temperature=TEMPERATURE, stable=False)
    value: Tensor = loss(*inputs.leaves)
    return value


@functools.cache
def compiled() -> Callable[..., Tensor]:
    """``eager`` under torch.compile, which takes seconds to import."""
    return torch.compile(eager)


def add(
    name: str,
    device: str,
    batch: int,
    features: int,
    *,
    symmetric: bool = True,
    dtype: torch.dtype = torch.float32,
    eager_repeats: int | None = None,
    **options: Any,
) -> None:
    """Register a case of (B, D) queries and keys."""
    settings: dict[str, Any] = {"temperature": TEMPERATURE, "symmetric": symmetric}
    ours = on_backend(
        lambda inputs: F.info_nce(*inputs.leaves, **settings),
        "cpu" if device == "cpu" else "triton",
    )
    providers = {"speechft": Provider(ours)}
    if device == "cuda":
        providers["speechft-graph"] = Provider(ours, graph=True)
        if symmetric:
            providers["memeff"] = Provider(memeff, needs="memeff")
        providers["torch.compile"] = Provider(
            lambda inputs: compiled()(inputs, symmetric=symmetric), max_repeats=eager_repeats
        )
    providers["eager"] = Provider(
        lambda inputs: eager(inputs, symmetric=symmetric), max_repeats=eager_repeats
    )
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=embeddings(batch, features, sides=2, dtype=dtype),
            providers=providers,
            truth=lambda inputs: R.info_nce(*inputs.leaves, **settings),
            floor=floor(batch, batch, features, same=False, dtype=dtype),
            **options,
        )
    )


add("symmetric N=4096 D=256", "cpu", 4096, 256, quick=True)
add("one way N=4096 D=256", "cpu", 4096, 256, symmetric=False)
add("symmetric N=512 D=256", "cpu", 512, 256, quick=True)
add("symmetric N=8192 D=512", "cpu", 8192, 512, eager_repeats=3)
add("GPU bf16 symmetric N=32768 D=256", "cuda", 32768, 256, dtype=torch.bfloat16, quick=True,
    tolerance=0.05)  # fmt: skip
add("GPU fp32 symmetric N=8192 D=256", "cuda", 8192, 256, quick=True)
add("GPU bf16 symmetric N=131072 D=256", "cuda", 131072, 256, dtype=torch.bfloat16,
    tolerance=0.05, eager_repeats=0, truth_samples=8192)  # fmt: skip
