"""The steps of ``pointwise`` on the CPU: see ``csrc/cpu/pointwise.h``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module, why_not_cpu
from speechft.functional._buffers import buffer
from speechft.reference.pointwise import (
    Clip,
    Mix,
    MuLaw,
    PointwiseStep,
    Quantise,
    Scale,
    Silence,
)


def why_not() -> str | None:
    """Why the kernels cannot run here, or None."""
    return why_not_cpu() or (
        None
        if hasattr(compiled_module(), "pointwise")
        else "the compiled module speechft._C is of an older version; install speechft again"
    )


def pointwise(
    waveforms: Tensor, lengths: Tensor, steps: Sequence[PointwiseStep]
) -> tuple[Tensor, Tensor]:
    """Waveforms (B, T) and where steps were skipped (B, M)."""
    module: Any = compiled_module()
    batch, width = waveforms.shape
    x = waveforms.detach()
    x = x if x.stride(1) == 1 else x.contiguous()
    lengths = lengths.contiguous()
    result = buffer((batch, width))
    mixes = sum(step.may_skip for step in steps)
    skipped = torch.zeros(batch, mixes, dtype=torch.bool)
    kept: list[Tensor] = []  # what the addresses point to, until it has run

    def address(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
        tensor = tensor.to(tensor.dtype if dtype is None else dtype).contiguous()
        kept.append(tensor)
        return tensor.data_ptr()

    made = [_made(module, step, address) for step in steps]
    module.pointwise(
        x=x.data_ptr(),
        x_stride=x.stride(0),
        y=result.data_ptr(),
        batch=batch,
        width=width,
        lengths=lengths.data_ptr(),
        steps=made,
        skipped=skipped.data_ptr(),
        mixes=mixes,
        threads=torch.get_num_threads(),
    )
    return result, skipped


def _made(module: Any, step: PointwiseStep, address: Any) -> Any:
    kinds = module.PointwiseKind
    if isinstance(step, Scale):
        return module.PointwiseStep(kinds.scale, value=address(step.factor, torch.float32))
    if isinstance(step, Clip):
        return module.PointwiseStep(kinds.clip, value=address(step.share, torch.float32))
    if isinstance(step, Quantise):
        return module.PointwiseStep(kinds.quantise, first=address(step.bits, torch.int64))
    if isinstance(step, MuLaw):
        return module.PointwiseStep(kinds.mu_law, first=address(step.applied, torch.int64))
    if isinstance(step, Silence):
        return module.PointwiseStep(
            kinds.silence,
            first=address(step.first, torch.int64),
            second=address(step.end, torch.int64),
            count=step.first.shape[1],
        )
    if isinstance(step, Mix):
        return module.PointwiseStep(
            kinds.mix,
            value=address(step.snr, torch.float32),
            first=address(step.clips, torch.int64),
            second=address(step.starts, torch.int64),
            count=step.clips.shape[1],
            samples=address(step.samples),
            short_samples=step.samples.dtype == torch.int16,
            offsets=address(step.offsets, torch.int64),
            counts=address(step.counts, torch.int64),
            levels=address(step.levels, torch.float32),
        )
    raise TypeError(f"no step of pointwise: {type(step).__name__}")
