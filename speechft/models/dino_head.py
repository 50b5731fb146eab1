r"""The head of DINO: from a vector to logits over codes.

.. math::

    s = \hat W \frac{f(x)}{\lVert f(x) \rVert}, \qquad \hat w_k = \frac{w_k}{\lVert w_k \rVert}

with f an MLP that ends in a bottleneck, so each logit is a cosine. Source: Caron et al., ICCV 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from speechft.errors import ArgumentError


class DINOHead(nn.Module):
    """MLP with GELU, unit length, and a linear layer whose rows have unit length.

    Args:
        size: of the vectors that come in.
        codes: K.
        hidden_size: of the MLP's hidden layers.
        hidden_layers: how many; 0: one linear layer to the bottleneck.
        bottleneck: of what is brought to unit length.
        batch_norm: after each hidden linear layer.
        seed: of the weights: a normal law of deviation 0.02, cut at 2 (in units of 1).

    Shape:
        (B, D); (B, K).

    Raises:
        ArgumentError: a size below 1.

    >>> DINOHead(8, codes=16, hidden_size=32, bottleneck=4)(torch.randn(3, 8)).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        size: int,
        codes: int = 65_536,
        *,
        hidden_size: int = 2048,
        hidden_layers: int = 2,
        bottleneck: int = 256,
        batch_norm: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("size", size, 1), ("codes", codes, 2), ("hidden_size", hidden_size, 1),
            ("hidden_layers", hidden_layers, 0), ("bottleneck", bottleneck, 1),
        ):  # fmt: skip
            if value < least:
                raise ArgumentError(name, f"wants at least {least}, got {value}")
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            layers: list[nn.Module] = []
            inputs = size
            for _ in range(hidden_layers):
                layers.append(nn.Linear(inputs, hidden_size))
                if batch_norm:
                    layers.append(nn.BatchNorm1d(hidden_size))
                layers.append(nn.GELU())
                inputs = hidden_size
            layers.append(nn.Linear(inputs, bottleneck))
            self.mlp = nn.Sequential(*layers)
            self.codes = nn.Parameter(torch.empty(codes, bottleneck))
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
            nn.init.normal_(self.codes)  # the length of a row does not matter, its direction does

    def bottleneck(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, bottleneck), before it is brought to unit length."""
        hidden: Tensor = self.mlp(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Cosines of what :meth:`bottleneck` gave with every code: (B, K)."""
        # In float32: a half's least positive number is larger than the length it would guard, and
        # a cosine is told apart by less than its rounding.
        with torch.autocast(hidden.device.type, enabled=False):
            unit = torch_functional.normalize(hidden.float(), dim=-1)
            codes = torch_functional.normalize(self.codes.float(), dim=-1)
            return torch_functional.linear(unit, codes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.logits(self.bottleneck(x))
