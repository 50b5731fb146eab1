"""What every augmentation is: a module with one face, whose randomness comes from keys."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from speechft.augment.keys import check_keys, randint, uniform
from speechft.augment.parameters import Parameters
from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.lengths import LengthsLike, check_lengths

# The stream of a key that says whether an augmentation is applied; the others are its own.
_APPLIED = 2**32 - 1


class Augmentation(nn.Module):
    """Base of all augmentations: ``module(waveforms, lengths, keys) -> (waveforms, lengths)``.

    A subclass implements :meth:`draw` and :meth:`perturb`. What holds for each of them:

    * The same key gives the same waveform: alone or in any batch, in any order, on any worker
      (:class:`~speechft.augment.Babble`, which is made of the batch, apart).
    * Padding and batch-mates mean nothing: whatever is in the padding stays there, the valid part
      does not depend on it, and the padding of the result is zero.
    * The result has the dtype of the input; float16 and bfloat16 are computed in float32, and
      autocast changes nothing.
    * The host never waits for a GPU. The padded size of the result there is a bound made of the
      padded size of the input; on the CPU it is the longest valid length.
    * No gradient flows to the input, and train and eval mode are the same.
    * ``torch.compile(fullgraph=True)`` works; the padded size is then the bound, as on a GPU.

    Args:
        p: the probability, for each sample, of being changed at all.

    Attributes:
        changes: which labels a clip may not keep: ``"timing"`` (labels of frames move),
            ``"speaker"`` (it sounds like somebody else), ``"content"`` (some of it is gone).

    Raises:
        ArgumentError: ``p`` is not from 0 to 1.
        ArgumentTypeError: ``p`` is no number.
    """

    changes: frozenset[str] = frozenset()
    skipped: Tensor
    p: float

    def __init__(self, *, p: float = 1.0) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, Real):
            raise ArgumentTypeError("p", f"wants a probability, 0 to 1, got {p!r}")
        if not 0 <= p <= 1:
            raise ArgumentError("p", f"wants a probability, 0 to 1, got {p!r}")
        self.p = float(p)
        with torch.inference_mode(False):  # it is written to, in inference mode or not
            skipped = torch.zeros((), dtype=torch.int64)
        self.register_buffer("skipped", skipped, persistent=False)

    def forward(
        self, waveforms: Tensor, lengths: LengthsLike | None, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Perturb each sample as its key says.

        Args:
            waveforms: floats of shape (B, T).
            lengths: valid samples of each, of shape (B,); None where all T are.
            keys: int64 of shape (B,), one a sample; see :func:`~speechft.augment.make_keys`. They
                may be on the host while waveforms are on a GPU, which is fastest.

        Returns:
            The perturbed waveforms (B, T') and their lengths, int64 of shape (B,).

        Raises:
            ArgumentTypeError: waveforms are not floats, lengths not integers, keys not int64.
            ArgumentError: a wrong shape, or NaN or infinity in the valid part (looked for on the
                CPU, and on a GPU inside :func:`speechft.checked`).
            LengthError: a length outside 1..T.
        """
        valid_lengths = check_waveforms(waveforms, lengths)
        check_keys(keys, "keys")
        if keys.shape != (len(waveforms),):
            raise ArgumentError("keys", f"wants shape ({len(waveforms)},), got {tuple(keys.shape)}")
        # Drawn where the keys are: on the host, a moment before the GPU wants it, where they are.
        drawn = self.parameters_for(keys).to(waveforms.device)
        return self._run(waveforms, valid_lengths, drawn)

    def replay(
        self, waveforms: Tensor, lengths: LengthsLike | None, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """Perturb each sample as ``parameters`` say: of :meth:`parameters_for`, or changed.

        ``module.replay(x, lengths, module.parameters_for(keys))`` is ``module(x, lengths, keys)``.
        """
        valid_lengths = check_waveforms(waveforms, lengths)
        if len(parameters) not in (0, len(waveforms)):
            raise ArgumentError(
                "parameters",
                f"wants those of {len(waveforms)} samples, got those of {len(parameters)}",
            )
        one = torch.zeros(1, dtype=torch.int64)
        wanted, given = (set(drawn.flat()) for drawn in (self.parameters_for(one), parameters))
        if wanted != given:
            raise ArgumentError(
                "parameters",
                f"wants those of {type(self).__name__}: {', '.join(sorted(wanted)) or 'none'}; "
                f"got {', '.join(sorted(given)) or 'none'}",
            )
        return self._run(waveforms, valid_lengths, parameters.to(waveforms.device))

    def _run(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        dtype = waveforms.dtype
        with torch.no_grad(), without_autocast(waveforms.device):
            clean = waveforms.detach().to(torch.promote_types(dtype, torch.float32))
            if values_are_checked(clean):
                check_finite(clean, lengths)
            perturbed, lengths_after = self.perturb(clean, lengths, parameters)
        return perturbed.to(dtype), lengths_after

    def parameters_for(self, keys: Tensor) -> Parameters:
        """What these keys (B,) draw, on their device."""
        check_keys(keys, "keys")
        values = self.draw(keys)
        if self.p == 1:
            applied = torch.ones_like(keys, dtype=torch.bool)
        else:
            applied = uniform(keys, _APPLIED, 1, dtype=torch.float64)[:, 0] < self.p
        return Parameters({"applied": applied, **values})

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """The values that these keys draw, a row a sample."""
        raise NotImplementedError

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """The perturbation itself, on checked float32 or float64 waveforms.

        They are not to be written to: they may be the caller's own. What is in their padding is
        not to be read; the padding of the result must be zero. Samples where
        ``parameters["applied"]`` is False pass with their bits unchanged.
        """
        raise NotImplementedError

    def count_skipped(self, skipped: Tensor) -> None:
        """Add to :attr:`skipped` the samples that could not be changed as drawn, and why not.

        Read it when the run ends; reading a number on a GPU waits for it.
        """
        if self.skipped.device != skipped.device:  # a module that was not moved with the waveforms
            self.skipped = self.skipped.to(skipped.device)
        self.skipped += skipped.sum()  # in place: a CUDA graph that is replayed goes on counting

    def flatten(self, parameters: Parameters) -> list[tuple[Augmentation, Parameters]]:
        """What is done one after another, compositions taken apart."""
        return [(self, parameters)]

    def extra_repr(self) -> str:
        """The arguments."""
        return "" if self.p == 1 else f"p={self.p:g}"


class KeyedChoice(Augmentation):
    """An augmentation that draws one of a few values for each sample, each as likely."""

    values: tuple[float, ...]
    drawn: str

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """The value each key draws: float64 of shape (B,), on the device of ``keys``."""
        index = randint(keys, 0, 1, high=len(self.values))[:, 0]
        drawn = torch.zeros_like(index, dtype=torch.float64)
        for number, value in enumerate(self.values):
            drawn = drawn.masked_fill(index == number, value)
        return {self.drawn: drawn}

    def choices_of(self, parameters: Parameters) -> Tensor:
        """The index of the value nearest to each one drawn, int64 (B,); -1: not applied.

        Raises:
            ArgumentError: a value that is none of this module's (looked for on the CPU).
        """
        values = parameters[self.drawn]
        if values_are_checked(values):
            self._check_known(values)
        index = torch.zeros_like(values, dtype=torch.int64)
        nearest = (values - self.values[0]).abs()
        for number, value in enumerate(self.values):
            distance = (values - value).abs()
            index = index.masked_fill(distance < nearest, number)
            nearest = torch.minimum(nearest, distance)
        return index.masked_fill(~parameters["applied"], -1)

    def _check_known(self, values: Tensor) -> None:
        for value in values.tolist():
            if min(abs(value - known) for known in self.values) > 1e-6:
                raise ArgumentError(
                    "parameters",
                    f"{self.drawn} {value:g} is none of this {type(self).__name__}'s: "
                    f"{', '.join(f'{known:g}' for known in self.values)}",
                )


def check_waveforms(waveforms: Tensor, lengths: LengthsLike | None) -> Tensor:
    """Waveforms (B, T) are floats; gives their lengths on their device."""
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
    values = check_lengths(
        lengths, batch=batch, steps=steps, device=waveforms.device, argument="lengths"
    )
    if values is None:
        values = torch.full((batch,), steps, device=waveforms.device)
    return values


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


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside the block autocast changes nothing, on devices that have any."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


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

    A sample whose choice is -1 passes as it is.

    One sample at a time is the fastest way there is on a CPU: what it needs stays in the cache,
    no work is spent on padding, and the time to start an op is nothing beside it. It also makes
    the result independent of the batch by construction.
    """
    after = lengths_after.tolist()
    result = waveforms.new_zeros(len(after), max(after))
    for row, (before, choice) in enumerate(zip(lengths.tolist(), choices.tolist(), strict=True)):
        clip = waveforms[row : row + 1, :before]
        result[row, : after[row]] = (function(clip, after[row], choice) if choice >= 0 else clip)[0]
    return result


def check_finite(waveforms: Tensor, lengths: Tensor) -> None:
    """Raise where a valid sample is NaN or infinite."""
    if waveforms.device.type == "cpu":
        sums = [row[:length].sum() for row, length in zip(waveforms, lengths.tolist(), strict=True)]
        # A sum is several times as fast to take, and finite unless something is wrong or enormous.
        if bool(torch.stack(sums).isfinite().all()):
            return
    finite = zero_padding(waveforms, lengths).isfinite().all(dim=1)
    if not bool(finite.all()):
        where = int((~finite).nonzero()[0, 0])
        raise ArgumentError(
            "waveforms", f"sample {where} has NaN or infinity in its valid part; drop or mend it"
        )
