"""Noise at a signal-to-noise ratio: of a bank of clips, or of the other speakers of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechft.augment.bank import ClipBank
from speechft.augment.keys import random_words
from speechft.augment.parameters import Parameters
from speechft.augment.ranges import (
    Range,
    check_range,
    check_whole_range,
    draw,
    draw_whole,
    shown,
)
from speechft.augment.stages import Pointwise
from speechft.errors import ArgumentTypeError
from speechft.functional.pointwise import Mix, PointwiseStep

_MOST_DECIBELS = 120.0


class AddNoise(Pointwise):
    r"""Add noise at a signal-to-noise ratio over the true length.

    .. math:: y_t = x_t + 10^{-\mathrm{SNR} / 20} \sqrt{\frac{\sum_{t<n} x_t^2}
              {\sum_{t<n} v_t^2}}\; v_t, \qquad t < n

    The noise :math:`v` begins anywhere in a clip of the bank and goes round. With several
    ``voices`` it is the sum of as many clips, each at the same level over all of the clip: babble,
    of a bank of speech.
    Where speech or noise is silent the ratio has no meaning; such a sample passes unchanged, and
    :attr:`skipped` counts it.

    Args:
        bank: a :class:`ClipBank`; None: white, pink and brown noise,
            :meth:`ClipBank.coloured`.
        snr: the range of the ratio in decibels.
        voices: how many clips together, a range of integers from 1 to 16.
        p: the probability of a sample to be changed at all.
    """

    def __init__(
        self,
        bank: ClipBank | None = None,
        snr: float | Range = (0.0, 18.0),
        *,
        voices: int | Sequence[int] = 1,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        if bank is not None and not isinstance(bank, ClipBank):
            raise ArgumentTypeError(
                "bank",
                f"wants a ClipBank, got {type(bank).__name__}; ClipBank.from_folder reads a folder",
            )
        self.bank = ClipBank.coloured() if bank is None else bank
        self.snr = check_range(snr, "snr", -_MOST_DECIBELS, _MOST_DECIBELS)
        self.voices = check_whole_range(voices, "voices", 1, 16)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``snr`` (B,), ``clips`` (B, K) with -1 for none, ``start`` (B, K): a share of a clip."""
        most = self.voices[1]
        clips = draw_whole(keys, 1, (0, len(self.bank) - 1), most)
        voices = draw_whole(keys, 2, self.voices)
        absent = torch.arange(most, device=keys.device) >= voices
        return {
            "snr": draw(keys, 0, self.snr)[:, 0],
            "clips": clips.masked_fill(absent, -1),
            "start": draw(keys, 3, (0.0, 1.0), most),
        }

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        counts = self.bank.counts[drawn["clips"].clamp(min=0)]
        return [
            Mix(
                self.bank.samples,
                self.bank.offsets,
                self.bank.counts,
                self.bank.levels,
                drawn["clips"],
                (drawn["start"] * counts).floor().to(torch.int64),
                torch.where(drawn["applied"], drawn["snr"], float("inf")).to(torch.float32),
            )
        ]

    def extra_repr(self) -> str:
        """The arguments."""
        voices = "" if self.voices == (1, 1) else f"voices={shown(self.voices)}"
        return ", ".join(filter(None, (f"snr={shown(self.snr)}", voices, super().extra_repr())))


class Babble(Pointwise):
    """Add the sum of other samples of the batch, at a signal-to-noise ratio.

    Which ones is drawn by the keys of both: the order of the batch means nothing. What else is in
    the batch does, alone of all augmentations; for a waveform that depends on nothing but its key,
    take :class:`AddNoise` with several ``voices`` of a bank of speech. Each voice begins anywhere,
    goes round, and counts alike. A sample alone in its batch is skipped, and counted.

    Args:
        snr: the range of the ratio in decibels.
        voices: how many other samples, a range of integers from 1 to 16; fewer where the batch has
            no more.
        p: the probability of a sample to be changed at all.
    """

    starts_stage = True

    def __init__(
        self,
        snr: float | Range = (3.0, 18.0),
        *,
        voices: int | Sequence[int] = (3, 7),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.snr = check_range(snr, "snr", -_MOST_DECIBELS, _MOST_DECIBELS)
        self.voices = check_whole_range(voices, "voices", 1, 16)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``snr`` and ``voices`` (B,), ``start`` (B, K), and ``rank`` (B,): how others see it."""
        return {
            "snr": draw(keys, 0, self.snr)[:, 0],
            "voices": draw_whole(keys, 1, self.voices)[:, 0],
            "start": draw(keys, 2, (0.0, 1.0), self.voices[1]),
            "rank": random_words(keys, 3, 1)[:, 0],
        }

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        batch, width = waveforms.shape
        rank = drawn["rank"]
        # The nearest above on the circle of ranks, oneself last.
        distance = (rank[None] - rank[:, None]) % 2**32
        distance = distance + torch.eye(batch, device=rank.device, dtype=torch.int64) * 2**33
        most = drawn["start"].shape[1]
        clips = distance.argsort(dim=1, stable=True)[:, : min(most, batch)]
        clips = torch.nn.functional.pad(clips, (0, most - clips.shape[1]), value=-1)
        number = torch.arange(most, device=rank.device)
        voices = drawn["voices"].clamp(max=batch - 1)
        clips = clips.masked_fill(number >= voices[:, None], -1)
        valid = torch.arange(width, device=rank.device) < lengths[:, None]
        square = torch.where(valid, waveforms, 0.0).double().square().sum(dim=1)
        level = (square / lengths).sqrt().to(torch.float32)
        counts = lengths[clips.clamp(min=0)]
        return [
            Mix(
                waveforms.to(torch.float32).contiguous().flatten(),
                torch.arange(batch, device=rank.device) * width,
                lengths,
                torch.where(level > 0, level, 1.0),
                clips,
                (drawn["start"] * counts).floor().to(torch.int64),
                torch.where(drawn["applied"], drawn["snr"], float("inf")).to(torch.float32),
            )
        ]

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(
            filter(
                None,
                (
                    f"snr={shown(self.snr)}",
                    f"voices={shown(self.voices)}",
                    super().extra_repr(),
                ),
            )
        )
