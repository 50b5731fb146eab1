"""Log-mel features as if they were an encoder: the floor that any encoder has to beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechft.lengths import LengthsLike, check_lengths
from speechft.models.encoder import EncoderOutput

_HOP, _WINDOW, _FFT, _MELS = 160, 400, 512, 40


class LogMel(nn.Module):
    r"""40 log-mel bands at 100 Hz, two frames stacked: 80 features at the encoders' 50 Hz.

    Windows of 25 ms (Hann), :math:`\log(\max(10^{-10}, \cdot))` of the power in triangles with peak
    1, evenly spaced in mel (:math:`2595 \log_{10}(1 + f / 700)`) from 20 Hz to 8 kHz. Frame t has
    samples [320 t, 320 t + 560).
    """

    sample_rate = 16_000
    minimum_samples = _WINDOW + _HOP
    num_layers = 0
    hidden_size = 2 * _MELS

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", mel_filters(), persistent=False)
        self.register_buffer("window", torch.hann_window(_WINDOW), persistent=False)

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """⌊(n − 560) / 320⌋ + 1, and 0 where n is less than 560."""
        return ((sample_lengths - self.minimum_samples) // (2 * _HOP) + 1).clamp(min=0)

    def forward(
        self,
        waveforms: Tensor,
        lengths: LengthsLike | None = None,
        *,
        up_to_layer: int | None = None,
    ) -> EncoderOutput:
        """As :class:`speechft.models.Encoder`; there is no layer but the first."""
        batch, steps = waveforms.shape
        samples = check_lengths(
            lengths, batch=batch, steps=steps, device=waveforms.device, argument="lengths"
        )
        if samples is None:
            samples = torch.full((batch,), steps, device=waveforms.device)
        frames = waveforms.unfold(1, _WINDOW, _HOP) * self.get_buffer("window")
        power = torch.fft.rfft(frames, _FFT).abs().square()
        mel = (power @ self.get_buffer("filters")).clamp_min(1e-10).log()
        count = self.frame_lengths(samples)
        even = mel[:, : 2 * int(self.frame_lengths(torch.tensor(steps)))]
        stacked = even.reshape(batch, -1, self.hidden_size)
        padding = torch.arange(stacked.shape[1], device=count.device) >= count[:, None]
        stacked = stacked.masked_fill(padding[..., None], 0.0)
        return EncoderOutput((stacked,), stacked, count)


def mel_filters() -> Tensor:
    """Triangles with peak 1, evenly spaced in mel from 20 Hz to 8 kHz: (257, 40)."""
    top = 2595 * math.log10(1 + 8000 / 700)
    points = torch.linspace(2595 * math.log10(1 + 20 / 700), top, _MELS + 2)
    edges = 700 * (10 ** (points / 2595) - 1)
    hertz = torch.arange(_FFT // 2 + 1)[:, None] * (16_000 / _FFT)
    rise = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp_min(0)
