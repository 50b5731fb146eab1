"""Soft-DTW on an NVIDIA GPU: Triton for costs and gradients, CUDA for the wavefront between.

All terms of the divergence go through one launch of the wavefront: three times the pairs fill a
GPU that one times would leave half idle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module, why_not_triton
from speechft.reference.soft_dtw import squared_euclidean, zero_padding

# Cells in memory at once, over all terms: 12 bytes each at most, with cost and weights.
_CELLS = 1 << 29


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
    x, y = x.detach(), y.detach()
    value = x.new_empty(x.shape[0], dtype=torch.float32)
    dx = x.new_empty(x.shape if need_x else (0,), dtype=torch.float32)
    dy = y.new_empty(y.shape if need_y else (0,), dtype=torch.float32)
    terms = 3 if divergence else 1
    area = max(x.shape[1], y.shape[1]) ** 2
    step = max(1, _CELLS // (terms * area))
    for start in range(0, x.shape[0], step):
        block = slice(start, start + step)
        _block(
            x[block],
            y[block],
            None if x_lengths is None else x_lengths[block],
            None if y_lengths is None else y_lengths[block],
            gamma,
            bandwidth,
            divergence,
            value[block],
            dx[block] if need_x else None,
            dy[block] if need_y else None,
        )
    return value, dx, dy


def soft_dtw_from_cost(
    cost: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    need_alignment: bool,
) -> tuple[Tensor, Tensor]:
    """Values (B,) and alignments (B, N, M) (empty if not needed), float32."""
    wide = cost.detach().to(torch.float32).contiguous()
    alignment = wide.new_empty(wide.shape if need_alignment else (0,))
    value = wide.new_empty(wide.shape[0])
    _wavefront(
        [(wide, alignment if need_alignment else None, value, x_lengths, y_lengths)],
        gamma,
        bandwidth,
        fixed_point_weights=False,
    )
    return value, alignment


def _block(
    x: Tensor,
    y: Tensor,
    n: Tensor | None,
    m: Tensor | None,
    gamma: float,
    bandwidth: int | None,
    divergence: bool,
    value: Tensor,
    dx: Tensor | None,
    dy: Tensor | None,
) -> None:
    terms = [(x, y, n, m, dx is not None or dy is not None)]
    if divergence:
        terms += [(x, x, n, n, dx is not None), (y, y, m, m, dy is not None)]
    costs = [_cost(a, b, a_lengths, b_lengths) for a, b, a_lengths, b_lengths, _ in terms]
    values = value.new_empty(len(terms), len(value))
    _wavefront(
        [
            (cost, cost if need else None, out, a_lengths, b_lengths)
            for cost, out, (_, _, a_lengths, b_lengths, need) in zip(
                costs, values, terms, strict=True
            )
        ],
        gamma,
        bandwidth,
        fixed_point_weights=x.dtype != torch.float32,
    )
    if divergence:
        torch.sub(values[0], values[1] + values[2], alpha=0.5, out=value)
    else:
        value.copy_(values[0])
    # From here on the costs are the alignments. That of a sequence against itself is symmetric,
    # and its columns are its rows again: twice the gradient by the rows, times -1/2.
    _add_gradients(costs[0], x, y, n, m, dx, dy)
    if divergence:
        for alignment, side, lengths, gradient in zip(
            costs[1:], (x, y), (n, m), (dx, dy), strict=True
        ):
            if gradient is not None:
                _add_self_gradient(alignment, side, lengths, gradient)


def _wavefront(
    segments: list[tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]],
    gamma: float,
    bandwidth: int | None,
    *,
    fixed_point_weights: bool,
) -> None:
    module: Any = compiled_module()
    first = segments[0][0]
    weight_bytes = 4 if fixed_point_weights else 8
    # Lengths that were sliced or made contiguous here stay alive until the launch is queued.
    kept = [
        (cost, alignment, value, _contiguous(n), _contiguous(m))
        for cost, alignment, value, n, m in segments
    ]
    described = [
        module.SoftDtwSegment(
            cost=cost.data_ptr(),
            alignment=_address(alignment),
            value=value.data_ptr(),
            x_lengths=_address(n),
            y_lengths=_address(m),
            rows=cost.shape[1],
            columns=cost.shape[2],
        )
        for cost, alignment, value, n, m in kept
    ]
    want_alignment = any(alignment is not None for _, alignment, *_ in kept)
    size = module.soft_dtw_cuda_workspace(described, len(first), want_alignment, weight_bytes)
    workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
    module.soft_dtw_cuda(
        device=first.device.index,
        stream=torch.cuda.current_stream(first.device).cuda_stream,
        segments=described,
        pairs=len(first),
        gamma=gamma,
        bandwidth=-1 if bandwidth is None else bandwidth,
        workspace=workspace.data_ptr(),
        workspace_bytes=size,
        weight_bytes=weight_bytes,
    )


def _cost(x: Tensor, y: Tensor, n: Tensor | None, m: Tensor | None) -> Tensor:
    if why_not_triton() is None:
        from speechft.kernels.soft_dtw import squared_euclidean as fused

        cost: Tensor = fused(x, y, n, m)
        return cost
    return squared_euclidean(zero_padding(x.float(), n), zero_padding(y.float(), m))


def _add_gradients(
    alignment: Tensor,
    x: Tensor,
    y: Tensor,
    n: Tensor | None,
    m: Tensor | None,
    dx: Tensor | None,
    dy: Tensor | None,
) -> None:
    """Write the gradient of sum_ij E_ij |x_i - y_j|^2 into ``dx`` and ``dy``."""
    if dx is None and dy is None:
        return
    if why_not_triton() is None:
        from speechft.kernels.soft_dtw import squared_euclidean_backward

        sides: Any = "both" if dx is not None and dy is not None else "x" if dy is None else "y"
        squared_euclidean_backward(alignment, x, y, n, m, out_x=dx, out_y=dy, sides=sides)
        return
    x, y = zero_padding(x.float(), n), zero_padding(y.float(), m)
    if dx is not None:
        dx.copy_(2 * (alignment.sum(2)[..., None] * x - alignment @ y))
    if dy is not None:
        dy.copy_(2 * (alignment.sum(1)[..., None] * y - alignment.transpose(1, 2) @ x))


def _add_self_gradient(alignment: Tensor, x: Tensor, n: Tensor | None, dx: Tensor) -> None:
    """Add the gradient of -1/2 sum_ij E_ij |x_i - x_j|^2, both roles of x, to ``dx``."""
    if why_not_triton() is None:
        from speechft.kernels.soft_dtw import squared_euclidean_backward

        squared_euclidean_backward(
            alignment, x, x, n, n, scale=-1.0, out_x=dx, accumulate=True, sides="x"
        )
        return
    x = zero_padding(x.float(), n)
    dx.sub_(2 * (alignment.sum(2)[..., None] * x - alignment @ x))


def _contiguous(lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else lengths.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
