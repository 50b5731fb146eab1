r"""Supervised training of an embedding model: the baseline, and one stage of a transfer.

A chunk of each utterance is cut at random, perturbed, and made a vector; cross-entropy, or an
angular margin with one or more centres a class, tells the classes of a label apart. Where nothing
below the head trains and nothing is drawn, vectors are computed once, and not in every epoch.

What comes out is a :class:`speechft.models.classifier.Classifier`, which is an embedding model with
its head beside it.

Source: Snyder et al., "X-vectors", ICASSP 2018; with margins, Deng et al., CVPR 2019 and ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speechft.augment import RandomCrop, SpecAugment, fold_in
from speechft.data import Manifest, SpeechDataset
from speechft.errors import ConfigError
from speechft.evaluation.metrics import uar
from speechft.losses import AAMSoftmaxLoss, LossGate
from speechft.methods.base import MethodOutput
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.crop_augmentation import crop_augmentation
from speechft.methods.dino_parts import stack
from speechft.methods.selection import SelectingMethod
from speechft.methods.tuning import Tuning, tuned
from speechft.models import EmbeddingModel, load_backbone
from speechft.models.adapter import ResidualAdapter
from speechft.models.classifier import (
    Classifier,
    LinearHead,
    classes_of,
    is_classifier_folder,
    load_adapter,
    load_head,
)
from speechft.training.loader import NoneAlone, TrainingData, speech_data
from speechft.training.settings import TrainingSettings
from speechft.training.vectors import vector_data, vectors_of

_KEY_CROP, _KEY_AUGMENT, _KEY_MASKS = 0, 1, 2


class Classification(SelectingMethod):
    """Training of an embedding model by a label.

    Args:
        model: from :func:`speechft.models.load_backbone`; tuned in place.
        config: its settings.
        classes: values of the label, in the order of its integers.
        seed: of the head's weights.

    Raises:
        ConfigError: fewer than two classes, settings that contradict the model, or a head of other
            classes to start from.
    """

    name = "classification"
    source = "Snyder et al., X-vectors, ICASSP 2018"
    Config = ClassificationConfig
    figure_name = "UAR"
    inputs: tuple[str, ...] = ("waveforms", "lengths", "keys", "factors")
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 100_000, "batch_size": 128, "learning_rate": 1e-3, "schedule": "cosine",
        "warmup_steps": 2000, "weight_decay": 1e-4, "log_every": 50, "evaluate_utterances": 128,
    }  # fmt: skip

    def __init__(
        self,
        model: EmbeddingModel,
        config: ClassificationConfig | None = None,
        *,
        classes: tuple[str | int, ...],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = config = config or ClassificationConfig()
        if len(classes) < 2:
            got = f"one value, {classes[0]!r}" if classes else "no value"
            raise ConfigError(f"label: {config.label!r} has {got}; wants two")
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self._tuning = Tuning(
                model, config.train, tuned_layers=config.tuned_layers, lora_rank=config.lora_rank
            )
            head = _head(model.size, len(classes), config)
            adapter = None
            if config.adapter_size:
                adapter = ResidualAdapter(model.size, config.adapter_size)
        self.classifier = Classifier(model, head, config.label, classes, adapter)
        if config.start_head is not None:
            _start(self.classifier, Path(config.start_head))
        self.dropout = nn.Dropout(config.dropout)
        rate = model.sample_rate
        self.crop: RandomCrop | None = None
        if config.chunk_seconds is not None:
            self.crop = RandomCrop(config.chunk_seconds, sample_rate=rate)
        self.augment = crop_augmentation(config.augmentation, config.noise, config.rooms, rate)
        self._full = False
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None  # vectors, labels, weights
        self._epoch = 1  # updates
        self.gate: LossGate | None = None
        if config.loss_gate != "none":
            threshold = None if config.loss_gate == "dynamic" else config.loss_gate_threshold
            self.gate = LossGate(threshold=threshold)
        self._vectors: Tensor | None = None  # of all utterances, where they stay as they are
        self._validation: tuple[SpeechDataset, list[int]] | None = None
        self.keep_best()
        self.train(self.training)

    @property
    def encoder(self) -> EmbeddingModel:  # type: ignore[override]
        """The embedding model."""
        return self.classifier.model

    @classmethod
    def load(cls, name: str | Path, config: Any, *, seed: int) -> EmbeddingModel:
        """See :class:`Method`: an embedding model, new or trained."""
        return load_backbone(
            name, size=config.size, pooling=config.pooling, layer=config.layer,
            affine=config.affine,
            spec_augment=SpecAugment(1, (0, 5), 1, (0, 8)) if config.spec_augment else None,
            seed=seed,
        )  # fmt: skip

    @classmethod
    def make(cls, model: Any, config: Any, dataset: SpeechDataset, *, seed: int) -> Classification:
        """See :class:`Method`: the classes are those of the data."""
        known = [row.label(config.label) for row in dataset.manifest]
        check_repeated(dataset.manifest, config.label)
        distinct = {value for value in known if value is not None}
        ordered = sorted(distinct, key=lambda value: (isinstance(value, str), value))
        return cls(model, config, classes=tuple(ordered), seed=seed)

    @classmethod
    def labels(cls, config: Any) -> tuple[str, ...]:
        """See :class:`Method`."""
        return (config.label,)

    def train(self, mode: bool = True) -> Classification:
        """Training mode; what is frozen stays in eval mode."""
        super().train(mode)
        self._tuning.settle()
        return self

    def forward(
        self,
        factors: Tensor,
        waveforms: Tensor | None = None,
        lengths: Tensor | None = None,
        keys: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> MethodOutput:
        """The loss of a batch of utterances with labels ``factors`` (B, 1), -1 for unknown.

        They are ``waveforms``, ``lengths`` and ``keys``, or ``vectors`` (B, D) that the model made
        of them before.
        """
        if vectors is None:
            assert waveforms is not None
            assert lengths is not None
            assert keys is not None
            vectors = self._encode(waveforms, lengths, keys)
        vectors = self.dropout(vectors)
        head = self.classifier.head
        known = factors[:, 0] >= 0
        with self.stopwatch("loss"):
            losses = head(self.classifier.adapted(vectors), factors[:, 0])
            weights = known.to(losses.dtype)
            if self.gate is not None:
                # The loss of an unknown label, 0, is not to be taken in: NaN is not.
                weights = weights * self.gate(losses.detach().masked_fill(~known, torch.nan))
            loss = (weights * losses).sum() / weights.sum().clamp(min=1)
        self._seen = vectors.detach(), factors[:, 0], weights
        return MethodOutput(loss, {})

    def _encode(self, waveforms: Tensor, lengths: Tensor, keys: Tensor) -> Tensor:
        """Vectors of chunks, perturbed: (B, D)."""
        with self.stopwatch("augmentation"):
            if self.crop is not None:
                waveforms, lengths = self.crop(waveforms, lengths, fold_in(keys, _KEY_CROP))
            if self.augment is not None:
                waveforms, lengths = self.augment(waveforms, lengths, fold_in(keys, _KEY_AUGMENT))
            cut = stack([(waveforms, lengths)], full=self._full)
        masks = None
        if self.training and self.settings.spec_augment:
            masks = fold_in(keys, _KEY_MASKS)
        vectors: Tensor = self.encoder(*cut, masks)
        return vectors

    def monitors(self) -> dict[str, Tensor]:
        """The accuracy on the last batch, what share of it the gate let through, and validation."""
        if self._seen is None:
            return {}
        vectors, labels, weights = self._seen
        known = (labels >= 0).sum().clamp(min=1)
        with torch.no_grad():
            right = self.classifier.logits(vectors).argmax(1) == labels
        found = {"accuracy": right.sum() / known, **super().monitors()}
        return found if self.gate is None else {**found, "kept": weights.sum() / known}

    def at_step(self, step: int, steps: int) -> None:
        """See :class:`~speechft.training.trainable.Trainable`: the gate is set each epoch."""
        super().at_step(step, steps)
        if self.gate is not None and step and step % self._epoch == 0:
            self.gate.fit()

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """Chunks of utterances in batches drawn from all, whole ones by length, or their vectors.

        Raises:
            ConfigError: a class that cannot be validated on and trained on as well.
        """
        fit, held = self.hold_out(dataset, self.settings.label, seed=settings.seed)
        rows = fit if held else None
        self._validation = dataset, held
        if self._constant():
            self._vectors = vectors = vectors_of(self.encoder, dataset)
            self.inputs = ("vectors", "factors")
            return self._counted(vector_data(vectors, dataset, settings, rows=rows), settings)
        if self.crop is None:
            return self._counted(speech_data(dataset, settings, rows=rows), settings)
        least, most = self.crop.seconds
        shortest = int(dataset.lengths.min()) / dataset.sample_rate
        timing = self.augment is not None and "timing" in self.augment.changes
        self._full = least == most and shortest >= most and not timing
        return self._counted(speech_data(dataset, settings, num_buckets=1, rows=rows), settings)

    def _constant(self) -> bool:
        """Whether the model gives an utterance the same vector whenever it is asked."""
        drawn = self.crop is not None or self.augment is not None or self.settings.spec_augment
        return self.settings.train == "head" and not drawn

    def _counted(self, data: TrainingData, settings: TrainingSettings) -> TrainingData:
        data = replace(data, batches=NoneAlone(data.batches))
        self._epoch = max(1, len(data.batches) // settings.accumulate)
        return data

    def selected(self) -> nn.Module:
        """See :class:`~speechft.methods.selection.SelectingMethod`."""
        return self.classifier

    def figure(self) -> float:
        """The UAR on what is held out."""
        assert self._validation is not None
        dataset, held = self._validation
        if self._vectors is not None:
            vectors = self._vectors[held]
        else:
            vectors = vectors_of(self.encoder, dataset, held)
        device = next(self.classifier.parameters()).device
        guesses = self.classifier.logits(vectors.to(device)).argmax(1).cpu()
        return uar(dataset.factors[held, 0], guesses)

    def save(self, output: Path) -> None:
        """Write the classifier; adapters in the encoder are merged into what they adapt."""
        self._tuning.finish(self.encoder, self.encoder_name)
        self.classifier.eval().save_pretrained(output)
        self.write_selection(output)

    def tuned(self) -> list[str]:
        """Names of the embedding model's tensors that train."""
        return tuned(self.encoder)


def check_repeated(manifest: Manifest, label: str) -> None:
    """Refuse a label of which every value has one utterance.

    Raises:
        ConfigError: there is nothing that utterances of a class share.
    """
    known = [row.label(label) for row in manifest]
    values = [value for value in known if value is not None]
    if values and len(set(values)) == len(values):
        raise ConfigError(
            f"label: every {label} has one utterance ({len(values)} of them), so there is nothing "
            "that those of one share; it wants two or more of some"
        )


def _head(size: int, classes: int, config: ClassificationConfig) -> nn.Module:
    if config.loss == "cross_entropy":
        return LinearHead(size, classes)
    return AAMSoftmaxLoss(
        size, classes, margin=config.margin, scale=config.scale, sub_centers=config.sub_centers,
        margin_warmup_steps=config.margin_warmup_steps, top_k=config.top_k,
        top_k_margin=config.top_k_margin, reduction="none",
    )  # fmt: skip


def _start(classifier: Classifier, folder: Path) -> None:
    if not is_classifier_folder(folder):
        raise ConfigError(f"start_head: {folder} holds no classifier")
    if classes_of(folder) != (classifier.label, classifier.classes):
        raise ConfigError(
            f"start_head: {folder} tells other classes of {classes_of(folder)[0]!r} apart"
        )
    load_head(classifier.head, folder)
    if classifier.adapter is not None:
        load_adapter(classifier.adapter, folder)
