"""Batches that are blocks of a grid: every item once, and pairs to learn from."""

from __future__ import annotations

import itertools
import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.grid import GridBlockSampler, _chunks
from speechft.grid.blocks import balanced_rows


def dense(rows: int, columns: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def holey(rows: int, columns: int, share: float, seed: int = 0) -> Tensor:
    drawn = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (drawn < share).nonzero()


def groups() -> Tensor:
    """Eight groups of 32 speakers who say 32 texts that no other group says, in mixed order."""
    rows, columns = dense(32, 32).repeat(8, 1).T
    group = torch.arange(8).repeat_interleave(1024)
    shuffle = torch.Generator().manual_seed(0)
    speaker, text = (torch.randperm(256, generator=shuffle) for _ in range(2))
    factors = torch.stack([speaker[group * 32 + rows], text[group * 32 + columns]], dim=1)
    return factors[torch.randperm(len(factors), generator=shuffle)]


def with_positives(factors: Tensor, batches: list[list[int]]) -> float:
    """The share of items that have another of their row, and another of their column."""
    count = 0
    for batch in batches:
        equal = factors[batch][:, None] == factors[batch][None]
        count += int((equal.sum(1) > 1).all(1).sum())
    return count / len(factors)


@pytest.mark.parametrize(
    ("rows", "columns", "wanted"), [(None, 256, (16, 32)), (8, 256, (8, 64)), (32, 64, (32, 16))]
)
def test_a_dense_grid_is_cut_into_blocks(rows: int | None, columns: int, wanted: tuple) -> None:
    factors = dense(32, columns)[torch.randperm(32 * columns)]
    sampler = GridBlockSampler(factors, rows=rows)
    for epoch in range(3):
        for batch in sampler.batches(epoch):
            shape = tuple(len(values.unique()) for values in factors[batch].T)
            assert (shape, len(batch)) == (wanted, 512)
    pairs = sampler.positive_pairs()
    r, c = wanted
    assert pairs.tolist() == [[r * c * (c - 1) // 2, c * r * (r - 1) // 2]] * len(sampler)


@pytest.mark.parametrize(
    ("batch", "rows", "columns", "wanted"),
    [
        (512, 32, 256, 16),
        (1024, 1000, 1000, 32),
        (512, 5, 485, 4),
        (512, 100, 8, 64),  # r <= c would want 16 columns
        (512, 10, 10, 10),  # smaller than a batch
        (509, 200, 200, 22),  # a prime
        (509, 200, 8, 64),
        (512, 1, 600, 1),
        (1, 5, 5, 1),
    ],
)
def test_blocks_are_as_square_as_can_be(batch: int, rows: int, columns: int, wanted: int) -> None:
    assert balanced_rows(batch, rows, columns) == wanted


grids = st.lists(
    st.tuples(st.integers(-1, 6), st.integers(-1, 9), st.integers(-1, 2)), min_size=1, max_size=120
)


@given(grids, st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**64 - 1), st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_item_is_there_once(
    items: list[tuple[int, int, int]], batch_size: int, rows: int, seed: int, chosen: bool
) -> None:
    factors = torch.tensor(items)
    wanted = min(rows, batch_size) if chosen else None
    sampler = GridBlockSampler(factors, batch_size=batch_size, rows=wanted, seed=seed)
    for epoch in (0, 1):
        batches = sampler.batches(epoch)
        assert len(batches) == len(sampler)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        order = [item for batch in batches for item in batch]
        assert sorted(order) == list(range(len(items)))
        unknown = [items[item][0] == -1 for item in order]
        assert unknown == sorted(unknown)  # what has no row is last
        pairs = torch.zeros(len(batches), 3, dtype=torch.int64)
        for number, batch in enumerate(batches):
            values = factors[batch]
            equal = (values[:, None] == values[None]) & (values >= 0)[None]
            pairs[number] = (equal.sum((0, 1)) - (values >= 0).sum(0)) // 2
        assert torch.equal(sampler.positive_pairs(epoch), pairs)


def test_chunks_are_laid_out_column_by_column() -> None:
    """In a chunk: columns of several items, each in one piece, then single ones, then unknown."""
    factors = torch.cat([holey(40, 60, 0.1), torch.tensor([[3, -1], [30, -1], [-1, 5]])])
    sampler = GridBlockSampler(factors, batch_size=16, rows=8)
    order = [item for batch in sampler.batches(0) for item in batch]
    assert order[-1] == len(factors) - 1
    rows_left = set(range(40))
    position = 0
    chunks = 0
    while position < len(order) - 1:
        # A chunk ends where its eight rows do.
        chunk: list[int] = []
        rows: set[int] = set()
        while position < len(order) - 1:
            row = int(factors[order[position], 0])
            if row not in rows and len(rows) == 8:
                break
            rows.add(row)
            chunk.append(order[position])
            position += 1
        assert rows <= rows_left
        rows_left -= rows
        columns = factors[chunk, 1].tolist()
        kinds = [2 if c == -1 else int(columns.count(c) == 1) for c in columns]
        assert kinds == sorted(kinds)
        pieces = 1 + sum(a != b for a, b in itertools.pairwise(columns))
        assert pieces == len(set(columns))
        chunks += 1
    assert chunks == 5
    assert not rows_left


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    factors = holey(40, 60, 0.3)
    one = GridBlockSampler(factors, batch_size=64, seed=3)
    two = GridBlockSampler(factors, batch_size=64, seed=3)
    two.batches(7)
    first = one.batches(0)
    assert two.batches(0) == first
    assert list(one) == first
    one.set_epoch(1)
    assert list(one) == one.batches(1) != first
    assert GridBlockSampler(factors, batch_size=64, seed=4).batches(0) != first
    steps = [one.batch_at(step) for step in range(2 * len(one))]
    assert steps == one.batches(0) + one.batches(1)
    # Values are names: neither gaps between them nor what else is known of items matters.
    other = torch.cat([factors * 7 + 3, torch.arange(len(factors))[:, None]], dim=1)
    assert GridBlockSampler(other, batch_size=64, seed=3).batches(0) == first


def test_a_batch_is_the_same_on_every_machine() -> None:
    sampler = GridBlockSampler(dense(4, 6), batch_size=6, seed=1)
    assert sampler.rows == 2
    assert sampler.batches(0)[0] == [18, 12, 13, 19, 16, 22]


def test_rows_that_share_nothing_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = groups()
    samplers = [GridBlockSampler(factors, batch_size=size) for size in (512, 32)]
    for sampler in samplers:
        for epoch in range(3):
            assert with_positives(factors, sampler.batches(epoch)) >= 0.95
    pairs = samplers[0].positive_pairs()[:, 1].sum()
    for sampler in samplers:  # a plain shuffle of the rows
        monkeypatch.setattr(sampler._overlaps, "full", True)
        sampler._last = None
    assert with_positives(factors, samplers[0].batches(0)) < 0.92
    assert with_positives(factors, samplers[1].batches(0)) < 0.5
    assert samplers[0].positive_pairs()[:, 1].sum() < 0.2 * pairs


def test_blocks_hold_more_pairs_than_random_batches() -> None:
    factors = holey(200, 200, 0.5)
    pairs = GridBlockSampler(factors).positive_pairs().double().mean(0)
    order = torch.randperm(len(factors), generator=torch.Generator().manual_seed(0))
    random = torch.zeros(2, dtype=torch.float64)
    batches = order.split(512)
    for batch in batches:
        equal = factors[batch][:, None] == factors[batch][None]
        random += (equal.sum((0, 1)) - len(batch)) / 2 / len(batches)
    # Of 512 items 512 / 200 share a value by chance; in a block half of 32, and half of 16.
    assert pairs[0] > 10 * random[0]
    assert pairs[1] > 2.5 * random[1]


def test_large_sparse_grids_are_cut_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = holey(2000, 2000, 0.1)
    start = time.perf_counter()
    batches = GridBlockSampler(factors).batches(0)
    assert time.perf_counter() - start < 3
    # Too large for a matrix: the same, from lists.
    monkeypatch.setattr(_chunks, "_MOST", 0)
    start = time.perf_counter()
    assert GridBlockSampler(factors).batches(0) == batches
    assert time.perf_counter() - start < 3


def test_the_report() -> None:
    factors = torch.cat([dense(4, 4), torch.tensor([[-1, 0], [7, -1]])])
    sampler = GridBlockSampler(factors, batch_size=18)
    assert sampler.report(["speaker", "text"]).splitlines() == [
        "speaker: 24.0 positive pairs a batch, 2 of 18 items without any",
        "text: 28.0 positive pairs a batch, 1 of 18 items without any",
    ]
    assert sampler.report().startswith("row: 24.0 ")
    sampler.check(["speaker", "text"])


@pytest.mark.parametrize(
    ("factors", "batch_size", "rows", "match"),
    [
        (dense(1, 9), 4, None, "speaker has one value, and nothing can be learnt"),
        (torch.tensor([[0, -1], [1, -1], [0, -1]]), 4, None, "text has no known value"),
        (dense(2, 9), 1, None, "speaker: no batch has two items of one value.*larger batch than 1"),
        (torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]]), 4, None, "text: no batch has two items"),
        (dense(4, 8), 8, 1, "speaker: every batch has one value only.*no negatives.*rows than 1"),
    ],
)
def test_factors_that_nothing_can_be_learnt_from(
    factors: Tensor, batch_size: int, rows: int | None, match: str
) -> None:
    with pytest.raises(ArgumentError, match=match):
        GridBlockSampler(factors, batch_size=batch_size, rows=rows).check(["speaker", "text"])


def test_wrong_arguments_are_named() -> None:
    good = dense(3, 3)
    for factors, changes, match in (
        (good[:, :1], {}, "factors: wants shape (N, K), N >= 1, K >= 2; got (9, 1)"),
        (good[:0], {}, "factors: wants shape"),
        (
            good - 2,
            {},
            "factors: wants values from 0, or -1 for unknown; item 0 has -2 in column 0",
        ),
        (good, {"batch_size": 0}, "batch_size: wants at least 1"),
        (good, {"rows": 0}, "rows: wants 1 to batch_size"),
        (good, {"batch_size": 4, "rows": 5}, "rows: wants 1 to batch_size, 4; got 5"),
        (good, {"seed": -1}, "seed: wants 0 to 2**64 - 1"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(match)):
            GridBlockSampler(factors, **changes)
    with pytest.raises(ArgumentTypeError, match="factors: wants an int64 tensor"):
        GridBlockSampler(good.float())
    sampler = GridBlockSampler(good)
    for call, match in (
        (lambda: sampler.batches(-1), "epoch"),
        (lambda: sampler.set_epoch(-1), "epoch"),
        (lambda: sampler.batch_at(-1), "step"),
        (lambda: sampler.check(["speaker"]), "names: wants 2, one a factor"),
        (lambda: sampler.report(["speaker"]), "names: wants 2"),
    ):
        with pytest.raises(ArgumentError, match=match):
            call()
