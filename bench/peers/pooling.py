"""Statistics pooling as others compute it, written from their definitions.

Frames are (B, C, T), as with them. Names of parameters are theirs, so that state dicts are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tstp(x: Tensor) -> Tensor:
    """Wespeaker's statistics pooling; no lengths."""
    return torch.cat([x.mean(-1), torch.sqrt(x.var(-1) + 1e-8)], dim=1)


def astp_statistics(x: Tensor, scores: Tensor) -> Tensor:
    """What wespeaker's ``ASTP`` makes of scores: E[x^2] - mean^2; no lengths."""
    alpha = torch.softmax(scores, dim=2)
    mean = (alpha * x).sum(2)
    variance = (alpha * x**2).sum(2) - mean**2
    return torch.cat([mean, variance.clamp(min=1e-10).sqrt()], dim=1)


def asp_statistics(x: Tensor, scores: Tensor, lengths: Tensor) -> Tensor:
    """What SpeechBrain's ``AttentiveStatisticsPooling`` makes of scores: two passes, and a mask."""
    mask = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None]
    alpha = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=2)
    return torch.cat(_weighted(x, alpha), dim=1)


def _weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mean = (weights * x).sum(2)
    squares = (weights * (x - mean[..., None]).pow(2)).sum(2)
    return mean, squares.clamp(1e-12).sqrt()


class ASTP(nn.Module):
    """wespeaker's: tanh between two convolutions; E[x^2] - mean^2; no lengths."""

    def __init__(self, channels: int, bottleneck: int = 128, context: bool = True) -> None:
        super().__init__()
        self.context = context
        self.linear1 = nn.Conv1d(3 * channels if context else channels, bottleneck, 1)
        self.linear2 = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        if self.context:
            mean = x.mean(-1, keepdim=True)
            deviation = torch.sqrt(x.var(-1, keepdim=True) + 1e-10)
            seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
        return astp_statistics(x, self.linear2(torch.tanh(self.linear1(seen))))


class ASP(nn.Module):
    """SpeechBrain's: ReLU, batch norm and tanh between them; lengths as a mask."""

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.tdnn = _named(
            conv=_named(conv=nn.Conv1d(3 * channels, bottleneck, 1)),
            norm=_named(norm=nn.BatchNorm1d(bottleneck)),
        )
        self.conv = _named(conv=nn.Conv1d(bottleneck, channels, 1))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None].to(x)
        equal = _weighted(x, mask / mask.sum(2, keepdim=True))
        context = [s[..., None].repeat(1, 1, x.shape[2]) for s in equal]
        parts = dict(self.named_modules())
        hidden = torch.relu(parts["tdnn.conv.conv"](torch.cat([x, *context], dim=1)))
        hidden = torch.tanh(parts["tdnn.norm.norm"](hidden))
        return asp_statistics(x, parts["conv.conv"](hidden), lengths)


def _named(**modules: nn.Module) -> nn.Module:
    """A module that does nothing but give its parts a name."""
    made = nn.Module()
    for name, module in modules.items():
        made.add_module(name, module)
    return made
