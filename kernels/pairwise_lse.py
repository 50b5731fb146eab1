r"""Triton kernels of pairwise log-sum-exp, which never hold the N x M logits.

With logits :math:`s_{ij} = \sigma\, q_i \cdot k_j`, a row's sums over its negative and its
positive keys are built while blocks of keys pass by a block of queries: of each kind the maximum
:math:`m` so far and the sum of :math:`e^{s - m}`, rescaled where the maximum grows, so that no
logit is too large. Which kind a pair is follows from indices and labels, in the tile. Columns are
the rows of a second sweep with the towers swapped; ``own``, which wants the negatives first, is a
sweep too.

The backward makes the logits again. With the log-sum-exps :math:`n, p`, what comes in for them,
:math:`\dot n, \dot p`, and :math:`\dot a` for each positive pair, the rows' side gives

.. math::
    G_{ij} = \dot n_i\, e^{s_{ij} - n_i} \;(j \in \mathcal N_i), \qquad
    G_{ij} = \dot p_i\, e^{s_{ij} - p_i} + \dot a_i \;(j \in \mathcal P_i),

with :math:`\dot a_i\, \mathrm{sigmoid}(n_i - s_{ij})` under ``own``, and the columns' side the
same with :math:`n_j`. Of their sum :math:`\partial q = \sigma G K` and
:math:`\partial k = \sigma G^\top Q`; where the queries are the keys, the rows' :math:`G` and its
transpose make one symmetric :math:`H`, and the gradient is :math:`\sigma H Q`. The second product
is made in one of three ways:

* *held*: up to 256 features in half precision, as in FlashAttention. A program keeps the gradient
  of its rows in registers, turns each tile of logits to a tile of G and multiplies on. For two
  towers it runs twice: 4 products N x M x D in place of 3, and only the results are written. 512
  features would be 128 KiB of accumulators for 64 rows, of a multiprocessor's 256 KiB of registers.
* *workspace*: all else. Square parts of G, as large as 64 MiB hold, are written in the dtype of
  the inputs, and ``torch.addmm`` carries them to both sides: 3 products (2 for one gradient; 1.5
  where the queries are the keys, of which half of H is made). G is written once and read twice, 6
  bytes a pair in half precision: at 3.35 TB/s the time of a product of 700 features, less than if
  each of several programs made all logits again for a part of the features. In float32, without
  tensor cores, a held gradient would take the registers that operands lie in. There ``addmm``
  follows torch's choice of TF32; the logits are float32 always.
* *atomics*, if asked for, in place of *held* for two towers: one pass over tiles, 3 products, each
  tile adding to both gradients. It adds 2 N M D / 128 numbers (3 / 128 with labels), 4.3e9 at the
  sizes below: whether that is cheaper than a product is to be measured.

G goes into the second product in the inputs' dtype, rounded, as is usual in attention. Float16 has
nothing below 6e-8: there G is lifted by a power of two, found on the device. Sums of exponentials
are compensated. Where there are few rows the columns are swept in parts, for no multiprocessor to
idle. All but the atomics sum in an order that the shapes and the GPU fix.

What to expect, by arithmetic and **not measured**: N = M = 32768, D = 256, bfloat16, two towers and
columns, on an H100 SXM. A product is 0.55 TFLOP, 0.687 ms at 800 TFLOP/s: 2 forward and 4 backward
are 4.1 ms. 1.1e9 exponentials, at 16 a clock and multiprocessor, are 0.29 ms; 2 times that forward
and 4 times backward are 1.7 ms, which overlap in part: 4.1 to 6 ms. With one tower 1 and 2 products
are 2.1 ms, and the exponentials 0.9 ms. Inputs and results are 0.1 GB, 0.03 ms. In float32 a
product is at least 8.2 ms (67 TFLOP/s).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
from speechft.kernels._pairwise_lse_sweeps import (
    forward_kernel,
    gradient_tile_kernel,
    held_gradient_kernel,
    own_kernel,
)
from torch import Tensor

# What the second product may take beside inputs and outputs where a tile's gradient is written.
_WORKSPACE_BYTES = 64 * 2**20
# Up to here the gradient of a block of rows fits in the registers of one program.
_MOST_FEATURES_HELD = 256

# Before torch 2.8 the product of half-precision matrices is rounded to their dtype.
_TORCH_WIDENS = hasattr(torch.ops.aten.addmm, "dtype_out")

_NOTHING, _NEGATIVES, _ALL = 0, 1, 2  # what of a side has an incoming gradient


class Blocks(NamedTuple):
    """Shape of a kernel's tile and how it is run: rows by columns, ``features`` a step.

    ``maxnreg`` is the most registers a thread may have. Left to itself ptxas takes fewer, to fit
    one more block on a multiprocessor, and may spill the difference.
    """

    rows: int
    columns: int
    features: int
    num_warps: int
    num_stages: int
    maxnreg: int = 255


def forward_blocks(features: int, dtype: torch.dtype, *, labels: bool) -> Blocks:
    """Tile of the forward sweeps. With all features in one step, the rows are loaded once.

    All tiles here are the largest, of those tried, that spill no register on sm_80 and sm_90, which
    the tests hold them to; labels take registers from the tile.
    """
    if dtype == torch.float32:  # no tensor cores: a step's operands lie in registers too
        return Blocks(128, 64, 16, num_warps=8, num_stages=3)
    if features <= _MOST_FEATURES_HELD:
        return Blocks(128, 64, _power_of_two(features), num_warps=8, num_stages=2)
    return Blocks(128, 64 if labels else 128, 64, num_warps=8, num_stages=3)


def held_gradient_blocks(features: int, *, labels: bool, hopper: bool) -> Blocks:
    """Tile of the backward that holds the gradient of its rows, in half precision.

    On Hopper the tensor cores read operands from shared memory; elsewhere they lie in registers,
    and there is less shared memory to be had (99 KiB on sm_86 and sm_89).
    """
    size = _power_of_two(features)
    if hopper:
        return Blocks(128, 32 if labels else 64, size, num_warps=8, num_stages=2)
    return Blocks(64 if labels or size > 128 else 128, 64, size, num_warps=8, num_stages=2)


def gradient_tile_blocks(dtype: torch.dtype, *, labels: bool) -> Blocks:
    """Tile of the backward that writes the gradient by the logits."""
    if dtype == torch.float32:
        return Blocks(64 if labels else 128, 64, 16, num_warps=8, num_stages=3)
    return Blocks(128, 64 if labels else 128, 64, num_warps=8, num_stages=3)


def atomic_blocks(*, labels: bool) -> Blocks:
    """Tile of the backward that adds to both gradients at once, in half precision."""
    return Blocks(128, 64 if labels else 128, 32, num_warps=8, num_stages=3)


def _power_of_two(features: int) -> int:
    return max(1 << (features - 1).bit_length(), 16)


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
    """The values of :func:`speechft.functional.pairwise_lse`, all float32.

    Args:
        query: (N, D), float32, float16 or bfloat16, any strides.
        key: (M, D), likewise, or None: the queries are the keys.
        scale: float32, 0-d, on the device, where it is read.
        query_labels: (N,) integers of any type, or None; below 0 is unknown.
        key_labels: (M,), likewise.
        self_offset: query i is key ``i + self_offset``; None: no pair is left out for that.
        columns: also the log-sum-exp over the negative pairs of each key.
        own: the sums are over the log-probability of each positive pair against all negatives.

    Returns:
        Negatives, positives, positive sum and weight (N,), the last the sum over positive pairs of
        ``sigmoid(negatives - s)`` where ``own`` and else 0; and column negatives (M,), or (0,).
    """
    queries = _Tower.of(query, query_labels)
    keys = queries if key is None else _Tower.of(key, key_labels)
    device = query.device
    negatives, positives, positive_sum = _sweep(
        queries, keys, scale, self_offset, positives=queries.labels is not None
    )
    weight = torch.zeros(len(query), device=device)
    if own:
        positive_sum, weight = _sweep_own(queries, keys, scale, self_offset, negatives)
    of_columns = torch.empty(0, device=device)
    if columns:
        if key is None and not self_offset:
            of_columns = negatives.clone()  # the columns are the rows again
        else:
            back = None if self_offset is None else -self_offset
            of_columns, _, _ = _sweep(keys, queries, scale, back, positives=False)
    return negatives, positives, positive_sum, weight, of_columns


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
    *,
    atomics: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients by queries and keys (empty where not needed), float32.

    Args:
        query: as in :func:`pairwise_lse`, and so are those up to ``own``.
        key: likewise.
        scale: likewise.
        query_labels: likewise.
        key_labels: likewise.
        self_offset: likewise.
        own: likewise.
        rows: of each row, the negatives and what comes in for them, the positives and what comes
            in for them, and what comes in for each positive pair: five of (N,).
        columns: of each column, the first two, or nothing.
        need_query: make the gradient by the queries. It holds both sides' where there is no key.
        need_key: make the gradient by the keys.
        atomics: make both at once where that spares work, in an order that is not the same twice.
    """
    queries = _Tower.of(query, query_labels)
    keys = queries if key is None else _Tower.of(key, key_labels)
    weights = torch.stack([t.to(torch.float32) for t in rows])
    of_rows = _Side(weights, _NEGATIVES if query_labels is None else _ALL)
    of_columns = _Side(weights, _NOTHING)
    if columns:
        of_columns = _Side(torch.stack([t.to(torch.float32) for t in columns]), _NEGATIVES)
    lift = None
    if query.dtype == torch.float16:
        lift = _lift([rows[1], rows[3], rows[4], *columns[1:]])
    how = _How(scale, lift, own)
    nothing = torch.empty(0, device=query.device)

    if key is None:
        if self_offset:  # (i, j) is then left out where (j, i) is not: two towers after all
            dq, dk = _both_gradients(queries, keys, how, self_offset, of_rows, of_columns, False)
            return dq.add_(dk), nothing
        if _is_held(queries):
            return _held_gradient(queries, keys, how, self_offset, of_rows, of_rows), nothing
        dq = torch.zeros(len(query), queries.width, device=query.device)
        _add_gradients(queries, keys, how, self_offset, of_rows, of_rows, dq, dq)
        return dq, nothing
    if need_query and need_key:
        return _both_gradients(queries, keys, how, self_offset, of_rows, of_columns, atomics)
    dq = dk = nothing
    if need_query:
        dq = _one_gradient(queries, keys, how, self_offset, of_rows, of_columns)
    if need_key:
        dk = _one_gradient(keys, queries, how, _back(self_offset), of_columns, of_rows)
    return dq, dk


class _Tower(NamedTuple):
    """Rows that start at multiples of 16 elements, so that they are loaded wide, and labels."""

    rows: Tensor
    labels: Tensor | None
    width: int  # without the padding

    @classmethod
    def of(cls, tower: Tensor, labels: Tensor | None) -> _Tower:
        size, width = tower.shape
        labels = None if labels is None else labels.contiguous()
        tower = tower.detach()
        row, feature = tower.stride()
        if feature == 1 and row % 16 == 0 and width % 16 == 0 and tower.data_ptr() % 16 == 0:
            return cls(tower, labels, width)
        # A copy, padded by zeros that change no product: N x D of work before N x M x D.
        padded = tower.new_zeros(size, triton.cdiv(width, 16) * 16)
        padded[:, :width] = tower
        return cls(padded, labels, width)

    def between(self, begin: int, end: int) -> _Tower:
        labels = None if self.labels is None else self.labels[begin:end]
        return _Tower(self.rows[begin:end], labels, self.width)


class _Side(NamedTuple):
    """What comes in for one side's log-sum-exps, a row each, and how much of it there is."""

    weights: Tensor
    kind: int

    def between(self, begin: int, end: int) -> _Side:
        return _Side(self.weights[:, begin:end], self.kind)


class _How(NamedTuple):
    """What is the same for all pairs."""

    scale: Tensor
    lift: Tensor | None
    own: bool


def _is_held(queries: _Tower) -> bool:
    """Whether a program holds all features of its rows, and their gradient."""
    size = queries.rows.shape[1]
    return queries.rows.dtype != torch.float32 and size <= _MOST_FEATURES_HELD


def _back(self_offset: int | None) -> int | None:
    """Key j is query ``j + this``."""
    return None if self_offset is None else -self_offset


def _lift(incoming: list[Tensor]) -> Tensor:
    """A power of two, hence exact, for float16, which has nothing below 6e-8 where the gradient of
    a mean over N log-sum-exps is 1 / N times a probability. It takes the largest incoming gradient
    to 2^12: four of them, the most that add up, are below the largest float16.
    """
    largest = torch.stack([t.abs().amax().float() for t in incoming]).amax()
    return torch.exp2(12.0 - largest.clamp(1e-30, 1e30).log2().floor())


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _split(rows: int, columns: int, blocks: Blocks, device: torch.device) -> tuple[int, int]:
    """In how many parts to sweep the columns, and columns a part.

    One program a block of rows leaves most multiprocessors idle where there are few rows. The parts
    are put together in an order of their own, so the result has the same bits each time.
    """
    steps = triton.cdiv(columns, blocks.columns)
    parts = max(1, _multiprocessors(device) // triton.cdiv(rows, blocks.rows))
    steps_each = triton.cdiv(steps, min(parts, steps))
    return triton.cdiv(steps, steps_each), steps_each * blocks.columns


def _sweep(
    queries: _Tower, keys: _Tower, scale: Tensor, self_offset: int | None, *, positives: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the negatives and, if asked for, of the positives, and their sum."""
    (rows, features), columns = queries.rows.shape, len(keys.rows)
    device = queries.rows.device
    blocks = forward_blocks(features, queries.rows.dtype, labels=queries.labels is not None)
    splits, split_columns = _split(rows, columns, blocks, device)
    # Of one memory each: what an op returns may not share it.
    negatives, of_positives, positive_sum = (
        torch.empty(splits, rows, device=device) for _ in range(3)
    )
    with torch.cuda.device_of(queries.rows):  # type: ignore[no-untyped-call]
        forward_kernel[(triton.cdiv(rows, blocks.rows), splits)](
            queries.rows,
            keys.rows,
            scale,
            queries.labels,
            keys.labels,
            negatives,
            of_positives,
            positive_sum,
            rows,
            columns,
            features,
            queries.rows.stride(0),
            keys.rows.stride(0),
            self_offset or 0,
            split_columns,
            LABELS=queries.labels is not None,
            SELF=self_offset is not None,
            POSITIVES=positives,
            PRECISION="ieee",
            HELD=_is_held(queries),
            EVEN=features % blocks.features == 0,
            **_options(blocks),
        )
    if not positives:
        of_positives, positive_sum = of_positives.fill_(-math.inf), positive_sum.zero_()
    if splits == 1:
        return negatives[0], of_positives[0], positive_sum[0]
    return negatives.logsumexp(0), of_positives.logsumexp(0), positive_sum.sum(0)


def _sweep_own(
    queries: _Tower, keys: _Tower, scale: Tensor, self_offset: int | None, negatives: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of the log-probabilities of positive pairs, and of one minus the probabilities."""
    (rows, features), columns = queries.rows.shape, len(keys.rows)
    device = queries.rows.device
    blocks = forward_blocks(features, queries.rows.dtype, labels=queries.labels is not None)
    splits, split_columns = _split(rows, columns, blocks, device)
    positive_sum, weight = torch.empty(2, splits, rows, device=device)
    with torch.cuda.device_of(queries.rows):  # type: ignore[no-untyped-call]
        own_kernel[(triton.cdiv(rows, blocks.rows), splits)](
            queries.rows,
            keys.rows,
            scale,
            queries.labels,
            keys.labels,
            negatives,
            positive_sum,
            weight,
            rows,
            columns,
            features,
            queries.rows.stride(0),
            keys.rows.stride(0),
            self_offset or 0,
            split_columns,
            SELF=self_offset is not None,
            PRECISION="ieee",
            HELD=_is_held(queries),
            EVEN=features % blocks.features == 0,
            **_options(blocks),
        )
    return positive_sum.sum(0), weight.sum(0)


def _one_gradient(
    queries: _Tower,
    keys: _Tower,
    how: _How,
    self_offset: int | None,
    of_rows: _Side,
    of_columns: _Side,
) -> Tensor:
    """Gradient by the queries."""
    if _is_held(queries):
        return _held_gradient(queries, keys, how, self_offset, of_rows, of_columns)
    dq = torch.zeros(len(queries.rows), queries.width, device=queries.rows.device)
    _add_gradients(queries, keys, how, self_offset, of_rows, of_columns, dq, None)
    return dq


def _both_gradients(
    queries: _Tower,
    keys: _Tower,
    how: _How,
    self_offset: int | None,
    of_rows: _Side,
    of_columns: _Side,
    atomics: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by queries and keys."""
    if _is_held(queries) and not atomics:
        return (
            _held_gradient(queries, keys, how, self_offset, of_rows, of_columns),
            _held_gradient(keys, queries, how, _back(self_offset), of_columns, of_rows),
        )
    device = queries.rows.device
    dq = torch.zeros(len(queries.rows), queries.width, device=device)
    dk = torch.zeros(len(keys.rows), queries.width, device=device)
    if _is_held(queries):
        _gradient_tiles(queries, keys, how, self_offset, of_rows, of_columns, add_to=(dq, dk))
    else:
        _add_gradients(queries, keys, how, self_offset, of_rows, of_columns, dq, dk)
    return dq, dk


def _held_gradient(
    queries: _Tower,
    keys: _Tower,
    how: _How,
    self_offset: int | None,
    of_rows: _Side,
    of_columns: _Side,
) -> Tensor:
    """Gradient by the queries, held in registers while the keys pass by."""
    (rows, features), columns = queries.rows.shape, len(keys.rows)
    device = queries.rows.device
    blocks = held_gradient_blocks(
        features, labels=queries.labels is not None, hopper=_is_hopper(device)
    )
    splits, split_columns = _split(rows, columns, blocks, device)
    gradient = torch.empty(splits, rows, queries.width, device=device)
    with torch.cuda.device_of(queries.rows):  # type: ignore[no-untyped-call]
        held_gradient_kernel[(triton.cdiv(rows, blocks.rows), splits)](
            queries.rows,
            keys.rows,
            how.scale,
            how.lift,
            queries.labels,
            keys.labels,
            of_rows.weights,
            of_columns.weights,
            gradient,
            rows,
            columns,
            features,
            queries.width,
            queries.rows.stride(0),
            keys.rows.stride(0),
            self_offset or 0,
            split_columns,
            LABELS=queries.labels is not None,
            SELF=self_offset is not None,
            ROW_KIND=of_rows.kind,
            COLUMN_KIND=of_columns.kind,
            OWN=how.own,
            EVEN=features % blocks.features == 0,
            **_options(blocks),
        )
    return gradient[0] if splits == 1 else gradient.sum(0)


def _add_gradients(
    queries: _Tower,
    keys: _Tower,
    how: _How,
    self_offset: int | None,
    of_rows: _Side,
    of_columns: _Side,
    dq: Tensor,
    dk: Tensor | None,
) -> None:
    """Add the gradients to zeros, through a workspace of gradients by the logits.

    Where both are the same tensor the keys are the queries, and the gradient by the logits, both
    sides in it, is symmetric: only what lies on and above the diagonal is made.
    """
    symmetric = dk is dq
    dtype, device = queries.rows.dtype, queries.rows.device
    # Square, so that adding to the gradients, again for each part, costs the least.
    side = math.isqrt(_WORKSPACE_BYTES // dtype.itemsize) // 128 * 128
    N, M = len(queries.rows), len(keys.rows)
    workspace = torch.empty(
        min(side, N), triton.cdiv(min(side, M), 16) * 16, dtype=dtype, device=device
    )
    for top in range(0, N, side):
        bottom = min(top + side, N)
        for left in range(top if symmetric else 0, M, side):
            right = min(left + side, M)
            some_queries, some_keys = queries.between(top, bottom), keys.between(left, right)
            _gradient_tiles(
                some_queries,
                some_keys,
                how,
                None if self_offset is None else self_offset + top - left,
                of_rows.between(top, bottom),
                of_columns.between(left, right),
                write_to=workspace,
            )
            of_logits = workspace[: bottom - top, : right - left]
            _add_product(dq[top:bottom], of_logits, some_keys.rows[:, : keys.width])
            if dk is not None and not (symmetric and left == top):
                _add_product(dk[left:right], of_logits.T, some_queries.rows[:, : queries.width])
    factor = how.scale if how.lift is None else how.scale / how.lift
    dq.mul_(factor)
    if dk is not None and not symmetric:
        dk.mul_(factor)


def _gradient_tiles(
    queries: _Tower,
    keys: _Tower,
    how: _How,
    self_offset: int | None,
    of_rows: _Side,
    of_columns: _Side,
    *,
    write_to: Tensor | None = None,
    add_to: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """Write the gradient by the logits, or add what it makes of queries and keys to both."""
    (rows, features), columns = queries.rows.shape, len(keys.rows)
    labels = queries.labels is not None
    if write_to is not None:
        blocks = gradient_tile_blocks(queries.rows.dtype, labels=labels)
    else:
        blocks = atomic_blocks(labels=labels)
    programs = triton.cdiv(rows, blocks.rows) * triton.cdiv(columns, blocks.columns)
    with torch.cuda.device_of(queries.rows):  # type: ignore[no-untyped-call]
        gradient_tile_kernel[(programs,)](
            queries.rows,
            keys.rows,
            how.scale,
            how.lift,
            queries.labels,
            keys.labels,
            of_rows.weights,
            of_columns.weights,
            write_to,
            *add_to,
            rows,
            columns,
            features,
            queries.width,
            queries.rows.stride(0),
            keys.rows.stride(0),
            of_rows.weights.stride(0),
            of_columns.weights.stride(0),
            0 if write_to is None else write_to.stride(0),
            self_offset or 0,
            LABELS=queries.labels is not None,
            SELF=self_offset is not None,
            ROW_KIND=of_rows.kind,
            COLUMN_KIND=of_columns.kind,
            OWN=how.own,
            PRECISION="ieee",
            EVEN=features % blocks.features == 0,
            **_options(blocks),
        )


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a @ b`` in float32, whatever the dtype of the factors."""
    if a.is_cuda and a.dtype != torch.float32 and _TORCH_WIDENS:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


def _options(blocks: Blocks) -> dict[str, Any]:
    return {
        "BLOCK_ROWS": blocks.rows,
        "BLOCK_COLUMNS": blocks.columns,
        "BLOCK_FEATURES": blocks.features,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
        "maxnreg": blocks.maxnreg,
        "enable_fp_fusion": True,
    }
