"""Where the tests of Triton kernels run: in the interpreter, on the GPU here, or compiled alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton_aot
import triton_interpreter
from triton_interpreter import interpreted

needs_interpreter = pytest.mark.skipif(
    triton_interpreter.why_not() is not None, reason=str(triton_interpreter.why_not())
)
needs_compiler = pytest.mark.skipif(
    triton_aot.why_not() is not None, reason=str(triton_aot.why_not())
)
GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
            reason="no NVIDIA GPU with triton here",
        ),
    ],
)
on_each_device = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=needs_interpreter), GPU]
)


def on(device: str, check: Callable[..., None], **arguments: Any) -> None:
    """Run a check on the GPU here, or in the interpreter's process."""
    if device == "cuda":
        check(device=device, **arguments)
    else:
        interpreted(check, device=device, **arguments)
