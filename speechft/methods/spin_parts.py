"""What Spin is put together from: another voice, noise, labels of crops."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechft.augment import Augmentation, Compose, Equaliser, Voice, load_chain
from speechft.errors import ConfigError
from speechft.models import Encoder

LABELS = "frame_labels"
"""The part of a batch that has pseudo-labels of the frames of whole utterances: (B, F), -1 beyond
them."""


class SpeakerPerturbation(nn.Module):
    """Another voice, then a random equaliser, clipped to -1..1; every frame stays where it is.

    Args:
        formant: the most that formants are moved by, a ratio.
        pitch: likewise of the pitch.
        decibels: the most that a band is raised or lowered by.
        sample_rate: samples in a second.
    """

    def __init__(self, formant: float, pitch: float, decibels: float, *, sample_rate: int) -> None:
        super().__init__()
        equaliser = Equaliser(decibels=(-decibels, decibels), sample_rate=sample_rate)
        self.chain = Compose([Voice(formant, pitch), equaliser])

    def forward(self, waveforms: Tensor, lengths: Tensor, keys: Tensor) -> Tensor:
        """(B, T) to (B, T'), T' at least the longest valid length, which are as they were."""
        perturbed: Tensor = self.chain(waveforms, lengths, keys)[0]
        return perturbed.clamp(-1, 1)


def noise(augmentation: str, sample_rate: int) -> Augmentation | None:
    """What ``augmentation`` says.

    Raises:
        ConfigError: no chain, or one that moves frames.
    """
    if augmentation == "none":
        return None
    chain = load_chain(augmentation, sample_rate=sample_rate)
    if "timing" in chain.changes:
        moves = [m for m in chain.members if "timing" in m.changes]
        raise ConfigError(
            f"augmentation: {type(moves[0]).__name__} changes timing, and frames of the two views "
            "are compared one by one; leave it out"
        )
    return chain


def hop_of(encoder: Encoder) -> int:
    """Samples between two frames."""
    return math.prod(encoder.config.conv_stride)


def labels_of_crops(labels: Tensor, first: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """Labels of the frames of crops.

    Args:
        labels: (B, F) of whole utterances.
        first: (B,) the frame that each crop begins with.
        lengths: (B,) frames of it.
        steps: T'.

    Returns:
        Tensor (B, T'), -1 beyond each length.
    """
    step = torch.arange(steps, device=labels.device)
    index = (first[:, None] + step).clamp(max=labels.shape[1] - 1)
    return labels.gather(1, index).masked_fill(step >= lengths[:, None], -1)
