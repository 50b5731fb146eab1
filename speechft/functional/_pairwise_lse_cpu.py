"""Pairwise log-sum-exp on the CPU: GEMMs by BLAS, a tile at a time, and C++ for what lies between.

A tile of products (queries of a block by keys of a block) is made, read into the running sums of
its rows and columns, and forgotten; the backward makes it again and turns it, in place, into the
gradient by the logits, which two GEMMs carry to the queries and the keys. Where the keys are the
queries, the tile (I, J) is also (J, I) transposed: only those with I <= J are made, half the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module
from speechft.functional._buffers import buffer

ROWS, COLUMNS = 512, 512  # of a tile: 1 MiB, which the last cache holds beside its operands


@dataclass(eq=False)
class _Pairs:
    """Queries, keys and what the pairs of them are."""

    query: Tensor
    key: Tensor
    same: bool
    scale: float
    query_labels: Tensor | None
    key_labels: Tensor | None
    self_offset: int | None

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor | None,
        scale: Tensor,
        query_labels: Tensor | None,
        key_labels: Tensor | None,
        self_offset: int | None,
    ) -> _Pairs:
        same = key is None
        queries = query.detach().to(torch.float32).contiguous()
        keys = queries if key is None else key.detach().to(torch.float32).contiguous()
        ranks: tuple[Tensor | None, Tensor | None] = (None, None)
        if query_labels is not None:
            ranks = _ranks(query_labels, query_labels if key_labels is None else key_labels)
        return cls(queries, keys, same, float(scale), *ranks, self_offset)

    def tiles(self, *, halve: bool) -> Iterator[tuple[slice, slice, bool]]:
        """Rows and columns of each tile, and whether it lies on the diagonal of one side."""
        N, M = len(self.query), len(self.key)
        width = ROWS if halve else COLUMNS  # squares, so that the diagonal lies in whole tiles
        for top in range(0, N, ROWS):
            rows = slice(top, min(top + ROWS, N))
            for left in range(top if halve else 0, M, width):
                yield rows, slice(left, min(left + width, M)), halve and left == top

    def multiply(self, rows: slice, columns: slice, memory: Tensor) -> tuple[Tensor, Any]:
        """Products of a tile, and the tile as C++ takes it."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        products = memory[: shape[0] * shape[1]].view(shape)
        torch.mm(self.query[rows], self.key[columns].T, out=products)
        tile = _module().PairwiseTile(
            products=products.data_ptr(),
            rows=shape[0],
            columns=shape[1],
            stride=shape[1],
            first_row=rows.start,
            first_column=columns.start,
            scale=self.scale,
            row_labels=_address(self.query_labels),
            column_labels=_address(self.key_labels),
            self_offset=self.self_offset,
        )
        return products, tile

    def memory(self) -> Tensor:
        widest = min(max(ROWS, COLUMNS), len(self.key))
        return buffer((min(ROWS, len(self.query)) * widest,))


class _Sums:
    """Running sums of the rows, or of the columns."""

    def __init__(self, size: int) -> None:
        self.maximum = torch.full((2, size), -math.inf)
        self.sum = torch.zeros(2, size, dtype=torch.float64)
        self.logits = torch.zeros(size, dtype=torch.float64)

    def of_all(self) -> Any:
        return _module().PairwiseSums(
            _address(self.maximum[0]), _address(self.sum[0]),
            _address(self.maximum[1]), _address(self.sum[1]), _address(self.logits),
        )  # fmt: skip

    def of_negatives(self) -> Any:
        return _module().PairwiseSums(_address(self.maximum[0]), _address(self.sum[0]))

    def lse(self) -> tuple[Tensor, Tensor]:
        """(size,) of negative pairs, and of positive ones."""
        negatives, positives = self.maximum + self.sum.log()
        return negatives.float(), positives.float()


def pairwise_lse(
    query: Tensor,
    key: Tensor | None,
    scale: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    columns: bool,
    own: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Negatives, positives, positive sum, weight (N,) and column negatives (M,) or empty."""
    pairs = _Pairs.of(query, key, scale, query_labels, key_labels, self_offset)
    module, threads = _module(), torch.get_num_threads()
    N, M = len(pairs.query), len(pairs.key)
    memory, row_sums = pairs.memory(), _Sums(N)
    column_sums = _Sums(M) if columns and not pairs.same else None
    none = module.PairwiseSums()
    by_column = none
    if pairs.same:
        by_column = row_sums.of_all()  # the columns are the rows again
    elif column_sums is not None:
        by_column = column_sums.of_negatives()
    scratch = torch.empty(module.pairwise_scratch(min(N, ROWS), min(M, max(ROWS, COLUMNS))))
    for rows, across, diagonal in pairs.tiles(halve=pairs.same):
        _, tile = pairs.multiply(rows, across, memory)
        other = none if diagonal else by_column
        module.pairwise_add(tile, row_sums.of_all(), other, scratch.data_ptr(), threads)
    negatives, positives = row_sums.lse()
    positive_sum, weight = row_sums.logits, torch.zeros(N, dtype=torch.float64)
    if own:
        positive_sum = torch.zeros(N, dtype=torch.float64)
        for rows, across, _ in pairs.tiles(halve=False):
            _, tile = pairs.multiply(rows, across, memory)
            module.pairwise_own(
                tile, _address(negatives), _address(positive_sum), _address(weight), threads
            )
    of_columns = torch.empty(0)
    if columns:
        of_columns = negatives.clone() if column_sums is None else column_sums.lse()[0]
    return negatives, positives, positive_sum.float(), weight.float(), of_columns


def pairwise_lse_backward(
    query: Tensor,
    key: Tensor | None,
    scale: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    self_offset: int | None,
    own: bool,
    rows: list[Tensor],
    columns: list[Tensor],
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by queries and keys (empty where not needed), float32.

    ``rows`` holds, of each row, the negatives and what comes in for them, the positives and what
    comes in for them, and what comes in for each positive pair; ``columns``, of each column, the
    first two, or nothing.
    """
    pairs = _Pairs.of(query, key, scale, query_labels, key_labels, self_offset)
    module, threads = _module(), torch.get_num_threads()
    of_rows = [t.float().contiguous() for t in rows]
    row_weights = module.PairwiseWeights(*map(_address, of_rows))
    of_columns: list[Tensor] = []
    if pairs.same:
        column_weights = row_weights
    elif columns:
        # Positive pairs give nothing to the columns: e^(s - inf) is 0, whatever s.
        infinite, zeros = torch.full((len(pairs.key),), math.inf), torch.zeros(len(pairs.key))
        of_columns = [*(t.float().contiguous() for t in columns), infinite, zeros, zeros]
        column_weights = module.PairwiseWeights(*map(_address, of_columns))
    else:
        column_weights = module.PairwiseWeights()
    dq = buffer(pairs.query.shape).zero_() if need_query or pairs.same else torch.empty(0)
    dk = buffer(pairs.key.shape).zero_() if need_key and not pairs.same else torch.empty(0)
    memory = pairs.memory()
    for down, across, diagonal in pairs.tiles(halve=pairs.same):
        gradient, tile = pairs.multiply(down, across, memory)
        module.pairwise_gradient(tile, row_weights, column_weights, own, threads)
        if need_query or pairs.same:
            dq[down].addmm_(gradient, pairs.key[across])
        if pairs.same and not diagonal:
            dq[across].addmm_(gradient.T, pairs.query[down])
        elif need_key and not pairs.same:
            dk[across].addmm_(gradient.T, pairs.query[down])
    return dq.mul_(pairs.scale), dk.mul_(pairs.scale)


def _ranks(query_labels: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels as int32 ranks, -1 for unknown: the same as the labels are the same."""
    both = torch.cat([query_labels, key_labels])
    _, ranks = torch.unique(both, return_inverse=True)
    ranks = ranks.masked_fill(both < 0, -1).to(torch.int32)
    return ranks[: len(query_labels)].contiguous(), ranks[len(query_labels) :].contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _module() -> Any:
    module = compiled_module()
    assert module is not None  # the dispatch chose this backend
    return module
