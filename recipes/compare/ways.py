"""The ways to refine, what each is given, and what is judged of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechft.methods import (
    CombinedConfig,
    DinoConfig,
    InterventionalConfig,
    LaserConfig,
    MixtureConfig,
    ScoreConfig,
    SpinConfig,
)
from speechft.methods.base import MethodConfig
from speechft.models import load, load_embedding, load_subspaces
from speechft.training import TrainingSettings

MODEL = "speechft/hubert-mini"
STEPS = 40
_TRAINING: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "log_every": 20,
}

DINO = DinoConfig(
    size=128, pooling="attentive", tuned_layers=2, long_seconds=2.0, short=2, short_seconds=1.0,
    codes=1024, hidden_size=512, bottleneck=128, freeze_last_steps=10, regions="disjoint",
    centering="sinkhorn", koleo_weight=0.1, augment_long="student", augment_short="student",
    on_short="repeat",
)  # fmt: skip
SPIN = SpinConfig(codes=256, min_seconds=0.0, crop_seconds=None)


@dataclass(frozen=True)
class Way:
    """A method with its settings.

    Args:
        method: of ``speechft refine``.
        config: its settings.
        training: those that differ from :data:`_TRAINING`.
        frames: the encoder in the run's folder, whose frames are judged.
        vectors: the model of utterances in it, whose vectors are judged by speaker verification;
            None: the mean of these frames.
        labels: what it is told of the speech that it learns from.
        drawn: whether anything is drawn: without that, one run says all.
    """

    method: str
    config: MethodConfig
    training: dict[str, Any] = field(default_factory=dict)
    frames: Callable[[Path], Any] = load
    vectors: Callable[[Path], Any] | None = None
    labels: str = "nothing"
    drawn: bool = True

    def settings(self, seed: int) -> TrainingSettings:
        """Of a run."""
        return TrainingSettings(**{**_TRAINING, **self.training, "seed": seed})


def _content(folder: Path) -> Any:
    return load_subspaces(folder).folded("content")


WAYS: dict[str, Way] = {
    "SCORE": Way("score", ScoreConfig()),
    "LASER": Way("laser", LaserConfig()),
    "Spin": Way("spin", SPIN),
    "DINO": Way(
        "dino", DINO, {"steps": 2 * STEPS},
        frames=lambda folder: load(folder / "encoder"), vectors=load_embedding,
    ),
    "combined": Way(
        "combined", CombinedConfig(tuned_layers=2, layer=4), {"batch_size": 16},
        frames=lambda folder: load(folder / "encoder"), vectors=load_embedding, labels="speakers",
    ),
    "interventional": Way(
        "interventional",
        InterventionalConfig(
            layer=3, hidden_sizes=(), fit="discriminant", sizes={"speaker": 20, "content": 24}
        ),
        frames=_content, vectors=load_subspaces, labels="a grid", drawn=False,
    ),
    "SCORE + DINO": Way(
        "mixture",
        MixtureConfig(("score:1.0", "dino:0.01"), dino=DINO),
        vectors=lambda folder: load_embedding(folder / "dino"),
    ),
}  # fmt: skip
