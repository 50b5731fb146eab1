"""Large CPU tensors on large pages.

Memory that is new to a process is mapped page by page as it is first written. At 4 KiB a page that
takes up to 0.35 ms a megabyte, several times what writing it takes. Asked for 2 MiB pages, the
system maps them for next to nothing; where it does not know how, nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechft.backends import compiled_module


def buffer(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised CPU tensor."""
    new = torch.empty(tuple(shape), dtype=dtype)
    module = compiled_module()
    if module is not None:
        module.prefer_huge_pages(new.data_ptr(), new.numel() * new.element_size())
    return new


def scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """``gradient`` (B, ..., ...) times ``scale`` (B,): a gradient of the value, passed on."""
    scale = scale[:, None, None]
    # A subclass is a tracer's tensor, which has no memory.
    if type(gradient) is not Tensor or gradient.device.type != "cpu":
        return scale * gradient
    return torch.mul(gradient, scale, out=buffer(gradient.shape, gradient.dtype))
