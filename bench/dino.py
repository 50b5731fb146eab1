"""Cases of ``F.dino``: many codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechft import functional as F
from speechft import reference as R

from .contrastive import on_backend
from .machine import Machine
from .peers import softmax
from .registry import FORWARD, Case, Floor, Inputs, Provider, register

OP = "dino"


def logits(
    rows: int, codes: int, student_views: int, teacher_views: int, dtype: torch.dtype
) -> Callable[[bool], Inputs]:
    """Student logits (B, V_s, K), and teacher logits (B, V_t, K) without gradient."""

    def make(tiny: bool) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        B, K = (2, 64) if tiny else (rows, codes)
        student, teacher = (
            torch.randn(views, B, K, generator=generator).to(dtype).transpose(0, 1)
            for views in (student_views, teacher_views)
        )
        return Inputs((student,), constants=(teacher,))

    return make


def floor(
    rows: int, codes: int, student_views: int, teacher_views: int, dtype: torch.dtype
) -> Callable[[Machine, str], Floor]:
    """Each logit is read once, and the gradient by the student's written."""

    def state(machine: Machine, mode: str) -> Floor:
        tensors = teacher_views + student_views * (1 if mode == FORWARD else 2)
        moved = float(rows) * codes * tensors * (torch.finfo(dtype).bits // 8)
        return Floor(
            1e3 * moved / machine.bandwidth,
            f"{moved / 1e6:.4g} MB / {machine.bandwidth / 1e9:.4g} GB/s, rate {machine.source}",
        )

    return state


def add(
    name: str,
    device: str,
    rows: int,
    codes: int,
    *,
    views: tuple[int, int] = (1, 1),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Register a case of so many rows a view, with a centre that is the mean of the teacher's."""
    pair = views == (1, 1)

    def settings(teacher: Tensor) -> dict[str, Any]:
        return {"center": teacher.mean((0, 1), dtype=_wide(teacher)), "skip_same": not pair}

    centers: dict[tuple[str, torch.dtype], dict[str, Any]] = {}

    def of(op: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
        def run(inputs: Inputs) -> Tensor:
            student, teacher = (t.transpose(0, 1) for t in (*inputs.leaves, *inputs.constants))
            key = (f"{teacher.device} {tuple(teacher.shape)}", teacher.dtype)
            if key not in centers:  # made once: it is not part of what is timed
                centers[key] = settings(teacher)
            return op(student, teacher, **centers[key])

        return run

    def eager(student: Tensor, teacher: Tensor, *, center: Tensor, skip_same: bool) -> Tensor:
        pairs = [
            softmax.eager_dino(s, t, center)
            for u, t in enumerate(teacher) for v, s in enumerate(student) if pair or u != v
        ]  # fmt: skip
        return torch.stack(pairs).mean()

    backend = "cpu" if device == "cpu" else "triton"
    providers = {
        "speechft": Provider(on_backend(of(F.dino), backend)),
        "eager": Provider(of(eager)),
    }
    if device == "cuda":
        providers["speechft-graph"] = Provider(on_backend(of(F.dino), backend), graph=True)
        providers["torch.compile"] = Provider(torch.compile(of(eager)))
    providers["reference"] = Provider(of(R.dino), max_repeats=2)
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=logits(rows, codes, *views, dtype),
            providers=providers,
            truth=of(R.dino),
            truth_samples=4,
            floor=floor(rows, codes, *views, dtype),
            **options,
        )
    )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


add("pair B=128 K=65536", "cpu", 128, 65_536, quick=True)
add("6 x 2 views B=16 K=65536", "cpu", 16, 65_536, views=(6, 2))
add("6 x 2 views B=64 K=4096", "cpu", 64, 4_096, views=(6, 2))
add("GPU bf16 pair B=1024 K=65536", "cuda", 1024, 65_536, dtype=torch.bfloat16, quick=True,
    tolerance=0.05)  # fmt: skip
add("GPU float32 pair B=1024 K=65536", "cuda", 1024, 65_536, quick=True)
