"""Time and error of providers on a case.

Times are taken in rounds, every provider in turn (A B A B ...), so that what else the machine does
falls on all alike and ratios hold on a busy machine. A provider that is slow takes part in fewer
rounds, spread evenly over all.
"""

from __future__ import annotations

import functools
import gc
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .registry import BACKWARD, FORWARD, Case, Inputs, Provider

Call = Callable[[], Any]


def call(provider: Provider, inputs: Inputs, mode: str) -> Call:
    """The call that is timed: no arguments, results returned so that they stay alive."""
    size = provider.at_once or len(inputs)
    lots = [inputs.samples(i, i + size) for i in range(0, len(inputs), size)]
    if mode == FORWARD:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [provider.op(lot) for lot in lots]

        return forward
    if mode == BACKWARD:
        graphs = [_graph(provider, lot) for lot in lots]
        return lambda: [
            torch.autograd.grad(value, leaves, retain_graph=True) for value, leaves in graphs
        ]

    def both() -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        results = []
        for lot in lots:
            value, leaves = _graph(provider, lot)
            results.append((value.detach(), torch.autograd.grad(value, leaves)))
        return results

    return both


def _graph(provider: Provider, lot: Inputs) -> tuple[Tensor, list[Tensor]]:
    leaves = [leaf.detach().requires_grad_() for leaf in lot.leaves]
    return provider.op(replace(lot, leaves=tuple(leaves))).sum(), leaves


@dataclass(frozen=True)
class Error:
    """Largest error over the largest true entry: of the values, and of all gradients."""

    value: float
    gradient: float


def truth(case: Case) -> tuple[Inputs, list[Tensor]]:
    """Inputs that errors are taken on, and the value and gradients of the definition in float64."""
    inputs = case.make(False).to(case.device)
    if case.truth_samples is not None:
        inputs = inputs.samples(0, case.truth_samples)
    return inputs, _value_and_gradients(case.truth, inputs.to(case.device, torch.float64))


def error(provider: Provider, inputs: Inputs, exact: list[Tensor]) -> Error:
    """Error of a provider on inputs whose value and gradients are known."""
    size = provider.at_once or len(inputs)
    lots = [inputs.samples(i, i + size) for i in range(0, len(inputs), size)]
    parts = [_value_and_gradients(provider.op, lot) for lot in lots]
    got = [torch.cat(part) if part[0].dim() else part[0] for part in zip(*parts, strict=True)]
    errors = [_relative(one, true) for one, true in zip(got, exact, strict=True)]
    return Error(value=errors[0], gradient=max(errors[1:], default=0.0))


def _value_and_gradients(op: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
    leaves = [leaf.detach().requires_grad_() for leaf in inputs.leaves]
    value = op(replace(inputs, leaves=tuple(leaves)))
    gradients = torch.autograd.grad(value.sum(), leaves) if leaves else ()
    return [value.detach(), *gradients]


def _relative(got: Tensor, exact: Tensor) -> float:
    difference = (got.to(exact) - exact).abs().max()
    return float(difference / exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def time_cpu(call: Call) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


class CudaTimer:
    """Milliseconds of one call on the GPU, from event to event, with a cold L2 cache.

    What is written to empty the cache also keeps the GPU busy while the host prepares the launch,
    so that a call which the host feeds in time is timed on the GPU alone.
    """

    def __init__(self, flush_bytes: int = 1 << 28) -> None:
        self.flush = torch.empty(flush_bytes, dtype=torch.int8, device="cuda")

    def __call__(self, call: Call) -> float:
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        torch.cuda.synchronize()
        self.flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds


@functools.cache
def timer(device: str) -> Callable[[Call], float]:
    """The timer of a device, ``cpu`` or ``cuda``."""
    return CudaTimer() if device == "cuda" else time_cpu


def captured(call: Call) -> Call:
    """The call as a CUDA graph, replayed: what the GPU does, without the host's part."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def host_syncs(call: Call) -> int:
    """How often the call makes the host wait for the GPU, as torch counts it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


@dataclass
class Timed:
    """A call to be timed ``repeats`` times, and the times."""

    call: Call
    repeats: int
    times: list[float]

    def quantiles(self) -> tuple[float, float, float]:
        """Median, 20 % and 80 %, in milliseconds."""
        at = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
        median, low, high = torch.tensor(self.times, dtype=torch.float64).quantile(at).tolist()
        return median, low, high


def interleave(timed: Iterable[Timed], timer: Callable[[Call], float]) -> None:
    """Time all in turn, round by round."""
    timed = list(timed)
    rounds = max((one.repeats for one in timed), default=0)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for k in range(rounds):
            for one in timed:
                # one of ``repeats`` evenly spaced rounds
                if (k + 1) * one.repeats // rounds > k * one.repeats // rounds:
                    one.times.append(timer(one.call))
    finally:
        if enabled:
            gc.enable()
