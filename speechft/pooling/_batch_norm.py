"""Batch norm over the valid frames alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrameBatchNorm(nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` on frames (B, T, C): padding has no part in its statistics."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``x`` normalised; what it makes of the padding does not matter."""
        if not self.training or lengths is None:
            return super().forward(x.flatten(0, 1)).view_as(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        valid = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        number = lengths.sum()
        kept = torch.where(valid, x, 0.0)
        mean = kept.sum((0, 1)) / number
        centred = torch.where(valid, x - mean, 0.0)
        variance = centred.square().sum((0, 1)) / number
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 0.1
            unbiased = variance * number / (number - 1).clamp_min(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias
