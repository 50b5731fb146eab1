"""Spin's swapped prediction with its codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.errors import ArgumentError
from speechft.functional._checks import check_positive
from speechft.functional.swapped_prediction import swapped_prediction
from speechft.lengths import LengthsLike
from speechft.reference._embeddings import normalized


class SwappedPredictionLoss(nn.Module):
    r""":func:`speechft.functional.swapped_prediction` over a codebook of unit rows.

    .. math::

        s_b = \frac{W z_b}{\lVert W \rVert\, \lVert z_b \rVert}\ \text{(row by row)}, \qquad
        L = - \frac 1 2 \Bigl\langle \sum_k \tilde q_k \log p_k
            + \sum_k q_k \log \tilde p_k \Bigr\rangle.

    Rows of the codebook are made of length 1 in each forward, so that they are so whatever an
    optimiser made of them, and the gradient of each lies in the sphere.

    Args:
        features: D.
        codes: K.
        temperature: of the prediction, above 0.
        epsilon: of the assignment, above 0.
        iterations: of Sinkhorn's.
        gather: frames of all ranks are assigned together: True, or a process group.
        reduction: ``"mean"`` over frames, ``"sum"`` or ``"none"``.

    Shape:
        z1 and z2 (B, D), or (B, T, D) with lengths (B,); a scalar, or (B,) or (B, T).

    Source: Chang et al., "Spin", Interspeech 2023.

    >>> import torch
    >>> loss = SwappedPredictionLoss(4, 8)
    >>> z = torch.randn(2, 5, 4)
    >>> loss(z, z, lengths=[5, 3]).shape, loss.codes(z).shape
    (torch.Size([]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        features: int = 256,
        codes: int = 256,
        *,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        iterations: int = 3,
        gather: Gather = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        for value, argument in ((features, "features"), (codes, "codes")):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(argument, f"wants a whole number from 1, got {value!r}")
        self.temperature = check_positive(temperature, "temperature")
        self.epsilon = check_positive(epsilon, "epsilon")
        self.iterations = iterations
        self.gather = gather
        self.reduction = reduction
        self.codebook = nn.Parameter(nn.functional.normalize(torch.randn(codes, features)))

    def similarities(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., K): cosines to the codes."""
        if z.shape[-1] != self.codebook.shape[1]:
            raise ArgumentError(
                "z", f"wants {self.codebook.shape[1]} features, got {tuple(z.shape)}"
            )
        rows = normalized(z.reshape(-1, z.shape[-1]), True)
        codes = normalized(self.codebook, True).to(rows.dtype)
        cosines: Tensor = rows @ codes.T
        return cosines.view(*z.shape[:-1], -1)

    def forward(self, z1: Tensor, z2: Tensor, *, lengths: LengthsLike | None = None) -> Tensor:
        """The loss of two views of the same frames."""
        return swapped_prediction(
            self.similarities(z1),
            self.similarities(z2),
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            lengths=lengths,
            gather=self.gather,
            reduction=self.reduction,
        )

    @torch.no_grad()
    def codes(self, z: Tensor) -> Tensor:
        """(..., D) -> (...): the nearest code of each frame, a discrete unit."""
        return self.similarities(z).argmax(-1)

    def extra_repr(self) -> str:
        codes, features = self.codebook.shape
        return (
            f"features={features}, codes={codes}, temperature={self.temperature}, "
            f"epsilon={self.epsilon}, iterations={self.iterations}, gather={self.gather}, "
            f"reduction={self.reduction!r}"
        )
