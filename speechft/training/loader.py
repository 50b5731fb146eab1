"""Batches as a pure function of the step: no state to save, nothing to skip on resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from speechft.augment import make_keys
from speechft.data import Batch, LengthBatchSampler, Sample, SpeechDataset, collate


class Position(NamedTuple):
    """An utterance in an epoch."""

    epoch: int
    utterance: int


class KeyedDataset(Dataset[Sample]):
    """A :class:`SpeechDataset` whose samples carry a key of (seed, epoch, utterance)."""

    def __init__(self, dataset: SpeechDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: Position) -> Sample:
        sample = self.dataset[position.utterance]
        keys = make_keys(self.seed, position.epoch, torch.tensor([sample["key"]]))
        return Sample(**{**sample, "key": int(keys)})


class StepSampler(Sampler[list[Position]]):
    """The batches from the current micro-step on, ``rank`` taking every ``world_size``-th.

    Micro-step ``s`` of rank ``r`` is batch ``s * world_size + r`` of the endless run of epochs.
    ``first`` is asked when iteration begins, so a resumed run starts where it stopped.
    """

    def __init__(
        self,
        batches: LengthBatchSampler,
        total: int,
        first: Callable[[], int],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batches, self.total, self.first = batches, total, first
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[Position]]:
        known, batches = -1, []
        for step in range(self.first(), self.total):
            epoch, place = divmod(step * self.world_size + self.rank, len(self.batches))
            if epoch != known:
                known, batches = epoch, self.batches.batches(epoch)
            yield [Position(epoch, index) for index in batches[place]]


def make_loader(
    dataset: SpeechDataset, sampler: StepSampler, *, seed: int, workers: int
) -> DataLoader[Sample]:
    """A loader of :class:`~speechft.data.Batch`.

    It has a generator of its own: without one, starting an iterator takes a number from torch's
    global generator, and the dropout of a resumed run would differ.
    """
    return DataLoader(
        KeyedDataset(dataset, seed),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )


def audio_seconds(batch: Batch, sample_rate: int) -> float:
    """Seconds of audio in a batch, padding apart."""
    return int(batch["lengths"].sum()) / sample_rate
