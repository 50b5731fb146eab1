"""Log-mel frames with Kaldi's arithmetic, of waveforms of any lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError, ClipTooShortError, NonFiniteError
from speechft.lengths import LengthsLike, check_lengths
from speechft.models.masked import valid_mask

_FULL_SCALE = 32_768.0  # Kaldi reads samples as 16-bit integers
_PIECE = 1 << 18  # samples
_FLOOR = torch.finfo(torch.float32).eps
_WINDOWS = ("povey", "hamming", "hann")
_NORMALIZATIONS = ("none", "utterance", "short_time")


class LogMel(nn.Module):
    r"""Log energies in mel bands, as Kaldi's ``compute-fbank-feats`` without dither makes them.

    Frame t has the samples :math:`[h t, h t + w)` of the waveform, at the scale of 16-bit integers,
    and only whole frames count (``snip_edges``). With :math:`\bar x` the mean of the frame, window
    v, pre-emphasis a and triangles :math:`M_k`,

    .. math::

        y_i = (x_i - \bar x) - a (x_{\max(i-1, 0)} - \bar x), \qquad
        z_k = \log \max\Bigl(\epsilon, \sum_f M_k(f)\, |\mathrm{FFT}(v y)_f|^2\Bigr).

    The triangles have peak 1 and straight sides on the mel scale, :math:`1127 \ln(1 + f / 700)`,
    where their centres are evenly spaced from ``low`` to ``high``. The FFT has the next power of
    two of points, and :math:`\epsilon = 2^{-23}`.

    Always computed in float32, under autocast and in a module cast to half precision too.

    Args:
        bands: number of triangles.
        sample_rate: of the waveforms, Hz.
        window_seconds: length of a frame; part of a sample is dropped, as Kaldi does.
        hop_seconds: from frame to frame, likewise.
        low: where the first triangle starts, Hz.
        high: where the last one ends, Hz; 0 and below, counted from the Nyquist frequency; None is
            the Nyquist frequency.
        window: ``"povey"`` (Hann to the power 0.85), ``"hamming"`` or ``"hann"``, all symmetric.
        preemphasis: a.
        remove_offset: subtract the mean of each frame.
        normalize: what is subtracted from each band: nothing (``"none"``), its mean over the
            utterance (``"utterance"``), or over the frames at most ``context`` away
            (``"short_time"``; fewer at the edges). Only valid frames count.
        context: frames to each side, for ``"short_time"``.

    Shape:
        waveforms (B, T) in [-1, 1], lengths (B,) samples or None; frames (B, T', bands) float32,
        zeros beyond each length, and frame lengths (B,) int64.

    Raises:
        ArgumentError: settings that make no frames, or a band too narrow to hold a point of the
            FFT.

    Source: Kaldi, feat/feature-window.cc and feat/mel-computations.cc.

    >>> import torch
    >>> frames, lengths = LogMel(40)(torch.randn(2, 16_000), [16_000, 8_000])
    >>> frames.shape, lengths
    (torch.Size([2, 98, 40]), tensor([98, 48]))
    """

    _taper: Tensor
    _filters: Tensor

    def __init__(
        self,
        bands: int = 80,
        *,
        sample_rate: int = 16_000,
        window_seconds: float = 0.025,
        hop_seconds: float = 0.01,
        low: float = 20.0,
        high: float | None = 7600.0,
        window: str = "povey",
        preemphasis: float = 0.97,
        remove_offset: bool = True,
        normalize: str = "none",
        context: int = 150,
    ) -> None:
        super().__init__()
        if window not in _WINDOWS:
            raise ArgumentError("window", f"wants one of {', '.join(_WINDOWS)}; got {window!r}")
        if normalize not in _NORMALIZATIONS:
            raise ArgumentError(
                "normalize", f"wants one of {', '.join(_NORMALIZATIONS)}; got {normalize!r}"
            )
        if context < 0:
            raise ArgumentError("context", f"wants 0 or more frames, got {context}")
        self.bands = bands
        self.sample_rate = sample_rate
        self.minimum_samples = _samples("window_seconds", window_seconds, sample_rate, 2)
        self.hop = _samples("hop_seconds", hop_seconds, sample_rate, 1)
        self.low = low
        nyquist = sample_rate / 2
        self.high = nyquist + (high or 0.0) if high is None or high <= 0 else high
        if not 0 <= low < self.high <= nyquist:
            raise ArgumentError(
                "high", f"wants {low:g} Hz (low) to {nyquist:g} Hz, low 0 or more; got {high}"
            )
        self.window = window
        self.preemphasis = preemphasis
        self.remove_offset = remove_offset
        self.normalize = normalize
        self.context = context
        self.points = 1 << (self.minimum_samples - 1).bit_length()
        taper, filters = self._tables()
        empty = (filters.sum(0) == 0).nonzero()
        if len(empty) or bands < 1:
            raise ArgumentError(
                "bands",
                f"{bands} is not 1 or more" if bands < 1 else
                f"{bands} are too many for an FFT of {self.points} points: no point of it lies in "
                f"band {int(empty[0])}; ask for fewer, or a longer window",
            )  # fmt: skip
        self.register_buffer("_taper", taper, persistent=False)
        self.register_buffer("_filters", filters, persistent=False)

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """How many whole frames so many samples hold: ⌊(n − window) / hop⌋ + 1, at least 0."""
        lengths = sample_lengths.to(torch.int64)
        return ((lengths - self.minimum_samples).div(self.hop, rounding_mode="floor") + 1).clamp(0)

    def forward(
        self, waveforms: Tensor, lengths: LengthsLike | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames and their lengths. What lies beyond each length is ignored, even NaN.

        Raises:
            ClipTooShortError: a waveform shorter than :attr:`minimum_samples` (checked on the CPU,
                and on a GPU inside :func:`speechft.checked`; unchecked, it counts as one frame).
            LengthError: lengths of the wrong shape or out of range (checked likewise).
            NonFiniteError: NaN or infinity in a valid sample (checked likewise).
            ArgumentError: a wrong shape.
            ArgumentTypeError: waveforms that are not floating point.
        """
        waveforms, samples = self._check(waveforms, lengths)
        with torch.autocast(waveforms.device.type, enabled=False):
            frames = torch.cat([self._log_mel(some) for some in _pieces(waveforms.float())])
            if samples is None:
                counts = torch.full(frames.shape[:1], frames.shape[1], device=frames.device)
            else:
                counts = self.frame_lengths(samples).clamp(min=1)
                padding = ~valid_mask(counts, frames.shape[1])[..., None]
                frames = frames.masked_fill(padding, 0.0)
            if self.normalize != "none":
                frames = frames - self._means(frames, counts)
                if samples is not None:
                    frames = frames.masked_fill(padding, 0.0)
        return frames, counts

    def _log_mel(self, waveforms: Tensor) -> Tensor:
        frames = (waveforms * _FULL_SCALE).unfold(1, self.minimum_samples, self.hop)
        if self.remove_offset:
            frames = frames - frames.mean(-1, keepdim=True)
        if self.preemphasis:
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            frames = torch.sub(frames, before, alpha=self.preemphasis)
        spectrum = torch.fft.rfft(frames * self._taper, self.points)
        real, imaginary = spectrum.real, spectrum.imag
        power = torch.addcmul(real * real, imaginary, imaginary)
        return (power @ self._filters).clamp_min(_FLOOR).log()

    def _means(self, frames: Tensor, counts: Tensor) -> Tensor:
        """What to subtract: (B, 1, bands) or (B, T', bands). Padded frames hold zeros."""
        # Sums in float64, so that neither padding nor the sums before a frame leave a trace.
        if self.normalize == "utterance":
            total = frames.sum(1, keepdim=True, dtype=torch.float64)
            return (total / counts[:, None, None]).to(frames.dtype)
        sums = nn.functional.pad(frames.cumsum(1, dtype=torch.float64), (0, 0, 1, 0))
        time = torch.arange(frames.shape[1], device=frames.device)
        start = (time - self.context).clamp(min=0)
        end = (time + self.context + 1).clamp(max=frames.shape[1])
        # Sums do not grow in the padding; only the number of frames has to stop at the length.
        number = (end.minimum(counts[:, None]) - start).clamp(min=1)
        return ((sums[:, end] - sums[:, start]) / number[..., None]).to(frames.dtype)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """The window (w,) and the triangles (points / 2 + 1, bands)."""
        w = self.minimum_samples
        cosine = torch.cos(2 * math.pi / (w - 1) * torch.arange(w, dtype=torch.float64))
        taper = 0.54 - 0.46 * cosine if self.window == "hamming" else 0.5 - 0.5 * cosine
        if self.window == "povey":
            taper = taper**0.85
        hertz = torch.arange(self.points // 2 + 1, dtype=torch.float64)[:, None]
        mel = 1127 * torch.log1p(hertz * (self.sample_rate / self.points) / 700)
        first, last = (1127 * math.log1p(f / 700) for f in (self.low, self.high))
        edges = torch.linspace(first, last, self.bands + 2, dtype=torch.float64)
        rise = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
        return taper.float(), torch.minimum(rise, fall).clamp_min(0).float()

    def _check(
        self, waveforms: Tensor, lengths: LengthsLike | None
    ) -> tuple[Tensor, Tensor | None]:
        if not waveforms.is_floating_point():
            raise ArgumentTypeError(
                "waveforms",
                f"wants floating point in [-1, 1], got {waveforms.dtype}; "
                "divide integers by their full scale (32768 for int16)",
            )
        if waveforms.dim() != 2 or waveforms.shape[0] == 0:
            raise ArgumentError(
                "waveforms",
                f"wants shape (B, T), one channel each, got {tuple(waveforms.shape)}",
            )
        batch, steps = waveforms.shape
        wanted = (
            f"samples; the window needs {self.minimum_samples} "
            f"({1000 * self.minimum_samples / self.sample_rate:g} ms at {self.sample_rate} Hz): "
            "drop shorter clips or join them to their neighbours"
        )
        if steps < self.minimum_samples:
            raise ClipTooShortError("waveforms", f"every sample has {steps} {wanted}")
        samples = check_lengths(
            lengths, batch=batch, steps=steps, device=waveforms.device, argument="lengths"
        )
        if samples is not None:
            if values_are_checked(samples) and bool((samples < self.minimum_samples).any()):
                where = int((samples < self.minimum_samples).nonzero()[0, 0])
                raise ClipTooShortError(
                    "lengths", f"sample {where} has {int(samples[where])} {wanted}"
                )
            waveforms = waveforms.masked_fill(~valid_mask(samples, steps), 0.0)
        if values_are_checked(waveforms):
            finite = waveforms.isfinite().all(dim=1)
            if not bool(finite.all()):
                where = int((~finite).nonzero()[0, 0])
                raise NonFiniteError("waveforms", f"sample {where} holds NaN or infinity")
        return waveforms, samples

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Only the device may change: a cast to half precision would round the tables.
        device = self._taper.device
        self._taper, self._filters = (table.to(device) for table in self._tables())
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.bands}, sample_rate={self.sample_rate}, samples={self.minimum_samples}, "
            f"hop={self.hop}, low={self.low:g}, high={self.high:g}, window={self.window!r}, "
            f"preemphasis={self.preemphasis}, remove_offset={self.remove_offset}, "
            f"normalize={self.normalize!r}, context={self.context}"
        )


def _pieces(waveforms: Tensor) -> tuple[Tensor, ...]:
    """On a CPU, a few utterances at a time: frames in the caches are twice as fast."""
    if waveforms.device.type != "cpu" or torch.compiler.is_compiling():
        return (waveforms,)
    return torch.split(waveforms, max(1, _PIECE // waveforms.shape[1]))


def _samples(argument: str, seconds: float, sample_rate: int, least: int) -> int:
    samples = int(seconds * sample_rate + 1e-6)
    if samples < least:
        raise ArgumentError(
            argument,
            f"wants {least} samples or more ({least / sample_rate:g} s), got {seconds:g} s",
        )
    return samples
