"""Batches that are blocks of a grid: some voices saying the same texts.

A loss of several factors learns from pairs that share one factor and not the other. In a random
batch of a large grid there are hardly any; in a block of r rows and c columns every item has c - 1
others of its row, and r - 1 of its column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from speechft.data.sampler import _mix
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.grid._chunks import Overlaps, cut_rows

_Ids = npt.NDArray[np.int64]
_ROWS, _CHUNKS, _COLUMNS, _ITEMS = 1, 2, 3, 4


class GridBlockSampler(Sampler[list[int]]):
    """Every item exactly once an epoch, in batches that are blocks of the grid.

    Row values are shuffled and cut into chunks of ``rows``, or a little fewer, so that all are of
    one size. Where cells are missing a chunk begins with the next row of the shuffled ones and
    takes those that share most column values with the rows it has, so rows that have nothing in
    common do not meet. In a chunk column values are shuffled, and items laid out column by column,
    first columns of at least two items, then those of one. All chunks in random order, one after
    another, are cut every ``batch_size`` items: in a full grid whose numbers divide, every batch is
    a block, each of some rows with each of some columns.

    Batches are a function of (seed, epoch) and nothing else, as those of
    :class:`speechft.data.LengthBatchSampler`: step s is batch ``s % len`` of epoch ``s // len``.

    Args:
        factors: int64 of shape (N, K), K at least 2: the row's value (who speaks), the column's
            (what is said), and others, which come along. -1 is unknown: such an item is in no pair
            of that factor, and comes last: in its chunk without a column, in the epoch without a
            row. See :meth:`speechft.data.Manifest.factor_ids`.
        batch_size: items a batch; the last of an epoch may have fewer.
        rows: row values in a block. None: of the divisors r of ``batch_size`` with r rows and
            c = batch_size / r columns in the grid the pair closest to a square, r at most c where
            there is such a one (512: 16 x 32). Where none fits, about the square root, within what
            the grid has.
        seed: any integer from 0 to 2**64 - 1.

    Raises:
        ArgumentTypeError: factors are no int64 tensor.
        ArgumentError: another shape, no items, a value below -1, or an argument out of range.
    """

    def __init__(
        self,
        factors: Tensor,
        *,
        batch_size: int = 512,
        rows: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(factors, Tensor) or factors.dtype != torch.int64:
            got = factors.dtype if isinstance(factors, Tensor) else type(factors).__name__
            raise ArgumentTypeError("factors", f"wants an int64 tensor, got {got}")
        if factors.dim() != 2 or factors.shape[0] < 1 or factors.shape[1] < 2:
            raise ArgumentError(
                "factors", f"wants shape (N, K), N >= 1, K >= 2; got {tuple(factors.shape)}"
            )
        self._factors: _Ids = factors.detach().cpu().numpy().copy()
        if self._factors.min() < -1:
            item, column = np.argwhere(self._factors < -1)[0].tolist()
            raise ArgumentError(
                "factors",
                f"wants values from 0, or -1 for unknown; item {item} has "
                f"{self._factors[item, column]} in column {column}",
            )
        if batch_size < 1:
            raise ArgumentError("batch_size", f"wants at least 1, got {batch_size}")
        if rows is not None and not 1 <= rows <= batch_size:
            raise ArgumentError("rows", f"wants 1 to batch_size, {batch_size}; got {rows}")
        if not 0 <= seed < 2**64:
            raise ArgumentError("seed", f"wants 0 to 2**64 - 1, got {seed}")
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self._row, self._num_rows = _numbered(self._factors[:, 0])
        self._column, self._num_columns = _numbered(self._factors[:, 1])
        self.rows = rows or balanced_rows(batch_size, self._num_rows, self._num_columns)
        in_cells = (self._row >= 0) & (self._column >= 0)
        self._overlaps = Overlaps(
            self._row[in_cells], self._column[in_cells], self._num_rows, self._num_columns
        )
        self._last: tuple[int, _Ids] | None = None

    def __len__(self) -> int:
        """Batches an epoch; the same in every epoch."""
        return -(-len(self._factors) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iteration gives."""
        if epoch < 0:
            raise ArgumentError("epoch", f"wants at least 0, got {epoch}")
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the chosen epoch."""
        return iter(self.batches(self.epoch))

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch: lists of indices.

        Raises:
            ArgumentError: a negative epoch.
        """
        order, size = self._order(epoch), self.batch_size
        return [order[at : at + size].tolist() for at in range(0, len(order), size)]

    def batch_at(self, step: int) -> list[int]:
        """The batch of a training step, counted from 0 over all epochs.

        Raises:
            ArgumentError: a negative step.
        """
        if step < 0:
            raise ArgumentError("step", f"wants at least 0, got {step}")
        epoch, position = divmod(step, len(self))
        at = position * self.batch_size
        return [int(item) for item in self._order(epoch)[at : at + self.batch_size]]

    def positive_pairs(self, epoch: int = 0) -> Tensor:
        """How many unordered pairs of a batch have equal, known values of a factor.

        Returns:
            int64 of shape (batches, K).
        """
        counts = np.zeros((len(self), self._factors.shape[1]), np.int64)
        for factor in range(counts.shape[1]):
            batch, _, items = self._groups(epoch, factor)
            pairs = items * (items - 1) // 2
            np.add.at(counts[:, factor], batch, pairs)
        return torch.from_numpy(counts)

    def report(self, names: Sequence[str] | None = None, *, epoch: int = 0) -> str:
        """A line a factor: positive pairs a batch, and items that have none.

        Args:
            names: of the factors; None: row, column, factor 2, ...
            epoch: which.

        Raises:
            ArgumentError: names are not as many as factors.
        """
        if names is None:
            more = (f"factor {number}" for number in range(2, self._factors.shape[1]))
            names = ("row", "column", *more)
        self._check_names(names)
        pairs = self.positive_pairs(epoch).double().mean(0).tolist()
        total, lines = len(self._factors), []
        for factor, name in enumerate(names):
            items = self._groups(epoch, factor)[2]
            alone = total - int(items[items > 1].sum())
            lines.append(
                f"{name}: {pairs[factor]:,.1f} positive pairs a batch, "
                f"{alone:,} of {total:,} items without any"
            )
        return "\n".join(lines)

    def check(self, names: Sequence[str]) -> None:
        """Raise where a loss of these factors could learn nothing from these batches.

        Args:
            names: of the factors, for the message.

        Raises:
            ArgumentError: a factor with one value; one that no batch of epoch 0 has a pair of; one
                of which no batch of epoch 0 has two values. Or names are not as many as factors.
        """
        self._check_names(names)
        for factor, name in enumerate(names):
            known = np.unique(self._factors[:, factor])
            known = known[known >= 0]
            if len(known) < 2:
                raise ArgumentError(
                    "factors",
                    f"{name} has {'one value' if len(known) else 'no known value'}, and nothing "
                    "can be learnt from it; leave it out, or take data with more of its values",
                )
            batch, _, items = self._groups(0, factor)
            if not (items > 1).any():
                raise ArgumentError(
                    "factors",
                    f"{name}: no batch has two items of one value, so there are no positives; take "
                    f"a larger batch than {self.batch_size}, or data with more items a value",
                )
            if (np.bincount(batch, minlength=len(self)) < 2).all():
                raise ArgumentError(
                    "factors",
                    f"{name}: every batch has one value only, so there are no negatives; take a "
                    f"larger batch than {self.batch_size}, or other rows than {self.rows}",
                )

    def _check_names(self, names: Sequence[str]) -> None:
        wanted = self._factors.shape[1]
        if isinstance(names, str) or len(names) != wanted:
            raise ArgumentError("names", f"wants {wanted}, one a factor; got {names!r}")

    def _groups(self, epoch: int, factor: int) -> tuple[_Ids, _Ids, _Ids]:
        """The batch, the value and the number of items that have it there, value by value."""
        order = self._order(epoch)
        values, count = _numbered(self._factors[order, factor])
        batch = np.arange(len(order)) // self.batch_size
        places, items = np.unique((batch * max(count, 1) + values)[values >= 0], return_counts=True)
        return *np.divmod(places, max(count, 1)), items

    def _order(self, epoch: int) -> _Ids:
        """All items of an epoch, one batch after another."""
        if epoch < 0:
            raise ArgumentError("epoch", f"wants at least 0, got {epoch}")
        # batch_at asks for one epoch many times.
        if self._last is None or self._last[0] != epoch:
            self._last = (epoch, self._laid_out(epoch))
        return self._last[1]

    def _laid_out(self, epoch: int) -> _Ids:
        shuffled = np.argsort(self._hash(epoch, _ROWS, np.arange(self._num_rows)), kind="stable")
        chunks, number = cut_rows(shuffled, self.rows, self._overlaps)
        # Items without a row are a chunk of their own behind all others.
        place = np.argsort(np.argsort(self._hash(epoch, _CHUNKS, np.arange(number)), kind="stable"))
        chunk = np.append(place[chunks], number)[self._row]  # the last one, at -1
        cell = chunk * (self._num_columns + 1) + self._column + 1
        _, where, counts = np.unique(cell, return_inverse=True, return_counts=True)
        kind = np.where(self._column < 0, 2, counts[where] == 1)
        return np.lexsort(
            (
                self._hash(epoch, _ITEMS, np.arange(len(cell))),
                cell,  # of two columns with one hash
                self._hash(epoch, _COLUMNS, cell),
                kind,
                chunk,
            )
        )

    def _hash(self, epoch: int, what: int, index: _Ids) -> npt.NDArray[np.uint64]:
        stream = _mix(np.array([self.seed], np.uint64))
        for number in (epoch, what):
            stream = _mix(stream ^ np.uint64(number))
        return _mix(stream ^ index.astype(np.uint64))


def balanced_rows(batch_size: int, num_rows: int, num_columns: int) -> int:
    """Rows of a block that is as near to a square as batch and grid allow."""
    fitting = [
        r
        for r in range(2, batch_size // 2 + 1)
        if batch_size % r == 0 and r <= num_rows and batch_size // r <= num_columns
    ]
    wide = [r for r in fitting if r * r <= batch_size]
    if fitting:
        return max(wide) if wide else min(fitting)
    enough = -(-batch_size // max(num_columns, 1))
    return max(1, min(num_rows, max(math.isqrt(batch_size), enough)))


def _numbered(values: _Ids) -> tuple[_Ids, int]:
    """Known values numbered from 0 without gaps, -1 as it is, and how many there are."""
    distinct, numbers = np.unique(values, return_inverse=True)
    unknown = int(distinct[0] < 0)
    return numbers.reshape(-1).astype(np.int64) - unknown, len(distinct) - unknown
