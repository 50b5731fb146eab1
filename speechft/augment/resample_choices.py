"""Playback of each clip at one of a few speeds, where which one is a value that cannot be read.

A kernel makes each row at its own speed in one launch. Without one all rows are played at each of
the speeds (:mod:`speechft.augment.resample`), and each takes what is its own.
"""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from speechft import backends
from speechft.augment.base import zero_padding
from speechft.augment.resample import resample, resampled_length

BACKENDS = backends.register(
    backends.OpBackends(
        op="resample",
        why_not={"reference": backends.always, "triton": backends.why_not_triton},
        order={"cuda": ("triton",)},
        dtypes={"triton": (torch.float32,)},
    )
)


def resample_choices(
    waveforms: Tensor,
    lengths: Tensor,
    choices: Tensor,
    fractions: tuple[Fraction, ...],
    zero_crossings: int,
    steps: int,
) -> Tensor:
    """Play each row at the speed of its choice: :func:`~speechft.augment.resample.resample`.

    Args:
        waveforms: float32 or float64 of shape (B, T); what is in the padding does not matter.
        lengths: valid samples, int64 (B,).
        choices: of the speeds, int64 (B,); -1 passes a row's bits as they are.
        fractions: the speeds.
        zero_crossings: of the sinc, on each side.
        steps: samples of the result that are wanted.

    Returns:
        Tensor of shape (B, steps), zero beyond each row's new length.

    Raises:
        BackendError: the backend asked for cannot run here.
    """
    # A graph that is traced holds the matrix products: its compiler knows them.
    traced = torch.compiler.is_compiling()
    if (
        not traced
        and BACKENDS.choose(waveforms.device, waveforms.dtype, or_another=True) == "triton"
    ):
        from speechft.kernels import resample as kernels

        result: Tensor = kernels.resample_choices(
            waveforms, lengths, choices, fractions, zero_crossings, steps
        )
        return result
    waveforms = zero_padding(waveforms, lengths)
    result = torch_functional.pad(waveforms, (0, steps - waveforms.shape[1]))
    lengths_after = lengths
    for number, fraction in enumerate(fractions):
        chosen = choices == number
        after = resampled_length(lengths, fraction)
        lengths_after = torch.where(chosen, after, lengths_after)
        if fraction == 1:
            continue
        # No output that is wanted hears what lies behind this.
        p, q = fraction.numerator, fraction.denominator
        needed = waveforms[:, : -(-(steps * p + zero_crossings * max(p, q)) // q)]
        played = resample(needed, fraction, zero_crossings=zero_crossings)[:, :steps]
        played = torch_functional.pad(played, (0, steps - played.shape[1]))
        result = torch.where(chosen[:, None], played, result)
    return zero_padding(result, lengths_after)
