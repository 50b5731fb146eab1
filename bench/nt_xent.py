"""Cases of ``F.nt_xent``: two views of a batch, each sample its own or many of a label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from speechft import functional as F
from speechft import reference as R

from .contrastive import embeddings, floor, metric_learning, on_backend
from .registry import Case, Inputs, Provider, register

OP = "nt_xent"
TEMPERATURE = 0.1


def eager(inputs: Inputs) -> Tensor:
    """The loss of SimCLR, from its formula."""
    z = normalize(torch.cat(inputs.leaves), dim=-1)
    logits = (z @ z.T / TEMPERATURE).float()
    logits.fill_diagonal_(-torch.inf)
    return cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def add(
    name: str,
    device: str,
    batch: int,
    features: int,
    *,
    kinds: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Register a case of ``batch`` embeddings in all, half of them of each view."""

    def settings(inputs: Inputs) -> dict[str, Any]:
        return {"temperature": TEMPERATURE, "labels": inputs.integers[0] if kinds else None}

    ours = on_backend(
        lambda inputs: F.nt_xent(*inputs.leaves, **settings(inputs)),
        "cpu" if device == "cpu" else "triton",
    )
    providers = {"speechft": Provider(ours)}
    if kinds:
        providers["pytorch-metric-learning"] = Provider(
            metric_learning("NTXentLoss", temperature=TEMPERATURE),
            needs="pytorch_metric_learning",
            max_repeats=2,
        )
    else:
        providers["eager"] = Provider(eager)
    providers["reference"] = Provider(lambda inputs: R.nt_xent(*inputs.leaves, **settings(inputs)))
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=embeddings(batch // 2, features, sides=2, kinds=kinds, dtype=dtype),
            providers=providers,
            truth=lambda inputs: R.nt_xent(*inputs.leaves, **settings(inputs)),
            floor=floor(batch, batch, features, same=True, dtype=dtype),
            **options,
        )
    )


add("10 labels B=256 D=128", "cpu", 256, 128, kinds=10, quick=True)
add("two views B=4096 D=256", "cpu", 4096, 256, quick=True)
add("GPU bf16 two views B=32768 D=256", "cuda", 32768, 256, dtype=torch.bfloat16, quick=True,
    tolerance=0.05)  # fmt: skip
