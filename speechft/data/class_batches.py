"""Batches in which every utterance has another of its class, and one of another class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Sampler

from speechft.data.sampler import _mix
from speechft.errors import ArgumentError

_Ids = npt.NDArray[np.int64]
_ITEMS, _CLASSES, _BATCHES, _AGAIN = 1, 2, 3, 4


class ClassBatchSampler(Sampler[list[int]]):
    """Every utterance once an epoch, in batches of some classes with some utterances of each.

    The utterances of a class are shuffled and cut into groups of ``each``, or a little fewer, so
    that all are of two or more (with ``each`` 2 an odd class has one group of three). The groups of
    all classes, class after class in random order, are dealt to the batches in turn, so groups of
    one class are in different batches as long as it has no more groups than there are batches.
    Where a class is so large that a batch would hold no other, this batch is given a group of
    another class, whose utterances it has once more.

    Batches are a function of (seed, epoch) and nothing else, as those of
    :class:`speechft.data.LengthBatchSampler`: step s is batch ``s % len`` of epoch ``s // len``.

    Args:
        labels: the class of each utterance, (N,), from 0 on.
        batch_size: utterances a batch, at most; one with a group once more, or with a group of
            three, may have as many more.
        each: utterances of a class in a batch, where there are as many classes as it takes; with
            fewer classes a batch has several groups of each.
        seed: any integer from 0 to 2**64 - 1.

    Attributes:
        repeated: how many utterances epoch 0 has once more; about as many are in every epoch.

    Raises:
        ArgumentError: labels of a class with one utterance, fewer than two classes, ``each`` below
            2, or a batch that does not hold two groups.

    >>> ClassBatchSampler([0, 0, 1, 1, 1], batch_size=4, each=2).batches(0)
    [[2, 3, 4, 1, 0]]
    """

    def __init__(
        self, labels: Tensor | Sequence[int], *, batch_size: int, each: int = 4, seed: int = 0
    ) -> None:
        values = labels.numpy() if isinstance(labels, Tensor) else labels
        self._labels = np.asarray(values, np.int64)
        if self._labels.ndim != 1 or not len(self._labels) or self._labels.min() < 0:
            raise ArgumentError("labels", "wants shape (N,), N at least 1, and none below 0")
        if each < 2:
            raise ArgumentError("each", f"wants at least 2, got {each}")
        if batch_size < 2 * each:
            raise ArgumentError(
                "batch_size", f"wants two groups of {each} at least, got {batch_size}"
            )
        if not 0 <= seed < 2**64:
            raise ArgumentError("seed", f"wants 0 to 2**64 - 1, got {seed}")
        names, counts = np.unique(self._labels, return_counts=True)
        if len(names) < 2:
            raise ArgumentError("labels", "are of one class; negatives want two")
        if counts.min() < 2:
            alone = int(names[counts.argmin()])
            raise ArgumentError("labels", f"class {alone} has one utterance; wants two or more")
        self.batch_size, self.each, self.seed = batch_size, each, seed
        self.epoch = 0
        self._members = [np.flatnonzero(self._labels == name) for name in names]
        self._groups = [min(-(-count // each), count // 2) for count in counts.tolist()]
        self._num_batches = -(-sum(self._groups) // (batch_size // each))
        self.repeated = sum(map(len, self.batches(0))) - len(self._labels)

    def __len__(self) -> int:
        """Batches an epoch; the same in every epoch."""
        return int(self._num_batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iteration gives."""
        if epoch < 0:
            raise ArgumentError("epoch", f"wants at least 0, got {epoch}")
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the chosen epoch."""
        return iter(self.batches(self.epoch))

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch: lists of indices."""
        groups: list[tuple[int, list[int]]] = []  # a class, and some of its utterances
        for place in self._order(epoch, _CLASSES, len(self._members)):
            members = self._members[place]
            mixed = members[np.argsort(self._hash(epoch, _ITEMS, members), kind="stable")]
            parts = np.array_split(mixed, self._groups[place])
            groups += [(int(place), part.tolist()) for part in parts]
        batches = [groups[first :: len(self)] for first in range(len(self))]
        drawn = self._hash(epoch, _AGAIN, np.arange(len(self)))
        for number, batch in enumerate(batches):
            here = batch[0][0]
            if all(name == here for name, _ in batch):
                others = [group for group in groups if group[0] != here]
                batch.append(others[int(drawn[number] % np.uint64(len(others)))])
        order = self._order(epoch, _BATCHES, len(batches))
        return [[row for _, part in batches[place] for row in part] for place in order]

    def batch_at(self, step: int) -> list[int]:
        """The batch of a training step, counted from 0 over all epochs.

        Raises:
            ArgumentError: a negative step.
        """
        if step < 0:
            raise ArgumentError("step", f"wants at least 0, got {step}")
        epoch, position = divmod(step, len(self))
        return self.batches(epoch)[position]

    def _order(self, epoch: int, what: int, count: int) -> _Ids:
        return np.argsort(self._hash(epoch, what, np.arange(count)), kind="stable")

    def _hash(self, epoch: int, what: int, index: _Ids) -> npt.NDArray[np.uint64]:
        stream = _mix(np.array([self.seed], np.uint64))
        for number in (epoch, what):
            stream = _mix(stream ^ np.uint64(number))
        return _mix(stream ^ index.astype(np.uint64))
