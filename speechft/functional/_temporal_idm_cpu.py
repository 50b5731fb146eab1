"""The contrastive inverse difference moment on the CPU: see ``csrc/cpu/temporal_idm.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.backends import compiled_module
from speechft.functional._buffers import buffer


def temporal_idm(
    x: Tensor, lengths: Tensor | None, near: int, margin: float, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Values (B,), and their gradient by ``x`` (empty where not needed), float32."""
    module = compiled_module()
    assert module is not None  # the dispatch chose this backend
    x = x.detach().to(torch.float32).contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    B, T, D = x.shape
    value = torch.empty(B, dtype=torch.float64)
    gradient = buffer(x.shape).zero_() if need_gradient else torch.empty(0)
    module.temporal_idm(
        x=x.data_ptr(), batch=B, steps=T, features=D,
        lengths=0 if lengths is None else lengths.data_ptr(), near=near, margin=margin,
        value=value.data_ptr(), gradient=gradient.data_ptr() if need_gradient else 0,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return value.float(), gradient
