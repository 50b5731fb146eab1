"""DINO's pass and Sinkhorn's half iterations on the CPU: see ``csrc/cpu/softmax.h``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module
from speechft.functional._buffers import buffer


def dino(
    student: list[Tensor],
    teacher: list[Tensor],
    bias: Tensor | None,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    weights: Tensor,
    skip_same: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Losses, entropies (N,), total (K,) and gradients like ``student``, or none."""
    module, threads = _module(), torch.get_num_threads()
    of_student = [_rows(view) for block in student for view in block]
    of_teacher = [_rows(view) for block in teacher for view in block]
    rows, codes = of_student[0].shape
    gradients = [buffer(block.shape) for block in student] if need_gradient else []
    losses, entropy, total = torch.empty(rows), torch.empty(rows), torch.empty(codes)
    weights = weights.contiguous()
    batch = module.DinoBatch(
        student=[_address(view) for view in of_student],
        teacher=[_address(view) for view in of_teacher],
        student_stride=[view.stride(0) for view in of_student],
        teacher_stride=[view.stride(0) for view in of_teacher],
        gradient=[_address(view) for block in gradients for view in block],
        bias=_address(bias),
        bias_stride=codes if bias is not None and len(bias) > 1 else 0,
        rows=rows,
        codes=codes,
        student_scale=1.0 / float(student_temperature),
        teacher_scale=1.0 / float(teacher_temperature),
        weights=_address(weights),
        losses=_address(losses),
        entropy=_address(entropy),
        total=_address(total),
        skip_same=skip_same,
    )
    workspace = buffer((module.dino_workspace(batch, threads),))
    module.dino(batch, _address(workspace), threads)
    dtype = student[0].dtype
    if dtype != torch.float32:
        from speechft.functional._dino_op import LIFT

        lift = LIFT if dtype == torch.float16 else 1.0
        gradients = [gradient.mul_(lift).to(dtype) for gradient in gradients]
    return losses, entropy, total, gradients


def sinkhorn_columns(
    logits: Tensor, bias: Tensor | None, epsilon: Tensor, valid: Tensor | None
) -> Tensor:
    """(K,) the log-sum-exp of the columns, times epsilon."""
    module, threads = _module(), torch.get_num_threads()
    rows = _SinkhornRows(logits, bias, epsilon, valid)
    workspace = buffer((module.sinkhorn_columns_workspace(rows.found, threads),))
    result = torch.empty(logits.shape[1])
    module.sinkhorn_columns(rows.found, _address(result), _address(workspace), threads)
    return result


def sinkhorn_assign(logits: Tensor, bias: Tensor, epsilon: Tensor, valid: Tensor | None) -> Tensor:
    """(N, K), 0 in rows that do not count."""
    result = buffer(logits.shape)
    rows = _SinkhornRows(logits, bias, epsilon, valid)
    _module().sinkhorn_assign(rows.found, _address(result), torch.get_num_threads())
    return result


class _SinkhornRows:
    """Contiguous copies where the inputs are not, kept while C++ reads them."""

    def __init__(
        self, logits: Tensor, bias: Tensor | None, epsilon: Tensor, valid: Tensor | None
    ) -> None:
        logits = _rows(logits)
        self.kept = [logits, *(None if t is None else t.contiguous() for t in (bias, valid))]
        self.found: Any = _module().SinkhornRows(
            logits=_address(logits),
            rows=logits.shape[0],
            codes=logits.shape[1],
            stride=logits.stride(0),
            scale=1.0 / float(epsilon),
            bias=_address(self.kept[1]),
            valid=_address(self.kept[2]),
        )


def _rows(view: Tensor) -> Tensor:
    """(N, K) in float32, the codes of a row next to each other."""
    view = view.to(torch.float32)
    return view if view.stride(1) == 1 and view.stride(0) >= view.shape[1] else view.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _module() -> Any:
    module = compiled_module()
    assert module is not None  # the dispatch chose this backend
    return module
