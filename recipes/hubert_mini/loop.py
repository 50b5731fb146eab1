"""The loop of every stage: AdamW, a warm-up and a straight fall, checkpoints, several processes.

What a step learns from is a function of its number, so a run that was stopped and resumed is the
run that was not. Several processes (torchrun) share a batch: each takes its rows, and the gradient
is the batch's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn

Made = TypeVar("Made")


class Settings(Protocol):
    """Those of a stage that the loop reads; a dataclass, all of it kept in each checkpoint."""

    name: str
    steps: int
    learning_rate: float
    warmup: int
    save_every: int


class Learnt(NamedTuple):
    """What a step gives: the loss to differentiate, and sums to report over how many they are of.

    ``loss`` is this process's share of the batch's: its sum, over the number in the whole batch.
    """

    loss: Tensor
    sums: Tensor
    counts: Tensor


def rank_and_world() -> tuple[int, int]:
    """Rank and number of the processes that share each batch."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def made_by_first(make: Callable[[], Made]) -> Made:
    """What rank 0 makes, and writes, and the others then read by the same call."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    mine = [make()] if rank == 0 else []
    distributed.barrier()
    return mine[0] if mine else make()


def optimise(
    model: nn.Module,
    stage: Any,
    folder: Path,
    learn: Callable[[int], Learnt],
    reported: tuple[str, ...],
) -> None:
    """Train in place through a stage, from its newest checkpoint in ``folder`` if it has one.

    ``learn`` is called with each step's number, ``reported`` names its sums.
    """
    settings: Settings = stage
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learning, settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / settings.warmup,
            (settings.steps - step) / (settings.steps - settings.warmup),
        ),
    )
    path = folder / f"checkpoint-{settings.name}.pt"
    first = 0
    if path.exists():
        saved = read(path, stage)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first = saved["step"]
    rank, _ = rank_and_world()
    began, mean = time.time(), None
    for step in range(first, settings.steps):
        loss, now, counts = learn(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sum_over_ranks(learning, now)
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        now = now / counts
        mean = now if mean is None else mean.lerp(now, 0.02)
        if rank == 0 and (step + 1) % 50 == 0:
            pace = (time.time() - began) / (step + 1 - first)
            figures = ", ".join(
                f"{name} {value:.3f}" for name, value in zip(reported, mean.tolist(), strict=True)
            )
            print(
                f"{settings.name} {step + 1}/{settings.steps}: {figures}, {pace:.2f} s a step",
                flush=True,
            )
        if rank == 0 and ((step + 1) % settings.save_every == 0 or step + 1 == settings.steps):
            state = {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(), "step": step + 1,
            }  # fmt: skip
            write(state, path, stage)


def sum_over_ranks(parameters: list[nn.Parameter], sums: Tensor) -> None:
    """Gradients and `sums` of the whole batch, in place: one message."""
    if not distributed.is_initialized():
        return
    parts = [p.grad for p in parameters if p.grad is not None] + [sums]
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    wholes = torch.split(flat, [part.numel() for part in parts])
    for part, whole in zip(parts, wholes, strict=True):
        part.copy_(whole.view_as(part))


def read(path: Path, stage: Any) -> dict[str, Any]:
    """A file of this stage.

    Raises:
        ValueError: it was written with other settings.
    """
    saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if saved.get("stage") != asdict(stage):
        raise ValueError(
            f"{path} was written with other settings of the stage {stage.name!r}; remove it, or "
            "choose another folder"
        )
    return saved


def write(state: dict[str, object], path: Path, stage: Any) -> None:
    """Whole or not at all."""
    torch.save({**state, "stage": asdict(stage)}, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
