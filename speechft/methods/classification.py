r"""Supervised training of an embedding model: the baseline, and one stage of a transfer.

A chunk of each utterance is cut at random, perturbed, and made a vector; cross-entropy, or an
angular margin with one or more centres a class, tells the classes of a label apart.

What comes out is a :class:`speechft.models.classifier.Classifier`, which is an embedding model with
its head beside it.

Source: Snyder et al., "X-vectors", ICASSP 2018; with margins, Deng et al., CVPR 2019 and ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from speechft.augment import RandomCrop, SpecAugment, fold_in
from speechft.data import Manifest, SpeechDataset
from speechft.errors import ConfigError, SpeechftError
from speechft.losses import AAMSoftmaxLoss, LossGate
from speechft.methods.base import Method, MethodConfig, MethodOutput
from speechft.methods.dino_parts import crop_augmentation, freeze, stack
from speechft.models import EmbeddingModel, load_backbone
from speechft.models.classifier import (
    Classifier,
    HeadKind,
    LinearHead,
    classes_of,
    is_classifier_folder,
    load_head,
)
from speechft.models.embedding import PARTS, Pooling
from speechft.training.loader import NoneAlone, TrainingData, speech_data
from speechft.training.settings import TrainingSettings

Trained = Literal["head", "affine", "pooling", "all", "lora"]
_Gate = Literal["none", "fixed", "dynamic"]
AUGMENTATIONS = ("none", "student", "teacher")
"""What :attr:`ClassificationConfig.augmentation` takes besides a file."""
_REACH: dict[str, tuple[str, ...]] = {
    "head": (), "affine": PARTS[2:], "pooling": PARTS[1:], "all": PARTS, "lora": PARTS[1:],
}  # fmt: skip
_KEY_CROP, _KEY_AUGMENT, _KEY_MASKS = 0, 1, 2


@dataclass(frozen=True)
class ClassificationConfig(MethodConfig):
    """Settings of supervised training.

    Args:
        label: of the manifest.
        loss: ``"cross_entropy"``, or ``"aam"`` for an angular margin.
        margin, scale, sub_centers, margin_warmup_steps, top_k, top_k_margin: of the second; see
            :class:`speechft.losses.AAMSoftmaxLoss`.
        train: what trains besides the head: nothing (``"head"``, a linear probe), the layers from
            ``"affine"`` or from ``"pooling"`` (with the weighting of layers) on, ``"all"``, or
            adapters of low rank in a speech foundation model's attention and what is above it
            (``"lora"``). The rest is frozen and in eval mode.
        lora_rank: of the adapters, which are merged when the model is written.
        tuned_layers: of a speech foundation model with ``"all"``, from the top; None: all. Its
            convolutions stay frozen.
        chunk_seconds: cut from each utterance, or from and to; a shorter one is taken whole. None:
            whole utterances.
        augmentation: ``"none"``, ``"student"``, ``"teacher"`` or a YAML chain; see
            :class:`~speechft.methods.DinoConfig`.
        noise, rooms: folders of recordings for it; None: synthesized.
        spec_augment: mask log-mel features: 5 frames and 8 bands at most.
        dropout: of the vector.
        loss_gate: leave out of each batch what its loss says is labelled wrong, as pseudo-labels
            are in part: above a ``"fixed"`` threshold, or a ``"dynamic"`` one that is found anew
            after each epoch; see :class:`speechft.losses.LossGate`.
        loss_gate_threshold: the fixed one.
        size, pooling, layer: of a model that is made anew; see
            :class:`speechft.models.EmbeddingSpec`.
        start_head: folder of a classifier of the same classes to go on from.

    Raises:
        ConfigError: a value out of range.
    """

    label: str = "speaker"
    loss: HeadKind = "aam"
    margin: float = 0.2
    scale: float = 30.0
    sub_centers: int = 1
    margin_warmup_steps: int = 0
    top_k: int = 0
    top_k_margin: float = 0.1
    train: Trained = "all"
    lora_rank: int = 8
    tuned_layers: int | None = None
    chunk_seconds: float | tuple[float, float] | None = 4.0
    augmentation: str = "student"
    noise: str | None = None
    rooms: str | None = None
    spec_augment: bool = False
    dropout: float = 0.0
    loss_gate: _Gate = "none"
    loss_gate_threshold: float = 1.0
    size: int = 256
    pooling: Pooling | None = None
    layer: int | None = None
    start_head: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("train", Trained), ("loss", HeadKind), ("loss_gate", _Gate)):
            value = getattr(self, name)
            if value not in get_args(known):
                raise ConfigError(
                    f"{name}: wants one of {', '.join(get_args(known))}; got {value!r}"
                )
        if self.chunk_seconds is not None:
            try:
                RandomCrop(self.chunk_seconds)
            except SpeechftError as error:
                raise ConfigError(f"chunk_{error}") from error
        if self.augmentation not in AUGMENTATIONS and not Path(self.augmentation).is_file():
            raise ConfigError(
                f"augmentation: {self.augmentation!r} is no file, and none of "
                f"{', '.join(AUGMENTATIONS)}"
            )
        if self.lora_rank < 1 or self.size < 1:
            raise ConfigError("lora_rank, size: want at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: wants 0 to below 1, got {self.dropout}")
        if self.tuned_layers is not None and self.train != "all":
            raise ConfigError(f"tuned_layers: is of train: all, not of {self.train}")


class Classification(Method):
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
    inputs = ("waveforms", "lengths", "keys", "factors")
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
            self.adapted: Any = _choose(model, config)
            head = _head(model.size, len(classes), config)
        if config.start_head is not None:
            _start(head, Path(config.start_head), config.label, classes)
        self.classifier = Classifier(model, head, config.label, classes)
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
        self._still = _still(model, config.train)
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
        for module in self._still:
            module.eval()
        return self

    def forward(
        self, waveforms: Tensor, lengths: Tensor, keys: Tensor, factors: Tensor
    ) -> MethodOutput:
        """The loss of a batch of utterances with labels ``factors`` (B, 1), -1 for unknown."""
        with self.stopwatch("augmentation"):
            if self.crop is not None:
                waveforms, lengths = self.crop(waveforms, lengths, fold_in(keys, _KEY_CROP))
            if self.augment is not None:
                waveforms, lengths = self.augment(waveforms, lengths, fold_in(keys, _KEY_AUGMENT))
            cut = stack([(waveforms, lengths)], full=self._full)
        masks = None
        if self.training and self.settings.spec_augment:
            masks = fold_in(keys, _KEY_MASKS)
        vectors = self.dropout(self.encoder(*cut, masks))
        head = self.classifier.head
        known = factors[:, 0] >= 0
        with self.stopwatch("loss"):
            losses = head(vectors, factors[:, 0])
            weights = known.to(losses.dtype)
            if self.gate is not None:
                # The loss of an unknown label, 0, is not to be taken in: NaN is not.
                weights = weights * self.gate(losses.detach().masked_fill(~known, torch.nan))
            loss = (weights * losses).sum() / weights.sum().clamp(min=1)
        self._seen = vectors.detach(), factors[:, 0], weights
        return MethodOutput(loss, {})

    def monitors(self) -> dict[str, Tensor]:
        """The accuracy on the last batch, and what share of it the gate let through."""
        if self._seen is None:
            return {}
        vectors, labels, weights = self._seen
        known = (labels >= 0).sum().clamp(min=1)
        with torch.no_grad():
            right = self.classifier.head.logits(vectors).argmax(1) == labels
        found = {"accuracy": right.sum() / known}
        return found if self.gate is None else {**found, "kept": weights.sum() / known}

    def at_step(self, step: int, steps: int) -> None:
        """See :class:`~speechft.training.trainable.Trainable`: the gate is set each epoch."""
        if self.gate is not None and step and step % self._epoch == 0:
            self.gate.fit()

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """Chunks of utterances in batches drawn from all, or whole ones by length."""
        if self.crop is None:
            return self._counted(speech_data(dataset, settings), settings)
        least, most = self.crop.seconds
        shortest = int(dataset.lengths.min()) / dataset.sample_rate
        timing = self.augment is not None and "timing" in self.augment.changes
        self._full = least == most and shortest >= most and not timing
        return self._counted(speech_data(dataset, settings, num_buckets=1), settings)

    def _counted(self, data: TrainingData, settings: TrainingSettings) -> TrainingData:
        data = replace(data, batches=NoneAlone(data.batches))
        self._epoch = max(1, len(data.batches) // settings.accumulate)
        return data

    def save(self, output: Path) -> None:
        """Write the classifier; adapters are merged into what they adapt."""
        model = self.encoder
        if self.adapted is not None:
            self.adapted.merge_and_unload()
            self.adapted = None
            model.encoder_name = None
        elif any(name.startswith("frames.encoder.") for name in self.tuned()):
            model.encoder_name = None
        elif self.encoder_name is not None and model.encoder is not None:
            model.encoder_name = self.encoder_name
        self.classifier.eval().save_pretrained(output)

    def tuned(self) -> list[str]:
        """Names of the embedding model's tensors that train."""
        return [name for name, p in self.encoder.named_parameters() if p.requires_grad]


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


def _choose(model: EmbeddingModel, config: ClassificationConfig) -> Any:
    """Freeze what does not train; with adapters, give what can merge them."""
    model.requires_grad_(False)
    reach = _REACH[config.train]
    for name in reach:
        model.part(name).requires_grad_(True)
    if config.train in ("pooling", "lora"):
        for name, parameter in model.frames.named_parameters(recurse=False):
            parameter.requires_grad_(name == "layer_weights")
    if "frames" in reach:
        freeze(model, config.tuned_layers)
    if config.train != "lora":
        return None
    encoder = model.encoder
    if encoder is None:
        raise ConfigError(f"train: lora is of a speech foundation model, not {model.spec.backbone}")
    from peft import LoraConfig, get_peft_model

    rank = config.lora_rank
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
    used = encoder.num_layers if model.spec.layer is None else model.spec.layer
    settings.layers_to_transform = list(range(used))
    # It changes the encoder's own model in place; held apart, or it would be saved twice.
    return _Held(get_peft_model(encoder.hf_model, settings))


def _still(model: EmbeddingModel, train: Trained) -> list[nn.Module]:
    """What stays in eval mode: parts that do not train, and what is frozen in those that do."""
    still = [model.part(name) for name in PARTS if name not in _REACH[train]]
    still += _frozen(model)
    encoder = model.encoder
    if encoder is not None and encoder.layers[0] in still:
        still.append(encoder.hf_model.encoder.dropout)  # before the layers, and of none of them
    return still


def _frozen(module: nn.Module) -> list[nn.Module]:
    """The largest modules in it that have parameters of which none trains."""
    trains = [p.requires_grad for p in module.parameters()]
    if trains and not any(trains):
        return [module]
    return [found for child in module.children() for found in _frozen(child)]


class _Held:
    """A module that is no submodule of who has it."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def merge_and_unload(self) -> None:
        self.module.merge_and_unload()


def _head(size: int, classes: int, config: ClassificationConfig) -> nn.Module:
    if config.loss == "cross_entropy":
        return LinearHead(size, classes)
    return AAMSoftmaxLoss(
        size, classes, margin=config.margin, scale=config.scale, sub_centers=config.sub_centers,
        margin_warmup_steps=config.margin_warmup_steps, top_k=config.top_k,
        top_k_margin=config.top_k_margin, reduction="none",
    )  # fmt: skip


def _start(head: nn.Module, folder: Path, label: str, classes: tuple[str | int, ...]) -> None:
    if not is_classifier_folder(folder):
        raise ConfigError(f"start_head: {folder} holds no classifier")
    if classes_of(folder) != (label, classes):
        raise ConfigError(
            f"start_head: {folder} tells other classes of {classes_of(folder)[0]!r} apart"
        )
    load_head(head, folder)
