"""InfoNCE against a queue of past keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechft.distributed import Gather, all_gather, group_of, place_of
from speechft.errors import ArgumentError
from speechft.functional.info_nce import info_nce
from speechft.losses._temperature import Temperature
from speechft.reference._embeddings import normalized

_ANOTHER = 1 << 62  # the label of keys that were given none: no sample's


class MoCoLoss(nn.Module):
    r"""InfoNCE of queries and the keys of a slow encoder, with past keys as negatives.

    .. math::

        \ell_i = -\log \frac{e^{q_i \cdot k_i / \tau}}{e^{q_i \cdot k_i / \tau}
                 + \sum_{j \in \text{queue}} e^{q_i \cdot k_j / \tau}}

    After the loss of a batch, its keys (those of all ranks, with ``gather``) take the place of the
    oldest in the queue. Queue, labels and place are buffers, so a checkpoint has them. Places not
    yet filled are negatives of nothing: the first batch of all has no negatives, and loss 0, unless
    ``in_batch`` is set. In eval mode the queue stays as it is.

    Args:
        dim: size of the embeddings.
        size: places in the queue; a batch of keys has to fit.
        temperature: above 0.
        normalize: make rows of length 1.
        in_batch: the other keys of the batch are negatives as well.
        margin: of the cosine of a positive pair.
        angular_margin: of its angle, in radians.
        learn_temperature: make it a parameter, ``temperature.log_scale``.
        gather: the loss of the batch of all ranks, whose keys all enter the queue, on each rank.
            Without, each rank has its own queue, of its own keys.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        query (N, D), key (N, D), labels (N,); a scalar, or (N,) with ``reduction="none"``.

    With ``labels``, keys of the same label are no negatives; then every batch has them.

    Source: He et al., "MoCo", CVPR 2020.

    >>> import torch
    >>> loss = MoCoLoss(dim=3, size=4)
    >>> [round(float(loss(torch.eye(3)[:2], torch.eye(3)[:2])), 2) for _ in range(2)]
    [0.0, 0.69]
    """

    queue: Tensor
    queue_labels: Tensor
    place: Tensor

    def __init__(
        self,
        dim: int,
        size: int = 65_536,
        temperature: float = 0.07,
        *,
        normalize: bool = True,
        in_batch: bool = False,
        margin: float = 0.0,
        angular_margin: float = 0.0,
        learn_temperature: bool = False,
        gather: Gather = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        for value, argument in ((dim, "dim"), (size, "size")):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(argument, f"wants a whole number from 1, got {value!r}")
        self.temperature = Temperature(temperature, learn_temperature)
        self.normalize = normalize
        self.in_batch = in_batch
        self.margin = margin
        self.angular_margin = angular_margin
        self.gather = gather
        self.reduction = reduction
        self.register_buffer("queue", torch.zeros(size, dim))
        self.register_buffer("queue_labels", torch.full((size,), -1))  # -1: not filled
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, query: Tensor, key: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """The loss of queries and their keys, which then enter the queue.

        Raises:
            ArgumentError: embeddings of another size than ``dim``, a batch larger than the queue.
        """
        group = group_of(self.gather)
        rank, ranks = place_of(group)
        size, dim = self.queue.shape
        if isinstance(key, Tensor) and key.dim() == 2:
            if key.shape[1] != dim:
                raise ArgumentError("key", f"wants rows of dim={dim}, got {key.shape[1]}")
            if len(key) * ranks > size:
                raise ArgumentError(
                    "key", f"is a batch of {len(key) * ranks}, and the queue has {size} places"
                )
        ours, entering = labels, labels
        if labels is None:  # each its own, and no key of the queue is of any
            ours = torch.arange(len(query), device=query.device) + rank * len(query)
            entering = torch.full_like(ours, _ANOTHER)
        value = info_nce(
            query,
            key,
            temperature=self.temperature(),
            normalize=self.normalize,
            labels=ours,
            # The backward of this batch comes after its keys have entered, so what it reads is a
            # copy: the unit rows are one.
            queue=self.queue.to(query.dtype, copy=not self.normalize),
            queue_labels=self.queue_labels.clone(),
            in_batch=self.in_batch,
            margin=self.margin,
            angular_margin=self.angular_margin,
            gather=self.gather,
            reduction=self.reduction,
        )
        if self.training and entering is not None:
            self._enter(key.detach(), entering, group)
        return value

    @torch.no_grad()
    def _enter(self, key: Tensor, labels: Tensor, group: Any | None) -> None:
        keys = all_gather(normalized(key, self.normalize), group)
        places = (self.place + torch.arange(len(keys), device=key.device)) % len(self.queue)
        self.queue.index_copy_(0, places, keys.to(self.queue.dtype))
        self.queue_labels.index_copy_(0, places, all_gather(labels.long(), group))
        self.place.add_(len(keys)).remainder_(len(self.queue))

    def extra_repr(self) -> str:
        size, dim = self.queue.shape
        return (
            f"dim={dim}, size={size}, normalize={self.normalize}, in_batch={self.in_batch}, "
            f"margin={self.margin}, angular_margin={self.angular_margin}, gather={self.gather}, "
            f"reduction={self.reduction!r}"
        )
