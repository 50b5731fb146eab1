"""Speed perturbation: the clip is played faster or slower, and its pitch moves with it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from speechft.augment.base import KeyedChoice, check_choices, per_sample, values_are_at_hand
from speechft.augment.parameters import Parameters
from speechft.augment.resample import (
    FEWEST_ZERO_CROSSINGS,
    ZERO_CROSSINGS,
    nearest_fraction,
    resample,
    resampled_length,
)
from speechft.augment.resample_choices import resample_choices
from speechft.errors import ArgumentError

SLOWEST, FASTEST = 0.1, 10.0


class Speed(KeyedChoice):
    """Play each sample at a speed that its key draws from ``factors``, each as likely.

    At factor 1.1 a clip is 1.1 times as fast, its pitch and formants 1.1 times as high, and its
    length ``ceil(n / 1.1)``; the length is computed in integers from the factor as a fraction.
    Whatever would fold back is removed (:mod:`speechft.augment.resample`). At factor 1 the bits
    pass unchanged. Source: Ko et al., "Audio augmentation for speech recognition", Interspeech
    2015; the defaults are theirs and SCORE's.

    Args:
        factors: speeds from 0.1 to 10. Each is held to the nearest fraction with a denominator of
            at most 100, which is exact for any number of hundredths; ``values`` has them.
        p: the probability of a sample to be changed at all.
        zero_crossings: half-length of the resampling filter in samples at the lower rate. With 80
            the lower 89 % of the lower band pass unchanged, 132 dB above what should not be there.

    Shapes: waveforms (B, T) to (B, T'), where T' is the longest valid length on the CPU, and
    ``ceil(T / min(1, *factors))`` on a GPU, where lengths are not looked at.

    Raises:
        ArgumentTypeError: ``factors`` is not a list or tuple of numbers.
        ArgumentError: ``factors`` is empty or out of range, or ``zero_crossings`` is below 16.

    >>> import torch
    >>> speed = Speed(factors=(0.9,))
    >>> waveforms, lengths = speed(torch.zeros(2, 90), [90, 45], torch.tensor([1, 2]))
    >>> lengths
    tensor([100,  50])
    """

    changes = frozenset({"timing", "speaker"})
    drawn = "factor"

    def __init__(
        self,
        factors: Sequence[float] = (0.9, 1.0, 1.1),
        *,
        zero_crossings: int = ZERO_CROSSINGS,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.factors = check_choices(factors, "factors")
        for factor in self.factors:
            if not SLOWEST <= factor <= FASTEST:
                raise ArgumentError(
                    "factors", f"wants speeds from {SLOWEST:g} to {FASTEST:g}, got {factor:g}"
                )
        if zero_crossings < FEWEST_ZERO_CROSSINGS:
            raise ArgumentError(
                "zero_crossings", f"wants at least {FEWEST_ZERO_CROSSINGS}, got {zero_crossings}"
            )
        self.zero_crossings = zero_crossings
        self.fractions = tuple(nearest_fraction(factor) for factor in self.factors)
        self._slowest = min(*self.fractions, Fraction(1))
        self.values = tuple(float(fraction) for fraction in self.fractions)

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        choices = self.choices_of(parameters)
        lengths_after = lengths
        for number, fraction in enumerate(self.fractions):
            lengths_after = torch.where(
                choices == number, resampled_length(lengths, fraction), lengths_after
            )
        if values_are_at_hand(waveforms):
            return per_sample(waveforms, lengths, lengths_after, choices, self._play), lengths_after
        longest = resampled_length(waveforms.shape[1], self._slowest)
        played = resample_choices(
            waveforms, lengths, choices, self.fractions, self.zero_crossings, longest
        )
        return played, lengths_after

    def _play(self, waveform: Tensor, steps: int, choice: int) -> Tensor:
        return resample(waveform, self.fractions[choice], zero_crossings=self.zero_crossings)

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(
            filter(
                None,
                (
                    f"factors={self.factors}",
                    f"zero_crossings={self.zero_crossings}",
                    super().extra_repr(),
                ),
            )
        )
