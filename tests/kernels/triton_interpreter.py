"""Run Triton kernels in the interpreter, beside other tests in one pytest process.

``TRITON_INTERPRET=1`` counts only where it is set before triton is imported, and then nothing of
that process can be compiled. So interpreted checks run in one child process, made at the first call
and kept::

    interpreted(check, dtype="float32")     # check is a function at the top of a test module

An assertion that fails in the child fails here, with its message.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any


def why_not() -> str | None:
    """Why nothing is interpreted here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    import torch

    # The GPU says more, and some interpreters of older tritons break on newer numpys.
    return "the GPU runs these checks itself" if torch.cuda.is_available() else None


def interpreted(check: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Call ``check`` in the process where Triton interprets its kernels."""
    _child().submit(check, *args, **kwargs).result(timeout=300)


@cache
def _child() -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit an imported triton
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=_interpret)


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    assert "triton" not in sys.modules, "too late: triton is imported already"
    import torch

    torch.set_num_threads(1)
