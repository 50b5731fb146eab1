"""Normalisations over the valid steps of each sample only.

Both compute, for each sample b (and channel c) with n = ``lengths[b]`` valid steps,

    mean = 1/n Σ_{t<n} x_t        var = 1/n Σ_{t<n} (x_t − mean)²

and so give the same value however long the padding is, where the usual forms count the padding
as signal. The padding must be finite (zero it first); lengths below 1 count as 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def valid_mask(lengths: Tensor, steps: int) -> Tensor:
    """Boolean mask (B, steps), True = valid."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def masked_group_norm(
    x: Tensor, lengths: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Tensor:
    """Group norm with one group a channel, over the valid frames.

        y = (x − mean) / √(var + eps) · weight + bias        (padding: y = bias)

    This is the first norm of the "base" encoders (``feat_extract_norm="group"``). Statistics are
    float32 for half-precision input. The one tensor kept for the backward is ``x − mean``.

    Args:
        x: (B, C, T), finite.
        lengths: (B,) valid frames, on the device of ``x``.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance.
    """
    statistics_dtype = torch.promote_types(x.dtype, torch.float32)
    mask = valid_mask(lengths.clamp(min=1), x.shape[-1])[:, None].to(statistics_dtype)
    count = mask.sum(-1, keepdim=True)
    values = x.to(statistics_dtype)
    mean = (values * mask).sum(-1, keepdim=True) / count
    centred = (values - mean) * mask
    scale = torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + eps)
    if weight is not None:
        scale = scale * weight.to(statistics_dtype)[:, None]
    y = centred * scale
    if bias is not None:
        y = y + bias.to(statistics_dtype)[:, None]
    return y.to(x.dtype)


def zero_mean_unit_variance(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Each waveform to zero mean and unit variance over its valid samples; padding stays 0.

        y = (x − mean) / √(var + 1e-7)

    which is what the Hugging Face feature extractors do for ``do_normalize=True``.

    Args:
        waveforms: (B, T), float, finite.
        lengths: (B,) valid samples, or None for all.
    """
    eps = 1e-7
    if lengths is None:
        centred = waveforms - waveforms.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return masked_group_norm(waveforms[:, None], lengths, None, None, eps=eps)[:, 0]
