"""What the cases of the softmax losses share: embeddings, and the floor of their GEMMs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import speechft

from .machine import Machine
from .registry import FORWARD, Floor, Inputs


def embeddings(
    batch: int, features: int, *, sides: int, kinds: int = 0, dtype: torch.dtype = torch.float32
) -> Callable[[bool], Inputs]:
    """Make ``sides`` tensors (B, D), and labels (B,) of so many kinds unless 0, all as frequent."""

    def make(tiny: bool) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        B = min(batch, 16) if tiny else batch
        leaves = [torch.randn(B, features, generator=generator).to(dtype) for _ in range(sides)]
        labels = torch.randperm(B, generator=generator) % (min(kinds, B // 2) or 1)
        return Inputs(tuple(leaves), (labels,) if kinds else ())

    return make


def on_backend(op: Callable[..., Tensor], backend: str) -> Callable[[Inputs], Tensor]:
    """The op on one backend, so that another cannot be timed in its name."""

    def run(inputs: Inputs) -> Tensor:
        with speechft.use_backend(backend):
            return op(inputs)

    return run


def floor(
    rows: int, columns: int, features: int, *, same: bool, dtype: torch.dtype = torch.float32
) -> Callable[[Machine, str], Floor]:
    """Floor of a loss on N x M logits in memory O((N + M) D), and of its gradient.

    The logits forward, and backward again, as they are not kept; then a product for either side's
    gradient. Where the queries are the keys, half of the logits are the other half, and the two
    gradients are one. Inputs and gradients are moved once. On a GPU the exponentials run beside the
    products, and count nothing.
    """

    def state(machine: Machine, mode: str) -> Floor:
        products = 1.0 if mode == FORWARD else 4.0
        products *= 0.5 if same else 1.0
        flop = 2.0 * rows * columns * features * products
        size = torch.finfo(dtype).bits // 8
        moved = (rows + (0 if same else columns)) * features * size
        moved *= 1 if mode == FORWARD else 2
        rate = machine.flops.get(dtype, machine.flops[torch.float32])
        seconds = flop / rate + moved / machine.bandwidth
        return Floor(
            1e3 * seconds,
            f"GEMMs {flop / 1e9:.4g} GFLOP / {rate / 1e9:.4g} GFLOP/s + {moved / 1e6:.4g} MB / "
            f"{machine.bandwidth / 1e9:.4g} GB/s, rates {machine.source}",
        )

    return state


def metric_learning(name: str, **settings: Any) -> Callable[[Inputs], Tensor]:
    """A loss of pytorch-metric-learning on all the leaves as one batch, with their labels."""

    def run(inputs: Inputs) -> Tensor:
        from pytorch_metric_learning import losses

        batch = torch.cat(inputs.leaves)
        labels = inputs.integers[0].repeat(len(inputs.leaves))
        value: Tensor = getattr(losses, name)(**settings)(batch, labels)
        return value

    return run
