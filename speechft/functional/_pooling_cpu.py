"""Statistics pooling on the CPU: see ``csrc/cpu/pooling.h``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module
from speechft.functional._buffers import buffer


def statistics(
    x: Tensor, weights: Tensor | None, lengths: Tensor | None, correction: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation (B, C), and the sum of the weights (B, G)."""
    B, _, C = x.shape
    groups = 1 if weights is None else weights.shape[2]
    results = [torch.empty(B, size) for size in (C, C, groups)]
    _Inputs(x, lengths, results, epsilon, weights=weights, correction=correction).pool()
    return results[0], results[1], results[2]


def statistics_backward(
    x: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    mean: Tensor,
    std: Tensor,
    total: Tensor,
    g_mean: Tensor,
    g_std: Tensor,
    correction: int,
    epsilon: float,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by ``x`` and ``weights``, empty where not needed."""
    saved = [mean, std, total]
    inputs = _Inputs(x, lengths, saved, epsilon, weights=weights, correction=correction)
    dx = buffer(x.shape) if need_x else torch.empty(0)
    dw = torch.empty(weights.shape if need_weights and weights is not None else (0,))
    inputs.gradient(g_mean, g_std, x=dx, weights=dw)
    return dx.to(x.dtype), dw.to(x.dtype if weights is None else weights.dtype)


def attentive_statistics(
    x: Tensor, scores: Tensor, lengths: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and log-sum-exp of the scores, each (B, C)."""
    results = [torch.empty(x.shape[0], x.shape[2]) for _ in range(3)]
    _Inputs(x, lengths, results, epsilon, scores=scores).pool()
    return results[0], results[1], results[2]


def attentive_statistics_backward(
    x: Tensor,
    scores: Tensor,
    lengths: Tensor | None,
    mean: Tensor,
    std: Tensor,
    lse: Tensor,
    g_mean: Tensor,
    g_std: Tensor,
    epsilon: float,
    need_x: bool,
    need_scores: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by ``x`` and ``scores``, empty where not needed."""
    inputs = _Inputs(x, lengths, [mean, std, lse], epsilon, scores=scores)
    dx = buffer(x.shape) if need_x else torch.empty(0)
    ds = buffer(scores.shape) if need_scores else torch.empty(0)
    inputs.gradient(g_mean, g_std, x=dx, scores=ds)
    return dx.to(x.dtype), ds.to(x.dtype)


class _Inputs:
    """Contiguous float32 copies where the inputs are not, kept while C++ reads them."""

    def __init__(
        self,
        x: Tensor,
        lengths: Tensor | None,
        statistics: list[Tensor],
        epsilon: float,
        *,
        weights: Tensor | None = None,
        scores: Tensor | None = None,
        correction: int = 0,
    ) -> None:
        module = compiled_module()
        assert module is not None  # the dispatch chose this backend
        self.module = module
        x = x.to(torch.float32).contiguous()
        weights, scores = (
            None if t is None else t.to(torch.float32).contiguous() for t in (weights, scores)
        )
        lengths = None if lengths is None else lengths.contiguous()
        self.kept = [x, lengths, weights, scores, *(t.contiguous() for t in statistics)]
        mean, deviation, total = self.kept[4:]
        B, T, C = x.shape
        self.batch = module.PoolingBatch(
            x=_address(x), batch=B, steps=T, channels=C, lengths=_address(lengths),
            weights=_address(weights), groups=1 if weights is None else weights.shape[2],
            scores=_address(scores), correction=correction, epsilon=epsilon,
            mean=_address(mean), deviation=_address(deviation), total=_address(total),
        )  # fmt: skip

    def pool(self) -> None:
        self.module.pooling(self.batch, torch.get_num_threads())

    def gradient(self, g_mean: Tensor, g_std: Tensor, **out: Tensor) -> None:
        """Into the tensors of ``out`` that are not empty."""
        g_mean, g_std = g_mean.contiguous(), g_std.contiguous()
        addresses = {name: _address(t) if t.numel() else 0 for name, t in out.items()}
        gradient: Any = self.module.PoolingGradient(
            mean=_address(g_mean), deviation=_address(g_std), **addresses
        )
        self.module.pooling_gradient(self.batch, gradient, torch.get_num_threads())


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
