"""Batches of similar lengths whose composition is a function of (seed, epoch) and nothing else.

There is no state to save: the batch at step s is ``sampler.batch_at(s)``, on any machine, after
any restart. Random order comes from sorting by a hash of (seed, epoch, what, index), with the
finaliser of SplitMix64 (Steele, Lea, Flood, *Fast splittable pseudorandom number generators*,
OOPSLA 2014), so it depends on no library's generator either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Sampler

from speechft.errors import ArgumentError, LengthError

_MIN_BATCHES = 4


class LengthBatchSampler(Sampler[list[int]]):
    """Every utterance exactly once an epoch, in batches of similar lengths, in random order.

    Utterances are sorted by length, longest first, and cut into buckets, each a whole number of
    batches; only the bucket of the shortest may end in a smaller batch, which is kept. The batch
    size of a bucket is ``batch_size``, or what ``max_samples`` allows for its longest utterance.
    Each epoch shuffles the utterances within their buckets, then the batches. So every epoch has
    the same number of batches, ``len(sampler)``, and step s is batch ``s % len`` of epoch
    ``s // len``.

    Args:
        lengths: samples of each utterance (N,).
        batch_size: utterances a batch, at most.
        max_samples: B × T of a padded batch, at most; None for no bound.
        seed: any integer from 0 to 2**64 - 1.
        num_buckets: buckets, at most; each holds at least 4 batches, so small data sets have
            fewer. More of them mean less padding and less varied company in a batch.

    Raises:
        LengthError: a length below 1, or an utterance longer than ``max_samples`` (nothing is cut
            or left out here: see ``max_duration`` of :func:`speechft.data.scan`).
        ArgumentError: another argument is out of range.
    """

    def __init__(
        self,
        lengths: Tensor | Sequence[int],
        *,
        batch_size: int,
        max_samples: int | None = None,
        seed: int = 0,
        num_buckets: int = 16,
    ) -> None:
        values = lengths.numpy() if isinstance(lengths, Tensor) else lengths
        self._lengths = np.asarray(values, dtype=np.int64)
        if self._lengths.ndim != 1 or len(self._lengths) == 0:
            raise LengthError("lengths", f"wants shape (N,), got {self._lengths.shape}")
        if self._lengths.min() < 1:
            raise LengthError("lengths", f"utterance {int(self._lengths.argmin())} is empty")
        if batch_size < 1:
            raise ArgumentError("batch_size", f"wants at least 1, got {batch_size}")
        if num_buckets < 1:
            raise ArgumentError("num_buckets", f"wants at least 1, got {num_buckets}")
        if not 0 <= seed < 2**64:
            raise ArgumentError("seed", f"wants 0 to 2**64 - 1, got {seed}")
        if max_samples is not None and self._lengths.max() > max_samples:
            where = int(self._lengths.argmax())
            raise LengthError(
                "max_samples",
                f"{max_samples} is less than the {int(self._lengths[where])} samples of utterance "
                f"{where}: raise it, or leave such utterances out with max_duration",
            )
        self.batch_size, self.max_samples, self.seed = batch_size, max_samples, seed
        self.epoch = 0
        self._buckets = list(self._cut(num_buckets))
        self._num_batches = sum(-(-len(bucket) // size) for bucket, size in self._buckets)

    def _cut(self, num_buckets: int) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
        """Buckets of utterances, longest first, each with its batch size."""
        order = np.argsort(-self._lengths, kind="stable")
        share = -(-len(order) // num_buckets)
        at = 0
        while at < len(order):
            size = self.batch_size
            if self.max_samples is not None:
                size = min(size, self.max_samples // int(self._lengths[order[at]]))
            end = at + max(_MIN_BATCHES, -(-share // size)) * size
            if len(order) - end < _MIN_BATCHES * size:
                end = len(order)  # too few are left to be mixed among themselves
            yield order[at:end], size
            at = end

    def __len__(self) -> int:
        """Batches an epoch; the same in every epoch."""
        return self._num_batches

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
        batches: list[list[int]] = []
        for bucket, size in self._buckets:
            mixed = bucket[np.argsort(self._hash(epoch, 1, bucket), kind="stable")].tolist()
            batches += [mixed[at : at + size] for at in range(0, len(mixed), size)]
        order = np.argsort(self._hash(epoch, 2, np.arange(len(batches))), kind="stable")
        return [batches[position] for position in order]

    def batch_at(self, step: int) -> list[int]:
        """The batch of a training step, counted from 0 over all epochs.

        Raises:
            ArgumentError: a negative step.
        """
        if step < 0:
            raise ArgumentError("step", f"wants at least 0, got {step}")
        epoch, position = divmod(step, len(self))
        return self.batches(epoch)[position]

    def padding(self) -> float:
        """Share of padding in the batches of the chosen epoch, 0 to 1."""
        padded = sum(
            len(batch) * int(self._lengths[batch].max()) for batch in self.batches(self.epoch)
        )
        return 1 - int(self._lengths.sum()) / padded

    def _hash(self, epoch: int, what: int, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        stream = _mix(np.array([self.seed], np.uint64))
        for number in (epoch, what):
            stream = _mix(stream ^ np.uint64(number))
        return _mix(stream ^ index.astype(np.uint64))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64: a bijection of 64-bit integers; arithmetic is modulo 2**64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
