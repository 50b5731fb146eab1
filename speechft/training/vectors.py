"""Vectors of utterances by an embedding model, computed once; and training on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechft.data import LengthBatchSampler, SpeechDataset, collate
from speechft.models import EmbeddingModel
from speechft.training.loader import Chosen, NoneAlone, Position, TrainingData
from speechft.training.settings import TrainingSettings


@torch.no_grad()
def vectors_of(
    model: EmbeddingModel,
    dataset: SpeechDataset,
    rows: Sequence[int] | None = None,
    *,
    batch_seconds: float = 64.0,
) -> Tensor:
    """Vectors of utterances: (N, D) float32 on the CPU.

    Args:
        model: in eval mode.
        dataset: the utterances.
        rows: of which; None: all.
        batch_seconds: of padded speech in a batch.
    """
    chosen = torch.arange(len(dataset)) if rows is None else torch.tensor(rows, dtype=torch.int64)
    device = next(model.parameters()).device
    order = dataset.lengths[chosen].argsort(descending=True, stable=True).tolist()
    most = round(batch_seconds * dataset.sample_rate)
    found = torch.empty(len(chosen), model.size)
    at = 0
    while at < len(order):
        longest = int(dataset.lengths[chosen[order[at]]])
        places = order[at : at + max(1, most // longest)]
        batch = collate([dataset[int(chosen[place])] for place in places])
        found[places] = model(batch["waveforms"].to(device), batch["lengths"].to(device)).cpu()
        at += len(places)
    return found


def vector_data(
    vectors: Tensor,
    dataset: SpeechDataset,
    settings: TrainingSettings,
    *,
    rows: Sequence[int] | None = None,
) -> TrainingData:
    """Batches of ``vectors`` and ``factors``, in place of the waveforms that they are of.

    Args:
        vectors: (N, D), of all utterances.
        dataset: the utterances.
        settings: of the run.
        rows: what to train on; None: all.
    """
    chosen = list(range(len(dataset))) if rows is None else list(rows)
    limit = settings.max_batch_seconds
    sampler = LengthBatchSampler(
        dataset.lengths[chosen],
        batch_size=settings.batch_size,
        max_samples=None if limit is None else int(limit * dataset.sample_rate),
        seed=settings.seed,
        num_buckets=1,
    )
    items = _Items(vectors, dataset)

    def evaluation() -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The first utterances."""
        first = chosen[: settings.evaluate_utterances]
        for at in range(0, len(first), settings.batch_size):
            rows = first[at : at + settings.batch_size]
            yield len(rows), _together([items[Position(0, row)] for row in rows])

    batches = NoneAlone(Chosen(sampler, chosen))
    return TrainingData(items, batches, _together, evaluation, dataset.sample_rate)


class _Items(Dataset[Any]):
    def __init__(self, vectors: Tensor, dataset: SpeechDataset) -> None:
        self.vectors, self.dataset = vectors, dataset

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, position: Position) -> dict[str, Tensor]:
        row = position.utterance
        return {
            "vectors": self.vectors[row],
            "factors": self.dataset.factors[row],
            "lengths": self.dataset.lengths[row],
        }


def _together(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
