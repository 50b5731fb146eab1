"""Utterances in batches of similar lengths, by shards: for what is computed once of each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def shards(lengths: Tensor, samples: int) -> Iterator[list[int]]:
    """Utterances from long to short, so much speech at a time; the same for the same lengths.

    Args:
        lengths: samples of each, (N,).
        samples: of a shard; the last utterance of it goes beyond.

    >>> list(shards(torch.tensor([2, 9, 4, 3]), 8))
    [[1], [2, 3, 0]]
    """
    shard: list[int] = []
    total = 0
    for index in torch.argsort(lengths, descending=True, stable=True).tolist():
        shard.append(index)
        total += int(lengths[index])
        if total >= samples:
            yield shard
            shard, total = [], 0
    if shard:
        yield shard


def batches(lengths: Tensor, shard: list[int], samples: float) -> Iterator[list[int]]:
    """A shard in batches of so many padded samples; a longer utterance is alone.

    >>> list(batches(torch.tensor([2, 9, 4, 3]), [1, 2, 3, 0], 8))
    [[1], [2, 3], [0]]
    """
    batch: list[int] = []
    for index in shard:
        longest = int(lengths[(batch or [index])[0]])
        if batch and longest * (len(batch) + 1) > samples:
            yield batch
            batch = []
        batch.append(index)
    yield batch
