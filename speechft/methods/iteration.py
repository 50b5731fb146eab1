"""Iterated pseudo-labels: embed, cluster, train on the clusters as speakers, and again.

Source: Cho et al., "Non-contrastive self-supervised learning of utterance-level speech
representations", Interspeech 2022: 4.38 % EER of DINO becomes 1.89 % on VoxCeleb1.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from speechft.data import Manifest, write_manifest
from speechft.errors import ConfigError
from speechft.evaluation.embeddings import Embeddings
from speechft.evaluation.metrics import coverage, normalized_mutual_information, purity
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.pseudo_labels import PseudoLabels, pseudo_labels
from speechft.methods.refine import read_data
from speechft.methods.stages import Stage, read_stages
from speechft.methods.transfer import train_stages
from speechft.models import load_backbone
from speechft.models.utterances import UtteranceEncoder

LABEL = "pseudo"


@dataclass(frozen=True)
class IterationConfig:
    """How pseudo-labels are made and trained on.

    Args:
        rounds: of clustering and training.
        stages: of training; a name in :data:`speechft.methods.stages.STAGES`, or a YAML file.
        variance, per_cluster, similarity, clusters, least, most, confidence: see
            :func:`speechft.methods.pseudo_labels.pseudo_labels`.
        margin, scale, sub_centers: of the loss; see :class:`speechft.losses.AAMSoftmaxLoss`. A
            margin of None is each stage's own.
        loss_gate, loss_gate_threshold: see :class:`speechft.methods.ClassificationConfig`; for all
            stages but the first of several, whose head is new. ``"none"``: as the stages have it.
        noise, rooms: folders of recordings for the stages' augmentation; None: synthesized.
        truth: a label that the clusters are compared with, for the report alone; None: of none.
        seed: of clustering and training.

    Raises:
        ConfigError: fewer than one round.
    """

    rounds: int = 2
    stages: str = "hyperion"
    variance: float = 0.99
    per_cluster: float = 4.0
    similarity: float = 0.5
    clusters: int | None = None
    least: int = 8
    most: int | None = 50
    confidence: float = 0.9
    margin: float | None = None
    scale: float = 30.0
    sub_centers: int = 2
    loss_gate: Literal["none", "fixed", "dynamic"] = "none"
    loss_gate_threshold: float = 1.0
    noise: str | None = None
    rooms: str | None = None
    truth: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds: wants at least 1, got {self.rounds}")


@dataclass
class Round:
    """What a round did.

    Attributes:
        counts: utterances, and how many were left out of the labels, by reason; clusters.
        agreement: purity, NMI and the share kept, against :attr:`IterationConfig.truth`.
        model: folder of the classifier that came out.
        seconds: wall clock.
    """

    counts: dict[str, int]
    agreement: dict[str, float]
    model: str
    seconds: float = 0.0


@dataclass
class IterationReport:
    """All rounds."""

    model: str
    rounds: list[Round] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write JSON."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")

    def __str__(self) -> str:
        lines = []
        for number, found in enumerate(self.rounds, 1):
            what = ", ".join(f"{count} {name}" for name, count in found.counts.items())
            with_truth = "".join(f", {k} {v:.3f}" for k, v in found.agreement.items())
            lines.append(f"round {number}: {what}{with_truth}; {found.seconds:.0f} s")
        return "\n".join([*lines, f"the model: {self.rounds[-1].model}"])


def iterate(
    *,
    model: str | Path,
    data: str | Path | Manifest,
    output: str | Path,
    config: IterationConfig | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: bool | None = None,
) -> IterationReport:
    """Train an embedding model on clusters of what it makes of unlabelled speech, in rounds.

    Every round starts from the model of the one before; a round that was stopped goes on.

    Args:
        model: the folder of an embedding model, of DINO say.
        data: a manifest, a folder of audio, or ``"embedded"``; labels in it are not looked at.
        output: a folder: ``round-1/manifest.jsonl`` (the labels), ``round-1/stage-1``, ...
        config: how.
        device: to embed and train on.
        progress: show bars; None: on a terminal.

    Raises:
        ArgumentError: what cannot be clustered.
        ManifestError, AudioError: the data.
        TrainingError: the training.
    """
    config = config or IterationConfig()
    folder = Path(output)
    stages = _stages(config)
    base = ClassificationConfig(
        label=LABEL, loss="aam", scale=config.scale, sub_centers=config.sub_centers,
        noise=config.noise, rooms=config.rooms,
    )  # fmt: skip
    manifest = read_data(data)
    report = IterationReport(str(model))
    now: str | Path = model
    for number in range(1, config.rounds + 1):
        start = time.perf_counter()
        place = folder / f"round-{number}"
        place.mkdir(parents=True, exist_ok=True)
        vectors = embed(now, manifest, place / "embeddings", device=device, progress=progress)
        found = pseudo_labels(
            vectors, variance=config.variance, per_cluster=config.per_cluster,
            similarity=config.similarity, clusters=config.clusters, least=config.least,
            most=config.most, confidence=config.confidence, seed=config.seed,
        )  # fmt: skip
        agreement = _agreement(manifest, found, config.truth)
        labelled = with_labels(manifest, found.labels)
        write_manifest(labelled, place / "manifest.jsonl")
        now = train_stages(
            now, labelled, base, stages, place, seed=config.seed, device=device
        )  # fmt: skip
        report.rounds.append(
            Round(_counts(found), agreement, str(now), time.perf_counter() - start)
        )  # fmt: skip
        report.write(folder / "iteration.json")
    return report


def embed(
    model: str | Path,
    manifest: Manifest,
    cache: Path | None,
    *,
    device: str = "auto",
    progress: bool | None = None,
) -> Tensor:
    """Vectors of utterances (N, D), kept in a folder."""
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device
    encoder = UtteranceEncoder(load_backbone(model)).eval()
    encoder.to("cpu" if place == "auto" else place)
    return Embeddings(encoder, cache=cache, progress=progress).pooled(manifest)[:, 0]


def _stages(config: IterationConfig) -> tuple[Stage, ...]:
    """Those of the config, with its margin, and its gate from the second on."""
    stages = read_stages(config.stages)
    if config.margin is not None:
        stages = tuple(replace(stage, margin=config.margin) for stage in stages)
    if config.loss_gate == "none":
        return stages
    # The losses of a new head are all large: a fixed gate would let nothing through.
    gate: dict[str, Any] = {
        "loss_gate": config.loss_gate, "loss_gate_threshold": config.loss_gate_threshold
    }  # fmt: skip
    first = stages[:-1][:1]
    return first + tuple(replace(stage, **gate) for stage in stages[len(first) :])


def with_labels(manifest: Manifest, labels: Tensor) -> Manifest:
    """The utterances that have a label, with it as the factor ``pseudo``."""
    rows = []
    for row, label in zip(manifest, labels.tolist(), strict=True):
        if label >= 0:
            factors: Mapping[str, Any] = {**row.factors, LABEL: label}
            rows.append(replace(row, factors=factors))
    return Manifest(rows, source=manifest.source)


def _counts(found: PseudoLabels) -> dict[str, int]:
    return {
        "utterances": len(found.labels), "clusters": found.clusters, "unsure": found.unsure,
        "in small clusters": found.small, "surplus": found.surplus,
    }  # fmt: skip


def _agreement(manifest: Manifest, found: PseudoLabels, truth: str | None) -> dict[str, float]:
    if truth is None:
        return {}
    names = [row.label(truth) for row in manifest]
    if any(name is None for name in names):
        raise ConfigError(f"truth: some utterances have no {truth!r}")
    order = {name: number for number, name in enumerate(sorted(map(str, set(names))))}
    numbers = torch.tensor([order[str(name)] for name in names])
    return {
        "purity": purity(found.labels, numbers),
        "NMI": normalized_mutual_information(found.labels, numbers),
        "kept": coverage(found.labels),
    }
