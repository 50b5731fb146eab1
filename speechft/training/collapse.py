"""The collapse watch: a run whose representations say nothing any more is stopped, by name.

A loss that falls to a very low value in no time is what a collapse looks like from outside, and
nothing else says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback

from speechft.errors import CollapsedError
from speechft.training.trainable import Bounds


class CollapseWatch(TrainerCallback):  # type: ignore[misc]
    """Reads the monitors of a method every few steps; one that stays out of bounds stops the run.

    Args:
        method: has ``monitors()``, scalars on the device, and ``bounds()`` of some of them.
        every: steps between two looks, each of which waits for the GPU once.
        patience: looks in a row that have to be out of bounds.
    """

    def __init__(self, method: Any, *, every: int = 10, patience: int = 8) -> None:
        self.method = method
        self.every = every
        self.patience = patience
        self.out: dict[str, int] = {}
        self.bounds: Mapping[str, Bounds] = method.bounds()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look.

        Raises:
            CollapsedError: with the name of the monitor that tripped.
        """
        if not self.bounds or state.global_step % self.every:
            return
        found = read(self.method.monitors())
        for name, bounds in self.bounds.items():
            if name not in found:
                continue
            self.out[name] = 0 if bounds.hold(found[name]) else self.out.get(name, 0) + 1
            if self.out[name] >= self.patience:
                raise CollapsedError(name, self._message(state.global_step, name, found))

    def _message(self, step: int, name: str, found: Mapping[str, float]) -> str:
        bounds = self.bounds[name]
        wanted = (
            f"at least {bounds.least:g}"
            if bounds.least is not None and not found[name] >= bounds.least
            else f"at most {bounds.most:g}"
        )
        others = ", ".join(f"{key} {value:.4g}" for key, value in found.items() if key != name)
        return (
            f"collapsed at step {step}: {name} has been {found[name]:.4g} where it wants {wanted}, "
            f"for {self.patience * self.every} steps ({others}). What may help: "
            f"{self.method.remedy}; metrics.jsonl has the course"
        )


def read(monitors: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of scalars on a device, in one transfer; means over the ranks, so that all agree."""
    if not monitors:  # of a method that has none, on any rank
        return {}
    values = torch.stack([value.detach().float() for value in monitors.values()]).tolist()
    own = dict(zip(monitors, values, strict=True))
    if not (distributed.is_available() and distributed.is_initialized()):
        return own
    # One rank that stops alone would leave the others waiting for it.
    found: list[dict[str, float]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(found, own)
    names = {name: None for each in found for name in each}
    return {name: statistics.fmean(each[name] for each in found if name in each) for name in names}
