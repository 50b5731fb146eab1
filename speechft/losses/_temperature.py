"""A temperature that is a number or is learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError
from speechft.functional._checks import check_positive

SMALLEST = 0.01  # of a learnt temperature, as CLIP has it: logits of at most 100


class Temperature(nn.Module):
    """The temperature of a loss: fixed, or a parameter ``log_scale`` = log(1 / temperature).

    A learnt one is kept from falling below 0.01, where it would make NaN in time; its logarithm is
    what is learnt, as in CLIP, so that it stays above 0.
    """

    def __init__(self, temperature: float, learn: bool) -> None:
        super().__init__()
        self.fixed = check_positive(temperature, "temperature")
        if learn and temperature < SMALLEST:
            raise ArgumentError(
                "temperature", f"starts at {SMALLEST} or more to be learnt, got {temperature}"
            )
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learn else None

    def forward(self) -> float | Tensor:
        """The temperature now."""
        if self.log_scale is None:
            return self.fixed
        return torch.exp(-self.log_scale).clamp_min(SMALLEST)

    def extra_repr(self) -> str:
        return f"{self.fixed}, learnt" if self.log_scale is not None else str(self.fixed)
