"""KoLeo as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.functional.koleo import koleo
from speechft.reference.koleo import EPSILON


class KoLeoLoss(nn.Module):
    """:func:`speechft.functional.koleo` with its settings kept.

    Args:
        normalize: make rows of length 1.
        epsilon: above 0.
        gather: neighbours of all ranks: True, or a process group.

    Shape:
        x (N, D); a scalar.

    >>> import torch
    >>> abs(round(float(KoLeoLoss()(torch.eye(2))), 4))
    0.3466
    """

    def __init__(
        self, *, normalize: bool = True, epsilon: float = EPSILON, gather: Gather = False
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.epsilon = epsilon
        self.gather = gather

    def forward(self, x: Tensor) -> Tensor:
        """The mean over rows."""
        return koleo(x, normalize=self.normalize, epsilon=self.epsilon, gather=self.gather)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}, epsilon={self.epsilon}, gather={self.gather}"
