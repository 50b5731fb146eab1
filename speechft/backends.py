"""Which implementation of an op runs, and whether values on a GPU are checked.

Three switches, each a context manager and an environment variable, and no other global state:

* :func:`use_backend` / ``SPEECHFT_BACKEND``: ``auto``, ``reference``, ``cpu``, ``triton``, ``cuda``
* :func:`checked` / ``SPEECHFT_CHECKED=1``: also check values (NaN, ranges) of tensors on a GPU,
  which makes the host wait for it.
* :func:`atomics` / ``SPEECHFT_ATOMICS=1``: sums in any order on a GPU, where that is faster.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from speechft.errors import BackendError

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")


class _Switches:
    """Read at each call, so the environment decides until a context manager does."""

    backend: str = os.environ.get("SPEECHFT_BACKEND", "auto")
    checked: bool = os.environ.get("SPEECHFT_CHECKED", "0") not in ("", "0")
    atomics: bool = os.environ.get("SPEECHFT_ATOMICS", "0") not in ("", "0")


_switches = _Switches()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the block on one backend.

    ``auto`` takes the fastest that runs for the device and dtype at hand. Asking for one that
    cannot run is an error when an op is called, not a silent fallback.

    >>> import speechft
    >>> with speechft.use_backend("reference"):
    ...     pass

    Raises:
        BackendError: no such backend.
    """
    _check_name(name)
    before, _switches.backend = _switches.backend, name
    try:
        yield
    finally:
        _switches.backend = before


@contextmanager
def checked() -> Iterator[None]:
    """Check values of GPU tensors too (lengths in range, no NaN). Each check waits for the GPU."""
    before, _switches.checked = _switches.checked, True
    try:
        yield
    finally:
        _switches.checked = before


@contextmanager
def atomics() -> Iterator[None]:
    """Sums in any order on a GPU: faster, and not the same bits twice.

    Counts in the backward too, where it is inside the block. Ops that have no such kernel run as
    they always do.
    """
    before, _switches.atomics = _switches.atomics, True
    try:
        yield
    finally:
        _switches.atomics = before


def atomics_allowed() -> bool:
    """Whether a kernel may add to the same number from several blocks, in any order."""
    return _switches.atomics


def values_are_checked(tensor: Tensor) -> bool:
    """Whether the values of this tensor may be looked at: on the CPU, or in checked mode.

    Never while a graph is traced, where there are no values to look at.
    """
    if torch.compiler.is_compiling():
        return False
    return tensor.device.type == "cpu" or _switches.checked


@dataclass(frozen=True)
class OpBackends:
    """What an op has: for each backend a function that says why it cannot run here, or None.

    ``order`` maps a device type to the backends that ``auto`` tries, best first.
    """

    op: str
    why_not: dict[str, Callable[[], str | None]]
    order: dict[str, tuple[str, ...]]
    dtypes: dict[str, tuple[torch.dtype, ...]] = field(default_factory=dict)

    def choose(self, device: torch.device, dtype: torch.dtype, *, or_another: bool = False) -> str:
        """The backend to run on, for inputs of this device and dtype.

        With ``or_another``, where the one that was asked for cannot run this is as if none was:
        for what is part of another op, and not asked for by its name.

        Raises:
            BackendError: the backend asked for cannot run here, or not on these inputs.
        """
        name = _switches.backend
        _check_name(name)
        candidates = (*self.order.get(device.type, ()), "reference")
        if or_another and not (name in candidates and self._takes(name, dtype)):
            name = "auto"
        if name == "auto":
            for candidate in candidates:
                if self._takes(candidate, dtype) and self.why_not[candidate]() is None:
                    return candidate
        if name not in self.why_not:
            raise BackendError(
                f"{self.op} has no {name!r} backend; it has {', '.join(sorted(self.why_not))}"
            )
        reason = self.why_not[name]()
        if reason is None and name not in candidates:
            reason = f"it does not take tensors on {device.type!r}"
        if reason is None and not self._takes(name, dtype):
            reason = f"it does not take {dtype}; the reference does"
        if reason is not None:
            raise BackendError(f"{self.op} cannot run on backend {name!r}: {reason}")
        return name

    def _takes(self, name: str, dtype: torch.dtype) -> bool:
        return name not in self.dtypes or dtype in self.dtypes[name]


OPS: dict[str, OpBackends] = {}


def register(op: OpBackends) -> OpBackends:
    """Make an op known to ``speechft doctor``."""
    OPS[op.op] = op
    return op


def _load() -> ModuleType | None:
    try:
        return importlib.import_module("speechft._C")
    except ImportError:
        return None


_module = _load()  # small, and links nothing: milliseconds


def compiled_module() -> ModuleType | None:
    """``speechft._C``, or None where it was not built or does not load."""
    return _module


def always() -> str | None:
    """The reference runs everywhere."""
    return None


def why_not_cpu() -> str | None:
    """Why the compiled module's CPU kernels cannot run, or None."""
    if compiled_module() is None:
        return "the compiled module speechft._C was not built or does not load"
    return None


def why_not_cuda() -> str | None:
    """Why the compiled module's CUDA kernels cannot run, or None."""
    if _module is None:
        return "the compiled module speechft._C was not built or does not load"
    if not _module.HAS_CUDA:
        return "speechft._C was built without CUDA (nvcc was not found when it was built)"
    if not torch.compiler.is_compiling() and not _cuda_reasons:  # not asked in a traced graph
        if torch.cuda.is_available():
            _cuda_reasons.append(_module.cuda_why_not())
        else:
            _cuda_reasons.append("torch sees no CUDA device")
    return (_cuda_reasons[0] or None) if _cuda_reasons else None


_cuda_reasons: list[str] = []  # asked for once


@functools.cache
def why_not_triton() -> str | None:
    """Why Triton kernels cannot run, or None."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return "torch sees no CUDA device (TRITON_INTERPRET=1 runs it slowly on the CPU)"
    return None


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}; there are {', '.join(BACKENDS)}")
