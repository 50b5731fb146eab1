"""Augmentations where nothing is known of keys: in a model or trainer, and in a DataLoader."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from speechft.augment.base import Augmentation, check_waveforms
from speechft.augment.keys import make_keys
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.lengths import LengthsLike


class Stateful(nn.Module):
    """An augmentation that makes its own keys: ``module(waveforms) -> waveforms``.

    For trainers and models that know nothing of keys. It acts in training mode only. Its keys are
    of the seed, the rank, how many calls there were and the row:
    ``make_keys(seed, rank, calls * 2**32 + row)``. The calls are counted in a buffer, so a
    checkpoint holds them, and a resumed run is the same run. They are counted where the buffer is,
    so the host never waits for a GPU.

    Keys that come from the data are better where there are any: they do not change with the batch
    size or the number of ranks, and those on the host cost a GPU less.

    Args:
        augmentation: what is done.
        seed: any integer; its low 64 bits count.
        rank: which process this is, from 0, so that each perturbs in its own way; None: that of
            ``torch.distributed`` if it is initialised when the module is called, and 0 if not.

    Attributes:
        calls: int64, how often it was called in training mode.

    Raises:
        ArgumentTypeError: ``augmentation`` is not an :class:`Augmentation`, or ``seed`` or
            ``rank`` no integer.
        ArgumentError: a negative ``rank``.

    >>> import torch
    >>> from speechft.augment import Gain
    >>> augment = Stateful(Gain(), seed=3)
    >>> augment(torch.ones(4, 1, 100)).shape, int(augment.calls)
    (torch.Size([4, 1, 100]), 1)
    """

    calls: Tensor

    def __init__(
        self, augmentation: Augmentation, *, seed: int = 0, rank: int | None = None
    ) -> None:
        super().__init__()
        self.augmentation = _check_augmentation(augmentation)
        self.seed = _check_integer(seed, "seed")
        if rank is not None and _check_integer(rank, "rank") < 0:
            raise ArgumentError("rank", f"wants at least 0, got {rank}")
        self.rank = rank
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(
        self, waveforms: Tensor, lengths: LengthsLike | None = None
    ) -> Tensor | tuple[Tensor, LengthsLike]:
        """Perturb each sample in training mode; pass all of them unchanged in eval mode.

        Args:
            waveforms: floats of shape (B, T) or (B, 1, T).
            lengths: valid samples of each, of shape (B,); None where all T are.

        Returns:
            The waveforms, (B, T') or (B, 1, T') as they came; with ``lengths``, they and theirs.

        Raises:
            ArgumentTypeError: waveforms are not floats, or lengths not integers.
            ArgumentError: a wrong shape, NaN or infinity in the valid part (see
                :class:`Augmentation`), or no lengths for an augmentation that changes them.
            LengthError: a length outside 1..T.
        """
        if not self.training:
            return waveforms if lengths is None else (waveforms, lengths)
        if lengths is None and "timing" in self.augmentation.changes:
            raise ArgumentError(
                "lengths",
                "wants the samples of each waveform, got None: this augmentation changes how long "
                "they are; give lengths (all T if nothing is padding), and get new ones back",
            )
        channel = isinstance(waveforms, Tensor) and waveforms.dim() == 3
        if channel and waveforms.shape[1] != 1:
            raise ArgumentError(
                "waveforms", f"wants shape (B, T) or (B, 1, T), got {tuple(waveforms.shape)}"
            )
        rows = waveforms.squeeze(1) if channel else waveforms
        valid_lengths = check_waveforms(rows, lengths)
        perturbed, lengths_after = self.augmentation(rows, valid_lengths, self._keys(len(rows)))
        self.calls += 1
        if channel:
            perturbed = perturbed.unsqueeze(1)
        return perturbed if lengths is None else (perturbed, lengths_after)

    def _keys(self, batch: int) -> Tensor:
        rank = self.rank
        if rank is None:
            here = distributed.is_available() and distributed.is_initialized()
            rank = distributed.get_rank() if here else 0
        row = torch.arange(batch, device=self.calls.device)
        return make_keys(self.seed, rank, (self.calls << 32) + row)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"seed={self.seed}" + ("" if self.rank is None else f", rank={self.rank}")


class AugmentingCollate:
    """Put samples together and perturb the batch, on the worker: a ``collate_fn`` for DataLoader.

    The batch is what ``collate_function`` makes of the samples, with ``waveforms`` and ``lengths``
    perturbed by the batch's ``keys``, each made one of the epoch:
    ``make_keys(seed, epoch, batch["keys"])``. Its keys stay as they are. So the bits are the same
    with any number of workers and in any batch.

    A :class:`~speechft.data.SpeechDataset` has the keys of its utterances, which are the same in
    every epoch: call :meth:`set_epoch` at the start of each, as of a ``DistributedSampler``, or
    every epoch perturbs in the same way. What the augmentation counts as ``skipped`` is counted on
    the worker and lost with it.

    Args:
        augmentation: what is done, on the CPU.
        collate_function: makes of a list of samples a dictionary that has ``waveforms`` (B, T),
            ``lengths`` and ``keys`` (B,); None: :func:`speechft.data.collate`.
        seed: any integer; its low 64 bits count.

    Raises:
        ArgumentTypeError: ``augmentation`` is not an :class:`Augmentation`, ``collate_function``
            cannot be called, or ``seed`` is no integer.

    >>> from torch.utils.data import DataLoader
    >>> from speechft.augment import Gain
    >>> from speechft.data import SpeechDataset, embedded_corpus
    >>> collate = AugmentingCollate(Gain())
    >>> data = SpeechDataset(embedded_corpus().filter(language="en"))
    >>> loader = DataLoader(data, batch_size=4, collate_fn=collate)
    >>> for epoch in range(2):
    ...     collate.set_epoch(epoch)
    ...     batch = next(iter(loader))
    """

    def __init__(
        self,
        augmentation: Augmentation,
        collate_function: Callable[[Sequence[Any]], Any] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        if collate_function is None:
            from speechft.data import collate

            collate_function = collate
        if not callable(collate_function):
            raise ArgumentTypeError(
                "collate_function", f"wants a function, got {type(collate_function).__name__}"
            )
        self.augmentation = _check_augmentation(augmentation)
        self.collate_function = collate_function
        self.seed = _check_integer(seed, "seed")
        # Shared memory: workers that live on from epoch to epoch see it change.
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the batches to come; call it before iterating.

        Raises:
            ArgumentTypeError: not an integer.
        """
        self._epoch.fill_(_check_integer(epoch, "epoch"))

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The perturbed batch of some samples.

        Raises:
            ArgumentError: the batch has no waveforms, lengths or keys; and whatever the
                augmentation raises.
        """
        batch = copy.copy(self.collate_function(samples))
        for name in ("waveforms", "lengths", "keys"):
            if name not in batch:
                raise ArgumentError(
                    "collate_function",
                    f"wants one that gives waveforms, lengths and keys; there are no {name}",
                )
        keys = make_keys(self.seed, int(self._epoch), batch["keys"])
        batch["waveforms"], batch["lengths"] = self.augmentation(
            batch["waveforms"], batch["lengths"], keys
        )
        return batch

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = _shared(self._epoch)  # a copy, or what was pickled, has one of its own

    def __repr__(self) -> str:
        return f"AugmentingCollate({self.augmentation!r}, seed={self.seed})"


def _shared(tensor: Tensor) -> Tensor:
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor


def _check_augmentation(augmentation: Augmentation) -> Augmentation:
    if not isinstance(augmentation, Augmentation):
        raise ArgumentTypeError(
            "augmentation",
            f"wants a speechft.augment.Augmentation, got {type(augmentation).__name__}",
        )
    return augmentation


def _check_integer(value: int, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(argument, f"wants an integer, got {value!r}")
    return value
