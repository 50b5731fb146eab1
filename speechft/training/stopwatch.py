"""Where the time of a step goes, without making the host wait for the GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds spent in named phases.

    On the CPU the clock is the wall's. On a GPU each phase is a pair of CUDA events, which are
    read when :meth:`seconds` is called and not before.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.cuda = device is not None and device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as a part of ``phase``."""
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._events.append((phase, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._add(phase, time.perf_counter() - begin)

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase so far. Waits for the GPU."""
        if self._events:
            torch.cuda.synchronize()
            for phase, start, end in self._events:
                self._add(phase, start.elapsed_time(end) / 1000)
            self._events.clear()
        return dict(self._seconds)

    def reset(self) -> None:
        """Forget everything."""
        self._seconds.clear()
        self._events.clear()

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
