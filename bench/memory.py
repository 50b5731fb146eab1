"""Peak memory of one provider on one case, taken where nothing can hide it.

On the CPU each (case, provider) gets a process of its own. There it warms up on tiny inputs, which
compiles what is compiled and starts the threads, makes the inputs, and calls the op once. The peak
is the kernel's own high-water mark of the resident set (``VmHWM``, reset just before through
``/proc/self/clear_refs``) above the resident set before the call. An allocator that keeps memory
for later has nothing to keep yet. Pages of code that are first touched count too: a few MiB.

On a GPU it is what torch's allocator had at most, above what it had before.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from . import registry
from .measure import call

_STATUS = Path("/proc/self/status")
MIB = 1 << 20


def peak(case: registry.Case, provider: str, modes: list[str]) -> dict[str, float | None]:
    """Peak memory in MiB by mode, beyond the inputs, gradients included; None where unknown."""
    if case.device == "cuda":
        return {mode: _peak_on_gpu(case, provider, mode) for mode in modes}
    request = {
        "op": case.op, "case": case.name, "provider": provider, "modes": modes,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    result = subprocess.run(
        [sys.executable, "-m", f"{__package__}.memory", json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        print(f"memory of {provider} on {case.name} is unknown: {last}", file=sys.stderr)
        return dict.fromkeys(modes)
    answer: dict[str, float | None] = json.loads(result.stdout.splitlines()[-1])
    return answer


def _peak_on_gpu(case: registry.Case, provider: str, mode: str) -> float:
    inputs = case.make(False).to("cuda")
    run = call(case.providers[provider], inputs, mode)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def resident_peak(run: Callable[[], object]) -> float:
    """Bytes by which the resident set rose at most during ``run``."""
    gc.collect()
    _give_back()
    before = _status("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: then the peak since the process began
        before = before if before is not None else _max_rss()
    kept = run()  # held, so that outputs count as present at the end
    after = _status("VmHWM")
    del kept
    if before is None or after is None:
        return float(max(0, _max_rss() - (before or 0)))
    return float(max(0, after - before))


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _max_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _give_back() -> None:
    """Free pages go back to the system, so that the peak is not served from them unseen."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    (case,) = (c for c in registry.cases(request["op"]) if c.name == request["case"])
    provider = case.providers[request["provider"]]
    answer = {}
    for mode in request["modes"]:
        call(provider, case.make(True), mode)()
        run = call(provider, case.make(False), mode)
        answer[mode] = resident_peak(run) / MIB
        del run
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
