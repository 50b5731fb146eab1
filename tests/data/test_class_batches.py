"""Batches of classes hold what they promise, and are a function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechft.data import ClassBatchSampler
from speechft.errors import ArgumentError

COUNTS = [(2, 2), (8, 8, 8, 8), (3, 3, 3), (7, 2, 30, 4, 4, 9), (100, 5), tuple([5] * 20)]
SIZES = [(4, 2), (8, 4), (9, 3), (32, 4)]


def labels_of(counts) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.random.default_rng(0).permutation(len(labels))]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("size", "each"), SIZES)
def test_everyone_has_a_positive_and_a_negative_and_nobody_is_left_out(counts, size, each):
    labels = labels_of(counts)
    sampler = ClassBatchSampler(labels, batch_size=size, each=each)
    largest = 3 if each == 2 else each
    for epoch in range(6):
        batches = sampler.batches(epoch)
        assert len(batches) == len(sampler)
        rows = [row for batch in batches for row in batch]
        assert set(rows) == set(range(len(labels)))
        assert max(counts) > min(counts) or len(set(rows)) == len(labels)
        for batch in batches:
            assert len(set(batch)) == len(batch)
            assert len(batch) <= size // each * largest + largest
            shares = np.bincount(labels[batch])
            shares = shares[shares > 0]
            assert len(shares) >= 2
            assert (shares >= 2).all()


def test_a_balanced_set_makes_batches_of_some_classes_with_as_many_of_each():
    labels = torch.arange(12).repeat(8)
    sampler = ClassBatchSampler(labels, batch_size=16, each=4)
    assert len(sampler) == 6
    assert sampler.repeated == 0
    for batch in sampler.batches(3):
        assert sorted(np.unique(labels[batch], return_counts=True)[1].tolist()) == [4, 4, 4, 4]


def test_a_class_too_large_meets_others_again_and_that_is_counted():
    labels = labels_of((100, 5))
    sampler = ClassBatchSampler(labels, batch_size=8, each=4)
    rows = [row for batch in sampler.batches(0) for row in batch]
    assert sampler.repeated == len(rows) - 105 > 0
    seen = np.bincount(rows)
    assert (seen[labels == 0] == 1).all()


def test_batches_are_a_function_of_seed_and_epoch():
    labels = labels_of((9, 9, 9))
    one, same, other = (
        ClassBatchSampler(labels, batch_size=8, each=4, seed=seed) for seed in (1, 1, 2)
    )
    assert one.batches(5) == same.batches(5)
    assert one.batches(5) != one.batches(6)
    assert one.batches(5) != other.batches(5)
    assert one.batch_at(2 * len(one) + 1) == one.batches(2)[1]
    one.set_epoch(5)
    assert list(one) == same.batches(5)


def test_classes_meet_different_ones_over_epochs():
    labels = labels_of(tuple([4] * 10))
    sampler = ClassBatchSampler(labels, batch_size=8, each=4)
    met = {
        tuple(sorted(set(labels[batch]))) for epoch in range(60) for batch in sampler.batches(epoch)
    }
    assert len(met) == 45


@pytest.mark.parametrize(
    ("labels", "changes", "words"),
    [
        ([0, 0, 1], {}, "labels: class 1 has one utterance; wants two or more"),
        ([0, 0, 0], {}, "labels: are of one class"),
        ([-1, -1, 0, 0], {}, "labels: wants shape"),
        ([], {}, "labels: wants shape"),
        ([0, 0, 1, 1], {"each": 1}, "each: wants at least 2, got 1"),
        ([0, 0, 1, 1], {"each": 4, "batch_size": 6}, "batch_size: wants two groups of 4 at least"),
        ([0, 0, 1, 1], {"seed": -1}, "seed: wants 0"),
    ],
)
def test_says_what_is_wrong(labels, changes, words):
    with pytest.raises(ArgumentError, match=words):
        ClassBatchSampler(labels, **{"batch_size": 8, "each": 2, **changes})
