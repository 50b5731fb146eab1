"""What runs here: torch, devices, the compiled module, and each backend of each op."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

import speechft
from speechft import backends
from speechft import functional as _ops  # noqa: F401  registers the ops

EXTRAS = {
    "models": ("transformers", "safetensors", "peft"),
    "audio": ("soundfile", "soxr"),
    "refine": ("accelerate", "tqdm", "jsonargparse"),
    "triton": ("triton",),
    "bench": ("numba", "pytest-benchmark"),
}


def examine() -> dict[str, Any]:
    """Everything the table shows, as plain values."""
    module = backends.compiled_module()
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "speechft": speechft.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "gpus": devices or "none that torch sees",
        "compiled module": "missing" if module is None else f"yes, {module.instruction_set()}",
        "cuda in it": _cuda(),
        "triton": backends.why_not_triton() or "yes",
        "extras": {name: _installed(packages) for name, packages in EXTRAS.items()},
        "ops": {
            op.op: {name: why() or "runs" for name, why in op.why_not.items()}
            for op in backends.OPS.values()
        },
    }


def table(found: dict[str, Any]) -> str:
    """For a terminal."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines.append(name)
            for inner, what in value.items():
                if isinstance(what, dict):
                    lines.append(f"  {inner}")
                    lines += [f"    {k:<14} {v}" for k, v in what.items()]
                else:
                    lines.append(f"  {inner:<16} {what}")
        else:
            text = ", ".join(value) if isinstance(value, list) else value
            lines.append(f"{name:<18} {text}")
    return "\n".join(lines)


def _cuda() -> str:
    module = backends.compiled_module()
    if module is None:
        return "no"
    if not module.HAS_CUDA:
        return "no (nvcc was not found when it was built)"
    reason = backends.why_not_cuda()
    return "yes, and it runs" if reason is None else f"yes, but it cannot run: {reason}"


def _installed(packages: tuple[str, ...]) -> str:
    missing = []
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return "installed" if not missing else f"missing {', '.join(missing)}"
