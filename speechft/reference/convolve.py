"""Convolution of each waveform with a filter of its own, cut to the waveform's length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def convolve(
    waveforms: Tensor,
    lengths: Tensor,
    responses: Sequence[tuple[Tensor, Tensor]],
    *,
    applied: Tensor | None = None,
) -> Tensor:
    r"""Filter each row by all of ``responses``, as one filter.

    .. math:: y_t = \sum_i h[i + d]\, x[t - i], \qquad 0 \le t < n,\ 0 \le t - i < n,

    where :math:`h` is the convolution of the row's responses and :math:`d` the sum of their delays.

    Args:
        waveforms: (B, T), floating point; what is in the padding is not read.
        lengths: int64 (B,).
        responses: of each filter, (B, L) and delays int64 (B,): where in the response time 0 is.
        applied: bool (B,); other rows pass with their bits unchanged. None: all.

    Returns:
        (B, T), zero beyond each length.
    """
    steps = waveforms.shape[1]
    valid = torch.arange(steps, device=waveforms.device) < lengths[:, None]
    x = torch.where(valid, waveforms, torch.zeros_like(waveforms))
    taps = sum(response.shape[1] - 1 for response, _ in responses)
    size = 1 << max(steps + taps - 1, 1).bit_length()
    spectrum = torch.fft.rfft(x, n=size)
    delay = torch.zeros_like(lengths)
    for response, lag in responses:
        spectrum = spectrum * torch.fft.rfft(response, n=size)
        delay = delay + lag
    y = torch.fft.irfft(spectrum, n=size)
    time = torch.arange(steps, device=x.device) + delay[:, None]
    y = torch.where(valid, y.gather(1, time % size), torch.zeros_like(x))
    return y if applied is None else torch.where(applied[:, None], y, x)
