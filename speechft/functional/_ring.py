"""Pairwise log-sum-exp over all ranks, of which none ever holds the keys of more than two.

The blocks of keys go round the ranks; each rank meets each block with its own queries. Sums of
exponentials merge, a row's where it lies, a key's by travelling with it; the backward goes round
once more with the final sums, and the gradient of a block of keys travels with it and comes home.
The next block is on its way while one is worked on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed

from speechft.distributed import place_of
from speechft.reference.pairwise_lse import PairwiseLSE


def ring_pairwise_lse(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    labels: Tensor | None,
    group: Any,
    *,
    columns: bool,
) -> PairwiseLSE:
    """Of this rank's queries with the keys of all ranks, and of its keys with all queries.

    ``query[i]`` and ``key[i]`` are one sample, of ``labels[i]``, and that pair is left out.
    """
    found = _Ring.apply(query, key, scale, labels, group, columns)  # type: ignore[no-untyped-call]
    negatives, positives, positive_sum, of_keys = found
    return PairwiseLSE(negatives, positives, positive_sum, of_keys if columns else None)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        labels: Tensor | None,
        group: Any,
        columns: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        N = len(query)
        negatives = torch.full((N,), -math.inf, device=query.device)
        positives, positive_sum = negatives.clone(), torch.zeros_like(negatives)
        of_keys = torch.full((len(key) if columns else 0,), -math.inf, device=query.device)
        block = _Block(group, key.detach(), labels)
        for home in block.round():
            n, p, total, _, c = torch.ops.speechft.pairwise_lse(
                query, block.key, scale, labels, block.labels, 0 if home else None, columns, False
            )
            negatives, positives = torch.logaddexp(negatives, n), torch.logaddexp(positives, p)
            positive_sum = positive_sum + total
            if columns:
                of_keys = block.carry(torch.logaddexp(of_keys, c))
        ctx.save_for_backward(query, key, scale, labels, negatives, positives, of_keys)
        ctx.group, ctx.columns = group, columns
        return negatives, positives, positive_sum, of_keys

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, g_negatives: Tensor, g_positives: Tensor, g_sum: Tensor, g_of_keys: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, scale, labels, negatives, positives, of_keys = ctx.saved_tensors
        dq = torch.zeros(query.shape, device=query.device)
        dk = torch.zeros(key.shape, device=key.device)
        rows = [negatives, g_negatives, positives, g_positives, g_sum]
        sides = (of_keys, g_of_keys) if ctx.columns else ()
        block = _Block(ctx.group, key, labels, *sides)
        for home in block.round():
            to_query, to_key = torch.ops.speechft.pairwise_lse_backward(
                query, block.key, scale, labels, block.labels, 0 if home else None, False,
                rows, block.more, True, True,
            )  # fmt: skip
            dq += to_query
            dk = block.carry(dk + to_key)
        d_scale = torch.linalg.vecdot(dq, query.to(dq.dtype)).sum(dtype=torch.float64) / scale
        return dq.to(query.dtype), dk.to(key.dtype), d_scale.to(scale.dtype), None, None, None


class _Block:
    """A block of keys and what belongs to them, on its way round the ranks."""

    def __init__(self, group: Any, key: Tensor, labels: Tensor | None, *more: Tensor) -> None:
        self.group = group
        self.rank, self.ranks = place_of(group)
        self.labelled = labels is not None
        parts = [key, *([] if labels is None else [labels]), *more]
        self.parts = [part.contiguous() for part in parts]

    @property
    def key(self) -> Tensor:
        return self.parts[0]

    @property
    def labels(self) -> Tensor | None:
        return self.parts[1] if self.labelled else None

    @property
    def more(self) -> list[Tensor]:
        return self.parts[1 + self.labelled :]

    def round(self) -> Any:
        """Go round once: at each stop, whether the block is this rank's own."""
        for stop in range(self.ranks):
            last = stop == self.ranks - 1
            coming, works = ([], []) if last else self._pass_on(self.parts)
            yield stop == 0
            for work in works:
                work.wait()
            if not last:
                self.parts = coming

    def carry(self, tensor: Tensor) -> Tensor:
        """Pass on what was gathered for the block, and take what comes with the next one."""
        (coming,), works = self._pass_on([tensor.contiguous()])
        for work in works:
            work.wait()
        return coming

    def _pass_on(self, tensors: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
        after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        to, of = (distributed.get_global_rank(self.group, rank) for rank in (after, before))
        coming = [torch.empty_like(tensor) for tensor in tensors]
        operations = [
            distributed.P2POp(operation, tensor, peer, self.group)
            for sent, taken in zip(tensors, coming, strict=True)
            for operation, tensor, peer in (
                (distributed.isend, sent, to),
                (distributed.irecv, taken, of),
            )
        ]
        return coming, distributed.batch_isend_irecv(operations)
