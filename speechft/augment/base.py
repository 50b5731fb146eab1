"""What every augmentation is: a module with one face, whose randomness comes from keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import torch
from torch import Tensor, nn

from speechft.augment.keys import check_keys, randint
from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.lengths import LengthsLike, check_lengths

Parameters = Union[Tensor, tuple["Parameters", ...]]


class Augmentation(nn.Module):
    """Base of all augmentations: ``module(waveforms, lengths, keys) -> (waveforms, lengths)``.

    A subclass implements :meth:`perturb` and :meth:`parameters_for`. What holds for each of them:

    * The same key gives the same waveform: alone or in any batch, in any order, on any worker.
    * Padding and batch-mates mean nothing: whatever is in the padding stays there, the valid part
      does not depend on it, and the padding of the result is zero.
    * The result has the dtype of the input; float16 and bfloat16 are computed in float32, and
      autocast changes nothing.
    * The host never waits for a GPU. The padded size of the result there is a bound made of the
      padded size of the input; on the CPU it is the longest valid length.
    * No gradient flows to the input, and train and eval mode are the same.
    * ``torch.compile(fullgraph=True)`` works; the padded size is then the bound, as on a GPU.
    """

    def forward(
        self, waveforms: Tensor, lengths: LengthsLike | None, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Perturb each sample as its key says.

        Args:
            waveforms: floats of shape (B, T).
            lengths: valid samples of each, of shape (B,); None where all T are.
            keys: int64 of shape (B,), one a sample; see :func:`~speechft.augment.make_keys`.

        Returns:
            The perturbed waveforms (B, T') and their lengths, int64 of shape (B,).

        Raises:
            ArgumentTypeError: waveforms are not floats, lengths not integers, keys not int64.
            ArgumentError: a wrong shape, or NaN or infinity in the valid part (looked for on the
                CPU, and on a GPU inside :func:`speechft.checked`).
            LengthError: a length outside 1..T.
        """
        valid_lengths, keys = check_batch(waveforms, lengths, keys)
        dtype = waveforms.dtype
        with torch.no_grad(), torch.autocast(waveforms.device.type, enabled=False):
            clean = waveforms.detach().to(torch.promote_types(dtype, torch.float32))
            clean = zero_padding(clean, valid_lengths)
            if values_are_checked(clean):
                _check_finite(clean)
            perturbed, lengths_after = self.perturb(clean, valid_lengths, keys)
        return perturbed.to(dtype), lengths_after

    def perturb(self, waveforms: Tensor, lengths: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The perturbation itself, on checked float32 or float64 waveforms.

        Their padding is zero, and so must be the padding of the result. They are not to be written
        to: they may be the caller's own.
        """
        raise NotImplementedError

    def parameters_for(self, keys: Tensor) -> Parameters:
        """What these keys draw, one row a sample: to follow with labels, to log, to replay."""
        raise NotImplementedError


class KeyedChoice(Augmentation):
    """An augmentation that draws one of a few values for each sample, each as likely."""

    values: tuple[float, ...]

    def parameters_for(self, keys: Tensor) -> Tensor:
        """The value each key draws: float64 of shape (B,), on the device of ``keys``."""
        index = self.choices_for(keys)
        drawn = torch.zeros_like(index, dtype=torch.float64)
        for number, value in enumerate(self.values):
            drawn = drawn.masked_fill(index == number, value)
        return drawn

    def choices_for(self, keys: Tensor) -> Tensor:
        """The index into the values that each key draws: int64 of shape (B,)."""
        check_keys(keys, "keys")
        return randint(keys, 0, 1, high=len(self.values))[:, 0]


def check_batch(
    waveforms: Tensor, lengths: LengthsLike | None, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """The door check; gives lengths and keys on the device of the waveforms."""
    if not isinstance(waveforms, Tensor) or not waveforms.is_floating_point():
        got = waveforms.dtype if isinstance(waveforms, Tensor) else type(waveforms).__name__
        raise ArgumentTypeError(
            "waveforms", f"wants floats, got {got}; divide 16-bit samples by 32768"
        )
    if waveforms.dim() != 2 or 0 in waveforms.shape:
        raise ArgumentError(
            "waveforms", f"wants shape (B, T) with B, T >= 1, got {tuple(waveforms.shape)}"
        )
    batch, steps = waveforms.shape
    check_keys(keys, "keys")
    if keys.shape != (batch,):
        raise ArgumentError("keys", f"wants shape ({batch},), got {tuple(keys.shape)}")
    values = check_lengths(
        lengths, batch=batch, steps=steps, device=waveforms.device, argument="lengths"
    )
    if values is None:
        values = torch.full((batch,), steps, device=waveforms.device)
    return values, keys.to(waveforms.device, non_blocking=True)


def check_choices(values: object, argument: str) -> tuple[float, ...]:
    """A sequence of at least one finite number, as a tuple.

    Raises:
        ArgumentTypeError: not a sequence of numbers.
        ArgumentError: empty, or with a number that is not finite.
    """
    if not isinstance(values, (tuple, list)) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    ):
        raise ArgumentTypeError(argument, f"wants a list or tuple of numbers, got {values!r}")
    if not values:
        raise ArgumentError(argument, "is empty; wants at least one number")
    if not all(-float("inf") < value < float("inf") for value in values):
        raise ArgumentError(argument, f"wants finite numbers, got {values!r}")
    return tuple(float(value) for value in values)


def zero_padding(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Zero from each length on, whatever was there; the same tensor if nothing has to change."""
    if values_are_at_hand(waveforms):
        valid = lengths.tolist()
        if min(valid) == waveforms.shape[1]:
            return waveforms
        waveforms = waveforms.clone()
        for row, length in enumerate(valid):
            waveforms[row, length:] = 0.0
        return waveforms
    steps = torch.arange(waveforms.shape[1], device=waveforms.device)
    return waveforms.masked_fill(steps >= lengths[:, None], 0.0)


def values_are_at_hand(tensor: Tensor) -> bool:
    """Whether reading this tensor's values costs nothing: on the CPU, when no graph is traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def per_sample(
    waveforms: Tensor,
    lengths: Tensor,
    lengths_after: Tensor,
    choices: Tensor,
    function: Callable[[Tensor, int, int], Tensor],
) -> Tensor:
    """On the CPU: ``function(waveform (1, n), n_after, choice)`` for each sample, into one batch.

    One sample at a time is the fastest way there is on a CPU: what it needs stays in the cache,
    no work is spent on padding, and the time to start an op is nothing beside it. It also makes
    the result independent of the batch by construction.
    """
    after = lengths_after.tolist()
    result = waveforms.new_zeros(len(after), max(after))
    for row, (before, choice) in enumerate(zip(lengths.tolist(), choices.tolist(), strict=True)):
        perturbed = function(waveforms[row : row + 1, :before], after[row], choice)
        result[row, : after[row]] = perturbed[0]
    return result


def _check_finite(waveforms: Tensor) -> None:
    # A sum is several times as fast to take, and finite unless something is wrong or enormous.
    if bool(waveforms.sum(dim=1).isfinite().all()):
        return
    finite = waveforms.isfinite().all(dim=1)
    if not bool(finite.all()):
        where = int((~finite).nonzero()[0, 0])
        raise ArgumentError(
            "waveforms", f"sample {where} has NaN or infinity in its valid part; drop or mend it"
        )
