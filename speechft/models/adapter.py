r"""An adapter of vectors: a bottleneck beside what goes straight on.

.. math:: f(x) = x + W_2 \max(0, W_1 x + b_1) + b_2

Source: Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError


class ResidualAdapter(nn.Module):
    """Vectors to vectors of the same size; nearly the identity at first.

    Args:
        size: D.
        hidden: of the bottleneck.

    Shape:
        (B, D); (B, D).

    Raises:
        ArgumentError: a size below 1.

    >>> import torch
    >>> ResidualAdapter(8, 4)(torch.zeros(3, 8)).shape
    torch.Size([3, 8])
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        for name, value in (("size", size), ("hidden", hidden)):
            if value < 1:
                raise ArgumentError(name, f"wants at least 1, got {value}")
        self.hidden = hidden
        self.down = nn.Linear(size, hidden)
        self.up = nn.Linear(hidden, size)
        for layer in (self.down, self.up):  # as published: a deviation of 0.01, cut at two of it
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        changed: Tensor = self.up(torch.relu(self.down(vectors)))
        return vectors + changed
