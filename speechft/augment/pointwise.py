"""What is done to each sample of a waveform apart: level, sign, clipping, gaps, coarse steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
from speechft.functional._checks import check_positive
from speechft.functional.pointwise import Clip as ClipStep
from speechft.functional.pointwise import MuLaw as MuLawStep
from speechft.functional.pointwise import PointwiseStep, Scale, Silence
from speechft.functional.pointwise import Quantise as QuantiseStep


class Gain(Pointwise):
    """Multiply each sample by a gain drawn in decibels.

    Args:
        decibels: the range of the gain, from -120 to 60.
        p: the probability of a sample to be changed at all.
    """

    def __init__(self, decibels: float | Range = (-12.0, 6.0), *, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.decibels = check_range(decibels, "decibels", -120, 60)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``decibels`` (B,)."""
        return {"decibels": draw(keys, 0, self.decibels)[:, 0]}

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        factor = torch.where(drawn["applied"], 10 ** (drawn["decibels"] / 20), 1.0)
        return [Scale(factor.to(torch.float32))]

    def extra_repr(self) -> str:
        """The arguments."""
        return _joined(f"decibels={shown(self.decibels)}", super().extra_repr())


class Polarity(Pointwise):
    """Turn each sample upside down.

    Args:
        p: the probability of a sample to be changed; by default a fair coin.
    """

    def __init__(self, *, p: float = 0.5) -> None:
        super().__init__(p=p)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """Nothing but whether it is applied."""
        return {}

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        return [Scale(1.0 - 2.0 * drawn["applied"].to(torch.float32))]


class Clip(Pointwise):
    """Clip each sample hard, at a share of its peak over the true length.

    Args:
        share: the range of the share, from 0 to 1.
        p: the probability of a sample to be changed at all.
    """

    def __init__(self, share: float | Range = (0.1, 0.8), *, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.share = check_range(share, "share", 0, 1)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``share`` (B,)."""
        return {"share": draw(keys, 0, self.share)[:, 0]}

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        share = torch.where(drawn["applied"], drawn["share"], 1.0)
        return [ClipStep(share.to(torch.float32))]

    def extra_repr(self) -> str:
        """The arguments."""
        return _joined(f"share={shown(self.share)}", super().extra_repr())


class TimeDrop(Pointwise):
    """Put silence in place of some spans of each sample.

    Spans lie anywhere within the true length, and may overlap. One that is longer than the sample
    silences all of it.

    Args:
        count: how many spans, a range of integers from 0 to 64.
        seconds: the range of a span's duration.
        sample_rate: samples in a second.
        p: the probability of a sample to be changed at all.
    """

    changes = frozenset({"content"})

    def __init__(
        self,
        count: int | Sequence[int] = (1, 5),
        seconds: float | Range = (0.02, 0.1),
        *,
        sample_rate: int = 16000,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.count = check_whole_range(count, "count", 0, 64)
        self.seconds = check_range(seconds, "seconds", 0, 3600)
        self.sample_rate = check_positive(sample_rate, "sample_rate")

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``count`` (B,), ``seconds`` and ``start`` (B, S): the start as a share of what fits."""
        most = max(self.count[1], 1)
        return {
            "count": draw_whole(keys, 0, self.count)[:, 0],
            "seconds": draw(keys, 1, self.seconds, most),
            "start": draw(keys, 2, (0.0, 1.0), most),
        }

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        duration = (drawn["seconds"] * self.sample_rate).round().to(torch.int64)
        room = (lengths[:, None] - duration).clamp(min=0)
        first = (drawn["start"] * (room + 1)).floor().to(torch.int64)
        number = torch.arange(first.shape[1], device=first.device)
        wanted = drawn["applied"][:, None] & (number < drawn["count"][:, None])
        return [Silence(first, torch.where(wanted, first + duration, 0))]

    def extra_repr(self) -> str:
        """The arguments."""
        return _joined(
            f"count={shown(self.count)}", f"seconds={shown(self.seconds)}", super().extra_repr()
        )


class Quantise(Pointwise):
    """Round each sample to fewer bits, full scale being 1.

    Args:
        bits: the range of the number of bits, integers from 2 to 24.
        p: the probability of a sample to be changed at all.
    """

    def __init__(self, bits: int | Sequence[int] = (6, 12), *, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.bits = check_whole_range(bits, "bits", 2, 24)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``bits`` (B,)."""
        return {"bits": draw_whole(keys, 0, self.bits)[:, 0]}

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        return [QuantiseStep(torch.where(drawn["applied"], drawn["bits"], 0))]

    def extra_repr(self) -> str:
        """The arguments."""
        return _joined(f"bits={shown(self.bits)}", super().extra_repr())


class MuLaw(Pointwise):
    """To the 8 bits of a telephone line and back: ITU-T G.711's mu-law, full scale being 1.

    It is the standard's piecewise linear law on 14 bits, in arithmetic that is exact, rather than
    the logarithm that it approaches: so that it gives the same bits on every device.

    Args:
        p: the probability of a sample to be changed at all.
    """

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """Nothing but whether it is applied."""
        return {}

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """See :class:`~speechft.augment.stages.Pointwise`."""
        return [MuLawStep(drawn["applied"])]


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
