"""The settings of a training run that do not depend on the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechft.errors import ConfigError


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast and where. The defaults are SCORE's, as published.

    Args:
        steps: updates of the weights.
        batch_size: utterances a batch, at most (and a rank).
        max_batch_seconds: padded seconds a batch, at most; None for no bound.
        accumulate: batches an update.
        learning_rate: the peak, after the warm-up.
        warmup_steps: updates of warm-up; None: 1,000 of 3,600, or a tenth of one cycle.
        schedule: ``"linear"`` warm-up and decay to 0; ``"one_cycle"``: cosines from a 25th of
            the peak, and down to a 25,000th, the momentum from 0.95 to 0.85 and back (torch's
            ``OneCycleLR``); or a linear warm-up and then ``"cosine"`` down to
            ``final_learning_rate``, ``"exponential"``: held, then halved, not below that, or
            ``"constant"``.
        final_learning_rate: of these.
        hold_steps, halve_every: of ``"exponential"``: updates at the peak, and to half of it.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"``; in the last two the decay is a part of the
            gradient.
        betas: of the first two.
        amsgrad: of Adam.
        momentum: of SGD.
        weight_decay: of matrices and kernels; biases and norms have none.
        max_grad_norm: gradients are clipped to this norm; 0 for no clipping.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast (losses stay in float32).
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        seed: of everything that is drawn: batches, perturbations, dropout, new layers.
        workers: processes that decode audio; the run is the same for any number.
        log_every: updates between lines of ``metrics.jsonl``.
        save_every: updates between checkpoints; None: only when stopped by a signal.
        keep_checkpoints: how many are kept.
        evaluate_utterances: utterances on which the loss is taken before and after.

    Raises:
        ConfigError: a value out of range.
    """

    steps: int = 3600
    batch_size: int = 8
    max_batch_seconds: float | None = None
    accumulate: int = 1
    learning_rate: float = 2e-5
    warmup_steps: int | None = None
    schedule: Literal["linear", "one_cycle", "cosine", "exponential", "constant"] = "linear"
    final_learning_rate: float = 0.0
    hold_steps: int = 0
    halve_every: int = 60_000
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    amsgrad: bool = False
    momentum: float = 0.9
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    save_every: int | None = None
    keep_checkpoints: int = 2
    evaluate_utterances: int = 32

    def __post_init__(self) -> None:
        at_least = {
            "steps": 1, "batch_size": 1, "accumulate": 1, "warmup_steps": 0, "weight_decay": 0,
            "max_grad_norm": 0, "seed": 0, "workers": 0, "log_every": 1, "save_every": 1,
            "keep_checkpoints": 1, "evaluate_utterances": 1, "final_learning_rate": 0,
            "hold_steps": 0, "halve_every": 1,
        }  # fmt: skip
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise ConfigError(f"{name}: wants at least {lowest}, got {value}")
        for name in ("learning_rate", "max_batch_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name}: wants a finite number above 0, got {value}")
        for name, values in (("betas", self.betas), ("momentum", (self.momentum,))):
            if not all(0 <= value < 1 for value in values):
                raise ConfigError(f"{name}: wants 0 to below 1, got {getattr(self, name)}")
        if self.final_learning_rate > self.learning_rate:
            raise ConfigError(
                f"final_learning_rate: {self.final_learning_rate:g} is above learning_rate, "
                f"{self.learning_rate:g}"
            )
        if self.schedule == "one_cycle" and self.warmup > self.steps:
            raise ConfigError(f"warmup_steps: wants at most {self.steps} steps, got {self.warmup}")

    @property
    def warmup(self) -> int:
        """Updates of warm-up: as set, or as SCORE or one cycle has it."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.schedule == "one_cycle":
            return max(1, self.steps // 10)
        return round(self.steps * 1000 / 3600)
