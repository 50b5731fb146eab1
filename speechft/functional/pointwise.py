"""Steps on each sample of a waveform apart, all in one pass: the engine of the augmentations.

A step that needs a level (a peak to clip at, energies for a signal-to-noise ratio) needs all of the
row before it. So rows are gone over once more for each such step, and no more: on a CPU by one
thread while the row is in its cache, on a GPU by a kernel that sums and one that writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional import _pointwise_cpu
from speechft.functional._checks import check_floating
from speechft.lengths import LengthsLike, check_lengths
from speechft.reference.pointwise import (
    Clip,
    Mix,
    MuLaw,
    PointwiseStep,
    Quantise,
    Scale,
    Silence,
)

__all__ = ["Clip", "Mix", "MuLaw", "PointwiseStep", "Quantise", "Scale", "Silence", "pointwise"]

BACKENDS = backends.register(
    backends.OpBackends(
        op="pointwise",
        why_not={
            "reference": backends.always,
            "cpu": _pointwise_cpu.why_not,
            "triton": backends.why_not_triton,
        },
        order={"cpu": ("cpu",), "cuda": ("triton",)},
        dtypes={"cpu": (torch.float32,), "triton": (torch.float32,)},
    )
)
_BANK = ("samples", "offsets", "counts", "levels")  # not a value a row
_SEVERAL = ("clips", "starts", "first", "end")  # several a row


def pointwise(
    waveforms: Tensor, lengths: LengthsLike | None, steps: Sequence[PointwiseStep]
) -> tuple[Tensor, Tensor]:
    """Apply steps, one after another, with values of its own for each row.

    What each step does is said in :mod:`speechft.reference.pointwise`. No gradient flows.

    Args:
        waveforms: (B, T), floating point; what is in the padding is not read.
        lengths: (B,) valid samples; None where all T are.
        steps: :class:`Scale`, :class:`Clip`, :class:`Mix`, :class:`Silence`, :class:`Quantise`,
            :class:`MuLaw` of this module.

    Returns:
        Waveforms of the same shape and dtype, zero beyond each length, and booleans (B, M): in
        which rows each :class:`Mix` among the steps was skipped, because a level was zero.

    Raises:
        ArgumentError: a wrong shape, a step whose tensors lie on another device.
        ArgumentTypeError: waveforms that are not floating point, something that is no step.
        LengthError: a length outside 1..T.
        BackendError: the backend asked for cannot run here.

    Inside ``torch.compile`` the reference is traced: the compiler fuses it.

    >>> import torch
    >>> from speechft.functional.pointwise import Quantise, Scale, pointwise
    >>> steps = [Scale(torch.tensor([0.5])), Quantise(torch.tensor([3]))]
    >>> pointwise(torch.tensor([[0.1, 0.3, 0.9]]), None, steps)[0]
    tensor([[0.0000, 0.2500, 0.5000]])
    """
    check_floating(waveforms, "waveforms", "(B, T)")
    batch, width = waveforms.shape
    valid = check_lengths(
        lengths, batch=batch, steps=width, device=waveforms.device, argument="lengths"
    )
    if valid is None:
        valid = torch.full((batch,), width, device=waveforms.device)
    for position, step in enumerate(steps):
        _check_step(step, position, batch, waveforms.device)
    with torch.no_grad():
        if torch.compiler.is_compiling():
            return R.pointwise(waveforms, valid, steps)
        backend = BACKENDS.choose(waveforms.device, waveforms.dtype)
        if backend == "cpu":
            return _pointwise_cpu.pointwise(waveforms, valid, steps)
        if backend == "triton":
            from speechft.kernels import pointwise as kernels

            changed: tuple[Tensor, Tensor] = kernels.pointwise(waveforms, valid, steps)
            return changed
        return R.pointwise(waveforms.detach(), valid, steps)


def _check_step(step: PointwiseStep, position: int, batch: int, device: torch.device) -> None:
    if not isinstance(step, PointwiseStep):
        raise ArgumentTypeError(
            "steps", f"wants steps of speechft.functional.pointwise, got {type(step).__name__} "
                     f"at position {position}"
        )  # fmt: skip
    for field in dataclasses.fields(step):
        tensor = getattr(step, field.name)
        where = f"step {position}, {type(step).__name__}.{field.name}"
        if tensor.device != device:
            raise ArgumentError(
                "steps", f"{where}: wants the device of the waveforms, {device}, "
                         f"got {tensor.device}"
            )  # fmt: skip
        if field.name in _BANK:
            continue
        if tensor.dim() not in (1, 2) or len(tensor) != batch:
            raise ArgumentError(
                "steps", f"{where}: wants {batch} rows, got shape {tuple(tensor.shape)}"
            )
        if tensor.dim() != (2 if field.name in _SEVERAL else 1):
            wanted = f"({batch}, K)" if field.name in _SEVERAL else f"({batch},)"
            raise ArgumentError(
                "steps", f"{where}: wants shape {wanted}, got {tuple(tensor.shape)}"
            )
    for one, other in (("clips", "starts"), ("first", "end")):
        pair = [getattr(step, name) for name in (one, other) if hasattr(step, name)]
        if len(pair) == 2 and pair[0].shape != pair[1].shape:
            raise ArgumentError(
                "steps",
                f"step {position}, {type(step).__name__}: {one} and {other} differ in shape: "
                f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}",
            )
    if isinstance(step, Mix):
        _check_mix(step, f"step {position}, Mix")
    if isinstance(step, Quantise) and values_are_checked(step.bits):
        fine = (step.bits == 0) | ((step.bits >= 2) & (step.bits <= 24))
        if not bool(fine.all()):
            raise ArgumentError("steps", f"step {position}, Quantise.bits: wants 2 to 24, or 0")


def _check_mix(step: Mix, where: str) -> None:
    if step.samples.dtype not in (torch.float32, torch.int16) or step.samples.dim() != 1:
        raise ArgumentTypeError(
            "steps",
            f"{where}.samples: wants float32 or int16 of shape (n,), got {step.samples.dtype} of "
            f"{tuple(step.samples.shape)}",
        )
    if not values_are_checked(step.clips):
        return
    ends = step.offsets + step.counts
    if not bool(((step.counts > 0) & (step.offsets >= 0) & (ends <= len(step.samples))).all()):
        raise ArgumentError("steps", f"{where}: a clip is empty, or lies outside of the samples")
    if not bool((step.clips < len(step.counts)).all()):
        raise ArgumentError("steps", f"{where}.clips: wants -1 to {len(step.counts) - 1}")
    if not bool((step.starts >= 0).all()):
        raise ArgumentError("steps", f"{where}.starts: wants at least 0")
