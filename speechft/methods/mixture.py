r"""Mixtures: several methods on one encoder, at once.

.. math::

    L = \sum_m w_m L_m + w_\perp \sum_{c, s} \Bigl\| \tfrac 1 B \hat Z_c^\top \hat Z_s \Bigr\|_F^2

Each method has a head of its own on the encoder that all of them tune. Methods for content
(:math:`c`: SCORE, LASER, Spin) compare frames, DINO (:math:`s`) vectors of utterances, which keep
what a speaker is; orthogonality of the two kinds of vectors keeps them apart. A view that two
methods share goes through the encoder once.

A mixture of one method is that method, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from speechft.data import SpeechDataset
from speechft.errors import ConfigError
from speechft.losses import OrthogonalityLoss
from speechft.methods.base import Method, MethodConfig, MethodOutput, check_numbers
from speechft.methods.content import ContentMethod, View
from speechft.methods.dino import Dino
from speechft.methods.dino_config import DinoConfig
from speechft.methods.laser import Laser, LaserConfig
from speechft.methods.score import Score, ScoreConfig
from speechft.methods.spin import Spin
from speechft.methods.spin_config import SpinConfig
from speechft.methods.weights import parse_weights
from speechft.models import EmbeddingSpec, Encoder, EncoderOutput, make_embedding
from speechft.training.loader import TrainingData
from speechft.training.settings import TrainingSettings
from speechft.training.trainable import Bounds

_CONTENT: dict[str, type[ContentMethod]] = {kind.name: kind for kind in (Score, Laser, Spin)}
_MEMBERS: dict[str, type[Method]] = {**_CONTENT, Dino.name: Dino}


@dataclass(frozen=True)
class MixtureConfig(MethodConfig):
    """Settings of a mixture.

    Args:
        objectives: the methods, each with its weight: ``"score:1.0"``, ``"dino:0.1"``; of
            ``score``, ``laser``, ``spin``, ``dino``.
        tuned_layers: transformer layers tuned, counted from the top, for all of them.
        orthogonality_weight: between vectors of content and of DINO; None: 0.1 where
            there are both. (At 1 its gradient was three times that of SCORE on hubert-mini.)
        score, laser, spin, dino: the settings of each; ``tuned_layers`` is that of the mixture.

    Raises:
        ConfigError: a method that is not known or there twice, a weight that is no number above 0,
            settings of a method that is not among the objectives.
    """

    objectives: tuple[str, ...] = ("score:1.0", "dino:0.1")
    tuned_layers: int = 2
    orthogonality_weight: float | None = None
    score: ScoreConfig = field(default_factory=ScoreConfig)
    laser: LaserConfig = field(default_factory=LaserConfig)
    spin: SpinConfig = field(default_factory=SpinConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)

    def __post_init__(self) -> None:
        weights = self.weights
        check_numbers(self, at_least={"tuned_layers": 1, "orthogonality_weight": 0})
        for name, kind in _MEMBERS.items():
            if name not in weights and getattr(self, name) != kind.Config():
                raise ConfigError(
                    f"{name}: has settings, but is no objective; add {name}:WEIGHT to objectives"
                )
        both = Dino.name in weights and len(weights) > 1
        if self.orthogonality_weight and not both:
            raise ConfigError(
                "orthogonality_weight: is between an objective for content and dino; "
                f"objectives are {', '.join(weights)}"
            )

    @property
    def weights(self) -> dict[str, float]:
        """Of each objective, by name."""
        return parse_weights(self.objectives, _MEMBERS, setting="objectives")

    @property
    def apart(self) -> float:
        """The weight of orthogonality."""
        weights = self.weights
        if self.orthogonality_weight is None:
            return 0.1 if Dino.name in weights and len(weights) > 1 else 0.0
        return self.orthogonality_weight

    def of(self, name: str) -> Any:
        """The settings of a method, with the layers of the mixture."""
        return replace(getattr(self, name), tuned_layers=self.tuned_layers)


class Mixture(Method):
    """Several methods on an encoder, which is tuned in place.

    What comes out is the encoder, with the heads that methods save; DINO's embedding model, its
    teacher, is in the folder ``dino`` beside it.

    Args:
        encoder: from :func:`speechft.models.load`.
        config: its settings.
        seed: of all that is new.

    Raises:
        ConfigError: as the methods.
    """

    name = "mixture"
    source = "several methods at once"
    Config = MixtureConfig

    def __init__(
        self, encoder: Encoder, config: MixtureConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings = config = config or MixtureConfig()
        self.weights = config.weights
        self.members = nn.ModuleDict()
        tuned: set[str] = set()
        for name in self.weights:
            member = _make(encoder, name, config.of(name), seed)
            member.stopwatch = self.stopwatch
            self.members[name] = member
            tuned |= {n for n, p in encoder.named_parameters() if p.requires_grad}
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name in tuned)
        # Each tensor is registered once, or a checkpoint would hold it several times. DINO's
        # teacher follows the whole of its student, so there the encoder stays.
        for member in self.content.values():
            _hold(member, "encoder")
        self.encoder = encoder
        if Dino.name in self.members:
            _hold(self, "encoder")
        self.orthogonality = OrthogonalityLoss("feature")
        self.inputs = tuple(dict.fromkeys(n for m in self.methods.values() for n in m.inputs))
        self._parts: dict[str, Tensor] = {}
        self.train(self.training)

    @property
    def methods(self) -> dict[str, Method]:
        """All of them, by name."""
        return cast("dict[str, Method]", dict(self.members.items()))

    @property
    def content(self) -> dict[str, ContentMethod]:
        """Those for content."""
        return {n: m for n, m in self.methods.items() if isinstance(m, ContentMethod)}

    @classmethod
    def shortest(cls, config: Any) -> tuple[float, Literal["fail", "drop", "repeat"]]:
        """See :class:`Method`: what the most demanding of them wants."""
        wanted = [_MEMBERS[name].shortest(config.of(name)) for name in config.weights]
        return max(wanted, key=lambda each: each[0])

    def forward(
        self, waveforms: Tensor, lengths: Tensor, keys: Tensor, **others: Tensor
    ) -> MethodOutput:
        """The weighted loss of a batch of utterances; see :class:`~speechft.methods.Method`."""
        batch = {"waveforms": waveforms, "lengths": lengths, "keys": keys, **others}
        outputs = self._of_content(batch)
        if Dino.name in self.members:
            outputs[Dino.name] = self.members[Dino.name](waveforms, lengths, keys)
        loss = sum(self.weights[name] * outputs[name].loss for name in self.weights)
        assert isinstance(loss, Tensor)
        self._parts = {name: output.loss.detach() for name, output in outputs.items()}
        if self.settings.apart:
            with self.stopwatch("loss"):
                apart = self._apart(outputs)
            loss = loss + self.settings.apart * apart
            self._parts["orthogonality"] = apart.detach()
        return MethodOutput(loss, {})

    def _of_content(self, batch: Mapping[str, Tensor]) -> dict[str, MethodOutput]:
        """Outputs of the methods for content, every view of theirs encoded once."""
        passes: list[tuple[View, EncoderOutput]] = []
        outputs = {}
        for name, member in self.content.items():
            own = {part: batch[part] for part in member.inputs}
            with self.stopwatch("augmentation"):
                views = member.views(own)
            frames = {}
            for view in member.encoded:
                known = (f for v, f in passes if v[0] is views[view][0] and v[1] is views[view][1])
                found = next(known, None)
                if found is None:
                    with self.stopwatch("encoder"):
                        found = self.encoder(*views[view])
                    passes.append((views[view], found))
                frames[view] = found
            outputs[name] = member.objective(own, views, frames)
        return outputs

    def _apart(self, outputs: Mapping[str, MethodOutput]) -> Tensor:
        """Orthogonality of DINO's vectors and those of each method for content."""
        speaker = outputs[Dino.name].vectors
        found = []
        for name in self.content:
            vectors = outputs[name].vectors
            assert speaker is not None
            assert vectors is not None
            found.append(self.orthogonality(vectors, speaker))
        return torch.stack(found).sum()

    def at_step(self, step: int, steps: int) -> None:
        """See :class:`~speechft.training.trainable.Trainable`."""
        for member in self.methods.values():
            member.at_step(step, steps)

    def before_update(self) -> None:
        """See :class:`~speechft.training.trainable.Trainable`."""
        for member in self.methods.values():
            member.before_update()

    def after_update(self) -> None:
        """See :class:`~speechft.training.trainable.Trainable`."""
        for member in self.methods.values():
            member.after_update()

    def monitors(self) -> dict[str, Tensor]:
        """The loss of each method, and its monitors as METHOD.NAME."""
        found = {
            f"{name}.{key}": value
            for name, member in self.methods.items()
            for key, value in member.monitors().items()
        }
        return {**self._parts, **found}

    def bounds(self) -> Mapping[str, Bounds]:
        """See :class:`~speechft.training.trainable.Trainable`: those of all methods."""
        return {
            f"{name}.{key}": bounds
            for name, member in self.methods.items()
            for key, bounds in member.bounds().items()
        }

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """See :class:`~speechft.training.trainable.Trainable`."""
        return "; ".join(f"of {name}: {member.remedy}" for name, member in self.methods.items())

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """What the methods ask for: with DINO, batches are drawn from all utterances."""
        asked = {n: m.training_data(dataset, settings, output) for n, m in self.methods.items()}
        # Spin's may hold labels of frames, and has all that the others want.
        data = asked[Spin.name if Spin.name in asked else next(iter(asked))]
        if Dino.name in asked:
            data = replace(data, batches=asked[Dino.name].batches)
        return data

    def save(self, output: Path) -> None:
        """Write the encoder, what methods have beside it, and DINO's embedding model."""
        self.encoder.eval().save_pretrained(output)
        for member in self.content.values():
            member.save(output)
        if Dino.name in self.members:
            self.methods[Dino.name].save(output / Dino.name)


def _make(encoder: Encoder, name: str, config: Any, seed: int) -> Method:
    if name in _CONTENT:
        return _CONTENT[name](encoder, config, seed=seed)  # type: ignore[call-arg]
    spec = EmbeddingSpec("encoder", size=config.size, pooling=config.pooling, layer=config.layer)
    return Dino(make_embedding(spec, encoder=encoder, seed=seed), config, seed=seed)


def _hold(module: nn.Module, name: str) -> None:
    """Keep a submodule at hand under its name, but no longer as a part."""
    module.__dict__[name] = module._modules.pop(name)
