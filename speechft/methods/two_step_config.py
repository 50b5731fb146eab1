"""The settings of two-step tuning; see :mod:`speechft.methods.two_step`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from speechft.errors import ConfigError
from speechft.methods.base import check_numbers
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.combined_config import LOSSES, CombinedConfig
from speechft.methods.weights import parse_weights
from speechft.training import TrainingSettings

PART = "two_step_part"
"""The label by which validation utterances are told to the methods."""


@dataclass(frozen=True)
class TwoStepConfig:
    """How a model is tuned, and beside it end to end.

    Args:
        label: of the manifest; None: what the data is for.
        groups: a label whose values are never on both sides, such as ``"speaker"``; each is left
            out in turn. None: as the data says.
        folds: leave out the groups in so many parts, drawn by the seed, rather than one by one.
        losses, pairs, mining, each, margin, barlow_lambda, temperature, dropout, size,
            keep_projector: of step one; see :class:`speechft.methods.CombinedConfig`.
        space_label: of step one, where it has utterances of its own; None: the same label.
        space_validation: share of these, by which the state of step one is chosen.
        end_to_end_dropout: of what is pooled, in end-to-end tuning.
        layer, tuned_layers: of the model, for both ways; None: a weighting of all, and all.
        adapter_size: of step two; see :class:`speechft.methods.ClassificationConfig`.
        steps, adapter_steps: updates of step one and of step two; end-to-end tuning has as many as
            both together.
        batch_size: of all.
        learning_rates: of which step one and end-to-end tuning each take what is best on the
            validation part (of equals the first).
        adapter_learning_rate: of step two.
        weight_decay: of all.
        labelled: utterances of each class to train on, drawn by the seed; None: all.
        shots: of k-shot accuracy.
        seeds: how many runs: of weights, batches and the division of the data.

    Raises:
        ConfigError: a value out of range.
    """

    label: str | None = None
    groups: str | None = None
    folds: int | None = None
    losses: tuple[str, ...] = ("triplet:1.0", "barlow_twins:0.05")
    pairs: Literal["labels", "views"] = "labels"
    mining: Literal["random", "hard"] = "random"
    each: int = 4
    margin: float = 1.0
    barlow_lambda: float = 5.1e-4
    temperature: float = 0.1
    dropout: float = 0.5
    end_to_end_dropout: float = 0.5
    size: int = 64
    keep_projector: bool = True
    space_label: str | None = None
    space_validation: float = 0.15
    layer: int | None = None
    tuned_layers: int | None = 2
    adapter_size: int = 32
    steps: int = 1000
    adapter_steps: int = 500
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    adapter_learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    labelled: int | None = None
    shots: tuple[int, ...] = (1, 5)
    seeds: int = 5

    def __post_init__(self) -> None:
        parse_weights(self.losses, LOSSES)
        check_numbers(
            self, at_least={"seeds": 1, "adapter_size": 1, "steps": 1, "adapter_steps": 1,
                            "folds": 2, "labelled": 2},
            above_0=("adapter_learning_rate",),
        )  # fmt: skip
        for name in ("learning_rates", "shots"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) < len(values):
                raise ConfigError(f"{name}: wants different numbers above 0, got {values}")
        self.combined()
        self.combined(own=True)
        self.classification("all")
        self.training(1, self.learning_rates[0], seed=0, device="cpu")

    def combined(self, *, own: bool = False) -> CombinedConfig:
        """Settings of step one, which may have utterances of its own."""
        return CombinedConfig(
            losses=self.losses, pairs=self.pairs, label=self.label_of(own), mining=self.mining,
            each=self.each, margin=self.margin, barlow_lambda=self.barlow_lambda,
            temperature=self.temperature, dropout=self.dropout, size=self.size, layer=self.layer,
            keep_projector=self.keep_projector, tuned_layers=self.tuned_layers,
            **self._held_out(own),
        )  # fmt: skip

    def label_of(self, own: bool) -> str:
        """The label of step one's own utterances, or of the others."""
        return str(self.space_label or self.label) if own else str(self.label)

    def _held_out(self, own: bool) -> dict[str, Any]:
        if own:
            return {"validation": self.space_validation, "part": None}
        return {"validation": 0.0, "part": PART}

    def classification(
        self, train: Literal["all", "head"], *, own: bool = False
    ) -> ClassificationConfig:
        """Settings of end-to-end tuning, or of step two; or of a classifier of step one's own."""
        whole = train == "all"
        return ClassificationConfig(
            label=self.label_of(own), loss="cross_entropy", train=train, chunk_seconds=None,
            augmentation="none", pooling="mean", layer=self.layer, affine="none",
            tuned_layers=self.tuned_layers if whole else None,
            adapter_size=0 if whole else self.adapter_size,
            dropout=self.end_to_end_dropout if whole else 0.0, **self._held_out(own),
        )  # fmt: skip

    def training(self, steps: int, rate: float, *, seed: int, device: Any) -> TrainingSettings:
        """Settings of a run."""
        return TrainingSettings(
            steps=steps, batch_size=self.batch_size, learning_rate=rate, warmup_steps=0,
            schedule="constant", optimizer="adam", weight_decay=self.weight_decay,
            max_grad_norm=0.0, seed=seed, device=device, log_every=max(1, min(50, steps // 10)),
            save_every=max(1, steps // 4), keep_checkpoints=1,
        )  # fmt: skip
