"""The settings of supervised training; see :mod:`speechft.methods.classification`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from speechft.errors import ConfigError
from speechft.methods.crop_augmentation import check_augmentation, check_chunk_seconds
from speechft.methods.selection import SelectionConfig
from speechft.methods.tuning import Trained, check_tuning
from speechft.models.classifier import HeadKind
from speechft.models.embedding import Affine, Pooling

_Gate = Literal["none", "fixed", "dynamic"]


@dataclass(frozen=True)
class ClassificationConfig(SelectionConfig):
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
        adapter_size: of the bottleneck of a :class:`~speechft.models.adapter.ResidualAdapter`
            between the vector and the head, which trains with the head; 0: none.
        loss_gate: leave out of each batch what its loss says is labelled wrong, as pseudo-labels
            are in part: above a ``"fixed"`` threshold, or a ``"dynamic"`` one that is found anew
            after each epoch; see :class:`speechft.losses.LossGate`.
        loss_gate_threshold: the fixed one.
        size, pooling, layer, affine: of a model that is made anew; see
            :class:`speechft.models.EmbeddingSpec`.
        start_head: folder of a classifier of the same classes to go on from.
        validation, groups, part, validate_every: hold utterances out and keep the state that has
            the highest UAR on them (whole, unperturbed); see
            :class:`~speechft.methods.selection.SelectionConfig`.

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
    adapter_size: int = 0
    loss_gate: _Gate = "none"
    loss_gate_threshold: float = 1.0
    size: int = 256
    pooling: Pooling | None = None
    layer: int | None = None
    affine: Affine = "linear"
    start_head: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("train", Trained), ("loss", HeadKind), ("loss_gate", _Gate)):
            value = getattr(self, name)
            if value not in get_args(known):
                raise ConfigError(
                    f"{name}: wants one of {', '.join(get_args(known))}; got {value!r}"
                )
        check_chunk_seconds(self.chunk_seconds)
        check_augmentation("augmentation", self.augmentation)
        if self.size < 1:
            raise ConfigError(f"size: wants at least 1, got {self.size}")
        if self.adapter_size < 0:
            raise ConfigError(f"adapter_size: wants 0 or more, got {self.adapter_size}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: wants 0 to below 1, got {self.dropout}")
        check_tuning(self.train, self.tuned_layers, self.lora_rank)
