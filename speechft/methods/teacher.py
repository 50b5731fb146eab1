"""A teacher that follows its student: an exponential moving average, buffers included."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError


class Teacher(nn.Module):
    r"""A copy of a module whose tensors follow the module's.

    .. math:: \xi \leftarrow m\, \xi + (1 - m)\, \theta

    Parameters and floating buffers (the running statistics of batch norm among them) are averaged
    in float32, whatever the student's type: in half precision :math:`(1 - m)\theta` would be
    rounded away. Integer buffers are copied. Nothing waits for a GPU, and no counter lies outside
    the module, so a checkpoint of it is whole.

    Args:
        student: is copied.
        batch_statistics: normalise by the batch (train mode, with no dropout) in place of the
            averaged statistics; those are then the teacher's own, and are not averaged.

    Source: Tarvainen & Valpola, NIPS 2017; with averaged statistics, Cai et al., "Exponential
    moving average normalization", CVPR 2021.
    """

    def __init__(self, student: nn.Module, *, batch_statistics: bool = False) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).float().requires_grad_(False)
        self.batch_statistics = batch_statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> Teacher:
        """Eval mode always, but for batch norm where it is to use the batch."""
        super().train(False)
        self.training = mode
        if mode and self.batch_statistics:
            for module in self.module.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
        return self

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """What the averaged module gives, without gradient."""
        return self.module(*inputs)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """One step towards the student.

        Raises:
            ArgumentError: a momentum outside 0 to 1.
        """
        if not 0 <= momentum <= 1:
            raise ArgumentError("momentum", f"wants 0 to 1, got {momentum}")
        pairs = list(zip(self.module.parameters(), student.parameters(), strict=True))
        if not self.batch_statistics:
            buffers = zip(self.module.buffers(), student.buffers(), strict=True)
            for mine, theirs in buffers:
                if mine.is_floating_point():
                    pairs.append((mine, theirs))  # type: ignore[arg-type]
                else:
                    mine.copy_(theirs)
        if pairs:
            own = [cast(Tensor, mine) for mine, _ in pairs]
            torch._foreach_lerp_(own, [theirs.float() for _, theirs in pairs], 1 - momentum)


def cosine_momentum(start: float, step: int, steps: int) -> float:
    r"""From ``start`` at step 0 to 1 at step T, along a cosine:

    .. math:: m = 1 - (1 - m_0) \frac{1 + \cos(\pi t / T)}{2}

    >>> [round(cosine_momentum(0.99, t, 10), 4) for t in (0, 5, 10)]
    [0.99, 0.995, 1.0]
    """
    return 1 - (1 - start) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2
