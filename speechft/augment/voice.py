r"""Another speaker's voice: pitch and formants move apart from each other.

A phase vocoder makes the clip :math:`r` times as long (:mod:`speechft.augment.vocoder`), and
playing it :math:`r` times as fast (:mod:`speechft.augment.resample`) brings the duration back and
everything in it to :math:`r` times its frequency. For the envelope to end at :math:`f` times its
own, each frame is filtered before: with the envelope :math:`E` of the frame
(:mod:`speechft.augment.envelope`) its bin :math:`k` is multiplied by

.. math:: G_{r/f}[k] = E(k\, r / f) / E(k),

and a factor that leaves the frame the power that it had.

With :math:`r < 1` a clip so played has nothing above :math:`r` times the Nyquist frequency, and
fricatives, which live there, would be gone. So what is above comes from the clip itself, unplayed:
its frames times :math:`G_{1/f}`. There is little of a pitch to be heard up there.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from speechft.augment.base import Augmentation, per_sample, values_are_at_hand, zero_padding
from speechft.augment.envelope import envelope_cepstrum, moving_gain
from speechft.augment.keys import randint, uniform
from speechft.augment.parameters import Parameters
from speechft.augment.resample import (
    ZERO_CROSSINGS,
    nearest_fraction,
    passband,
    resample,
    resampled_length,
)
from speechft.augment.resample_each import resample_each, speed_table
from speechft.augment.vocoder import HOP, Frames, analyse, filter_frames, stretch_frames
from speechft.errors import ArgumentError

# The pitch moves by quarter tones, each held to a fraction within 3 cents of it.
PER_OCTAVE = 24
CENTS = 3.0
_PER_NEPER = PER_OCTAVE / math.log(2)

# A frame whose power moves out of the band gets no more than this back on what is left of it.
_LOUDEST = 10.0


class Voice(Augmentation):
    r"""Make each sample sound like somebody else, by ratios of formants and of pitch.

    Each ratio is drawn evenly from 1 to the most there is and, by a coin of its own, turned upside
    down, as in NANSY and Spin (Choi et al., NeurIPS 2021; Chang et al., Interspeech 2023). Those
    use Praat's "Change gender", from which this differs:

    * The fundamental is moved by the ratio in every frame. Praat tracks the pitch, moves its median
      and scales its range about it by a third ratio (1 to 1.5 there). Here the range moves with the
      median: in semitones it stays what it was.
    * No floor and ceiling of the pitch are wanted, and no frame is voiced or unvoiced by decision.
    * The band above the moved formants is not left empty: the envelope is held at its last value
      there.
    * The power of each frame stays, but for one that all but leaves the band, so loudness does.

    Formants are moved by the ratio drawn. The pitch is held to quarter tones, 24 to the octave, as
    ``parameters["pitch"]`` has it, so that a GPU can have the filters for all of them at hand.

    Args:
        formant: the most that formants move by, from 1 to 2.
        pitch: the most that the pitch moves by, from 1 to 4.
        p: the probability of a sample to be changed at all.

    Shapes: waveforms (B, T) to (B, T'), with every length as it was; T' is the longest valid
    length on the CPU, and T on a GPU, where lengths are not looked at.

    Raises:
        ArgumentError: ``formant`` or ``pitch`` is out of range.
    """

    changes = frozenset({"speaker"})

    def __init__(self, formant: float = 1.4, pitch: float = 2.0, *, p: float = 1.0) -> None:
        super().__init__(p=p)
        if isinstance(formant, bool) or not 1 <= formant <= 2:
            raise ArgumentError("formant", f"wants a ratio from 1 to 2, got {formant!r}")
        if isinstance(pitch, bool) or not 1 <= pitch <= 4:
            raise ArgumentError("pitch", f"wants a ratio from 1 to 4, got {pitch!r}")
        self.formant, self.pitch = float(formant), float(pitch)
        self._most = math.floor(math.log(pitch) * _PER_NEPER + 1e-9)
        self.fractions = tuple(
            nearest_fraction(2 ** (step / PER_OCTAVE), cents=CENTS)
            for step in range(-self._most, self._most + 1)
        )
        self._slowest = 1 / self.fractions[-1]

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``formant`` and ``pitch``, ratios: float64 (B,)."""
        share = uniform(keys, 0, 2, dtype=torch.float64)
        inverted = randint(keys, 1, 2, high=2) == 1
        ratios = []
        for number, most in enumerate((self.formant, self.pitch)):
            ratio = 1 + share[:, number] * (most - 1)
            ratios.append(torch.where(inverted[:, number], 1 / ratio, ratio))
        formant, pitch = ratios
        return {
            "formant": formant,
            "pitch": (
                (pitch.log() * _PER_NEPER).round().clamp(-self._most, self._most) / _PER_NEPER
            ).exp(),
        }

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        applied, formant = parameters["applied"], parameters["formant"]
        step = (parameters["pitch"].log() * _PER_NEPER).round().to(torch.int64)
        choices = step.clamp(-self._most, self._most) + self._most
        if values_are_at_hand(waveforms):
            fractions = [self.fractions[choice] for choice in choices.tolist()]

            def change(clip: Tensor, steps: int, row: int) -> Tensor:
                return _change(clip, fractions[row], formant[row : row + 1])

            rows = torch.arange(len(choices)).masked_fill(~applied, -1)
            return per_sample(waveforms, lengths, lengths, rows, change), lengths
        steps = waveforms.shape[1]
        waveforms = zero_padding(waveforms, lengths)
        table = speed_table(self.fractions, ZERO_CROSSINGS, waveforms.dtype, waveforms.device)
        numerator = table.numerator.index_select(0, choices)[:, None]
        denominator = table.denominator.index_select(0, choices)[:, None]
        frames = analyse(waveforms)
        pitch = numerator[:, 0].double() / denominator[:, 0]
        inner, upper = _gains(frames, pitch, formant, any_lower=self._most > 0)
        longest = resampled_length(steps, self._slowest)
        stretched = stretch_frames(frames, longest, numerator, denominator, gain=inner)
        # A clip alone is cut here too, before it is played: its end must not know its padding.
        stretched = zero_padding(stretched, -(-lengths * numerator[:, 0] // denominator[:, 0]))
        played = resample_each(stretched, choices, table, steps)
        if upper is not None:
            played = played + filter_frames(frames, steps, upper)
        played = _as_loud(zero_padding(played, lengths), waveforms)
        return torch.where(applied[:, None], played, waveforms), lengths

    def extra_repr(self) -> str:
        """The arguments."""
        parts = (f"formant={self.formant:g}, pitch={self.pitch:g}", super().extra_repr())
        return ", ".join(filter(None, parts))


def _change(clip: Tensor, fraction: Fraction, formant: Tensor) -> Tensor:
    """One clip (1, T)."""
    steps = clip.shape[1]
    frames = analyse(clip)
    pitch = torch.full_like(formant, float(fraction))
    inner, upper = _gains(frames, pitch, formant, any_lower=fraction < 1)
    longer = resampled_length(steps, 1 / fraction)
    stretched = stretch_frames(frames, longer, fraction.numerator, fraction.denominator, gain=inner)
    played = resample(stretched, fraction, zero_crossings=ZERO_CROSSINGS)[:, :steps]
    if upper is not None:
        played = played + filter_frames(frames, steps, upper)
    return _as_loud(played, clip)


def _as_loud(played: Tensor, clips: Tensor) -> Tensor:
    """Frames that do not agree in phase lose up to 3 dB where they overlap; that is put back.

    Args:
        played: (B, T), zero in the padding.
        clips: (B, T) as they were, likewise.
    """
    before, after = _power(clips), _power(played)
    tiny = torch.finfo(played.dtype).tiny
    return played * ((before + tiny) / (after + tiny)).clamp(1, 2).sqrt()


def _power(clips: Tensor) -> Tensor:
    """(B, 1). Summed in short rows, so that threads do not share out the terms of one sum."""
    rows = torch_functional.pad(clips, (0, -clips.shape[1] % HOP)).view(len(clips), -1, HOP)
    return rows.square().sum(dim=2).sum(dim=1, keepdim=True)


def _gains(
    frames: Frames, pitch: Tensor, formant: Tensor, *, any_lower: bool
) -> tuple[Tensor, Tensor | None]:
    """Of what is stretched and played, and of what is added above it.

    Args:
        frames: of the clips.
        pitch: the ratios, float64 (B,).
        formant: likewise.
        any_lower: whether some pitch may be below 1, so that something is added.

    Returns:
        Two gains (B, F, bins), the second None where nothing is added.
    """
    magnitude = frames[2]
    bins = magnitude.shape[-1]
    cepstrum = envelope_cepstrum(magnitude)
    inner = moving_gain(cepstrum, pitch / formant, bins)
    share = torch.arange(bins, device=pitch.device, dtype=torch.float64) / (bins - 1)
    # Above the Nyquist frequency once played: to be gone.
    inner = inner * (share * pitch[:, None] <= 1)[:, None].to(inner.dtype)
    power = magnitude.to(inner.dtype).square()
    after = (power * inner.square()).sum(dim=-1, keepdim=True)
    upper = None
    if any_lower:
        # In where the filter of the playback goes out, so that the two powers are one.
        low = passband(ZERO_CROSSINGS)
        out = ((share / pitch[:, None] - low) / (1 - low)).clamp(0, 1) * (math.pi / 2)
        fade = (1 - out.cos() ** 4).sqrt() * (pitch < 1)[:, None]
        upper = moving_gain(cepstrum, 1 / formant, bins) * fade[:, None].to(inner.dtype)
        after = after + (power * upper.square()).sum(dim=-1, keepdim=True)
    tiny = torch.finfo(magnitude.dtype).tiny
    level = (power.sum(dim=-1, keepdim=True) + tiny) / (after + tiny)
    level = level.sqrt().clamp(max=_LOUDEST)
    inner = (inner * level).to(magnitude.dtype)
    return inner, None if upper is None else (upper * level).to(magnitude.dtype)
