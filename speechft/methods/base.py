"""What every refinement method is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from speechft.data import SpeechDataset
from speechft.models import Encoder
from speechft.training.loader import TrainingData, speech_data
from speechft.training.settings import TrainingSettings
from speechft.training.trainable import Trainable


class MethodOutput(NamedTuple):
    """The loss of a batch, a mean over its utterances, and what else is worth a log line."""

    loss: Tensor
    metrics: dict[str, Tensor]


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
        encoder_name: what the encoder was loaded by, where that is no folder.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    encoder_name: str | None = None

    encoder: Encoder
    forward: Callable[..., MethodOutput]

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
