"""What stands beside each other in two-step tuning, each on the same utterances.

See :mod:`speechft.methods.two_step`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft.data import Manifest, SpeechDataset
from speechft.evaluation.metrics import (
    centroid_distance,
    centroid_separation,
    davies_bouldin,
    k_shot_accuracy,
)
from speechft.evaluation.probes import fit_linear
from speechft.methods.base import MethodConfig
from speechft.methods.prediction import predict
from speechft.methods.refine import refine
from speechft.methods.resuming import check_same, digests, utterances_digest
from speechft.methods.selection import FILE
from speechft.methods.two_step_config import PART, TwoStepConfig
from speechft.models import EmbeddingModel, load_backbone
from speechft.models.classifier import load_classifier
from speechft.training import TrainingSettings
from speechft.training.vectors import vectors_of


class Parts(NamedTuple):
    """Utterances of a seed and a fold."""

    fit: Manifest
    validation: Manifest
    test: Manifest

    def training(self) -> Manifest:
        """What a method is given: it is told which are to validate on."""
        named = [
            replace(row, factors={**row.factors, PART: part})
            for part, rows in (("train", self.fit), ("validation", self.validation))
            for row in rows
        ]
        return Manifest(named, source=self.fit.source)


class Found(NamedTuple):
    """What a way gives on the test part."""

    truth: list[str]
    guesses: list[str]
    figures: dict[str, float]
    chosen: dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """One way, on the utterances of one seed and fold."""

    model: str
    config: TwoStepConfig
    parts: Parts
    place: Path
    seed: int
    device: Any
    space: Manifest | None = None

    def kept(self, run: Callable[[Judge], Found]) -> Found:
        """What the way gives; what was found before is read."""
        label = str(self.config.label)
        known = {
            f"{name} of {part}": value
            for part, rows in zip(Parts._fields, self.parts, strict=True)
            for name, value in digests(self.model, rows, label).items()
        }
        if self.space is not None:
            own = self.config.label_of(True)
            known["utterances of the space"] = utterances_digest(self.space, own)
        settings = {k: v for k, v in asdict(self.config).items() if k != "seeds"}
        check_same(self.place, {**settings, **known, "seed": self.seed})
        path = self.place / "found.json"
        if not path.exists():
            found = run(self)
            text = json.dumps(found._asdict(), indent=1, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")
        return Found(**json.loads(path.read_text(encoding="utf-8")))

    def load(self) -> EmbeddingModel:
        """The model untuned, its vectors what is pooled."""
        made = load_backbone(
            self.model, pooling="mean", layer=self.config.layer, affine="none", seed=self.seed
        )
        return made.to(self._place())

    def train(
        self, method: str, start: str | Path, config: MethodConfig, folder: Path,
        training: TrainingSettings, *, data: Manifest | None = None,
    ) -> Path:  # fmt: skip
        """A run, or what is left of it; on the labelled utterances, or on others."""
        if not (folder / "report.json").exists():
            resume = any((folder / "checkpoints").glob("checkpoint-*"))
            refine(
                model=start, method=method, data=data or self.parts.training(), output=folder,
                config=config, training=training, resume=resume,
            )  # fmt: skip
        return folder

    def settings(self, steps: int, rate: float) -> TrainingSettings:
        """Of a run."""
        return self.config.training(steps, rate, seed=self.seed, device=self.device)

    def adapt(self, start: Path, folder: Path) -> Path:
        """Step two: an adapter and a head, on a model that stays as it is."""
        config = self.config
        settings = self.settings(config.adapter_steps, config.adapter_learning_rate)
        return self.train("classification", start, config.classification("head"), folder, settings)

    def improve(self, method: Literal["combined", "classification"], rate: float) -> Path:
        """Step one; on utterances of its own it is the same in every fold, and is run once."""
        own = self.space is not None
        if own:
            folder = self.place.parents[1] / "step-1" / method / f"rate-{rate:g}"
        else:
            folder = self.place / f"rate-{rate:g}" / "step-1"
        config: MethodConfig = self.config.combined(own=own)
        if method == "classification":
            config = self.config.classification("all", own=own)
        settings = self.settings(self.config.steps, rate)
        return self.train(method, self.model, config, folder, settings, data=self.space)

    def best_rate(self, train: Callable[[float, Path], Path]) -> tuple[Path, dict[str, Any]]:
        """The classifier whose learning rate is best on the validation part, and what was tried."""
        tried: dict[float, tuple[float, Path]] = {}
        for rate in self.config.learning_rates:
            made = train(rate, self.place / f"rate-{rate:g}")
            told = json.loads((made / FILE).read_text(encoding="utf-8"))
            tried[rate] = float(told["best"]), made
        best = max(tried, key=lambda rate: tried[rate][0])
        figures = {f"{rate:g}": figure for rate, (figure, _) in tried.items()}
        return tried[best][1], {"learning_rate": best, "validation UAR": figures}

    def found(self, folder: Path, chosen: dict[str, Any]) -> Found:
        """A classifier on the test part."""
        classifier = load_classifier(folder, device=self._place())
        said = predict(classifier, self.parts.test).log_probabilities.argmax(1)
        guesses = [str(classifier.classes[number]) for number in said.tolist()]
        return Found(
            self._labels(self.parts.test), guesses, self.geometry(classifier.model), chosen
        )

    def geometry(self, model: EmbeddingModel) -> dict[str, float]:
        """How the classes of the test part lie, in vectors of unit length."""
        fit, test = (self._unit(model, rows) for rows in (self.parts.fit, self.parts.test))
        known, labels = self._labels(self.parts.fit), self._labels(self.parts.test)
        figures = {
            "Davies-Bouldin": davies_bouldin(test, labels),
            "to centroid": centroid_distance(test, labels),
            "between centroids": centroid_separation(test, labels),
        }
        for shots in self.config.shots:
            figures[f"{shots}-shot"] = k_shot_accuracy(
                fit, known, test, labels, shots=shots, seed=self.seed
            )
        return figures

    def vectors(self, model: EmbeddingModel, rows: Manifest) -> Tensor:
        """(N, D)."""
        dataset = SpeechDataset(
            rows, min_samples=model.minimum_samples, sample_rate=model.sample_rate, progress=False
        )
        return vectors_of(model.eval(), dataset)

    def _unit(self, model: EmbeddingModel, rows: Manifest) -> Tensor:
        return normalize(self.vectors(model, rows).double(), dim=1)

    def _labels(self, rows: Manifest) -> list[str]:
        return [str(row.label(str(self.config.label))) for row in rows]

    def _place(self) -> str:
        cuda = self.device != "cpu" and torch.cuda.is_available()
        return "cuda" if cuda else "cpu"


def _untuned(judge: Judge) -> Found:
    """A linear probe on pooled features."""
    model = judge.load()
    order = sorted({*judge._labels(judge.parts.fit)})
    vectors = [judge.vectors(model, rows) for rows in judge.parts]
    known, chooses = (
        torch.tensor([order.index(value) for value in judge._labels(rows)])
        for rows in (judge.parts.fit, judge.parts.validation)
    )
    probe = fit_linear(vectors[0], known, classes=len(order), validation=(vectors[1], chooses))
    guesses = [order[number] for number in probe.predict(vectors[2]).tolist()]
    chosen = {"penalty": probe.penalty}
    return Found(judge._labels(judge.parts.test), guesses, judge.geometry(model), chosen)


def _end_to_end(judge: Judge) -> Found:
    """The model and a linear head, by cross-entropy."""
    config = judge.config

    def train(rate: float, folder: Path) -> Path:
        settings = judge.settings(config.steps + config.adapter_steps, rate)
        return judge.train(
            "classification", judge.model, config.classification("all"), folder, settings
        )

    return judge.found(*judge.best_rate(train))


def _combined(judge: Judge) -> Found:
    """Combined losses, and then an adapter and a head on what they made."""
    return judge.found(
        *judge.best_rate(
            lambda rate, folder: judge.adapt(judge.improve("combined", rate), folder / "step-2")
        )
    )


def _classified(judge: Judge) -> Found:
    """A classifier of step one's own utterances; then an adapter and a head on what it made."""
    return judge.found(
        *judge.best_rate(
            lambda rate, folder: judge.adapt(judge.improve("classification", rate), folder)
        )
    )


def _classified_end_to_end(judge: Judge) -> Found:
    """A classifier of step one's own utterances, and end-to-end tuning from there on."""
    config = judge.config

    def train(rate: float, folder: Path) -> Path:
        first = judge.improve("classification", rate)
        settings = judge.settings(config.adapter_steps, rate)
        return judge.train("classification", first, config.classification("all"), folder, settings)

    return judge.found(*judge.best_rate(train))


def ways(config: TwoStepConfig, *, own: bool) -> Mapping[str, Callable[[Judge], Found]]:
    """What is compared; more where step one has labelled utterances of its own."""
    found = {"untuned": _untuned, "end-to-end": _end_to_end, "combined + adapter": _combined}
    if own and config.pairs == "labels":
        found["classified + adapter"] = _classified
        found["classified + end-to-end"] = _classified_end_to_end
    return found
