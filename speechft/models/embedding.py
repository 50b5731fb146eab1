r"""Models that make one vector of an utterance: for speaker, emotion, diagnosis.

    waveforms → frames → pooling → affine → vector

Frames come from a speech foundation model (:class:`EncoderFrames`) or from a network on log-mel
features that starts from scratch (:class:`FilterbankFrames`). :func:`make_embedding` makes one,
:func:`load_embedding` reads one back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from speechft.augment import SpecAugment
from speechft.errors import ArgumentError
from speechft.lengths import LengthsLike
from speechft.models.encoder import Encoder
from speechft.models.log_mel import LogMel
from speechft.models.networks import ECAPA, ResNet34, XVector
from speechft.pooling import AttentiveStatisticsPooling, MeanPooling, StatisticsPooling

Pooling = Literal["mean", "statistics", "attentive"]
Normalize = Literal["none", "utterance", "short_time"]
Affine = Literal["linear", "projector", "none"]
PARTS = ("frames", "pooling", "affine")
"""The parts of an embedding model, from the waveform up."""


class FrameSource(Protocol):
    """The first part: waveforms to frames."""

    sample_rate: int
    minimum_samples: int
    output_size: int

    def __call__(
        self, waveforms: Tensor, lengths: LengthsLike | None, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class EmbeddingSpec:
    """What an embedding model is made of; its ``config.json``.

    Args:
        backbone: ``"xvector"``, ``"ecapa"`` or ``"resnet34"``, with or without ``-CHANNELS``
            (``"ecapa-1024"``); or ``"encoder"`` for a speech foundation model.
        size: of the vector.
        pooling: None: as published with the backbone, attentive for an encoder.
        bands: of log-mel features.
        normalize: what is taken from them: nothing, the mean of the utterance, or the mean of 150
            frames each side.
        layer: of an encoder, whose frames are used; None: a learnt weighting of all.
        affine: from what is pooled to the vector: ``"linear"`` (after a batch norm in ECAPA), a
            ``"projector"`` of three layers (:func:`make_projector`), or ``"none"``: what is pooled
            is the vector, and ``size`` becomes its.

    Raises:
        ArgumentError: a backbone that is not known, a size below 1, or no such kind.
    """

    backbone: str
    size: int = 256
    pooling: Pooling | None = None
    bands: int = 80
    normalize: Normalize = "short_time"
    layer: int | None = None
    affine: Affine = "linear"

    def __post_init__(self) -> None:
        kind, _, channels = self.backbone.partition("-")
        known = kind in BACKBONES and (not channels or channels.isdecimal())
        if not known and self.backbone != "encoder":
            raise ArgumentError(
                "backbone",
                f"no {self.backbone!r}; there are {', '.join(BACKBONES)}, with -CHANNELS if other "
                "than published, and encoder",
            )
        for name in ("size", "bands"):
            if getattr(self, name) < 1:
                raise ArgumentError(name, f"wants at least 1, got {getattr(self, name)}")
        for name, kind_of in (
            ("pooling", Pooling), ("normalize", Normalize), ("affine", Affine)
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value not in get_args(kind_of):
                raise ArgumentError(
                    name, f"wants one of {', '.join(get_args(kind_of))}; got {value!r}"
                )


class EmbeddingModel(nn.Module):
    """Utterances as vectors, meant to be compared by cosine.

    Attributes:
        frames, pooling, affine: its parts, in order.
        spec: what it is made of.
        size: D of a vector.
        encoder_name: what :func:`speechft.models.load` takes for its encoder, if that is as it was
            loaded, so that a saved model need not hold it; None: it is saved along.
    """

    def __init__(
        self, frames: nn.Module, pooling: nn.Module, affine: nn.Module, spec: EmbeddingSpec
    ) -> None:
        super().__init__()
        self.frames = frames
        self.pooling = pooling
        self.affine = affine
        self.spec = spec
        self.encoder_name: str | None = None

    @property
    def size(self) -> int:
        """D of a vector."""
        return self.spec.size

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self._source.sample_rate)

    @property
    def minimum_samples(self) -> int:
        """The shortest waveform that makes one frame."""
        return int(self._source.minimum_samples)

    @property
    def encoder(self) -> Encoder | None:
        """The speech foundation model in it, if there is one."""
        return self.frames.encoder if isinstance(self.frames, EncoderFrames) else None

    @property
    def _source(self) -> Any:
        return self.frames

    def forward(
        self,
        waveforms: Tensor,
        lengths: LengthsLike | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Vectors of utterances.

        Args:
            waveforms: (B, T) at :attr:`sample_rate`.
            lengths: (B,) valid samples; None: all.
            keys: (B,) int64: mask features as :class:`~speechft.augment.SpecAugment` draws for
                them, if the model has one.

        Returns:
            (B, D), float32.

        Raises:
            ClipTooShortError, LengthError, ArgumentError: as :class:`speechft.models.Encoder`.
        """
        vectors: Tensor = self.affine(self.pooled(waveforms, lengths, keys))
        return vectors.float()

    def pooled(
        self,
        waveforms: Tensor,
        lengths: LengthsLike | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """What the last part makes vectors of, (B, C'); see :meth:`forward`."""
        frames, frame_lengths = self.frames(waveforms, lengths, keys)
        found: Tensor = self.pooling(frames, frame_lengths)
        return found

    def part(self, name: str) -> nn.Module:
        """One of :data:`PARTS`.

        Raises:
            ArgumentError: no such part.
        """
        if name not in PARTS:
            raise ArgumentError("part", f"no {name!r}; there are {', '.join(PARTS)}")
        part = getattr(self, name)
        assert isinstance(part, nn.Module)
        return part

    def without_affine(self) -> EmbeddingModel:
        """A model of the same frames and pooling, whose vectors are what is pooled."""
        pooling: Any = self.pooling
        size = pooling.output_size(self._source.output_size)
        spec = replace(self.spec, affine="none", size=size)
        made = EmbeddingModel(self.frames, self.pooling, nn.Identity(), spec)
        made.encoder_name = self.encoder_name
        return made.train(self.training)

    def save_pretrained(self, path: str | Path) -> None:
        """Write config, weights, and an encoder that is not as it was loaded."""
        from speechft.models.embedding_saving import save_embedding

        save_embedding(self, Path(path))


class EncoderFrames(nn.Module):
    r"""Frames of a speech foundation model: one layer, or a learnt weighting of all of them.

    .. math:: h_t = \sum_l \mathrm{softmax}(w)_l \, h^{(l)}_t

    Args:
        encoder: from :func:`speechft.models.load`.
        layer: 0 to the number of layers; None: the weighting, equal at first.

    Raises:
        ArgumentError: a layer that does not exist.
    """

    def __init__(self, encoder: Encoder, layer: int | None = None) -> None:
        super().__init__()
        if layer is not None and not 0 <= layer <= encoder.num_layers:
            raise ArgumentError("layer", f"wants 0 to {encoder.num_layers}, got {layer}")
        self.encoder = encoder
        self.layer = layer
        self.layer_weights = (
            nn.Parameter(torch.zeros(encoder.num_layers + 1)) if layer is None else None
        )
        self.sample_rate = encoder.sample_rate
        self.minimum_samples = encoder.minimum_samples
        self.output_size = encoder.hidden_size

    def forward(
        self, waveforms: Tensor, lengths: LengthsLike | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T', C) and their lengths."""
        # Up to the last layer is another thing than all of it: the final layer norm is left out.
        depth = None if self.layer == self.encoder.num_layers else self.layer
        output = self.encoder(waveforms, lengths, up_to_layer=depth)
        if self.layer_weights is None:
            return output.last_hidden_state, output.lengths
        weights = self.layer_weights.softmax(0)
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        mixed = sum(weight * state for weight, state in zip(weights, states, strict=True))
        assert isinstance(mixed, Tensor)
        return mixed, output.lengths


class FilterbankFrames(nn.Module):
    """Frames of a network on log-mel features.

    Args:
        features: waveforms to features.
        network: features to frames.
        spec_augment: masks features where :class:`EmbeddingModel` is given keys; None: nothing.
    """

    def __init__(
        self, features: LogMel, network: nn.Module, spec_augment: SpecAugment | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.network = network
        self.spec_augment = spec_augment
        self.sample_rate = features.sample_rate
        sizes: Any = network
        self.output_size = int(sizes.output_size)
        self.minimum_samples = features.minimum_samples + (sizes.minimum_frames - 1) * features.hop

    def forward(
        self, waveforms: Tensor, lengths: LengthsLike | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T', C) and their lengths."""
        features, counts = self.features(waveforms, lengths)
        if keys is not None and self.spec_augment is not None:
            features, counts = self.spec_augment(features, counts, keys)
        frames, after = self.network(features, None if lengths is None else counts)
        return frames, after


def make_embedding(
    spec: EmbeddingSpec | str,
    *,
    encoder: Encoder | None = None,
    spec_augment: SpecAugment | None = None,
    seed: int = 0,
) -> EmbeddingModel:
    """An embedding model, what is new in it at random.

    Args:
        spec: what to make; a string is its backbone.
        encoder: for the backbone ``"encoder"``.
        spec_augment: of features; not for an encoder, which has its own.
        seed: of the weights.

    Raises:
        ArgumentError: a backbone that is not known; an encoder too few or too many.

    >>> model = make_embedding(EmbeddingSpec("xvector-64", size=32))
    >>> model(torch.randn(2, 16000), [16000, 8000]).shape
    torch.Size([2, 32])
    """
    spec = EmbeddingSpec(spec) if isinstance(spec, str) else spec
    if (encoder is None) == (spec.backbone == "encoder"):
        raise ArgumentError("encoder", f"does not go with the backbone {spec.backbone!r}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        frames: EncoderFrames | FilterbankFrames
        if encoder is not None:
            if spec_augment is not None:
                raise ArgumentError("spec_augment", "is of log-mel features; an encoder has none")
            frames = EncoderFrames(encoder, spec.layer)
        else:
            features = LogMel(spec.bands, normalize=spec.normalize)
            frames = FilterbankFrames(features, _network(spec), spec_augment)
        kind = spec.backbone.partition("-")[0]
        pooled: Any = _pooling(spec.pooling or _POOLING[kind], frames.output_size)
        channels = pooled.output_size(frames.output_size)
        if spec.affine == "none":
            spec = replace(spec, size=channels)
        return EmbeddingModel(frames, pooled, _affine(spec, kind, channels), spec)


def make_projector(channels: int, size: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, twice, and Linear: (N, channels) -> (N, size).

    No linear layer has a bias. In training it wants two rows or more, as batch norm does.

    Source: Lux, Chen & Vu, SLT 2022, after Zbontar et al., ICML 2021.
    """
    return nn.Sequential(
        nn.Linear(channels, size, bias=False), nn.BatchNorm1d(size), nn.ReLU(),
        nn.Linear(size, size, bias=False), nn.BatchNorm1d(size), nn.ReLU(),
        nn.Linear(size, size, bias=False),
    )  # fmt: skip


def _affine(spec: EmbeddingSpec, kind: str, channels: int) -> nn.Module:
    if spec.affine == "none":
        return nn.Identity()
    if spec.affine == "projector":
        return make_projector(channels, spec.size)
    layers: list[nn.Module] = [nn.Linear(channels, spec.size)]
    if kind == "ecapa":
        layers.insert(0, nn.BatchNorm1d(channels))
    return nn.Sequential(*layers)


def load_embedding(name_or_path: str | Path, **settings: Any) -> EmbeddingModel:
    """Load what :meth:`EmbeddingModel.save_pretrained` wrote, in eval mode.

    Args:
        name_or_path: a folder, or a name on the Hugging Face Hub.
        settings: ``device``, ``revision`` and ``local_files_only``, as
            :func:`speechft.models.load` takes them.

    Raises:
        ArgumentError: no such folder, not an embedding model, weights that do not fit, or an
            encoder that is another than the one it was made with.
    """
    from speechft.models.embedding_saving import read_embedding

    return read_embedding(name_or_path, **settings)


BACKBONES: dict[str, Any] = {"xvector": XVector, "ecapa": ECAPA, "resnet34": ResNet34}
_POOLING: dict[str, Pooling] = {
    "xvector": "statistics", "ecapa": "attentive", "resnet34": "statistics", "encoder": "attentive",
}  # fmt: skip


def _network(spec: EmbeddingSpec) -> nn.Module:
    kind, _, channels = spec.backbone.partition("-")
    network: nn.Module
    if not channels:
        network = BACKBONES[kind](spec.bands)
        return network
    if int(channels) < 8 or int(channels) % 8:
        raise ArgumentError("backbone", f"wants channels in eights, got {spec.backbone!r}")
    if kind == "resnet34":
        return ResNet34(spec.bands, channels=int(channels))
    # The last layer is wider by the published proportion, 1500 or 1536 to 512.
    wide = {"xvector": 1500, "ecapa": 1536}[kind]
    outputs = wide if kind == "ecapa" and int(channels) > 512 else wide * int(channels) // 512
    network = BACKBONES[kind](spec.bands, channels=int(channels), output_size=outputs)
    return network


def _pooling(name: Pooling, channels: int) -> nn.Module:
    if name == "mean":
        return MeanPooling()
    return StatisticsPooling() if name == "statistics" else AttentiveStatisticsPooling(channels)
