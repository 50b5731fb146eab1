"""Two-step tuning beside end-to-end tuning: what ``speechft two-step`` runs.

Step one improves the embedding space with :class:`speechft.methods.Combined` losses; step two
freezes it and trains an adapter and a classifier on it. Beside them stand what the model gives
untuned, as a linear probe on its pooled features, and the same model tuned end to end: the same
layers, the same pooling, a linear head, cross-entropy, as many updates as both steps together.

All are trained and tested on the same utterances. The state that is kept, the learning rate (of the
same few for step one and for end-to-end tuning) and the penalty of the probe are chosen on the same
validation utterances; the test part is judged once, at the end.

Source: Lux, Chen & Vu, "Combining contrastive and non-contrastive losses for fine-tuning
pretrained models in speech analysis", SLT 2022.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft.data import Manifest, SpeechDataset
from speechft.errors import ConfigError
from speechft.evaluation.layouts import EvaluationData
from speechft.evaluation.metrics import (
    accuracy,
    centroid_distance,
    centroid_separation,
    davies_bouldin,
    k_shot_accuracy,
    uar,
)
from speechft.evaluation.probes import fit_linear
from speechft.methods.base import MethodConfig, check_numbers
from speechft.methods.classification import ClassificationConfig
from speechft.methods.combined_config import LOSSES, CombinedConfig
from speechft.methods.held_out import hold_out
from speechft.methods.prediction import predict
from speechft.methods.refine import refine
from speechft.methods.resuming import check_same, digests
from speechft.methods.selection import FILE
from speechft.methods.transfer import read_named, rows_of
from speechft.methods.two_step_report import TwoStepReport
from speechft.methods.weights import parse_weights
from speechft.models import EmbeddingModel, load_backbone
from speechft.models.classifier import load_classifier
from speechft.models.embedding_saving import is_embedding_folder
from speechft.training import TrainingSettings
from speechft.training.vectors import vectors_of

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
        losses, mining, each, margin, barlow_lambda, temperature, dropout, size: of step one; see
            :class:`speechft.methods.CombinedConfig`.
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
    mining: Literal["random", "hard"] = "random"
    each: int = 4
    margin: float = 1.0
    barlow_lambda: float = 5.1e-4
    temperature: float = 0.1
    dropout: float = 0.5
    end_to_end_dropout: float = 0.5
    size: int = 64
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
        self.classification("all")
        self.training(1, self.learning_rates[0], seed=0, device="cpu")

    def combined(self) -> CombinedConfig:
        """Settings of step one."""
        return CombinedConfig(
            losses=self.losses, label=str(self.label), mining=self.mining, each=self.each,
            margin=self.margin, barlow_lambda=self.barlow_lambda, temperature=self.temperature,
            dropout=self.dropout, size=self.size, layer=self.layer, tuned_layers=self.tuned_layers,
            validation=0.0, part=PART,
        )  # fmt: skip

    def classification(self, train: Literal["all", "head"]) -> ClassificationConfig:
        """Settings of end-to-end tuning, or of step two."""
        whole = train == "all"
        return ClassificationConfig(
            label=str(self.label), loss="cross_entropy", train=train, chunk_seconds=None,
            augmentation="none", part=PART, pooling="mean", layer=self.layer, affine="none",
            tuned_layers=self.tuned_layers if whole else None,
            adapter_size=0 if whole else self.adapter_size,
            dropout=self.end_to_end_dropout if whole else 0.0,
        )  # fmt: skip

    def training(self, steps: int, rate: float, *, seed: int, device: Any) -> TrainingSettings:
        """Settings of a run."""
        return TrainingSettings(
            steps=steps, batch_size=self.batch_size, learning_rate=rate, warmup_steps=0,
            schedule="constant", optimizer="adam", weight_decay=self.weight_decay,
            max_grad_norm=0.0, seed=seed, device=device, log_every=max(1, min(50, steps // 10)),
            save_every=max(1, steps // 4), keep_checkpoints=1,
        )  # fmt: skip


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


def two_step(
    *,
    model: str | Path,
    data: str | Path | Manifest | EvaluationData,
    output: str | Path,
    config: TwoStepConfig | None = None,
    layout: str = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> TwoStepReport:
    """Tune in two steps and end to end, and judge both on utterances that neither saw.

    A run that was stopped goes on where it was. Writes ``two_step.json`` into ``output``, and all
    models.

    Args:
        model: a speech foundation model, as :func:`speechft.models.load` takes it, or the name of
            a backbone from scratch.
        data: a manifest, a folder in an official layout, ``"embedded"``, or such data. Parts
            train, validation and test are used as they are; without them the seed divides.
        output: a folder.
        config: how.
        layout: of the data.
        device: to train on.

    Raises:
        ConfigError: a class of too few utterances, a model that has its vectors already, or a
            folder of a run with other settings.
        ManifestError, AudioError: the data.
        TrainingError: the training.
    """
    from speechft.evaluation.tasks.base import whole
    from speechft.evaluation.tasks.label import label_splits

    if is_embedding_folder(model):
        raise ConfigError(f"model: {model} is an embedding model; begin with what it was made of")
    read = data if isinstance(data, EvaluationData) else read_named(data, layout)
    config = config or TwoStepConfig()
    label = config.label or read.label or "speaker"
    config = replace(config, label=label)
    manifest, folder = whole(read), Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    report = TwoStepReport(str(model), read.name, config, folder)
    for seed in range(config.seeds):
        splits = label_splits(read, label, config.groups or read.groups, seed, folds=config.folds)
        found: dict[str, list[Found]] = {}
        for fold, split in enumerate(splits):
            if config.labelled is not None:
                split = split._replace(fit=_few(manifest, split.fit, config, seed))
            parts = Parts(*(rows_of(manifest, rows) for rows in split))
            hold_out(parts.training(), label, share=0.0, part=PART, least=2)  # raises
            place = folder / f"seed-{seed}" / f"fold-{fold}"
            for way, run in WAYS.items():
                judge = _Judge(str(model), config, parts, place / way, seed, device)
                found.setdefault(way, []).append(judge.kept(run))
        for way, folds in found.items():
            report.add(way, _joined(folds), [fold.chosen for fold in folds])
        report.seconds = time.perf_counter() - start
        report.write()
    return report


@dataclass(frozen=True)
class _Judge:
    """One way, on the utterances of one seed and fold."""

    model: str
    config: TwoStepConfig
    parts: Parts
    place: Path
    seed: int
    device: Any

    def kept(self, run: Callable[[_Judge], Found]) -> Found:
        """What the way gives; what was found before is read."""
        label = str(self.config.label)
        known = {
            f"{name} of {part}": value
            for part, rows in zip(Parts._fields, self.parts, strict=True)
            for name, value in digests(self.model, rows, label).items()
        }
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
        training: TrainingSettings,
    ) -> Path:  # fmt: skip
        """A run, or what is left of it."""
        if not (folder / "report.json").exists():
            resume = any((folder / "checkpoints").glob("checkpoint-*"))
            refine(
                model=start, method=method, data=self.parts.training(), output=folder,
                config=config, training=training, resume=resume,
            )  # fmt: skip
        return folder

    def settings(self, steps: int, rate: float) -> TrainingSettings:
        """Of a run."""
        return self.config.training(steps, rate, seed=self.seed, device=self.device)

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


def _untuned(judge: _Judge) -> Found:
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


def _end_to_end(judge: _Judge) -> Found:
    """The model and a linear head, by cross-entropy."""
    config = judge.config

    def train(rate: float, folder: Path) -> Path:
        settings = judge.settings(config.steps + config.adapter_steps, rate)
        return judge.train(
            "classification", judge.model, config.classification("all"), folder, settings
        )

    return judge.found(*judge.best_rate(train))


def _two_steps(judge: _Judge) -> Found:
    """Combined losses, and then an adapter and a head on what they made."""
    config = judge.config

    def train(rate: float, folder: Path) -> Path:
        one = judge.train(
            "combined", judge.model, config.combined(), folder / "step-1",
            judge.settings(config.steps, rate),
        )  # fmt: skip
        return judge.train(
            "classification", one, config.classification("head"), folder / "step-2",
            judge.settings(config.adapter_steps, config.adapter_learning_rate),
        )  # fmt: skip

    return judge.found(*judge.best_rate(train))


WAYS: Mapping[str, Callable[[_Judge], Found]] = {
    "untuned": _untuned, "end-to-end": _end_to_end, "combined + adapter": _two_steps,
}  # fmt: skip
"""What is compared."""


def _few(manifest: Manifest, rows: list[int], config: TwoStepConfig, seed: int) -> list[int]:
    """Some rows of each class; one with fewer has them all."""
    rng = np.random.default_rng(seed)
    of: dict[str, list[int]] = {}
    for row in rows:
        of.setdefault(str(manifest[row].label(str(config.label))), []).append(row)
    chosen = [rng.permutation(of[name])[: config.labelled].tolist() for name in sorted(of)]
    return sorted(row for some in chosen for row in some)


def _joined(folds: list[Found]) -> dict[str, float]:
    """Figures of a seed: predictions of all folds together, geometry averaged over them."""
    truth = [value for fold in folds for value in fold.truth]
    guesses = [value for fold in folds for value in fold.guesses]
    order = {name: number for number, name in enumerate(sorted({*truth, *guesses}))}
    true, guessed = ([order[name] for name in names] for names in (truth, guesses))
    figures = {"accuracy": accuracy(true, guessed), "UAR": uar(true, guessed)}
    for name in folds[0].figures:
        figures[name] = sum(fold.figures[name] for fold in folds) / len(folds)
    return figures
