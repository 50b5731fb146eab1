r"""Combined contrastive and non-contrastive losses: the first of two steps of tuning by labels.

A model's embedding space is improved before anything is classified in it: utterances of a class
are to be near each other and apart from those of others (contrastive), and the dimensions of the
vectors are to agree within a pair and say different things (non-contrastive). As published, with
anchors a, positives p, negatives n and d = 1 - cos,

.. math::

    L = \frac 1N \sum_i \max(0,\ d(a_i, p_i) - d(a_i, n_i) + m)
        + w \Bigl( \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2 \Bigr),

C the correlation of the dimensions of anchors and positives, m = 1, w = 0.05, λ = 0.00051. Here any
weighted sum of six losses may stand in its place. The second step, an adapter and a classifier on
what comes out, is :class:`speechft.methods.Classification` with ``train="head"`` and an
``adapter_size``; :func:`speechft.methods.two_step.two_step` runs both.

What differs from the released code: that feeds vectors, pooled from wav2vec 2.0 beforehand, to the
convolutions of a wav2vec 2.0 as if they were waveforms, so that its transformer never trains, and
it chooses the best epoch on the test set. Here waveforms go through the encoder, whose layers are
tuned, are pooled with their lengths, and projected; and the best state is chosen on utterances that
are held out of the training data. Triplets are made within a batch, in which every utterance is
encoded once and is an anchor, where the release draws three utterances for each.

What comes out is an embedding model with the projector in it; or, with ``keep_projector=False``,
one of what is pooled: then the projector was for the losses alone.

Source: Lux, Chen & Vu, "Combining contrastive and non-contrastive losses for fine-tuning
pretrained models in speech analysis", SLT 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from speechft.augment import RandomCrop, fold_in, make_keys
from speechft.data import ClassBatchSampler, Manifest, SpeechDataset, collate
from speechft.errors import ArgumentError, ConfigError
from speechft.evaluation.metrics import uar
from speechft.methods.base import MethodOutput
from speechft.methods.combined_config import CombinedConfig
from speechft.methods.combined_parts import (
    Pairs,
    cosine_distances,
    drawn_negatives,
    drawn_positives,
    hardest,
    make_losses,
    nearest_mean,
    pair_accuracy,
    pair_by_label,
    pair_by_view,
)
from speechft.methods.crop_augmentation import crop_augmentation
from speechft.methods.dino_parts import stack
from speechft.methods.selection import SelectingMethod
from speechft.methods.tuning import Tuning, tuned
from speechft.models import EmbeddingModel, load_backbone
from speechft.training.loader import (
    EVALUATION_EPOCH,
    Chosen,
    KeyedDataset,
    NoneAlone,
    Position,
    TrainingData,
    speech_data,
)
from speechft.training.settings import TrainingSettings
from speechft.training.vectors import vectors_of

_KEY_CROP, _KEY_AUGMENT, _VIEWS = 0, 1, 2  # two keys a view


class Combined(SelectingMethod):
    """Combined losses on an embedding model, which is tuned in place.

    Args:
        model: from :func:`speechft.models.load_backbone`.
        config: its settings.
        seed: of adapters of low rank, and of what is drawn to validate.

    Raises:
        ConfigError: settings that contradict the model.
    """

    name = "combined"
    source = "Lux, Chen & Vu, Combined losses, SLT 2022"
    Config = CombinedConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 10_000, "batch_size": 32, "learning_rate": 1e-4, "schedule": "constant",
        "warmup_steps": 0, "optimizer": "adam", "weight_decay": 5e-4, "max_grad_norm": 0.0,
        "log_every": 50, "evaluate_utterances": 128,
    }  # fmt: skip

    def __init__(
        self, model: EmbeddingModel, config: CombinedConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings: CombinedConfig = config or CombinedConfig()
        config = self.settings
        if not config.keep_projector and model.spec.affine == "none":
            raise ConfigError("keep_projector: the model has no projector to leave out")
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self._tuning = Tuning(
                model, config.train, tuned_layers=config.tuned_layers, lora_rank=config.lora_rank
            )
        self.model = model if config.keep_projector else model.without_affine()
        self.projector = None if config.keep_projector else model.affine
        if not tuned(self.model):
            raise ConfigError(
                f"train: with {config.train} nothing of what is kept would train; tune more, or "
                "keep_projector"
            )
        self.dropout = nn.Dropout(config.dropout)
        self.weights = config.weights
        self.losses = make_losses(
            self.weights, margin=config.margin, barlow_lambda=config.barlow_lambda,
            temperature=config.temperature,
        )  # fmt: skip
        rate = model.sample_rate
        self.crop: RandomCrop | None = None
        if config.chunk_seconds is not None:
            self.crop = RandomCrop(config.chunk_seconds, sample_rate=rate)
        self.augment = crop_augmentation(config.perturbation, config.noise, config.rooms, rate)
        self.inputs = ("waveforms", "lengths", "keys")
        if config.pairs == "labels":
            self.inputs = (*self.inputs, "factors")
        shots = f"{config.shots}-shot accuracy, averaged over classes"
        pairs = "mean of positive and negative accuracy"
        self.figure_name = shots if config.figure == "shots" else pairs
        self._seed = seed
        self._seen: dict[str, Tensor] = {}
        self._validation: tuple[SpeechDataset, list[int], list[int]] | None = None
        self.keep_best()
        self.train(self.training)

    @property
    def encoder(self) -> EmbeddingModel:  # type: ignore[override]
        """The embedding model."""
        return self.model

    @classmethod
    def load(cls, name: str | Path, config: Any, *, seed: int) -> EmbeddingModel:
        """See :class:`~speechft.methods.Method`: an embedding model, new or trained."""
        return load_backbone(
            name, size=config.size, pooling=config.pooling, layer=config.layer,
            affine=config.affine, seed=seed,
        )  # fmt: skip

    @classmethod
    def make(cls, model: Any, config: Any, dataset: SpeechDataset, *, seed: int) -> Combined:
        """See :class:`~speechft.methods.Method`.

        Raises:
            ConfigError: an utterance without its label, one class, or a class of one utterance.
        """
        if config.pairs == "labels":
            check_classes(dataset.manifest, config.label)
        return cls(model, config, seed=seed)

    @classmethod
    def labels(cls, config: Any) -> tuple[str, ...]:
        """See :class:`~speechft.methods.Method`."""
        return (config.label,) if config.pairs == "labels" else ()

    def train(self, mode: bool = True) -> Combined:
        """Training mode; what is frozen stays in eval mode."""
        super().train(mode)
        self._tuning.settle()
        return self

    def forward(
        self, waveforms: Tensor, lengths: Tensor, keys: Tensor, factors: Tensor | None = None
    ) -> MethodOutput:
        """The loss of a batch of utterances; with labels, of classes ``factors`` (B, 1)."""
        batch = len(keys)
        count = 1 if factors is not None else 2
        with self.stopwatch("augmentation"):
            views = [self._view(waveforms, lengths, keys, number) for number in range(count)]
            stacked = stack(views, full=False)
        project = self.model.affine if self.projector is None else self.projector
        vectors = project(self.dropout(self.model.pooled(*stacked))).float()
        with self.stopwatch("loss"):
            if factors is not None:
                pairs = pair_by_label(vectors, factors[:, 0])
            else:
                pairs = pair_by_view(vectors[:batch], vectors[batch:])
            loss = self.loss(pairs, keys)
        return MethodOutput(loss, {}, vectors[:batch])

    def loss(self, pairs: Pairs, keys: Tensor) -> Tensor:
        """The weighted sum, of anchors with ``keys`` (N,)."""
        partner = pairs.pool[drawn_positives(pairs, keys)]
        values: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            if name == "triplet":
                values[name] = loss(pairs.anchors, *self._triplets(pairs, partner, keys))
            elif name == "sup_con":
                views = pairs.anchors
                if pairs.pool is not pairs.anchors:
                    views = torch.stack([pairs.anchors, pairs.pool], 1)
                values[name] = loss(views, pairs.labels)
            elif name in ("info_nce", "nt_xent"):
                values[name] = loss(pairs.anchors, partner, labels=pairs.labels)
            else:
                values[name] = loss(pairs.anchors, partner)
        self._seen = {name: value.detach() for name, value in values.items()}
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()

    def monitors(self) -> dict[str, Tensor]:
        """Each loss of the last batch, without its weight; and the figures of validation."""
        return {**self._seen, **super().monitors()}

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """Batches of some classes with some utterances of each; of views, batches drawn from all.

        Raises:
            ConfigError: a class that cannot be validated on and have two to train on, a batch that
                is too small, or ``max_batch_seconds``, which batches by class do not have.
        """
        config = self.settings
        label = config.label if config.pairs == "labels" else None
        fit, held = self.hold_out(dataset, label, seed=settings.seed, least=2)
        if len(held) < 2 and self.best is not None:
            raise ConfigError("validation: one utterance is held out; a figure wants two or more")
        self._validation = dataset, held, self._support(dataset, fit)
        if label is None:
            data = speech_data(dataset, settings, num_buckets=1, rows=fit)
            return TrainingData(
                data.dataset, NoneAlone(data.batches), data.collate, data.evaluation,
                data.sample_rate,
            )  # fmt: skip
        if settings.max_batch_seconds is not None:
            raise ConfigError("max_batch_seconds: batches are made by class; leave it out")
        try:
            sampler = ClassBatchSampler(
                dataset.factors[fit, 0], batch_size=settings.batch_size, each=config.each,
                seed=settings.seed,
            )  # fmt: skip
        except ArgumentError as error:
            raise ConfigError(str(error)) from error
        batches = Chosen(sampler, fit)
        keyed = KeyedDataset(dataset, settings.seed)

        def evaluation() -> Iterator[tuple[int, Mapping[str, Any]]]:
            """The first batches, always under the same perturbations."""
            seen = 0
            for rows in batches.batches(0):
                if seen < settings.evaluate_utterances:
                    seen += len(rows)
                    items = [keyed[Position(EVALUATION_EPOCH, row)] for row in rows]
                    yield len(rows), collate(items)

        return TrainingData(keyed, batches, collate, evaluation, dataset.sample_rate)

    def selected(self) -> nn.Module:
        """See :class:`~speechft.methods.selection.SelectingMethod`."""
        return self.model

    def figure(self) -> float:
        """What the settings choose, on what is held out."""
        assert self._validation is not None
        dataset, held, support = self._validation
        if self.settings.pairs == "views":
            pairs = pair_by_view(*self._views_of(dataset, held))
        elif self.settings.figure == "pairs":
            vectors = vectors_of(self.model, dataset, held)
            pairs = pair_by_label(vectors, dataset.factors[held, 0])
        else:
            vectors = vectors_of(self.model, dataset, [*support, *held])
            known = dataset.factors[support, 0]
            names = torch.unique(known)
            means = torch.stack([vectors[: len(support)][known == name].mean(0) for name in names])
            guesses = names[nearest_mean(vectors[len(support) :], means)]
            return uar(dataset.factors[held, 0], guesses)
        distance = cosine_distances(pairs.anchors, pairs.pool)
        return pair_accuracy(distance, pairs.positive, pairs.negative)

    def save(self, output: Path) -> None:
        """Write the embedding model; adapters in the encoder are merged into what they adapt."""
        self._tuning.finish(self.model, self.encoder_name)
        self.model.eval().save_pretrained(output)
        self.write_selection(output)

    def tuned(self) -> list[str]:
        """Names of the embedding model's tensors that train."""
        return tuned(self.model)

    def _view(
        self, waveforms: Tensor, lengths: Tensor, keys: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        if self.crop is not None:
            key = fold_in(keys, _KEY_CROP + _VIEWS * number)
            waveforms, lengths = self.crop(waveforms, lengths, key)
        if self.augment is not None:
            key = fold_in(keys, _KEY_AUGMENT + _VIEWS * number)
            waveforms, lengths = self.augment(waveforms, lengths, key)
        return waveforms, lengths

    def _triplets(self, pairs: Pairs, partner: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """A positive and a negative of each anchor."""
        if self.settings.mining == "random":
            return partner, pairs.pool[drawn_negatives(pairs, keys)]
        farthest, nearest = hardest(pairs)
        return pairs.pool[farthest], pairs.pool[nearest]

    def _support(self, dataset: SpeechDataset, fit: list[int]) -> list[int]:
        """The rows whose means stand for the classes."""
        if self.settings.figure != "shots" or self.best is None:
            return []
        rng = np.random.default_rng(self._seed)
        labels = dataset.factors[fit, 0].numpy()
        found: list[int] = []
        for name in np.unique(labels):
            mine = rng.permutation(np.flatnonzero(labels == name))[: self.settings.shots]
            found += [fit[place] for place in mine]
        return found

    def _views_of(self, dataset: SpeechDataset, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Vectors of two views of utterances, always the same."""
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        device = next(self.model.parameters()).device
        for row in rows:  # one by one: babble is made of who else is in the batch
            sample = collate([dataset[row]])
            keys = make_keys(self._seed, EVALUATION_EPOCH, sample["keys"]).to(device)
            given = sample["waveforms"].to(device), sample["lengths"].to(device), keys
            for number, vectors in enumerate(found):
                vectors.append(self.model(*self._view(*given, number)).cpu())
        return torch.cat(found[0]), torch.cat(found[1])


def check_classes(manifest: Manifest, label: str) -> None:
    """Refuse labels of which no triplets can be made.

    Raises:
        ConfigError: an utterance without one, one class, or a class of one utterance.
    """
    count: dict[str | int, int] = {}
    for row in manifest:
        value = row.label(label)
        if value is None:
            raise ConfigError(
                f"label: utterance {row.id!r} has no {label!r}; give it one, or leave it out"
            )
        count[value] = count.get(value, 0) + 1
    if len(count) < 2:
        raise ConfigError(f"label: {label!r} has one value; negatives want two")
    for value, number in count.items():
        if number < 2:
            raise ConfigError(
                f"label: {label} {value!r} has one utterance, and it takes two to be a pair; give "
                "it more, or leave it out"
            )
