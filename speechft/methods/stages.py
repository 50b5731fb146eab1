"""The stages of a transfer: what is trained, how long, how fast, and on what of the speech."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from speechft.errors import ConfigError
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.tuning import Trained
from speechft.training import TrainingSettings


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        train: ``"head"`` (a linear probe), ``"affine"``, ``"pooling"``, ``"all"`` or ``"lora"``;
            see :class:`speechft.methods.ClassificationConfig`.
        epochs: passes over the training utterances.
        learning_rate, schedule, optimizer, momentum, weight_decay, batch_size, max_grad_norm: see
            :class:`speechft.training.TrainingSettings`.
        warmup: share of the updates in which the learning rate rises.
        chunk_seconds, augmentation, spec_augment, dropout, loss_gate, loss_gate_threshold, margin,
            margin_warmup_steps, top_k, top_k_margin, tuned_layers, lora_rank: see
            :class:`speechft.methods.ClassificationConfig`.

    Raises:
        ConfigError: a value out of range.
    """

    train: Trained = "all"
    epochs: float = 10
    learning_rate: float = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 32
    max_grad_norm: float = 5.0
    warmup: float = 0.1
    chunk_seconds: float | tuple[float, float] | None = 4.0
    augmentation: str = "none"
    spec_augment: bool = False
    dropout: float = 0.0
    loss_gate: Literal["none", "fixed", "dynamic"] = "none"
    loss_gate_threshold: float = 1.0
    margin: float = 0.2
    margin_warmup_steps: int = 0
    top_k: int = 0
    top_k_margin: float = 0.1
    tuned_layers: int | None = None
    lora_rank: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.epochs < float("inf"):
            raise ConfigError(f"epochs: wants more than 0, got {self.epochs}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup: wants a share from 0 to 1, got {self.warmup}")
        self.training(1, seed=0, device="cpu")
        self.config(ClassificationConfig())

    def training(self, utterances: int, *, seed: int, device: Any) -> TrainingSettings:
        """The settings of a run of this stage on so many utterances."""
        steps = max(1, round(self.epochs * -(-utterances // self.batch_size)))
        return TrainingSettings(
            steps=steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            warmup_steps=round(self.warmup * steps), schedule=self.schedule,
            optimizer=self.optimizer, momentum=self.momentum, weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm, seed=seed, device=device,
            log_every=max(1, min(50, steps // 10)), save_every=max(1, steps // 4),
            keep_checkpoints=1,
        )  # fmt: skip

    def config(self, base: ClassificationConfig) -> ClassificationConfig:
        """Settings of the method: those of the transfer, and what this stage says."""
        known = {field.name for field in fields(ClassificationConfig)}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}
        return replace(base, **own)


STAGES: Mapping[str, tuple[Stage, ...]] = {
    # The last affine layer first, then the whole network (JSTSP 2022), in the shares of the epochs
    # and of the learning rates that the same authors' recipe for speakers has.
    "two-stage": (
        Stage(train="affine", epochs=6, learning_rate=1e-2),
        Stage(train="all", epochs=14, learning_rate=1e-3),
    ),
    "all-at-once": (Stage(train="all", epochs=20, learning_rate=1e-3),),
    "probe": (Stage(train="head", epochs=20, learning_rate=1e-2),),
    "lora": (
        Stage(train="pooling", epochs=6, learning_rate=1e-3),
        Stage(train="lora", epochs=14, learning_rate=1e-3),
    ),
    # hyperion's egs/voxceleb/ssl.v1, train_lresnet34_xvec_stage1.1 and 1.2, v1.2.
    "hyperion": (
        Stage(
            train="affine", epochs=30, learning_rate=0.1, optimizer="sgd", weight_decay=2e-5,
            batch_size=256, max_grad_norm=250.0, dropout=0.1, augmentation="student",
        ),
        Stage(
            train="all", epochs=70, learning_rate=0.01, optimizer="sgd", weight_decay=2e-5,
            batch_size=256, max_grad_norm=250.0, dropout=0.01, augmentation="student",
        ),
    ),
}  # fmt: skip
"""Stages by name."""


def read_stages(name: str | Path | Sequence[Stage]) -> tuple[Stage, ...]:
    """Stages by a name of :data:`STAGES`, or of a YAML file that lists them.

    Raises:
        ConfigError: no such name or file, no stage in it, or a key that is no setting of one; with
            the nearest that is.
    """
    if not isinstance(name, (str, Path)):
        stages = tuple(name)
        if not stages:
            raise ConfigError("stages: there are none")
        return stages
    if str(name) in STAGES:
        return STAGES[str(name)]
    if not Path(name).is_file():
        near = difflib.get_close_matches(str(name), STAGES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(STAGES)}"
        raise ConfigError(f"stages: no {str(name)!r}, and no such file; {hint}")
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{name}: wants a list of stages")
    return tuple(_stage(name, number, entry) for number, entry in enumerate(content, 1))


def override(stages: Sequence[Stage], settings: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The same stages with some settings changed in each of them.

    Raises:
        ConfigError: a setting that a stage does not have, with the nearest that it has; a value
            out of range.
    """
    for key in settings:
        _check_key("grid", key)
    changes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    try:
        return tuple(replace(stage, **changes) for stage in stages)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"grid: {error}") from error


def _stage(name: str | Path, number: int, entry: Any) -> Stage:
    if not isinstance(entry, dict):
        raise ConfigError(f"{name}, stage {number}: wants keys and values, got {entry!r}")
    for key in entry:
        _check_key(f"{name}, stage {number}", str(key))
    if isinstance(entry.get("chunk_seconds"), list):
        entry["chunk_seconds"] = tuple(entry["chunk_seconds"])
    try:
        return Stage(**entry)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{name}, stage {number}: {error}") from error


def _check_key(where: str, key: str) -> None:
    known = [field.name for field in fields(Stage)]
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"
        raise ConfigError(f"{where}: no setting {key!r}{hint}")
