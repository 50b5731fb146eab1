"""InfoNCE as a module."""

from __future__ import annotations

from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.functional.info_nce import info_nce
from speechft.losses._temperature import Temperature


class InfoNCELoss(nn.Module):
    """:func:`speechft.functional.info_nce` with its settings kept.

    ``InfoNCELoss(0.07, symmetric=True, learn_temperature=True)`` is the loss of CLIP.

    Args:
        temperature: above 0.
        symmetric: also find each key's query.
        normalize: make rows of length 1.
        in_batch: other keys of the batch are negatives; False leaves those of the queue.
        margin: of the cosine of a positive pair.
        angular_margin: of its angle, in radians.
        learn_temperature: make it a parameter, ``temperature.log_scale``; give the optimizer the
            parameters of the loss.
        gather: the loss of the batch of all ranks.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        query (N, D), key (N, D), labels (N,), queue (Q, D), queue_labels (Q,); a scalar, or (N,)
        with ``reduction="none"``.

    >>> import torch
    >>> InfoNCELoss(symmetric=True)(torch.eye(3), torch.eye(3)) < 1e-3
    tensor(True)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        symmetric: bool = False,
        normalize: bool = True,
        in_batch: bool = True,
        margin: float = 0.0,
        angular_margin: float = 0.0,
        learn_temperature: bool = False,
        gather: Gather = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learn_temperature)
        self.symmetric = symmetric
        self.normalize = normalize
        self.in_batch = in_batch
        self.margin = margin
        self.angular_margin = angular_margin
        self.gather = gather
        self.reduction = reduction

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        *,
        labels: Tensor | None = None,
        queue: Tensor | None = None,
        queue_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of queries and their keys."""
        return info_nce(
            query,
            key,
            temperature=self.temperature(),
            symmetric=self.symmetric,
            normalize=self.normalize,
            labels=labels,
            queue=queue,
            queue_labels=queue_labels,
            in_batch=self.in_batch,
            margin=self.margin,
            angular_margin=self.angular_margin,
            gather=self.gather,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"symmetric={self.symmetric}, normalize={self.normalize}, in_batch={self.in_batch}, "
            f"margin={self.margin}, angular_margin={self.angular_margin}, gather={self.gather}, "
            f"reduction={self.reduction!r}"
        )
