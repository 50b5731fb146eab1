"""Supervised contrastive losses as modules: of one label, and of one factor a subspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechft.distributed import Gather
from speechft.errors import ArgumentError
from speechft.functional._checks import check_labels
from speechft.functional.sup_con import sup_con_and_count
from speechft.losses._temperature import Temperature


class SupConLoss(nn.Module):
    """:func:`speechft.functional.sup_con` with its settings kept.

    A batch without a positive pair gives 0, with a graph, and counts: the buffer
    ``batches_without_positives`` says how many there were, without a wait for the device. With
    ``gather``, the batch is that of all ranks.

    Args:
        temperature: above 0.
        normalize: make rows of length 1.
        denominator: ``"all"``, ``"own"`` or ``"none"``.
        margin: of the cosines of positive pairs.
        learn_temperature: make it a parameter, ``temperature.log_scale``.
        gather: the loss of the batch of all ranks.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        embeddings (N, D) or (N, V, D), labels (N,); a scalar, or a vector with
        ``reduction="none"``.

    >>> import torch
    >>> SupConLoss()(torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2])) < 1e-3
    tensor(True)
    """

    batches_without_positives: Tensor

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        normalize: bool = True,
        denominator: str = "all",
        margin: float = 0.0,
        learn_temperature: bool = False,
        gather: Gather = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learn_temperature)
        self.normalize = normalize
        self.denominator = denominator
        self.margin = margin
        self.gather = gather
        self.reduction = reduction
        self.register_buffer("batches_without_positives", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        value, counted = sup_con_and_count(
            embeddings,
            labels,
            self.temperature(),
            self.normalize,
            self.denominator,
            self.margin,
            self.gather,
            self.reduction,
        )
        before = _on(counted, self.batches_without_positives)
        self.batches_without_positives = before + (counted == 0)
        return value

    def extra_repr(self) -> str:
        return (
            f"normalize={self.normalize}, denominator={self.denominator!r}, margin={self.margin}, "
            f"gather={self.gather}, reduction={self.reduction!r}"
        )


class FactorSupConLoss(nn.Module):
    r"""One supervised contrastive loss a factor: :math:`\sum_k w_k\, L_{SupCon}(z^{(k)}, f_k)`.

    The factors of a sample (its speaker, its text, ...) are integers, ``factors`` (B, K), -1 for
    unknown: such a sample is in no pair of that factor. Each factor has a subspace of its own, or
    all share one.

    Args:
        weights: of the factors; all 1 if None.
        temperature: above 0.
        normalize: make rows of length 1.
        denominator: ``"all"``, ``"own"`` or ``"none"``.
        margin: of the cosines of positive pairs.
        gather: the loss of the batch of all ranks.
        reduction: ``"sum"`` over factors, or ``"none"``: (K,), weighted.

    Shape:
        embeddings (B, D), or a sequence of K of them, one a factor, of any sizes; factors (B, K);
        a scalar, or (K,).

    A factor without a positive pair in the batch gives 0, with a graph; the buffer
    ``batches_without_positives`` (K,) counts them, made at the first batch.

    Source: Interventional refinement (Interspeech 2026) with speaker and text as factors.

    >>> import torch
    >>> speaker, text = torch.eye(2).repeat(2, 1), torch.eye(2).repeat_interleave(2, 0)
    >>> factors = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    >>> FactorSupConLoss()([speaker, text], factors) < 1e-3
    tensor(True)
    """

    batches_without_positives: Tensor

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        temperature: float = 0.1,
        *,
        normalize: bool = True,
        denominator: str = "all",
        margin: float = 0.0,
        gather: Gather = False,
        reduction: str = "sum",
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "none"):
            raise ArgumentError("reduction", f"wants one of sum, none; got {reduction!r}")
        self.weights = None if weights is None else tuple(float(w) for w in weights)
        self.temperature = Temperature(temperature, False)
        self.normalize = normalize
        self.denominator = denominator
        self.margin = margin
        self.gather = gather
        self.reduction = reduction
        size = 0 if self.weights is None else len(self.weights)
        self.register_buffer("batches_without_positives", torch.zeros(size, dtype=torch.int64))

    def forward(self, embeddings: Tensor | Sequence[Tensor], factors: Tensor) -> Tensor:
        """The loss of a batch and its factors.

        Raises:
            ArgumentError: factors of another shape, or below -1; another number of subspaces or
                weights than factors.
            ArgumentTypeError: factors that are not integers.
        """
        shared = isinstance(embeddings, Tensor)
        first = embeddings if isinstance(embeddings, Tensor) else embeddings[0]
        check_labels(factors, "factors", first, "embeddings", factors=True)
        K = factors.shape[1]
        subspaces = [first] * K if shared else list(embeddings)
        if len(subspaces) != K:
            raise ArgumentError(
                "embeddings", f"wants one subspace a factor, {K}; got {len(subspaces)}"
            )
        weights = (1.0,) * K if self.weights is None else self.weights
        if len(weights) != K:
            raise ArgumentError("factors", f"wants a column a weight, {len(weights)}; got {K}")
        losses, counts = zip(
            *(
                sup_con_and_count(
                    subspace,
                    labels,
                    self.temperature(),
                    self.normalize,
                    self.denominator,
                    self.margin,
                    self.gather,
                    "mean",
                )
                for subspace, labels in zip(subspaces, factors.T, strict=True)
            ),
            strict=True,
        )
        without = torch.stack(counts) == 0
        before = self.batches_without_positives
        self.batches_without_positives = (_on(without, before) if len(before) == K else 0) + without
        values = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)])
        return values.sum() if self.reduction == "sum" else values

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        saved = state.get(prefix + "batches_without_positives")
        if isinstance(saved, Tensor):  # made at the first batch: its size is not known before
            self.batches_without_positives = torch.zeros_like(saved)
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        return (
            f"weights={self.weights}, normalize={self.normalize}, "
            f"denominator={self.denominator!r}, margin={self.margin}, gather={self.gather}"
        )


def _on(like: Tensor, counts: Tensor) -> Tensor:
    """Where the batch is: a loss without parameters is easily left behind on the CPU."""
    return counts.to(like.device)
