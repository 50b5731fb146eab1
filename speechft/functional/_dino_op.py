"""The op under ``F.dino``: its schema, its backward, and which kernels run where."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.functional import _softmax_cpu

# Of float16 the gradient is lifted by 2^8, because what a logit gets of a mean over many rows and
# codes is below the least that float16 has; the backward takes it down again. One row alone gets
# at most 1 / temperature, which lifted is below the most it has, for temperatures from 0.004.
LIFT = 256.0

torch.library.define(
    "speechft::dino",
    "(Tensor[] student, Tensor[] teacher, Tensor? bias, Tensor student_temperature, "
    "Tensor teacher_temperature, Tensor weights, bool skip_same, bool need_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor[])",
)
torch.library.define("speechft::dino_scale_", "(Tensor(a!)[] gradients, Tensor factor) -> ()")


@torch.library.impl("speechft::dino", "cpu")
def _dino(
    student: list[Tensor],
    teacher: list[Tensor],
    bias: Tensor | None,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    weights: Tensor,
    skip_same: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return _softmax_cpu.dino(
        student, teacher, bias, student_temperature, teacher_temperature, weights, skip_same,
        need_gradient,
    )  # fmt: skip


@torch.library.impl("speechft::dino", "cuda")
def _dino_cuda(
    student: list[Tensor],
    teacher: list[Tensor],
    bias: Tensor | None,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    weights: Tensor,
    skip_same: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    from speechft.kernels import dino as kernels

    return kernels.dino(  # type: ignore[no-any-return]
        student, teacher, bias, student_temperature, teacher_temperature, weights, skip_same,
        need_gradient,
    )  # fmt: skip


@torch.library.impl("speechft::dino_scale_", "cpu")
def _dino_scale(gradients: list[Tensor], factor: Tensor) -> None:
    for gradient in gradients:
        gradient.mul_(factor[:, None])


@torch.library.impl("speechft::dino_scale_", "cuda")
def _dino_scale_cuda(gradients: list[Tensor], factor: Tensor) -> None:
    from speechft.kernels import dino as kernels

    kernels.dino_scale_(gradients, factor)


@torch.library.register_fake("speechft::dino")
def _(student, teacher, bias, ts, tt, weights, skip_same, need_gradient):  # type: ignore[no-untyped-def]
    rows, codes = student[0].shape[1:]
    like = student[0]
    vectors = [like.new_empty(size, dtype=torch.float32) for size in (rows, rows, codes)]
    made = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in student]
    return (*vectors, made if need_gradient else [])


@torch.library.register_fake("speechft::dino_scale_")
def _(gradients, factor):  # type: ignore[no-untyped-def]
    return None


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.blocks = len(inputs[0]), len(inputs[1])
    _, entropy, total, gradients = output
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(entropy, total, *gradients)
    ctx.set_materialize_grads(False)


def _backward(ctx, g_losses, _g_entropy, _g_total, _g_gradients):  # type: ignore[no-untyped-def]
    students, teachers = ctx.blocks
    none = ([None] * teachers, *(None,) * 6)
    if g_losses is None:
        return [None] * students, *none
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(
            "dino has no second derivative: it does not keep the logits. Run it inside "
            'speechft.use_backend("reference"), which has one'
        )
    try:
        gradients = list(ctx.saved_tensors)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise RuntimeError(
            "dino's gradient was passed on before: on a GPU its backward scales it in place, and "
            "runs once. For another (retain_graph=True), run the forward again"
        ) from error
    lifted = gradients[0].dtype == torch.float16
    factor = g_losses.float() / LIFT if lifted else g_losses.float()
    if scales_in_place(gradients[0]):
        torch.ops.speechft.dino_scale_(gradients, factor)
        return gradients, *none
    if values_known(factor) and not lifted and bool((factor == 1).all()):
        return gradients, *none
    return [(g * factor[:, None]).to(g.dtype) for g in gradients], *none


def scales_in_place(gradient: Tensor) -> bool:
    """Whether the backward scales what the forward made, by what the host does not know."""
    return gradient.device.type == "cuda" and not torch.compiler.is_compiling()


def values_known(tensor: Tensor) -> bool:
    """Whether this is a plain tensor of the CPU, not a tracer's."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"


torch.library.register_autograd("speechft::dino", _backward, setup_context=_save)
