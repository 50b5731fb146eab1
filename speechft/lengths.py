"""One meaning of "how long is each sample", made from any of the field's.

speechft counts valid steps from the left: ``lengths[b]`` steps of sample ``b`` are real and the
rest is padding. :class:`Lengths` converts every other convention to it:

======================  =========================================  ===========================
system                  argument                                   constructor
======================  =========================================  ===========================
Hugging Face            ``attention_mask``, 1 = valid              :meth:`Lengths.from_hf`
fairseq, torch.nn MHA   ``padding_mask``, True = padding           :meth:`Lengths.from_padding_mask`
SpeechBrain             ``wav_lens``, relative to the longest      :meth:`Lengths.from_relative`
torchaudio, NeMo        ``lengths``, absolute                      :class:`Lengths`
s3prl, plain lists      a list of tensors                          :meth:`Lengths.from_list`
torch.nested            a nested tensor                            :meth:`Lengths.from_nested`
======================  =========================================  ===========================

>>> import torch
>>> Lengths.from_padding_mask(torch.tensor([[False, False, True], [False, False, False]]))
Lengths([2, 3])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Union

import torch
from torch import Tensor

from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError

if TYPE_CHECKING:
    from typing_extensions import Self


class HasFrameLengths(Protocol):
    """Whatever can say how many frames it makes of so many samples."""

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor: ...


class Lengths:
    """Valid steps of each sample of a batch, as an int64 tensor of shape (B,).

    Every public function of speechft that takes ``lengths`` takes a :class:`Lengths`, an integer
    tensor or a list of integers.

    Args:
        values: absolute lengths, integers of shape (B,), each at least 1.

    Raises:
        LengthError: a length below 1 (checked on the CPU, and on a GPU inside
            :func:`speechft.checked`) or a tensor that is not one-dimensional.
        ArgumentTypeError: lengths that are not integers; use :meth:`from_relative` for fractions.
    """

    __slots__ = ("values",)

    values: Tensor

    def __init__(self, values: Tensor | Sequence[int]) -> None:
        self.values = _as_int64(values, "lengths")
        if values_are_checked(self.values) and bool((self.values < 1).any()):
            where = int((self.values < 1).nonzero()[0, 0])
            raise LengthError(
                "lengths",
                f"sample {where} has length {int(self.values[where])}; every sample needs at "
                "least one step: drop empty samples before batching",
            )

    @classmethod
    def from_hf(cls, attention_mask: Tensor, model: HasFrameLengths | None = None) -> Self:
        """From a Hugging Face ``attention_mask`` (B, T), 1 = valid, padded on the right.

        Args:
            attention_mask: integers or booleans of shape (B, T).
            model: a :class:`speechft.models.Encoder`; if given, the lengths are converted from
                samples to its frames.
        """
        mask = _as_mask(attention_mask, "attention_mask")
        lengths = cls._from_valid(mask, "attention_mask")
        return lengths if model is None else cls(model.frame_lengths(lengths.values))

    @classmethod
    def from_padding_mask(cls, padding_mask: Tensor) -> Self:
        """From a fairseq or torch ``padding_mask`` (B, T), True = padding, padded on the right."""
        return cls._from_valid(~_as_mask(padding_mask, "padding_mask"), "padding_mask")

    @classmethod
    def from_relative(cls, lens: Tensor | Sequence[float], T: int) -> Self:
        """From SpeechBrain's relative lengths in (0, 1] and the padded length ``T``.

        A length of ``lens * T`` is rounded to the nearest integer, which inverts SpeechBrain's
        ``n / T`` exactly for every ``n`` up to 2**22.
        """
        lens = torch.as_tensor(lens)
        if not lens.is_floating_point():
            raise ArgumentTypeError("lens", f"wants fractions in (0, 1], got {lens.dtype}")
        if values_are_checked(lens) and bool(((lens <= 0) | (lens > 1) | lens.isnan()).any()):
            raise LengthError("lens", f"wants fractions in (0, 1], got {lens.tolist()}")
        return cls((lens.double() * T).round().to(torch.int64))

    @classmethod
    def from_list(cls, xs: Sequence[Tensor]) -> Self:
        """From a list of unpadded tensors: the size of the first dimension of each."""
        if not xs:
            raise LengthError("xs", "is empty; a batch needs at least one sample")
        return cls(torch.tensor([x.shape[0] for x in xs], device=xs[0].device))

    @classmethod
    def from_nested(cls, nested: Tensor) -> Self:
        """From a nested tensor (``torch.nested``), strided or jagged."""
        if not nested.is_nested:
            raise ArgumentTypeError("nested", "wants a nested tensor")
        if nested.layout == torch.jagged:
            return cls(nested.offsets().diff())  # type: ignore[attr-defined]
        return cls(torch.tensor([x.shape[0] for x in nested.unbind()], device=nested.device))

    @classmethod
    def _from_valid(cls, valid: Tensor, argument: str) -> Self:
        if values_are_checked(valid) and bool((valid[:, 1:] & ~valid[:, :-1]).any()):
            raise LengthError(
                argument,
                "has valid steps after padding; speechft pads on the right: shift the samples "
                "to the left first",
            )
        return cls(valid.sum(dim=1))

    def to_mask(self, T: int) -> Tensor:
        """Boolean mask (B, T), True = valid."""
        return torch.arange(T, device=self.values.device) < self.values[:, None]

    def to_padding_mask(self, T: int) -> Tensor:
        """Boolean mask (B, T), True = padding."""
        return ~self.to_mask(T)

    def to_relative(self, T: int) -> Tensor:
        """Float32 fractions of the padded length ``T``, as SpeechBrain wants them."""
        return self.values / T

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        return f"Lengths({self.values.tolist()})"


LengthsLike = Union[Lengths, Tensor, Sequence[int]]


def check_lengths(
    lengths: LengthsLike | None, *, batch: int, steps: int, device: torch.device, argument: str
) -> Tensor | None:
    """The door check of every op: int64 of shape (batch,) on ``device``, in 1..steps, or None.

    Raises:
        LengthError: wrong shape or a length outside 1..steps.
        ArgumentTypeError: not integers.
    """
    if lengths is None:
        return None
    values = lengths.values if isinstance(lengths, Lengths) else _as_int64(lengths, argument)
    if values.shape != (batch,):
        raise LengthError(argument, f"wants shape ({batch},), got {tuple(values.shape)}")
    if values_are_checked(values) and bool(((values < 1) | (values > steps)).any()):
        where = int(((values < 1) | (values > steps)).nonzero()[0, 0])
        raise LengthError(
            argument, f"sample {where} has length {int(values[where])}; wants 1 to {steps}"
        )
    return values if values.device == device else values.to(device, non_blocking=True)


def _as_int64(values: Tensor | Sequence[int], argument: str) -> Tensor:
    values = torch.as_tensor(values)
    # First: torch makes a float tensor of an empty list.
    if values.dim() != 1 or values.shape[0] == 0:
        raise LengthError(argument, f"wants shape (B,) with B >= 1, got {tuple(values.shape)}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ArgumentTypeError(
            argument,
            f"wants integers, got {values.dtype} (for fractions: Lengths.from_relative; "
            "for masks: Lengths.from_hf or Lengths.from_padding_mask)",
        )
    return values.to(torch.int64)


def _as_mask(mask: Tensor, argument: str) -> Tensor:
    if mask.dim() != 2:
        raise ArgumentError(argument, f"wants shape (B, T), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    if values_are_checked(mask) and bool(((mask != 0) & (mask != 1)).any()):
        raise ArgumentError(argument, "wants zeros and ones only")
    return mask != 0
