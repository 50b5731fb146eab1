r"""Convolution of each waveform with filters of its own, by overlap-save.

The waveform is cut into blocks of :math:`N` samples that overlap by the length of the filter less
one; each is multiplied with the filter's spectrum, and the samples that no wrapping has reached are
put side by side. Several filters are one: their spectra are multiplied first.

With a block of some times the filter's length the work grows with the length of the waveform alone,
and a block and its spectrum stay in the cache. The transforms belong to the vendor's library.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional._checks import check_floating
from speechft.lengths import LengthsLike, check_lengths

# The shortest block, and how many times the filter's length it is to be.
_SHORTEST_BLOCK, _BLOCK_TO_FILTER = 2048, 2


def convolve(
    waveforms: Tensor,
    lengths: LengthsLike | None,
    responses: Sequence[tuple[Tensor, Tensor]],
    *,
    applied: Tensor | None = None,
) -> Tensor:
    r"""Filter each row by all of ``responses``, as one filter, and cut it to its length.

    .. math:: y_t = \sum_i h[i + d]\, x[t - i], \qquad 0 \le t < n,\ 0 \le t - i < n,

    where :math:`h` is the convolution of the row's responses and :math:`d` the sum of their delays.
    No gradient flows.

    Args:
        waveforms: (B, T), floating point; what is in the padding is not read.
        lengths: (B,) valid samples; None where all T are.
        responses: of each filter, (B, L) and delays int64 (B,): where in the response time 0 is.
        applied: bool (B,); other rows pass with their bits unchanged. None: all.

    Returns:
        Waveforms of the same shape and dtype, zero beyond each length.

    Raises:
        ArgumentError: a wrong shape, no responses, tensors on another device.
        ArgumentTypeError: waveforms or responses that are not floating point.
        LengthError: a length outside 1..T.
    """
    check_floating(waveforms, "waveforms", "(B, T)")
    batch, width = waveforms.shape
    device = waveforms.device
    valid = check_lengths(lengths, batch=batch, steps=width, device=device, argument="lengths")
    if valid is None:
        valid = torch.full((batch,), width, device=device)
    if not responses:
        raise ArgumentError("responses", "is empty; wants at least one filter")
    for response, delay in responses:
        check_floating(response, "responses", "(B, L)")
        if len(response) != batch or delay.shape != (batch,):
            raise ArgumentError(
                "responses",
                f"wants {batch} rows and delays, got {tuple(response.shape)} and "
                f"{tuple(delay.shape)}",
            )
        if response.device != device or delay.device != device:
            raise ArgumentError("responses", f"wants the device of the waveforms, {device}")
    if applied is not None and (applied.shape != (batch,) or applied.dtype != torch.bool):
        raise ArgumentTypeError("applied", f"wants booleans of shape ({batch},)")
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return _overlap_save(waveforms.detach(), valid, responses, applied)


def _overlap_save(
    waveforms: Tensor,
    lengths: Tensor,
    responses: Sequence[tuple[Tensor, Tensor]],
    applied: Tensor | None,
) -> Tensor:
    dtype = torch.promote_types(waveforms.dtype, torch.float32)
    taps = 1 + sum(response.shape[1] - 1 for response, _ in responses)
    block = max(_SHORTEST_BLOCK, 1 << (_BLOCK_TO_FILTER * taps - 1).bit_length())
    delays = torch.stack([delay for _, delay in responses]).sum(dim=0)
    if _row_by_row(waveforms):
        result = torch.zeros_like(waveforms)
        every = torch.ones_like(lengths) if applied is None else applied
        for row, (length, delay, here) in enumerate(
            zip(lengths.tolist(), delays.tolist(), every.tolist(), strict=True)
        ):
            one = waveforms[row : row + 1, :length]
            if here:
                # Twice: libraries take another way for one transform alone, whose last bit depends
                # on the number of threads.
                filters = [r[row : row + 1].expand(2, -1) for r, _ in responses]
                spectrum = _spectrum(filters, block, dtype)[:1]
                one = _filtered(one.to(dtype), spectrum, block, taps, delay)[:, delay:]
            result[row, :length] = one[0, :length]
        return result
    spectrum = _spectrum([response for response, _ in responses], block, dtype)
    width = waveforms.shape[1]
    time = torch.arange(width, device=waveforms.device)
    beyond = time >= lengths[:, None]
    x = waveforms.masked_fill(beyond, 0.0)
    longest = sum(response.shape[1] - 1 for response, _ in responses)
    y = _filtered(x.to(dtype), spectrum, block, taps, longest)
    y = y.gather(1, time + delays[:, None]).masked_fill(beyond, 0.0).to(waveforms.dtype)
    return y if applied is None else torch.where(applied[:, None], y, x)


def _row_by_row(waveforms: Tensor) -> bool:
    """Whether lengths may be read: then no work is spent on padding, nor on rows that pass."""
    return waveforms.device.type == "cpu" and not torch.compiler.is_compiling()


def _spectrum(responses: list[Tensor], block: int, dtype: torch.dtype) -> Tensor:
    product: Tensor = torch.fft.rfft(responses[0].to(dtype), n=block)
    for response in responses[1:]:
        product = product * torch.fft.rfft(response.to(dtype), n=block)
    return product


def _filtered(x: Tensor, spectrum: Tensor, block: int, taps: int, more: int) -> Tensor:
    """The convolution from time 0, ``more`` samples longer than ``x``."""
    batch, width = x.shape
    kept = block - taps + 1
    count = max(2, -(-(width + more) // kept))  # never one alone; see above
    padded = torch_functional.pad(x, (taps - 1, count * kept - width))
    blocks = padded.as_strided((batch, count, block), (padded.shape[1], kept, 1))
    product = torch.fft.rfft(blocks).mul_(spectrum[:, None])
    result: Tensor = torch.fft.irfft(product, n=block)
    return result[:, :, taps - 1 :].reshape(batch, count * kept)
