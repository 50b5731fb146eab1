"""Soft-DTW on the CPU: GEMMs by BLAS, a block of pairs at a time, and C++ for what lies between.

For a block of pairs the Gram matrices become, in place, the alignments: the C++ kernel reads the
costs from them, runs the dynamic programme and writes the alignment back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module
from speechft.reference.soft_dtw import zero_padding

# Costs in memory at once, in floats, unless one round of the threads needs more.
_BLOCK = 1 << 22


@dataclass(eq=False)
class _Side:
    """A batch of sequences and, if wanted, the gradient that gathers for it.

    The gradient of sum_ij E_ij |x_i - y_j|^2 by x_i is 2 (sum_j E_ij) x_i - 2 sum_j E_ij y_j: the
    second term gathers in ``gradient``, the factor of the first in ``pull`` (B, T).
    """

    frames: Tensor
    lengths: Tensor
    norms: Tensor
    gradient: Tensor | None
    pull: Tensor | None

    @classmethod
    def of(cls, frames: Tensor, lengths: Tensor | None, need_gradient: bool) -> _Side:
        frames = zero_padding(frames.detach().to(torch.float32), lengths).contiguous()
        batch, steps, _ = frames.shape
        norms = torch.empty(batch, steps)
        for sample, out in zip(frames, norms, strict=True):  # the squares of one at a time
            torch.sum(sample * sample, dim=1, out=out)
        return cls(
            frames=frames,
            lengths=torch.full((batch,), steps) if lengths is None else lengths.contiguous(),
            norms=norms,
            gradient=torch.zeros_like(frames) if need_gradient else None,
            pull=torch.zeros_like(norms) if need_gradient else None,
        )

    def add(self, block: slice, alignment: Tensor, other: Tensor, sums: Tensor, w: float) -> None:
        """Gather the gradient of ``w`` times the value of each pair of the block."""
        if self.gradient is not None and self.pull is not None:
            self.gradient[block].baddbmm_(alignment, other, alpha=-2.0 * w)
            self.pull[block].add_(sums, alpha=2.0 * w)

    def finished(self) -> Tensor:
        if self.gradient is None or self.pull is None:
            return torch.empty(0)
        return self.gradient.addcmul_(self.pull[:, :, None], self.frames)


@dataclass(eq=False)
class _Term:
    """The soft-DTW of ``x`` against ``y`` for a block of pairs, with its weight in the value."""

    x: _Side
    y: _Side
    weight: float
    block: slice

    def __post_init__(self) -> None:
        x, y = self.x.frames[self.block], self.y.frames[self.block]
        self.need = self.x.gradient is not None or self.y.gradient is not None
        self.cost = torch.bmm(x, y.transpose(1, 2))
        self.value = torch.empty(len(x), dtype=torch.float64)
        self.row_sums = torch.empty(self.cost.shape[:2])
        self.column_sums = torch.empty(len(x), self.cost.shape[2])

    def batch(self, gamma: float, bandwidth: int | None) -> Any:
        return _batch(
            self.cost, self.x.lengths[self.block], self.y.lengths[self.block], gamma, bandwidth,
            self.value, self.need, self.x.norms[self.block], self.y.norms[self.block],
            self.row_sums, self.column_sums,
        )  # fmt: skip

    def add_gradients(self) -> None:
        if not self.need:
            return
        x, y, alignment = self.x.frames[self.block], self.y.frames[self.block], self.cost
        if self.x is self.y:
            # The columns are the rows again and the alignment is symmetric: twice the row half.
            self.x.add(self.block, alignment, x, self.row_sums, 2.0 * self.weight)
        else:
            self.x.add(self.block, alignment, y, self.row_sums, self.weight)
            self.y.add(self.block, alignment.transpose(1, 2), x, self.column_sums, self.weight)


def soft_dtw(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    divergence: bool,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (B,) and their gradients by ``x`` and ``y`` (empty where not needed), float32."""
    side_x, side_y = _Side.of(x, x_lengths, need_x), _Side.of(y, y_lengths, need_y)
    sides = [(side_x, side_y, 1.0)]
    if divergence:
        sides += [(side_x, side_x, -0.5), (side_y, side_y, -0.5)]
    pairs, area = x.shape[0], max(x.shape[1], y.shape[1]) ** 2
    one_round = _module().soft_dtw_lanes() * torch.get_num_threads()
    block_size = max(one_round, _BLOCK // area)
    # Few pairs do not fill the threads: then all terms of the divergence run at once.
    together = pairs <= one_round - _module().soft_dtw_lanes()
    value = torch.zeros(pairs, dtype=torch.float64)  # the divergence is a difference of large ones
    for start in range(0, pairs, block_size):
        block = slice(start, min(start + block_size, pairs))
        for group in [sides] if together else [[side] for side in sides]:
            terms = [_Term(x, y, weight, block) for x, y, weight in group]
            _run([term.batch(gamma, bandwidth) for term in terms])
            for term in terms:
                value[block].add_(term.value, alpha=term.weight)
                term.add_gradients()
    return value.float(), side_x.finished(), side_y.finished()


def soft_dtw_from_cost(
    cost: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    need_alignment: bool,
) -> tuple[Tensor, Tensor]:
    """Values (B,) and alignments (B, N, M) (empty if not needed), float32."""
    batch, N, M = cost.shape
    n = torch.full((batch,), N) if x_lengths is None else x_lengths.contiguous()
    m = torch.full((batch,), M) if y_lengths is None else y_lengths.contiguous()
    alignment = torch.empty(cost.shape).copy_(cost.detach())
    value = torch.empty(batch, dtype=torch.float64)
    _run([_batch(alignment, n, m, gamma, bandwidth, value, need_alignment)])
    return value.float(), alignment if need_alignment else torch.empty(0)


def _batch(
    cost: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    gamma: float,
    bandwidth: int | None,
    value: Tensor,
    want_alignment: bool,
    x_norms: Tensor | None = None,
    y_norms: Tensor | None = None,
    row_sums: Tensor | None = None,
    column_sums: Tensor | None = None,
) -> Any:
    def address(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    return _module().SoftDtwBatch(
        cost=address(cost),
        x_norms=address(x_norms),
        y_norms=address(y_norms),
        x_lengths=address(x_lengths),
        y_lengths=address(y_lengths),
        pairs=cost.shape[0],
        rows=cost.shape[1],
        columns=cost.shape[2],
        gamma=gamma,
        bandwidth=-1 if bandwidth is None else bandwidth,
        value=address(value),
        want_alignment=want_alignment,
        row_sums=address(row_sums),
        column_sums=address(column_sums),
    )


def _run(batches: list[Any]) -> None:
    _module().soft_dtw_cpu(batches, torch.get_num_threads())


def _module() -> Any:
    module = compiled_module()
    assert module is not None  # the dispatch chose this backend
    return module
