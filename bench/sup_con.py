"""Cases of ``F.sup_con``: embeddings with labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft import functional as F
from speechft import reference as R

from .contrastive import embeddings, floor, metric_learning, on_backend
from .registry import Case, Inputs, Provider, register

OP = "sup_con"
TEMPERATURE = 0.1


def eager(inputs: Inputs) -> Tensor:
    """As it is commonly written: logits, two masks, a log-softmax by hand."""
    (z,), (labels,) = inputs.leaves, inputs.integers
    z = normalize(z, dim=-1)
    logits = (z @ z.T / TEMPERATURE).float()
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & others
    log_probability = logits - torch.log((logits.exp() * others).sum(1, keepdim=True))
    return -((log_probability * positive).sum(1) / positive.sum(1)).mean()


def add(
    name: str,
    device: str,
    batch: int,
    features: int,
    *,
    kinds: int,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Register a case of (B, D) embeddings with so many labels."""

    def of(op: Any) -> Any:
        return lambda inputs: op(*inputs.leaves, *inputs.integers, temperature=TEMPERATURE)

    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=embeddings(batch, features, sides=1, kinds=kinds, dtype=dtype),
            providers={
                "speechft": Provider(
                    on_backend(of(F.sup_con), "cpu" if device == "cpu" else "triton")
                ),
                "pytorch-metric-learning": Provider(
                    metric_learning("SupConLoss", temperature=TEMPERATURE),
                    needs="pytorch_metric_learning",
                    max_repeats=5,
                ),
                "eager": Provider(eager),
            },
            truth=of(R.sup_con),
            floor=floor(batch, batch, features, same=True, dtype=dtype),
            **options,
        )
    )


add("N=4096 D=128, 400 labels", "cpu", 4096, 128, kinds=400, quick=True)
add("N=512 D=128, 16 x 32 grid", "cpu", 512, 128, kinds=32, quick=True)
add("GPU bf16 N=16384 D=256, 400 labels", "cuda", 16384, 256, kinds=400, dtype=torch.bfloat16,
    quick=True, tolerance=0.05)  # fmt: skip
