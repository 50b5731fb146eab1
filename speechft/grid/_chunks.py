"""Rows of a grid cut into chunks that have much in common."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

_Ids = npt.NDArray[np.int64]
_MOST = 2**24  # entries of a matrix that is held


class Overlaps:
    """How many column values each row of a grid shares with one of them.

    Args:
        rows: of each item, from 0.
        columns: of each item, from 0.
        num_rows: how many there are.
        num_columns: likewise.
    """

    def __init__(self, rows: _Ids, columns: _Ids, num_rows: int, num_columns: int) -> None:
        self.num_rows, self.num_columns = num_rows, num_columns
        cells = np.unique(rows * max(num_columns, 1) + columns)
        self.rows: _Ids = cells // max(num_columns, 1)
        self.columns: _Ids = cells % max(num_columns, 1)
        self.full = len(cells) == num_rows * num_columns

    def of(self, row: int) -> _Ids:
        """The shared column values of each row (R,) with this one."""
        if self.num_rows * max(self.num_rows, self.num_columns) <= _MOST:
            shared: _Ids = self._matrix[row]
            return shared
        # Column by column, from what is there: no matrix of a large grid would fit.
        columns = self.columns[self._row_ends[row] : self._row_ends[row + 1]]
        begin, end = self._column_ends[columns], self._column_ends[columns + 1]
        met = [self._by_column[b:e] for b, e in zip(begin.tolist(), end.tolist(), strict=True)]
        return np.bincount(
            np.concatenate([np.empty(0, np.int64), *met]), minlength=self.num_rows
        ).astype(np.int64)

    @cached_property
    def _matrix(self) -> _Ids:
        there = torch.zeros(self.num_rows, self.num_columns)
        there[torch.from_numpy(self.rows), torch.from_numpy(self.columns)] = 1
        shared: _Ids = (there @ there.T).to(torch.int64).numpy()
        return shared

    @cached_property
    def _row_ends(self) -> _Ids:
        return np.searchsorted(self.rows, np.arange(self.num_rows + 1))

    @cached_property
    def _order(self) -> _Ids:
        return np.argsort(self.columns, kind="stable")

    @cached_property
    def _by_column(self) -> _Ids:
        return self.rows[self._order]

    @cached_property
    def _column_ends(self) -> _Ids:
        return np.searchsorted(self.columns[self._order], np.arange(self.num_columns + 1))


def cut_rows(shuffled: _Ids, size: int, overlaps: Overlaps) -> tuple[_Ids, int]:
    """Chunks of ``size`` rows or one row fewer each, as equal as can be.

    A chunk begins with the first of ``shuffled`` that is left, and takes in turn the row that
    shares most with all it has, the first of ``shuffled`` among equals. Where no cell is missing
    all are equal.

    Returns:
        The chunk of each row (R,), and how many chunks there are.
    """
    total = len(shuffled)
    number = -(-total // size)
    sizes = [total // number + (chunk < total % number) for chunk in range(number)]
    chunks = np.empty(total, np.int64)
    if overlaps.full:
        chunks[shuffled] = np.repeat(np.arange(number), sizes)
        return chunks, number
    # A score, and below it the place among the shuffled: one argmax finds the first of the best.
    early = np.empty(total, np.int64)
    early[shuffled] = np.arange(total)[::-1]
    left = np.ones(total, bool)
    for chunk, wanted in enumerate(sizes):
        score = early.copy()
        for _ in range(wanted):
            row = int(np.where(left, score, -1).argmax())
            left[row] = False
            chunks[row] = chunk
            score += overlaps.of(row) * total
    return chunks, number
