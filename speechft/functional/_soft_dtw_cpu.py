"""Soft-DTW on the CPU: GEMMs by BLAS, a block of pairs at a time, and C++ for what lies between.

For a block of pairs the Gram matrices become, in place, the alignments: the C++ kernel reads the
costs from them, runs the dynamic programme and writes the alignments back. Where an alignment
keeps to few cells a row, as it does at small gamma, C++ gathers the gradient from these cells;
where it does not, two GEMMs do.

The buffers are made once a call, and used by every block and every term of the divergence in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module
from speechft.functional._buffers import buffer
from speechft.reference.soft_dtw import zero_padding

# Costs in memory at once, in floats, unless one round of the threads needs more.
_BLOCK = 1 << 22


@dataclass(eq=False)
class _Side:
    """A batch of sequences and, if wanted, the gradient that gathers for it.

    The gradient of sum_ij E_ij |x_i - y_j|^2 by x_i is 2 (sum_j E_ij) x_i - 2 sum_j E_ij y_j. Of
    pairs that go through GEMMs the second term gathers in ``gradient``, and the factor of the first
    in ``pull`` (B, T).
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
            gradient=buffer(frames.shape).zero_() if need_gradient else None,
            pull=torch.zeros_like(norms) if need_gradient else None,
        )

    def add(self, pairs: slice, alignment: Tensor, other: Tensor, sums: Tensor, w: float) -> None:
        """Gather the gradient of ``w`` times the value of each of the pairs."""
        if self.gradient is not None and self.pull is not None:
            self.gradient[pairs].baddbmm_(alignment, other, alpha=-2.0 * w)
            self.pull[pairs].add_(sums, alpha=2.0 * w)

    def finished(self) -> Tensor:
        if self.gradient is None or self.pull is None:
            return torch.empty(0)
        if bool(self.pull.any()):
            self.gradient.addcmul_(self.pull[:, :, None], self.frames)
        return self.gradient


@dataclass(eq=False)
class _Term:
    """The soft-DTW of ``x`` against ``y`` for a block of pairs, with its weight in the value."""

    x: _Side
    y: _Side
    weight: float
    block: slice
    memory: Tensor

    def __post_init__(self) -> None:
        x, y = self.x.frames[self.block], self.y.frames[self.block]
        batch, N, M = len(x), x.shape[1], y.shape[1]
        self.need = self.x.gradient is not None or self.y.gradient is not None
        self.cost = self.memory[: batch * N * M].view(batch, N, M)
        torch.bmm(x, y.transpose(1, 2), out=self.cost)
        self.value = torch.empty(batch, dtype=torch.float64)
        self.spans = torch.empty(batch, N, 2, dtype=torch.int32)
        self.dense = torch.zeros(batch, dtype=torch.uint8)
        self.row_sums = torch.empty(batch, N)
        self.column_sums = torch.empty(batch, M)

    def batch(self, gamma: float, bandwidth: int | None) -> Any:
        x, y, block = self.x, self.y, self.block
        return _batch(
            self.cost, x.lengths[block], y.lengths[block], gamma, bandwidth, self.value, self.need,
            x=_address(x.frames[block]), y=_address(y.frames[block]),
            x_norms=_address(x.norms[block]), y_norms=_address(y.norms[block]),
            features=x.frames.shape[2], weight=self.weight,
            spans=_address(self.spans), dense=_address(self.dense),
            row_sums=_address(self.row_sums), column_sums=_address(self.column_sums),
            x_gradient=0 if x.gradient is None else _address(x.gradient[block]),
            y_gradient=0 if y.gradient is None else _address(y.gradient[block]),
        )  # fmt: skip

    def add_dense_gradients(self) -> None:
        dense = self.dense.nonzero()[:, 0].tolist()
        if len(dense) == len(self.dense):
            self._add(slice(0, len(dense)))
        else:
            for pair in dense:
                self._add(slice(pair, pair + 1))

    def _add(self, pairs: slice) -> None:
        start = self.block.start
        of_all = slice(start + pairs.start, start + pairs.stop)
        alignment, x, y = self.cost[pairs], self.x.frames[of_all], self.y.frames[of_all]
        if self.x is self.y:
            # The columns are the rows again and the alignment is symmetric: twice the row half.
            self.x.add(of_all, alignment, x, self.row_sums[pairs], 2.0 * self.weight)
        else:
            self.x.add(of_all, alignment, y, self.row_sums[pairs], self.weight)
            columns = alignment.transpose(1, 2)
            self.y.add(of_all, columns, x, self.column_sums[pairs], self.weight)


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
    pairs, longest = x.shape[0], max(x.shape[1], y.shape[1])
    area = longest**2 if divergence else x.shape[1] * y.shape[1]
    one_round = _module().soft_dtw_lanes() * torch.get_num_threads()
    block_size = min(pairs, max(one_round, _BLOCK // area))
    # Few pairs do not fill the threads: then all terms of the divergence run at once.
    together = pairs <= one_round - _module().soft_dtw_lanes()
    groups = [sides] if together else [[side] for side in sides]
    memory = [buffer((block_size * area,)) for _ in groups[0]]
    workspace = torch.empty(0, dtype=torch.uint8)
    value = torch.zeros(pairs, dtype=torch.float64)  # the divergence is a difference of large ones
    for start in range(0, pairs, block_size):
        block = slice(start, min(start + block_size, pairs))
        for group in groups:
            terms = [_Term(*side, block, costs) for side, costs in zip(group, memory, strict=True)]
            batches = [term.batch(gamma, bandwidth) for term in terms]
            workspace = _run(batches, workspace)
            for term in terms:
                value[block].add_(term.value, alpha=term.weight)
            if need_x or need_y:
                _module().soft_dtw_cpu_gradient(batches, torch.get_num_threads())
                for term in terms:
                    term.add_dense_gradients()
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
    alignment = buffer(cost.shape).copy_(cost.detach())
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
    **gradient: Any,
) -> Any:
    return _module().SoftDtwBatch(
        cost=_address(cost),
        x_lengths=_address(x_lengths),
        y_lengths=_address(y_lengths),
        pairs=cost.shape[0],
        rows=cost.shape[1],
        columns=cost.shape[2],
        gamma=gamma,
        bandwidth=-1 if bandwidth is None else bandwidth,
        value=_address(value),
        want_alignment=want_alignment,
        **gradient,
    )


def _run(batches: list[Any], workspace: Tensor | None = None) -> Tensor:
    """Run the programme in ``workspace``, or in a larger one if it does not fit; returns which."""
    threads = torch.get_num_threads()
    size = _module().soft_dtw_cpu_workspace(batches, threads)
    if workspace is None or workspace.numel() < size:
        workspace = buffer((size,), torch.uint8)
    _module().soft_dtw_cpu(batches, threads, _address(workspace))
    return workspace


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _module() -> Any:
    module = compiled_module()
    assert module is not None  # the dispatch chose this backend
    return module
