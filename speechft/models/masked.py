"""Normalisations over the valid steps of each sample only.

Both compute, for each sample b (and channel c) with n = ``lengths[b]`` valid steps,

    mean = 1/n Σ_{t<n} x_t        var = 1/n Σ_{t<n} (x_t − mean)²

and so give the same value however long the padding is, where the usual forms count the padding
as signal. It is the same to the last bit: the order of the sums does not depend on the padding
either. Were it only close, the convolutions behind would make of the last bit a relative difference
above 1e-6. The padding must be finite (zero it first); lengths below 1 count as 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_SUM_BLOCK = 256
_PIECE = 1 << 19  # values


def valid_mask(lengths: Tensor, steps: int) -> Tensor:
    """Boolean mask (B, steps), True = valid."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def _sum(values: Tensor) -> Tensor:
    """Sums (..., 1) over the last dimension, the same bits whatever number of zeros ends it.

    Blocks of a fixed size in the dtype of the values, then their sums in float64, which rounds the
    same in any order but for one time in 10^8.
    """
    steps = values.shape[-1]
    whole = steps - steps % _SUM_BLOCK
    blocks = values[..., :whole].view(*values.shape[:-1], -1, _SUM_BLOCK).sum(-1)
    rest = pad(values[..., whole:], (0, _SUM_BLOCK - (steps - whole))).sum(-1, keepdim=True)
    return torch.cat([blocks, rest], dim=-1).sum(-1, keepdim=True, dtype=torch.float64)


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
    lengths = lengths.clamp(min=1)
    mask = valid_mask(lengths, x.shape[-1])[:, None]
    count = lengths[:, None, None]
    if _in_pieces(x, weight, bias):
        y = torch.empty_like(x)
        channels = max(1, _PIECE // x.shape[-1])
        for sample in range(x.shape[0]):
            one = slice(sample, sample + 1)
            for start in range(0, x.shape[1], channels):
                some = slice(start, start + channels)
                y[one, some] = _normed(
                    x[one, some], mask[one], count[one],
                    None if weight is None else weight[some],
                    None if bias is None else bias[some], eps,
                )  # fmt: skip
        return y
    return _normed(x, mask, count, weight, bias, eps)


def _in_pieces(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether to go piece by piece, in the caches: on a CPU, where no graph is wanted."""
    if x.device.type != "cpu" or x.numel() <= _PIECE or torch.compiler.is_compiling():
        return False
    tensors = [tensor for tensor in (x, *parameters) if tensor is not None]
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def _normed(
    x: Tensor,
    mask: Tensor,
    count: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    mask = mask.to(dtype)
    values = x.to(dtype)
    mean = (_sum(values * mask) / count).to(dtype)
    centred = (values - mean) * mask
    scale = torch.rsqrt(_sum(centred.square()) / count + eps).to(dtype)
    if weight is not None:
        scale = scale * weight.to(dtype)[:, None]
    y = centred * scale
    if bias is not None:
        y = y + bias.to(dtype)[:, None]
    return y.to(x.dtype)


def zero_mean_unit_variance(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Each waveform to zero mean and unit variance over its valid samples; padding stays 0.

        y = (x − mean) / √(var + 1e-7)

    which is what the Hugging Face feature extractors do for ``do_normalize=True``.

    Args:
        waveforms: (B, T), float, finite.
        lengths: (B,) valid samples, or None for all.
    """
    if lengths is None:
        lengths = torch.full(waveforms.shape[:1], waveforms.shape[1], device=waveforms.device)
    return masked_group_norm(waveforms[:, None], lengths, None, None, eps=1e-7)[:, 0]
