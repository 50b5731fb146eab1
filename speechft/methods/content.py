"""What methods for content share: views of an utterance, one encoder, a loss on their frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from speechft.errors import ConfigError
from speechft.methods.base import Method, MethodOutput
from speechft.models import Encoder, EncoderOutput

View = tuple[Tensor, Tensor]
"""Waveforms (B, T) and their valid samples (B,)."""


class ContentMethod(Method):
    """A method that makes views of each utterance and compares the frames of some of them.

    A step is in three parts, so that a mixture of methods can share the middle one: the views,
    the pass of the encoder that is tuned over those named in :attr:`encoded`, and the loss.

    Attributes:
        encoded: views that the tuned encoder is to encode.
    """

    encoded: ClassVar[tuple[str, ...]]

    def views(self, batch: Mapping[str, Tensor]) -> dict[str, View]:
        """Views of the utterances of a batch, by name; what is drawn is drawn by its ``keys``.

        Args:
            batch: what :attr:`inputs` names.
        """
        raise NotImplementedError

    def objective(
        self,
        batch: Mapping[str, Tensor],
        views: Mapping[str, View],
        frames: Mapping[str, EncoderOutput],
    ) -> MethodOutput:
        """The loss, a mean over utterances, with a vector of each.

        Args:
            batch: what :attr:`inputs` names.
            views: from :meth:`views`.
            frames: of the views in :attr:`encoded`, by the tuned encoder.
        """
        raise NotImplementedError

    def forward(
        self, waveforms: Tensor, lengths: Tensor, keys: Tensor, **others: Tensor
    ) -> MethodOutput:
        """The loss of a batch of utterances; see :class:`~speechft.methods.Method`."""
        batch = {"waveforms": waveforms, "lengths": lengths, "keys": keys, **others}
        with self.stopwatch("augmentation"):
            views = self.views(batch)
        with self.stopwatch("encoder"):
            frames = {name: self.encoder(*views[name]) for name in self.encoded}
        return self.objective(batch, views, frames)


def tune_top(encoder: Encoder, layers: int) -> None:
    """Freeze all of an encoder but its top transformer layers.

    Raises:
        ConfigError: more layers than there are.
    """
    if layers > encoder.num_layers:
        raise ConfigError(
            f"tuned_layers: the encoder has {encoder.num_layers} layers, got {layers}"
        )
    encoder.freeze_all_but_top(layers)


def make_connector(inputs: int, outputs: int, *, mlp: bool, seed: int) -> nn.Sequential:
    """The projection from the encoder's size, the same for the same seed."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
        if mlp:
            layers += [nn.ReLU(), nn.Linear(outputs, outputs)]
        return nn.Sequential(*layers)


def project(connector: nn.Module, features: Tensor) -> Tensor:
    """Frames of unit length, from a connector."""
    dtype = next(connector.parameters()).dtype
    projected = cast(Tensor, connector(features.to(dtype)))
    return torch_functional.normalize(projected, dim=-1)


def same_length(*views: View) -> tuple[View, ...]:
    """The same views, padded on the right to the longest of them."""
    longest = max(waveforms.shape[1] for waveforms, _ in views)
    return tuple(
        (torch_functional.pad(waveforms, (0, longest - waveforms.shape[1])), lengths)
        for waveforms, lengths in views
    )
