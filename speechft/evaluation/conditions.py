"""What is done to speech before it is tested: played faster or slower, or shifted in pitch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speechft.augment import Pitch, Speed
from speechft.augment.base import Augmentation
from speechft.errors import ArgumentError

UNCHANGED = "unchanged"

CHANGED = ("speed 0.85", "speed 1.15", "pitch -3", "pitch +3")
"""Conditions that stand in for other voices where a corpus has no content in two of them."""


@dataclass(frozen=True)
class Condition:
    """A fixed change of the waveform.

    Attributes:
        name: ``"unchanged"``, ``"speed 0.85"`` or ``"pitch +3"`` (semitones, duration kept).
        speed: how many seconds of the original a second of the result holds.
    """

    name: str
    speed: float
    augmentation: Augmentation | None

    @staticmethod
    def parse(name: str) -> Condition:
        """From its name.

        Raises:
            ArgumentError: another name, or a number out of the augmentation's range.
        """
        kind, _, value = name.strip().partition(" ")
        if name == UNCHANGED:
            return Condition(UNCHANGED, 1.0, None)
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if kind not in ("speed", "pitch") or number != number:
            raise ArgumentError(
                "conditions",
                f"wants 'unchanged', 'speed FACTOR' or 'pitch SEMITONES', got {name!r}",
            )
        if kind == "speed":
            return Condition(f"speed {number:g}", number, Speed((number,)))
        return Condition(f"pitch {number:+g}", 1.0, Pitch((number,)))

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) and their lengths, changed."""
        if self.augmentation is None:
            return waveforms, lengths
        keys = torch.zeros(len(waveforms), dtype=torch.int64)
        changed: tuple[Tensor, Tensor] = self.augmentation(waveforms, lengths, keys)
        return changed
