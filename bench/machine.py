"""What the machine can do, and what it is: the figures that floors are made of."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import speechft


@dataclass(frozen=True)
class Machine:
    """Figures of a device.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: as its maker calls it.
        bandwidth: of its memory, bytes a second.
        flops: of dense matrix products by dtype, floating point operations a second.
        clock: cycles a second of a GPU's cores; 0 where no floor asks.
        source: where the figures come from.
    """

    device: str
    name: str
    bandwidth: float
    flops: dict[torch.dtype, float]
    clock: float
    source: str


# NVIDIA's figures for memory; for products what dense ones are known to reach, not the peak.
_GPUS = {
    "H100": (3.35e12, 800e12, 60e12, 1.755e9),
    "H200": (4.8e12, 800e12, 60e12, 1.755e9),
    "A100": (2.04e12, 280e12, 19.5e12, 1.41e9),
}


@functools.cache
def measure(device: str, threads: int) -> Machine:
    """Figures of a device: measured now on a CPU, stated for the GPUs we know, else measured.

    ``threads`` is torch's number of CPU threads: the figures depend on it.
    """
    name = device_name(device)
    if device == "cuda":
        for model, (bandwidth, half, single, clock) in _GPUS.items():
            if model in name:
                flops = {torch.bfloat16: half, torch.float16: half, torch.float32: single}
                return Machine(device, name, bandwidth, flops, clock, "stated")
    flops = {torch.float32: _matmul_rate(device, torch.float32)}
    if device == "cuda":
        flops |= {t: _matmul_rate(device, t) for t in (torch.bfloat16, torch.float16)}
    clock = 1.5e9 if device == "cuda" else 0.0
    return Machine(device, name, _copy_rate(device), flops, clock, "measured in this run")


def _matmul_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / _best(lambda: torch.mm(a, a, out=out), device)


def _copy_rate(device: str, size: int = 1 << 28) -> float:
    source = torch.ones(size // 4, device=device)
    out = torch.empty_like(source)
    return 2 * size / _best(lambda: out.copy_(source), device)


def _best(call: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Seconds of the fastest call: a floor wants the machine at its best."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


@functools.cache
def device_name(device: str) -> str:
    """``AMD EPYC 7763 (2 threads)``, ``NVIDIA H100 80GB HBM3``."""
    if device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = " ".join(line.partition(":")[2].split())
                break
    except OSError:
        pass
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({vectors})"


@functools.cache
def versions() -> dict[str, str]:
    """Of torch, speechft, numba and triton; empty where not installed."""
    found = {"torch": torch.__version__, "speechft": speechft.__version__}
    for package in ("numba", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


@functools.cache
def commit() -> str:
    """The checkout's commit, with a ``+`` if files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return os.environ.get("SPEECHFT_COMMIT", "")
    try:
        head = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return result.stdout.strip()


def now() -> str:
    """UTC, to the minute."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
