r"""Collectives that gradients go through, so that a loss can be that of the batch of all ranks.

The convention, which is that of ``DistributedDataParallel``: every rank returns the loss L of the
whole batch, and calls ``backward`` on it. The gradient by a rank's own embeddings is then
:math:`W\, \partial L / \partial z_r` for W ranks, because each of the W losses depends on them; DDP
averages the parameters' gradients over the ranks, and what comes out is that of one process.

Both collectives follow from it: what a sum over ranks passes back is the sum of what came in on all
of them, and what a concatenation passes back is that sum's part of the rank. There is no second
derivative through either: to ask for it is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from speechft.backends import values_are_checked
from speechft.errors import ArgumentError

# False, True, "ring", or a torch.distributed.ProcessGroup (which torch may be built without)
Gather = Any


def group_of(gather: Gather) -> Any | None:
    """The process group that ``gather`` means, or None for no gathering.

    ``True`` and ``"ring"`` mean all ranks; how the keys get about is for the loss to choose.

    Raises:
        ArgumentError: ``gather`` is set, and no process group was made.
    """
    if gather is False or gather is None:
        return None
    if isinstance(gather, str) and gather != "ring":
        raise ArgumentError(
            "gather", f'wants False, True, "ring" or a process group; got {gather!r}'
        )
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ArgumentError(
            "gather",
            "wants a process group, and none is initialised; start the script with torchrun and "
            "call torch.distributed.init_process_group(), or leave gather=False",
        )
    return distributed.group.WORLD if gather is True or gather == "ring" else gather


def place_of(group: Any | None) -> tuple[int, int]:
    """Rank and number of ranks; (0, 1) for no group."""
    if group is None:
        return 0, 1
    return distributed.get_rank(group), distributed.get_world_size(group)


def all_gather(tensor: Tensor, group: Any | None, argument: str = "gather") -> Tensor:
    """(B, ...) of each rank -> (W B, ...), in the order of the ranks; the gradient goes to each.

    Raises:
        ArgumentError: a rank has another shape than this one (checked as values are).
    """
    if group is None or place_of(group)[1] == 1:
        return tensor
    check_shapes(tensor, group, argument)
    if tensor.requires_grad and torch.is_grad_enabled():
        gathered: Tensor = _Gather.apply(tensor, group)  # type: ignore[no-untyped-call]
        return gathered
    return _gather(tensor, group)


def all_reduce(tensor: Tensor, group: Any | None) -> Tensor:
    """The sum over the ranks, on each of them; the gradient goes to each."""
    if group is None or place_of(group)[1] == 1:
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled():
        total: Tensor = _Sum.apply(tensor, group)  # type: ignore[no-untyped-call]
        return total
    return _sum(tensor, group)


def shared(tensor: Tensor, group: Any | None) -> Tensor:
    """A parameter of the loss, such as its temperature: on each rank with the mean gradient.

    Each rank's part of the gradient is W times its own; the mean of them is that of one process,
    whether DistributedDataParallel averages it once more or has never heard of the loss.
    """
    if group is None or place_of(group)[1] == 1 or not tensor.requires_grad:
        return tensor
    if not torch.is_grad_enabled():
        return tensor
    same: Tensor = _Shared.apply(tensor, group)  # type: ignore[no-untyped-call]
    return same


def _gather(tensor: Tensor, group: Any) -> Tensor:
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(place_of(group)[1])]
    distributed.all_gather(parts, tensor, group=group)
    return torch.cat(parts)


def _sum(tensor: Tensor, group: Any) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=group)
    return total


def check_shapes(tensor: Tensor, group: Any, argument: str) -> None:
    """Ranks with other shapes would hang or mix up the batch; to find out costs a small message.

    Raises:
        ArgumentError: a rank has another shape than this one.
    """
    if not values_are_checked(tensor):
        return
    mine = torch.tensor([tensor.dim(), *tensor.shape, *[0] * (7 - tensor.dim())])
    shapes = _gather(mine.to(tensor.device), group).view(-1, 8).tolist()
    for rank, shape in enumerate(shapes):
        if shape != mine.tolist():
            raise ArgumentError(
                argument,
                f"gathers batches of one shape; rank {rank} has {tuple(shape[1 : 1 + shape[0]])} "
                f"and this one, {place_of(group)[0]}, has {tuple(tensor.shape)}",
            )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.size = group, len(tensor)
        return _gather(tensor, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rank, _ = place_of(ctx.group)
        if grad.device.type == "cuda":
            own = torch.empty_like(grad[: ctx.size], memory_format=torch.contiguous_format)
            distributed.reduce_scatter_tensor(own, grad.contiguous(), group=ctx.group)
            return own, None
        return _sum(grad, ctx.group)[rank * ctx.size : (rank + 1) * ctx.size], None  # gloo


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _sum(tensor, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return tensor.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group) / place_of(ctx.group)[1], None
