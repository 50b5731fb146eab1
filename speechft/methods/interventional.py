r"""Interventional refinement: a grid of speech splits the space into subspaces.

Every voice says every text, so two utterances differ in one factor and in nothing else. A transform
of a frozen encoder's pooled features is cut into subspaces, one a factor: in each, utterances with
the same value of its factor attract, all others repel, and the subspaces are kept apart:

.. math::

    L = w_c \sum_k L_{\text{SupCon}}(z^{(k)}, f_k)
        + w_o \operatorname{mean}_{j < k} L_{\text{orth}}(z^{(j)}, z^{(k)})
        + w_l \sum_k \sum_{j \ne k} R^2(f_j \mid z^{(k)})

The last term, off by default, is the leakage: the share of another factor's variance that ridge
regression finds in a subspace. ``fit="discriminant"`` takes the transform in closed form instead
(:mod:`speechft.methods.discriminant`).

Source: Cox & Barker, "Learning task-specific subspaces via interventional post-training of speech
foundation models", Interspeech 2026.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from speechft.data import SpeechDataset
from speechft.errors import ArgumentError, ConfigError
from speechft.functional import orthogonality
from speechft.losses import FactorSupConLoss
from speechft.methods.base import Method, MethodConfig, MethodOutput
from speechft.models import Encoder, SubspaceModel
from speechft.training.loader import TrainingData
from speechft.training.settings import TrainingSettings


@dataclass(frozen=True)
class InterventionalConfig(MethodConfig):
    """Settings of interventional refinement; the defaults are the paper's.

    Args:
        factors: subspace -> label of the manifest whose equality it is to show. The first is the
            rows of the grid, the second its columns.
        sizes: subspace -> dimensions; one without a factor is residual: only kept apart.
        layer: 0 to the number of layers; None: the last.
        weighted_layers: learn a weighting of all layers in place of one.
        hidden_sizes: of the MLP; empty for a linear transform.
        fit: ``"gradient"``, as published; ``"discriminant"``, a linear transform in closed form
            and no steps; or ``"both"``, steps from the closed form.
        recorded_share: of the closed form: how much utterances count that have a label of one
            factor alone, such as recordings of people; 0 to below 1. None: they count like any.
        noise_weights: of the closed form: subspace -> how much the effects of other factors count
            among its noise; 1 where not named.
        temperature: of the contrastive losses.
        contrastive_weight, orthogonality_weight: of the two published terms.
        orthogonality: ``"feature"``, as the code has it today, or ``"sample"``, as it had it when
            the paper was written.
        legacy: scale the first as published: a mean over entries, which grows with the batch.
        leakage_weight: of the penalty on what a subspace knows of another's factor.
        leakage_ridge: of that regression, in units of the mean variance of a dimension.
        segment_frames: also learn from segments of so many frames, cut at the same place of the
            text in every voice (aligned by dynamic time warping); 1 is single frames; 0: none.
        rows: voices in a batch; None: as even as possible (16 x 32 of 512).
        precompute: compute the encoder's features once and keep them; False: in every step.
        features: folder of what is precomputed; None: in the run's.
        augmentation: a YAML chain that perturbs waveforms in every step; wants ``precompute``
            false.
        tuned_layers: transformer layers of the encoder tuned as well, from the top; wants
            ``precompute`` false.

    Raises:
        ConfigError: a value out of range, or settings that contradict each other.
    """

    factors: dict[str, str] = field(
        default_factory=lambda: {"speaker": "speaker", "content": "text"}
    )
    sizes: dict[str, int] = field(default_factory=lambda: {"speaker": 384, "content": 384})
    layer: int | None = None
    weighted_layers: bool = False
    hidden_sizes: tuple[int, ...] = (768, 768)
    fit: Literal["gradient", "discriminant", "both"] = "gradient"
    recorded_share: float | None = None
    noise_weights: dict[str, float] = field(default_factory=dict)
    temperature: float = 0.1
    contrastive_weight: float = 1.0
    orthogonality_weight: float = 1.0
    orthogonality: Literal["feature", "sample"] = "feature"
    legacy: bool = True
    leakage_weight: float = 0.0
    leakage_ridge: float = 1.0
    segment_frames: int = 0
    rows: int | None = None
    precompute: bool = True
    features: str | None = None
    augmentation: str | None = None
    tuned_layers: int = 0

    def __post_init__(self) -> None:
        if len(self.factors) < 2 or len(set(self.factors.values())) < len(self.factors):
            raise ConfigError(f"factors: wants two labels or more, all different: {self.factors}")
        missing = [name for name in self.factors if name not in self.sizes]
        if missing:
            raise ConfigError(f"sizes: has none for {missing[0]!r}, which factors names")
        for name in ("contrastive_weight", "orthogonality_weight", "leakage_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: wants a number from 0 on, got {getattr(self, name)}")
        for name in ("temperature", "leakage_ridge"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: wants a number above 0, got {getattr(self, name)}")
        for name, weight in self.noise_weights.items():
            if name not in self.factors or not 0 < weight < float("inf"):
                raise ConfigError(
                    f"noise_weights: wants a number above 0 for subspaces of factors, got {weight} "
                    f"for {name!r}"
                )
        if self.recorded_share is not None and not 0 <= self.recorded_share < 1:
            raise ConfigError(f"recorded_share: wants 0 to below 1, got {self.recorded_share}")
        if self.fit == "gradient" and (self.recorded_share is not None or self.noise_weights):
            raise ConfigError("fit: recorded_share and noise_weights are of a closed form")
        for name in ("segment_frames", "tuned_layers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: wants 0 or more, got {getattr(self, name)}")
        if self.fit != "gradient" and (self.hidden_sizes or self.weighted_layers):
            raise ConfigError(
                f"fit: {self.fit!r} is of a linear transform of one layer; set hidden_sizes to [] "
                "and weighted_layers to false"
            )
        if self.precompute and (self.augmentation or self.tuned_layers):
            raise ConfigError("precompute: augmentation and tuned_layers want it to be false")
        if not self.precompute and (self.segment_frames or self.fit != "gradient"):
            raise ConfigError("precompute: segment_frames and a closed form want it to be true")


class Interventional(Method):
    """Interventional refinement of an encoder, which stays frozen unless told otherwise.

    What comes out is a :class:`speechft.models.SubspaceModel`.

    Args:
        encoder: from :func:`speechft.models.load`.
        config: its settings.
        seed: of the transform's weights.

    Raises:
        ConfigError, ArgumentError: a layer or a size that cannot be.
    """

    name = "interventional"
    source = "Cox & Barker, Interventional post-training, Interspeech 2026"
    Config = InterventionalConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 800, "batch_size": 512, "learning_rate": 1e-4, "schedule": "one_cycle",
        "max_grad_norm": 0.0, "evaluate_utterances": 512,
    }  # fmt: skip

    def __init__(
        self, encoder: Encoder, config: InterventionalConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        config = config or InterventionalConfig()
        self.settings = config
        if config.tuned_layers > encoder.num_layers:
            raise ConfigError(
                f"tuned_layers: the encoder has {encoder.num_layers} layers, "
                f"got {config.tuned_layers}"
            )
        encoder.freeze_all_but_top(config.tuned_layers)
        self.model = SubspaceModel(
            encoder,
            config.sizes,
            layer=config.layer,
            weighted_layers=config.weighted_layers,
            hidden_sizes=config.hidden_sizes,
            seed=seed,
        )
        self.inputs = (
            ("features", "factors")
            if config.precompute
            else ("waveforms", "lengths", "keys", "factors")
        )
        if config.fit == "discriminant":
            self.model.transform.requires_grad_(False)
        self.contrast = FactorSupConLoss(temperature=config.temperature)
        self.perturb: Any = None
        if config.augmentation is not None:
            from speechft.augment import load_chain

            self.perturb = load_chain(config.augmentation)
        self.train(self.training)

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """Of the model. A second submodule would be saved twice, which safetensors refuse."""
        return self.model.encoder

    def train(self, mode: bool = True) -> Interventional:
        """Training mode; an encoder that is frozen stays in eval mode."""
        super().train(mode)
        self.encoder.train(mode and self.settings.tuned_layers > 0)
        return self

    @classmethod
    def labels(cls, config: InterventionalConfig) -> tuple[str, ...]:
        """See :class:`Method`."""
        return tuple(config.factors.values())

    def forward(
        self,
        factors: Tensor,
        features: Tensor | None = None,
        waveforms: Tensor | None = None,
        lengths: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> MethodOutput:
        """The loss of a block of the grid.

        Args:
            factors: (B, K) integers, -1 for unknown.
            features: (B, V, K', C): V views of each utterance (the whole, segments) in the layers
                used; or these of the utterances:
            waveforms: (B, T) at the encoder's rate.
            lengths: (B,) valid samples.
            keys: (B,) int64, for the augmentation.
        """
        if features is None:
            assert waveforms is not None
            assert keys is not None
            if self.perturb is not None:
                with self.stopwatch("augmentation"):
                    waveforms, lengths = self.perturb(waveforms, lengths, keys)
            features = self.model.pool_layers(waveforms, lengths)[:, None]
        z = self.model.transform(self.model.mix(features))
        with self.stopwatch("loss"):
            losses = [self.loss(view, factors) for view in z.unbind(1)]
            return MethodOutput(torch.stack(losses).mean(), {})

    def loss(self, z: Tensor, factors: Tensor) -> Tensor:
        """Of the vectors (B, D) of one view."""
        config = self.settings
        spaces = self.model.split(z)
        own = [spaces[name] for name in config.factors]
        value = config.contrastive_weight * cast(Tensor, self.contrast(own, factors))
        pairs = list(itertools.combinations(spaces.values(), 2))
        if config.orthogonality_weight:
            apart = [
                orthogonality(one, other, form=config.orthogonality, legacy=config.legacy)
                for one, other in pairs
            ]
            value = value + config.orthogonality_weight * torch.stack(apart).mean()
        if config.leakage_weight:
            leaks = [
                leakage(space, factors[:, column], ridge=config.leakage_ridge)
                for name, space in spaces.items()
                for column, other in enumerate(config.factors)
                if other != name and name in config.factors
            ]
            value = value + config.leakage_weight * torch.stack(leaks).sum()
        return value

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """Blocks of the grid; see :class:`Method`.

        Raises:
            ConfigError: a factor that has one value, or that no batch can pair.
        """
        from speechft.methods.grid_data import feature_data, waveform_data

        if settings.max_batch_seconds is not None and self.settings.precompute:
            raise ConfigError("max_batch_seconds: features have no length; leave it out")
        if not self.settings.precompute:
            return waveform_data(dataset, settings, self.settings)
        folder = output if self.settings.features is None else Path(self.settings.features)
        data, store = feature_data(
            self.model, dataset, settings, self.settings, folder / "features"
        )
        if self.settings.fit != "gradient":
            self.solve(torch.from_numpy(store.pooled[:, 0]), dataset.factors)
        return data

    def solve(self, features: Tensor, factors: Tensor) -> None:
        """Put the closed form into the transform: features (N, C), factors (N, K)."""
        from speechft.methods.discriminant import directions

        linear = cast(nn.Linear, self.model.transform[0])
        weights, biases = [], []
        for name, size in self.model.subspaces.items():
            if name not in self.settings.factors:
                raise ConfigError(f"sizes: {name!r} has no factor, so it has no closed form")
            column = list(self.settings.factors).index(name)
            weight, bias = directions(
                features, factors, column, size,
                recorded_share=self.settings.recorded_share,
                noise_weight=self.settings.noise_weights.get(name, 1.0),
            )  # fmt: skip
            weights.append(weight)
            biases.append(bias)
        with torch.no_grad():
            linear.weight.copy_(torch.cat(weights))
            linear.bias.copy_(torch.cat(biases))

    def save(self, output: Path) -> None:
        """Write the subspace model."""
        tuned = self.settings.tuned_layers > 0
        self.model.encoder_name = None if tuned else self.encoder_name
        self.model.eval().save_pretrained(output)


def leakage(z: Tensor, labels: Tensor, *, ridge: float = 1.0) -> Tensor:
    r"""The share of a label's variance that ridge regression finds in vectors: 0 to 1.

    With vectors Z (B, D) of unit length, centred, P the projection on the indicators of the K
    values, C = Z'Z / B and the mean variance :math:`\bar c = \operatorname{tr} C / D`,

    .. math:: R^2 = \frac 1 {B (K - 1)}
        \operatorname{tr}\, (C + \rho \bar c I)^{-1} Z^\top P Z

    It is a linear probe at its optimum, so there is no adversary to train.

    Args:
        z: (B, D).
        labels: (B,) integers; -1 for unknown: not counted.
        ridge: :math:`\rho`.

    Raises:
        ArgumentError: labels of another length.
    """
    if labels.shape != z.shape[:1]:
        raise ArgumentError("labels", f"wants shape {tuple(z.shape[:1])}, got {labels.shape}")
    known = (labels >= 0).float()[:, None]
    with torch.autocast(z.device.type, enabled=False):
        unit = torch_functional.normalize(z.float(), dim=1)
        count = known.sum().clamp(min=1)
        unit = (unit - (unit * known).sum(0) / count) * known
        same = (labels[:, None] == labels[None]).float() * known * known.T
        projection = same / same.sum(1, keepdim=True).clamp(min=1)
        between = unit.T @ (projection @ unit) / count
        covariance = unit.T @ unit / count
        mean = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        penalised = covariance + ridge * mean * torch.eye(len(covariance), device=z.device)
        values = projection.diagonal().sum()
        found: Tensor = torch.linalg.solve(penalised, between)
        return found.trace() / (values - 1).clamp(min=1)
