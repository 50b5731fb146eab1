"""What every refinement method is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from speechft.models import Encoder
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

    Attributes:
        name: what :func:`speechft.methods.get` and the command line call it.
        source: the paper.
        Config: its settings.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    encoder: Encoder

    def forward(self, waveforms: Tensor, lengths: Tensor, keys: Tensor) -> MethodOutput:
        """The loss of a batch.

        Args:
            waveforms: (B, T) at the encoder's rate.
            lengths: (B,) valid samples.
            keys: (B,) int64, from (seed, epoch, utterance); all that is drawn comes from them.
        """
        raise NotImplementedError

    def tuned(self) -> list[str]:
        """Names of the encoder's tensors that train, as the plain model calls them."""
        return [name for name, p in self.encoder.hf_model.named_parameters() if p.requires_grad]
