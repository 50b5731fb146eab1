"""Tempo perturbation: the duration changes, the pitch stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from speechft.augment.base import (
    KeyedChoice,
    check_choices,
    per_sample,
    values_are_at_hand,
    zero_padding,
)
from speechft.augment.parameters import Parameters
from speechft.augment.resample import nearest_fraction, resampled_length
from speechft.augment.vocoder import stretch
from speechft.errors import ArgumentError

SLOWEST, FASTEST = 0.25, 4.0


class Tempo(KeyedChoice):
    r"""Play each sample at a tempo that its key draws from ``factors``, each as likely.

    At factor :math:`v` the clip's length becomes :math:`\lceil n / v \rceil`, computed in integers
    from the factor as a fraction, and what happened at time :math:`t` happens at :math:`t / v`.
    Pitch, formants and level stay, which is what tells it from
    :class:`~speechft.augment.Speed`: a phase vocoder makes the clip longer or shorter
    (:mod:`speechft.augment.vocoder`). At factor 1 the bits pass unchanged.

    The phase vocoder smears an onset over about its window of 512 samples, 32 ms at 16 kHz. Near 1
    this is not heard; at 2 and beyond consonants lose their edge. The defaults are those of
    :class:`~speechft.augment.Speed`.

    Args:
        factors: tempos from 0.25 to 4; above 1 is faster. Each is held to the nearest fraction
            with a denominator of at most 100, which is exact for any number of hundredths;
            ``values`` has them.
        p: the probability of a sample to be changed at all.

    Shapes: waveforms (B, T) to (B, T'), where T' is the longest valid length on the CPU, and
    ``ceil(T / min(1, *factors))`` on a GPU, where lengths are not looked at.

    Raises:
        ArgumentTypeError: ``factors`` is not a list or tuple of numbers.
        ArgumentError: ``factors`` is empty or out of range.

    >>> import torch
    >>> tempo = Tempo(factors=(0.9,))
    >>> waveforms, lengths = tempo(torch.zeros(2, 900), [900, 450], torch.tensor([1, 2]))
    >>> lengths
    tensor([1000,  500])
    """

    changes = frozenset({"timing"})
    drawn = "factor"

    def __init__(self, factors: Sequence[float] = (0.9, 1.0, 1.1), *, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.factors = check_choices(factors, "factors")
        for factor in self.factors:
            if not SLOWEST <= factor <= FASTEST:
                raise ArgumentError(
                    "factors", f"wants tempos from {SLOWEST:g} to {FASTEST:g}, got {factor:g}"
                )
        self.fractions = tuple(nearest_fraction(factor) for factor in self.factors)
        self._slowest = min(*self.fractions, nearest_fraction(1.0))
        self.values = tuple(float(fraction) for fraction in self.fractions)

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        choices = self.choices_of(parameters)
        # The tempo of each sample, and 1 for one that is not applied.
        numerator, denominator = torch.ones_like(choices), torch.ones_like(choices)
        for number, fraction in enumerate(self.fractions):
            numerator = numerator.masked_fill(choices == number, fraction.numerator)
            denominator = denominator.masked_fill(choices == number, fraction.denominator)
        lengths_after = -(-lengths * denominator // numerator)
        if values_are_at_hand(waveforms):
            return per_sample(waveforms, lengths, lengths_after, choices, self._play), lengths_after
        waveforms = zero_padding(waveforms, lengths)
        longest = resampled_length(waveforms.shape[1], self._slowest)
        # A stretch by 3/4 is a tempo of 4/3.
        played = stretch(waveforms, longest, denominator[:, None], numerator[:, None])
        unchanged = torch_functional.pad(waveforms, (0, longest - waveforms.shape[1]))
        result = torch.where((numerator == denominator)[:, None], unchanged, played)
        return zero_padding(result, lengths_after), lengths_after

    def _play(self, waveform: Tensor, steps: int, choice: int) -> Tensor:
        fraction = self.fractions[choice]
        if fraction == 1:
            return waveform
        return stretch(waveform, steps, fraction.denominator, fraction.numerator)

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(filter(None, (f"factors={self.factors}", super().extra_repr())))
