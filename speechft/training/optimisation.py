"""Optimizers and schedules of the learning rate that transformers does not have."""

from __future__ import annotations

import math
from typing import Any

import torch

from speechft.training.settings import TrainingSettings


def make_optimizer(
    settings: TrainingSettings, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Adam or SGD, as published recipes have them; their decay is a part of the gradient."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.Adam(
        groups, lr=settings.learning_rate, betas=settings.betas, amsgrad=settings.amsgrad
    )


def make_schedule(settings: TrainingSettings, optimizer: torch.optim.Optimizer) -> Any:
    """What ``settings.schedule`` says, ``"linear"`` apart."""
    if settings.schedule == "one_cycle":
        # One update is no warm-up: torch divides by its length less one.
        warmup = settings.warmup if settings.warmup > 1 else 0
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=settings.learning_rate,
            total_steps=settings.steps,
            pct_start=warmup / settings.steps,
            div_factor=25.0,
            final_div_factor=1e3,
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(settings, step))


def share(settings: TrainingSettings, step: int) -> float:
    """Of the peak learning rate at a step of ``"cosine"``, ``"exponential"`` or ``"constant"``."""
    warmup, last = settings.warmup, settings.final_learning_rate / settings.learning_rate
    if step < warmup:
        return step / warmup
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "exponential":
        after = max(0, step - warmup - settings.hold_steps)
        return float(max(last, 0.5 ** (after / settings.halve_every)))
    progress = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    return last + (1 - last) * (1 + math.cos(math.pi * progress)) / 2
