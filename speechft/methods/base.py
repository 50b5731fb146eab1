"""What every refinement method is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from speechft.data import SpeechDataset
from speechft.errors import ConfigError
from speechft.models import Encoder, load
from speechft.training.loader import TrainingData, speech_data
from speechft.training.settings import TrainingSettings
from speechft.training.trainable import Trainable


class MethodOutput(NamedTuple):
    """The loss of a batch, a mean over its utterances, and what else is worth a log line.

    ``vectors`` (B, D), if there are any, are what the method's own head makes of each utterance:
    what a loss between methods, such as orthogonality, is of.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    vectors: Tensor | None = None


@dataclass(frozen=True)
class MethodConfig:
    """Base of the settings of a method."""


class Method(Trainable):
    """A refinement method: it holds the encoder and all else that trains or must be saved.

    Frozen targets, teachers, centres and schedules are submodules or buffers, so a checkpoint of
    the module is a checkpoint of the method. :attr:`encoder` is what comes out refined.

    ``forward`` gives a :class:`MethodOutput` of what :attr:`inputs` names; for most methods
    ``waveforms`` (B, T) at the encoder's rate, ``lengths`` (B,) valid samples, and ``keys`` (B,)
    int64, from (seed, epoch, utterance), from which comes all that is drawn.

    Attributes:
        name: what :func:`speechft.methods.get` and the command line call it.
        source: the paper.
        Config: its settings.
        training_defaults: settings of training that differ from those of
            :class:`speechft.training.TrainingSettings`, as published.
        presets: settings that were published, by name; each has ``config`` and ``training``, what
            differs from the defaults of :attr:`Config` and of
            :class:`speechft.training.TrainingSettings`.
        encoder_name: what the encoder was loaded by, where that is no folder.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    encoder_name: str | None = None

    encoder: Encoder
    forward: Callable[..., MethodOutput]

    @classmethod
    def load(cls, name: str | Path, config: Any, *, seed: int) -> Any:
        """The model that the method refines: an encoder, unless a method says else.

        Args:
            name: what the user calls it.
            config: of the method.
            seed: of what is new in it.
        """
        return load(name)

    @classmethod
    def preset(cls, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Published settings: of the method, and of training.

        Args:
            name: one of :attr:`presets`, or a YAML file of settings of either kind.

        Raises:
            ConfigError: no such preset or file, or a key in it that is no setting; with the
                nearest that is.
        """
        return read_preset(cls, name)

    @classmethod
    def make(cls, model: Any, config: Any, dataset: SpeechDataset, *, seed: int) -> Method:
        """The method on a model, for the data that it is to be trained on."""
        return cls(model, config, seed=seed)  # type: ignore[call-arg]

    @classmethod
    def shortest(cls, config: Any) -> tuple[float, Literal["fail", "drop", "repeat"]]:
        """Seconds that an utterance wants, and what becomes of shorter ones.

        See :class:`speechft.data.SpeechDataset`.
        """
        return 0.0, "fail"

    @classmethod
    def labels(cls, config: Any) -> tuple[str, ...]:
        """Labels of the manifest that become ``factors`` of a batch, in this order."""
        return ()

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """What to train on: waveforms in batches of similar lengths, unless a method says else.

        Args:
            dataset: the utterances.
            settings: of the run.
            output: the run's folder, for what is worth keeping.
        """
        return speech_data(dataset, settings)

    def save(self, output: Path) -> None:
        """Write what comes out: the refined encoder, unless a method says else."""
        self.encoder.eval().save_pretrained(output)

    def tuned(self) -> list[str]:
        """Names of the encoder's tensors that train, as the plain model calls them."""
        return [name for name, p in self.encoder.hf_model.named_parameters() if p.requires_grad]


def check_numbers(
    config: Any, *, at_least: Mapping[str, float] | None = None, above_0: tuple[str, ...] = ()
) -> None:
    """Refuse settings that are out of range.

    Raises:
        ConfigError: with the name of the first.
    """
    for name, lowest in (at_least or {}).items():
        value = getattr(config, name)
        if value is not None and not lowest <= value < float("inf"):
            raise ConfigError(f"{name}: wants at least {lowest:g}, got {value}")
    for name in above_0:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name}: wants a number above 0, got {value}")


def read_preset(kind: type[Method], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See :meth:`Method.preset`."""
    if name in kind.presets:
        chosen = kind.presets[name]
        return dict(chosen["config"]), {**kind.training_defaults, **chosen["training"]}
    if not Path(name).is_file():
        near = difflib.get_close_matches(name, kind.presets, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(kind.presets)}"
        raise ConfigError(f"preset: no {name!r}, and no such file; {hint}")
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: wants keys and values, got a {type(content).__name__}")
    config, training = (
        {field.name for field in fields(of)} for of in (kind.Config, TrainingSettings)
    )
    for key in content:
        if key not in config | training:
            near = difflib.get_close_matches(str(key), config | training, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{name}: no setting {key!r}{hint}")
    return (
        {key: value for key, value in content.items() if key in config},
        {**kind.training_defaults, **{k: v for k, v in content.items() if k in training}},
    )
