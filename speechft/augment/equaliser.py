r"""A random parametric equaliser, the disturbance of the spectrum in NANSY and Spin.

Ten second-order sections one after another, with centre frequencies evenly spaced in their
logarithm: a low shelf, eight peaks, a high shelf, each with a gain and a quality of its own. The
sections are those of Bristow-Johnson's "Audio EQ cookbook". Made of digital frequency
:math:`\omega` by way of :math:`S = \sin^2(\omega / 2)`, with :math:`S_0` that of the centre
:math:`\omega_0`, :math:`A = 10^{\mathrm{dB} / 40}` and
:math:`\alpha = \sin \omega_0 / (2 Q)`, all three kinds of section have one form,

.. math:: H(\omega) = g\, \frac{p_0 + p_1 S + j\, p_2 \sin \omega}
                               {r_0 + r_1 S + j\, r_2 \sin \omega},

because the factor :math:`e^{-j \omega}` of numerator and denominator cancels. For a peak,
:math:`p = (S_0, -1, \alpha A / 2)`, :math:`r = (S_0, -1, \alpha / (2 A))` and :math:`g = 1`.
For a low shelf, with :math:`m = (A - 1) S_0` and :math:`n = \sqrt A\, \alpha / 2`,

.. math:: p = (A S_0, -1 - m, n), \qquad r = (S_0, m - A, n), \qquad g = A,

and a high shelf has :math:`p` and :math:`r` the other way round.

There is no difference of nearly equal numbers in it but the one that makes a resonance, so float32
is exact enough where the polynomials in :math:`e^{-j \omega}`, at 60 Hz and a quality of 5, are
not.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from speechft.augment.base import values_are_at_hand
from speechft.augment.parameters import Parameters
from speechft.augment.ranges import Range, check_range, draw, shown
from speechft.augment.stages import Filter, Response
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional._checks import check_positive

# How far, in dB, the slowest resonance that can be drawn has decayed where the response is cut. It
# starts some 45 dB below the response's peak, so what is cut is 95 dB down at the least.
_DECAY = 50.0
_STEP = 1024  # its length is a multiple of this, for the sake of the transform

_PEAKS = slice(1, -1)  # the sections between the two shelves


class Equaliser(Filter):
    r"""Filter each sample by a cascade of ``bands`` sections with gains and qualities drawn.

    The defaults are the published ones: gains even from -12 to 12 dB, qualities even in their
    logarithm from 2 to 5. Sources: Choi et al., "Neural analysis and synthesis: reconstructing
    speech from self-supervised representations" (NANSY), NeurIPS 2021; Chang et al.,
    "Self-supervised fine-tuning for improved content representations by speaker-invariant
    clustering" (Spin), Interspeech 2023.

    The published recipe then clips the result to -1..1. A filter does not: gains of all bands
    together may pass 20 dB, so a loud clip leaves that range, and where the recipe's clipping is
    wanted it is one more step behind this one.

    The filter is causal and rings after an event, never before it. Its impulse response is cut
    where the slowest resonance has died away: 5120 samples by default. Against the recursion in
    float64 what is cut is, on white noise, 3e-5 of the result's root mean square for one draw in a
    hundred, and 8e-5 for the worst of a thousand. A tone, with every gain 12 dB and every quality
    5, is off by 7e-4 at the most.

    Args:
        bands: sections, from 3 to 32.
        low: centre of the first, the low shelf, in Hz, at least 20.
        high: centre of the last, the high shelf, in Hz, at most 0.49 of ``sample_rate``; None:
            7600, as far as there is as much.
        decibels: the range of the gains, from -24 to 24 dB.
        q: the range of the qualities, from 0.1 to 10.
        sample_rate: samples in a second.
        p: the probability of a sample to be changed at all.

    Raises:
        ArgumentTypeError: ``bands`` is not an integer, or a range is not one.
        ArgumentError: an argument is out of its bounds, or ``high`` is not above ``low``.
    """

    def __init__(
        self,
        bands: int = 10,
        low: float = 60.0,
        high: float | None = None,
        decibels: float | Range = (-12.0, 12.0),
        q: float | Range = (2.0, 5.0),
        *,
        sample_rate: int = 16000,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.sample_rate = check_positive(sample_rate, "sample_rate")
        if isinstance(bands, bool) or not isinstance(bands, int):
            raise ArgumentTypeError("bands", f"wants an integer, got {bands!r}")
        if not 3 <= bands <= 32:
            raise ArgumentError("bands", f"wants 3 to 32, got {bands}")
        self.bands = bands
        highest = 0.49 * self.sample_rate
        high = min(7600.0, 0.475 * self.sample_rate) if high is None else high
        if not 20 <= low < high <= highest:
            raise ArgumentError(
                "low, high",
                f"want 20 to {highest:g} Hz, the lower first, got {low!r}, {high!r}",
            )
        self.low, self.high = float(low), float(high)
        self.decibels = check_range(decibels, "decibels", -24.0, 24.0)
        self.q = check_range(q, "q", 0.1, 10.0)
        step = math.log(self.high / self.low) / (bands - 1)
        self.centers = tuple(self.low * math.exp(step * band) for band in range(bands))
        self.taps = self._taps()

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``decibels`` and ``q`` (B, bands)."""
        logarithms = (math.log(self.q[0]), math.log(self.q[1]))
        return {
            "decibels": draw(keys, 0, self.decibels, self.bands),
            "q": draw(keys, 1, logarithms, self.bands).exp(),
        }

    def responses(self, drawn: Parameters, dtype: torch.dtype) -> list[Response]:
        """See :class:`~speechft.augment.stages.Filter`."""
        decibels, q = drawn["decibels"], drawn["q"]
        taps = cascade(decibels, q, self.centers, self.sample_rate, self.taps, dtype)
        return [(taps, torch.zeros(len(taps), dtype=torch.int64, device=taps.device))]

    def _taps(self) -> int:
        """What the slowest decay that can be drawn fits into."""
        loudest = max(abs(self.decibels[0]), abs(self.decibels[1]))
        # A resonance decays as the sine of its frequency, which is small at both ends.
        slowest = min(
            math.sin(2 * math.pi * hertz / self.sample_rate) for hertz in (self.low, self.high)
        )
        decay = slowest / (2 * self.q[1]) / 10 ** (loudest / 40)
        return _STEP * math.ceil(_DECAY / 20 * math.log(10) / decay / _STEP)

    def extra_repr(self) -> str:
        """The arguments."""
        parts = (
            f"bands={self.bands}, low={self.low:g}, high={self.high:g}",
            f"decibels={shown(self.decibels)}, q={shown(self.q)}",
            super().extra_repr(),
        )
        return ", ".join(filter(None, parts))


def cascade(
    decibels: Tensor,
    q: Tensor,
    centers: tuple[float, ...],
    sample_rate: float,
    taps: int,
    dtype: torch.dtype,
) -> Tensor:
    """Impulse responses of the sections in a row: low shelf, peaks, high shelf.

    Args:
        decibels: gains, float64 (B, S).
        q: qualities, float64 (B, S).
        centers: S frequencies in Hz.
        sample_rate: samples in a second.
        taps: how many are wanted, even. The spectrum is sampled at twice as many points, so what
            lies beyond that falls back onto the response; it is as far down again.
        dtype: of the result, float32 or float64.

    Returns:
        Tensor (B, taps).
    """
    tables, mid, slope = _tables(centers, sample_rate, taps, dtype, q.device)
    amplitude = (decibels * (math.log(10) / 40)).exp()
    alpha = slope / (4 * q)
    peaks, shelves = _PEAKS, slice(None, None, len(centers) - 1)
    up, down = (alpha * amplitude)[:, peaks], (alpha / amplitude)[:, peaks]
    a, edge, wide = amplitude[:, shelves], mid[shelves], (amplitude.sqrt() * alpha)[:, shelves]
    m = (a - 1) * edge
    weights = [up * down, up - down, down * down]
    # Over and under the line of a low shelf; a high shelf is one upside down.
    over, under = (a, -1 - m), (torch.ones_like(a), m - a)
    # a, c, b and d of _response.
    for one, other in zip(over, under, strict=True):
        for first, second in ((one, other), (other, one)):
            weights.append(torch.stack([first[:, 0], second[:, 1]], dim=1))
    weights += [wide, 1 / a.prod(dim=1, keepdim=True)]
    weights = [weight.to(dtype)[..., None] for weight in weights]
    if values_are_at_hand(q):
        # A row at a time stays in the cache, and its bits know nothing of the others.
        rows = ([weight[row : row + 1] for weight in weights] for row in range(len(q)))
        return torch.cat([_response(row, tables, taps) for row in rows])
    return _response(weights, tables, taps)


def _response(weights: list[Tensor], tables: tuple[Tensor, ...], taps: int) -> Tensor:
    """The impulse response of the product of the sections, (B, taps).

    Each is its numerator times its denominator's conjugate, over that one's square.
    """
    peak_square, peak_across, side_square, near, far, side = tables
    both, between, below, a, c, b, d, wide, gain = weights
    over, under, turned = a * near + b * far, c * near + d * far, wide * side
    turned_square = turned * turned
    real = [both * side_square + peak_square, over * under + turned_square]
    imaginary = [between * peak_across, (under - over) * turned]
    square = [below * side_square + peak_square, under * under + turned_square]
    above, across, below = _product(*(torch.cat(part, dim=1) for part in (real, imaginary, square)))
    below = below * gain
    spectrum = torch.complex((above / below)[:, 0], (across / below)[:, 0])
    # Never one transform alone, whose last bit would depend on the number of threads.
    several = spectrum.expand(2, -1) if len(spectrum) == 1 else spectrum
    response: Tensor = torch.fft.irfft(several, n=2 * taps)
    return response[: len(spectrum), :taps]


def _product(real: Tensor, imaginary: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of complex numbers and of a real along dimension 1, by halves: (B, 1, bins) each.

    Products and sums of reals, each rounded for itself, are the same bits however a device or
    threads share them out; a library's complex product is not.
    """
    while (count := real.shape[1]) > 1:
        half = count // 2
        first, odd, last = slice(0, half), slice(half, count - half), slice(count - half, None)
        a, b, c, d = real[:, first], imaginary[:, first], real[:, last], imaginary[:, last]
        parts = [a * c - b * d, a * d + b * c, scale[:, first] * scale[:, last]]
        if count % 2:
            rest = (real[:, odd], imaginary[:, odd], scale[:, odd])
            parts = [torch.cat(both, dim=1) for both in zip(parts, rest, strict=True)]
        real, imaginary, scale = parts
    return real, imaginary, scale


@functools.lru_cache(maxsize=16)
def _tables(
    centers: tuple[float, ...],
    sample_rate: float,
    taps: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """What is the same for every draw: over sections and bins, and two over sections."""
    with torch.inference_mode(False):
        angle = torch.arange(taps + 1, dtype=torch.float64) * (math.pi / taps)
        center = torch.tensor(centers, dtype=torch.float64) * (2 * math.pi / sample_rate)
        here, mid = (angle / 2).sin().square(), (center / 2).sin().square()[:, None]
        # The common divisor keeps the product of many sections within the range of float32.
        near, far, side = mid / (mid + here), here / (mid + here), angle.sin() / (mid + here)
        level, across = (near - far)[_PEAKS], side[_PEAKS]
        ends = (table[:: len(centers) - 1] for table in (near, far, side))
        tables = (level * level, level * across, across * across, *ends)
        cast = tuple(table.to(device=device, dtype=dtype).contiguous() for table in tables)
        return cast, mid[:, 0].to(device), center.sin().to(device)
