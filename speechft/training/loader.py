"""Batches as a pure function of the step: no state to save, nothing to skip on resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from speechft.augment import make_keys
from speechft.data import LengthBatchSampler, Sample, SpeechDataset, collate
from speechft.training.settings import TrainingSettings

# The epoch of what is drawn when the loss is taken before and after: no epoch of training has it.
EVALUATION_EPOCH = 2**63


class Position(NamedTuple):
    """An utterance in an epoch."""

    epoch: int
    utterance: int


class Batches(Protocol):
    """Which items make the batches of an epoch: a function of the epoch, as many in each."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    Attributes:
        dataset: items by :class:`Position`.
        batches: of an epoch.
        collate: what makes a batch of a list of items: a mapping that has ``lengths``, samples of
            audio (B,), and what the method takes.
        evaluation: the batches on which the loss is taken before and after, each with the number
            of its utterances.
        sample_rate: of ``lengths``, Hz.
    """

    dataset: Dataset[Any]
    batches: Batches
    collate: Callable[[Any], Any]
    evaluation: Callable[[], Iterator[tuple[int, Mapping[str, Any]]]]
    sample_rate: int


def speech_data(
    dataset: SpeechDataset,
    settings: TrainingSettings,
    *,
    num_buckets: int = 16,
    rows: Sequence[int] | None = None,
) -> TrainingData:
    """Waveforms in batches of similar lengths; with one bucket, of any lengths.

    Args:
        dataset: the utterances.
        settings: of the run.
        num_buckets: of lengths.
        rows: which utterances to train on; None: all.
    """
    limit = settings.max_batch_seconds
    chosen = list(range(len(dataset))) if rows is None else list(rows)
    lengths = dataset.lengths if rows is None else dataset.lengths[chosen]
    batches = LengthBatchSampler(
        lengths,
        batch_size=settings.batch_size,
        max_samples=None if limit is None else int(limit * dataset.sample_rate),
        seed=settings.seed,
        num_buckets=num_buckets,
    )
    keyed = KeyedDataset(dataset, settings.seed)

    def evaluation() -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The first utterances, always under the same perturbations."""
        count = min(settings.evaluate_utterances, len(chosen))
        first = LengthBatchSampler(lengths[:count], batch_size=settings.batch_size)
        for indices in Chosen(first, chosen).batches(0):
            yield len(indices), collate([keyed[Position(EVALUATION_EPOCH, i)] for i in indices])

    of_rows = batches if rows is None else Chosen(batches, chosen)
    return TrainingData(keyed, of_rows, collate, evaluation, dataset.sample_rate)


class Chosen:
    """Batches of some rows, given as places among them."""

    def __init__(self, given: Batches, rows: Sequence[int]) -> None:
        self.given, self.rows = given, rows

    def __len__(self) -> int:
        return len(self.given)

    def batches(self, epoch: int) -> list[list[int]]:
        """Of an epoch, as rows."""
        return [[self.rows[place] for place in batch] for batch in self.given.batches(epoch)]


class NoneAlone:
    """Batches of which none has one utterance: of one vector, batch norm has no statistics."""

    def __init__(self, given: Batches) -> None:
        self.given = given
        self.count = len(self.batches(0))  # as many are alone in every epoch

    def __len__(self) -> int:
        return self.count

    def batches(self, epoch: int) -> list[list[int]]:
        """Those that are alone join the first of the others."""
        found = self.given.batches(epoch)
        several = [batch for batch in found if len(batch) > 1]
        if not several:
            return found
        several[0] = several[0] + [batch[0] for batch in found if len(batch) == 1]
        return several


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
        batches: Batches,
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
    data: TrainingData, sampler: StepSampler, *, seed: int, workers: int
) -> DataLoader[Any]:
    """A loader of the batches that the sampler asks for.

    It has a generator of its own: without one, starting an iterator takes a number from torch's
    global generator, and the dropout of a resumed run would differ.
    """
    return DataLoader(
        data.dataset,
        batch_sampler=sampler,
        collate_fn=data.collate,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )


def audio_seconds(batch: Mapping[str, Any], sample_rate: int) -> float:
    """Seconds of audio in a batch, padding apart."""
    return int(batch["lengths"].sum()) / sample_rate
