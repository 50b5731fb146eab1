"""Pitch perturbation: the pitch moves, the duration stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechft.augment.base import (
    KeyedChoice,
    check_choices,
    per_sample,
    values_are_at_hand,
    zero_padding,
)
from speechft.augment.parameters import Parameters
from speechft.augment.resample import ZERO_CROSSINGS, nearest_fraction, resample, resampled_length
from speechft.augment.resample_choices import resample_choices
from speechft.augment.vocoder import stretch
from speechft.errors import ArgumentError

MOST_SEMITONES = 24.0
CENTS = 1.0


class Pitch(KeyedChoice):
    r"""Shift the pitch of each sample by semitones that its key draws, each value as likely.

    A phase vocoder makes the clip :math:`2^{n/12}` times as long
    (:mod:`speechft.augment.vocoder`), and playing it :math:`2^{n/12}` times as fast
    (:mod:`speechft.augment.resample`) brings the duration back and the pitch, formants included,
    to its new place. The defaults are SCORE's (Meghanani and Hain, ICASSP 2024): two semitones up
    or down, by a fair coin. Zero semitones pass the bits unchanged.

    The ratio is the fraction of the smallest denominator within 1 cent of :math:`2^{n/12}`
    (46/41 for two semitones, 0.8 cents flat); a listener needs 5 cents or more. It is what makes
    the shift cheap, where :math:`16000 \cdot 2^{n/12}` samples per second share no factor with
    16000. ``values`` has the semitones as they are.

    A clip shorter than a window of 512 samples is shifted like any other, but has too little in it
    for a pitch to be heard.

    Args:
        semitones: from -24 to 24, whole or not.
        p: the probability of a sample to be changed at all.

    Shapes: waveforms (B, T) to (B, T'), with every length as it was; T' is the longest valid
    length on the CPU, and T on a GPU, where lengths are not looked at.

    Raises:
        ArgumentTypeError: ``semitones`` is not a list or tuple of numbers.
        ArgumentError: ``semitones`` is empty or out of range.
    """

    changes = frozenset({"speaker"})
    drawn = "semitones"

    def __init__(self, semitones: Sequence[float] = (-2, 2), *, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.semitones = check_choices(semitones, "semitones")
        for shift in self.semitones:
            if abs(shift) > MOST_SEMITONES:
                raise ArgumentError(
                    "semitones",
                    f"wants {-MOST_SEMITONES:g} to {MOST_SEMITONES:g}, got {shift:g}",
                )
        self.fractions = tuple(
            nearest_fraction(2 ** (shift / 12), cents=CENTS) for shift in self.semitones
        )
        self._inverses = tuple(1 / fraction for fraction in self.fractions)
        self._slowest = min(self._inverses)
        self.values = self.semitones

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        choices = self.choices_of(parameters)
        if values_are_at_hand(waveforms):
            return per_sample(waveforms, lengths, lengths, choices, self._shift), lengths
        steps = waveforms.shape[1]
        waveforms = zero_padding(waveforms, lengths)
        numerator, denominator = torch.ones_like(choices), torch.ones_like(choices)
        for number, fraction in enumerate(self.fractions):
            numerator = numerator.masked_fill(choices == number, fraction.numerator)
            denominator = denominator.masked_fill(choices == number, fraction.denominator)
        longest = resampled_length(steps, self._slowest)
        stretched = stretch(waveforms, longest, numerator[:, None], denominator[:, None])
        # A clip alone is cut here too, before it is played: its end must not know its padding.
        longer = -(-lengths * numerator // denominator)
        played = resample_choices(stretched, longer, choices, self.fractions, ZERO_CROSSINGS, steps)
        result = torch.where((numerator == denominator)[:, None], waveforms, played)
        return zero_padding(result, lengths), lengths

    def _shift(self, waveform: Tensor, steps: int, choice: int) -> Tensor:
        fraction = self.fractions[choice]
        if fraction == 1:
            return waveform
        longer = resampled_length(steps, self._inverses[choice])
        stretched = stretch(waveform, longer, fraction.numerator, fraction.denominator)
        return resample(stretched, fraction, zero_crossings=ZERO_CROSSINGS)[:, :steps]

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(filter(None, (f"semitones={self.semitones}", super().extra_repr())))
