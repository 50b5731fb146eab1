r"""Low-pass, high-pass and band-stop filters with a cutoff drawn for each sample.

All are windowed sincs (Kaiser, 60 dB), which delay all frequencies alike; the delay is taken back,
so a filtered clip lies on the clip that it was made of. With :math:`2h + 1` taps and a cutoff of
:math:`f` of the sampling rate,

.. math:: l_f[t] = 2 f\,\mathrm{sinc}(2 f t)\, w[t], \qquad |t| \le h, \qquad \sum_t l_f[t] = 1;

the high-pass is :math:`\delta - l_f`, and the band from :math:`f` to :math:`g` is dropped by
:math:`\delta - l_g + l_f`. The step from pass to stop is :math:`58000 / (2h)` Hz wide at 16 kHz,
with its middle, -6 dB, at the cutoff: 57 Hz by default. A cutoff, or a band, that is nearer to 0,
or narrower, than that is not all removed.
"""

from __future__ import annotations

import math
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
from speechft.augment.stages import Filter, Response
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional._checks import check_positive

_KAISER_BETA = 5.65326  # 60 dB
_HIGHEST = 0.45  # of the sample rate, that a default goes to
_SECONDS = 511 / 16000  # of taps on each side


class _Sinc(Filter):
    """What the three share: a rate, taps, and frequencies drawn evenly in their logarithm."""

    def __init__(self, sample_rate: int, half_taps: int | None, p: float) -> None:
        super().__init__(p=p)
        self.sample_rate = check_positive(sample_rate, "sample_rate")
        if half_taps is None:
            half_taps = round(_SECONDS * self.sample_rate)
        if not isinstance(half_taps, int):
            raise ArgumentTypeError("half_taps", f"wants an integer, got {half_taps!r}")
        if half_taps < 8:
            raise ArgumentError("half_taps", f"wants at least 8, got {half_taps}")
        self.half_taps = half_taps

    def _frequencies(
        self, value: float | Range | None, argument: str, default: tuple[float, float]
    ) -> tuple[float, float]:
        if value is None:
            value = (default[0], min(default[1], _HIGHEST * self.sample_rate))
        return check_range(value, argument, 1.0, self.sample_rate / 2)

    def _low_pass(self, hertz: Tensor, dtype: torch.dtype) -> Tensor:
        """Taps (..., 2 h + 1)."""
        return low_pass(hertz / self.sample_rate, self.half_taps).to(dtype)

    def _finished(self, taps: Tensor) -> Response:
        return taps, torch.full((len(taps),), self.half_taps, device=taps.device)


class _Cutoff(_Sinc):
    """What low-pass and high-pass share."""

    default: tuple[float, float]

    def __init__(
        self,
        cutoff: float | Range | None = None,
        *,
        half_taps: int | None = None,
        sample_rate: int = 16000,
        p: float = 1.0,
    ) -> None:
        super().__init__(sample_rate, half_taps, p)
        self.cutoff = self._frequencies(cutoff, "cutoff", self.default)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``cutoff`` (B,), Hz."""
        return {"cutoff": _draw_log(keys, 0, self.cutoff)[:, 0]}

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(filter(None, (f"cutoff={shown(self.cutoff)}", super().extra_repr())))


class LowPass(_Cutoff):
    """Remove what is above a cutoff.

    Args:
        cutoff: the range in Hz, even in its logarithm; None: 2000 to 7000, as far as there are.
        half_taps: taps on each side; None: 32 ms of them. See :mod:`speechft.augment.filters`.
        sample_rate: samples in a second.
        p: the probability of a sample to be changed at all.
    """

    default = (2000.0, 7000.0)

    def responses(self, drawn: Parameters, dtype: torch.dtype) -> list[Response]:
        """See :class:`~speechft.augment.stages.Filter`."""
        return [self._finished(self._low_pass(drawn["cutoff"], dtype))]


class HighPass(_Cutoff):
    """Remove what is below a cutoff.

    Args:
        cutoff: the range in Hz, even in its logarithm; None: 60 to 500.
        half_taps: taps on each side; None: 32 ms of them. See :mod:`speechft.augment.filters`.
        sample_rate: samples in a second.
        p: the probability of a sample to be changed at all.
    """

    default = (60.0, 500.0)

    def responses(self, drawn: Parameters, dtype: torch.dtype) -> list[Response]:
        """See :class:`~speechft.augment.stages.Filter`."""
        taps = -self._low_pass(drawn["cutoff"], dtype)
        taps[:, self.half_taps] += 1
        return [self._finished(taps)]


class BandDrop(_Sinc):
    """Remove some bands of frequencies from each sample.

    Args:
        count: how many bands, a range of integers from 0 to 16.
        center: the range of a band's middle in Hz, even in its logarithm; None: 200 to 7000, as far
            as there are.
        width: the range of a band's width in Hz, from -6 dB to -6 dB.
        half_taps: taps on each side; None: 32 ms of them. See :mod:`speechft.augment.filters`.
        sample_rate: samples in a second.
        p: the probability of a sample to be changed at all.
    """

    def __init__(
        self,
        count: int | Sequence[int] = (1, 3),
        center: float | Range | None = None,
        width: float | Range = (100.0, 400.0),
        *,
        half_taps: int | None = None,
        sample_rate: int = 16000,
        p: float = 1.0,
    ) -> None:
        super().__init__(sample_rate, half_taps, p)
        self.count = check_whole_range(count, "count", 0, 16)
        self.center = self._frequencies(center, "center", (200.0, 7000.0))
        self.width = check_range(width, "width", 0, self.sample_rate / 2)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``count`` (B,), ``center`` and ``width`` (B, S), Hz."""
        most = max(self.count[1], 1)
        return {
            "count": draw_whole(keys, 0, self.count)[:, 0],
            "center": _draw_log(keys, 1, self.center, most),
            "width": draw(keys, 2, self.width, most),
        }

    def responses(self, drawn: Parameters, dtype: torch.dtype) -> list[Response]:
        """See :class:`~speechft.augment.stages.Filter`."""
        highest = self.sample_rate / 2
        half = drawn["width"] / 2
        below = self._low_pass((drawn["center"] - half).clamp(0, highest), torch.float64)
        above = self._low_pass((drawn["center"] + half).clamp(0, highest), torch.float64)
        number = torch.arange(half.shape[1], device=half.device)
        band = (above - below).masked_fill((number >= drawn["count"][:, None])[..., None], 0.0)
        taps = -band
        taps[:, :, self.half_taps] += 1
        return [self._finished(one.to(dtype)) for one in taps.unbind(dim=1)]

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(
            filter(
                None,
                (
                    f"count={shown(self.count)}",
                    f"center={shown(self.center)}",
                    f"width={shown(self.width)}",
                    super().extra_repr(),
                ),
            )
        )


def low_pass(cutoff: Tensor, half_taps: int) -> Tensor:
    """Windowed sincs that sum to 1.

    Args:
        cutoff: as a share of the sampling rate, float64 of any shape; 0 removes all, 1/2 nothing.
        half_taps: taps on each side.

    Returns:
        float64 (..., 2 half_taps + 1).
    """
    time = torch.arange(-half_taps, half_taps + 1, device=cutoff.device, dtype=torch.float64)
    shape = (1 - (time / (half_taps + 1)) ** 2).sqrt()
    taps = torch.sinc(2 * cutoff[..., None] * time) * torch.special.i0(_KAISER_BETA * shape)
    taps = taps / taps.sum(dim=-1, keepdim=True)
    return torch.where(cutoff[..., None] > 0, taps, 0.0)


def _draw_log(keys: Tensor, stream: int, bounds: tuple[float, float], count: int = 1) -> Tensor:
    return draw(keys, stream, (math.log(bounds[0]), math.log(bounds[1])), count).exp()
