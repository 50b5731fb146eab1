r"""DINO's loss in one pass over the logits.

The teacher has no gradient, so the student's is known when the loss is: the forward reads each row
of logits once, and writes the gradient by the student's. The backward has nothing left to do but to
pass it on, scaled where what comes in is not 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechft import backends
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional import _dino_op  # noqa: F401 (registers the op)
from speechft.functional._checks import (
    check_finite_inputs,
    check_floating,
    check_reduction,
    check_scale,
)
from speechft.functional._rows import check_row, valid_rows
from speechft.lengths import LengthsLike, check_lengths
from speechft.reference.dino import DINOTerms, Views

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

BACKENDS = backends.register(
    backends.OpBackends(
        op="dino",
        why_not={
            "reference": backends.always,
            "cpu": backends.why_not_cpu,
            "triton": backends.why_not_triton,
        },
        order={"cpu": ("cpu",), "cuda": ("triton",)},
        dtypes={"cpu": _FLOATS, "triton": _FLOATS},
    )
)


def dino(
    student: Views,
    teacher: Views,
    *,
    center: Tensor | None = None,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    student_lengths: LengthsLike | None = None,
    skip_same: bool = True,
    reduction: str = "mean",
) -> Tensor:
    r"""DINO's loss: the student is to predict a sharper teacher's distribution from other crops.

    With student logits :math:`s_v` of view v, teacher logits :math:`t_u` of view u and the centre
    :math:`c`,

    .. math::

        P_u = \mathrm{softmax}\Bigl(\frac{t_u - c}{\tau_t}\Bigr), \qquad
        L = \frac{1}{|\mathcal P|} \sum_{(u, v) \in \mathcal P}
            - \sum_k P_u(k) \log \mathrm{softmax}(s_v / \tau_s)_k,

    over all pairs of a teacher view u and a student view v that are not the same crop, :math:`u \ne
    v`: of 2 teacher and 6 student views, 10.

    Args:
        student: logits (V_s, B, K), or a list of V_s views (B, K); or, of frames that stand for the
            same moment in all views, (V_s, B, T, K) or a list of (B, T, K). Floating point.
        teacher: likewise with V_t views, of the dtype and device of ``student``, without gradient.
        center: (K,), subtracted from the teacher's logits; or (V_t, K), of each view its own. That
            of :func:`sinkhorn_center` makes the targets Sinkhorn's assignments.
        student_temperature: above 0; a number or a tensor of one, which gets no gradient.
        teacher_temperature: likewise.
        student_lengths: (B,) valid frames, of logits with frames; those beyond have no part.
        skip_same: view i of both is the same crop, and that pair is skipped; False: all pairs
            count, as where teacher and student have crops of their own.
        reduction: ``"mean"`` over samples (or valid frames), ``"sum"``, or ``"none"``: (B,) or
            (B, T), 0 beyond the lengths.

    Returns:
        Tensor: a scalar, (B,) or (B, T); float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a teacher that requires grad, a temperature of 0 or below, fewer student than
            teacher views with ``skip_same``, one view each (no pair is left), views of several
            shapes, another K, NaN.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.
        LengthError: a length of 0 or beyond T.
        BackendError: the backend asked for cannot run here.

    Values of GPU tensors are checked only inside :func:`speechft.checked`; no call waits for the
    GPU. Autocast changes nothing: sums are float32. There is no second derivative: the logits are
    not kept (``speechft.use_backend("reference")`` has one). Runs on the reference for float64.

    Memory beyond inputs and outputs: the gradient by the student's logits, from the forward on; on
    the CPU also the teacher's distributions of one sample a thread, at most 32 x K sums for the
    centre, and float32 copies of half-precision inputs.

    Source: Caron et al., "DINO", ICCV 2021; for utterances, Cho et al., JSTSP 2022.

    >>> import torch
    >>> student, teacher = torch.zeros(6, 3, 8), torch.randn(2, 3, 8)
    >>> round(float(dino(student, teacher)), 4)    # log(8): the student knows nothing
    2.0794
    """
    return dino_terms(
        student, teacher, center=center, student_temperature=student_temperature,
        teacher_temperature=teacher_temperature, student_lengths=student_lengths,
        skip_same=skip_same, reduction=reduction,
    ).loss  # fmt: skip


def dino_terms(
    student: Views,
    teacher: Views,
    *,
    center: Tensor | None = None,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    student_lengths: LengthsLike | None = None,
    skip_same: bool = True,
    reduction: str = "mean",
) -> DINOTerms:
    r""":func:`dino`, with what the same read of the teacher's logits tells.

    Args:
        student: as in :func:`dino`, and so are all others.
        teacher: likewise.
        center: likewise.
        student_temperature: likewise.
        teacher_temperature: likewise.
        student_lengths: likewise.
        skip_same: likewise.
        reduction: of the loss.

    Returns:
        DINOTerms: ``loss``; ``cross_entropy``, its mean; ``teacher_entropy``, the mean of
        :math:`H(P_u)` in nats; ``teacher_mean`` (K,), the mean of the raw teacher logits over views
        and samples (or valid frames), of which a centre is the moving average; and ``rows``, how
        many samples (or valid frames). Only the loss has a gradient.

    Raises:
        ArgumentError: as :func:`dino`.
        ArgumentTypeError: likewise.
        LengthError: likewise.
        BackendError: likewise.

    >>> import torch
    >>> terms = dino_terms(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    >>> round(float(terms.teacher_entropy), 4), terms.teacher_mean.tolist()
    (1.3863, [0.0, 0.0, 0.0, 0.0])
    """
    of_student, shape = _blocks(student, "student")
    of_teacher, of_teacher_shape = _blocks(teacher, "teacher")
    V_s, V_t = (sum(len(block) for block in blocks) for blocks in (of_student, of_teacher))
    like = of_student[0]
    for block in of_teacher:
        if block.requires_grad and torch.is_grad_enabled():
            raise ArgumentError("teacher", "requires grad; detach it, or run it in torch.no_grad()")
        if block.dtype != like.dtype:
            raise ArgumentTypeError("teacher", f"wants the dtype of student, {like.dtype}, "
                                               f"got {block.dtype}")  # fmt: skip
        if block.device != like.device:
            raise ArgumentError("teacher", f"wants the device of student, {like.device}, "
                                           f"got {block.device}")  # fmt: skip
    if of_teacher_shape != shape:
        raise ArgumentError(
            "teacher",
            f"wants views of the shape of the student's, {tuple(shape)}; got "
            f"{tuple(of_teacher_shape)}",
        )
    if skip_same and V_s < V_t:
        raise ArgumentError(
            "student",
            f"has {V_s} views and the teacher {V_t}: with skip_same, view i of both is the same "
            "crop, so the student sees at least what the teacher does",
        )
    if skip_same and V_s == V_t == 1:
        raise ArgumentError("student", "has one view, the teacher's own crop: no pair is left")
    check_row(center, "center", like, shape[-1], views=V_t)
    if student_lengths is not None and len(shape) != 3:
        raise ArgumentError("student_lengths", "wants logits of frames, with a dimension T")
    lengths = None
    if student_lengths is not None:
        lengths = check_lengths(
            student_lengths, batch=shape[0], steps=shape[1], device=like.device,
            argument="student_lengths",
        )  # fmt: skip
    check_reduction(reduction)
    inputs = [
        (view, argument)
        for blocks, argument in ((of_student, "student"), (of_teacher, "teacher"))
        for block in blocks
        for view in block.detach()
    ]
    temperatures = []
    for value, argument in (
        (student_temperature, "student_temperature"),
        (teacher_temperature, "teacher_temperature"),
    ):
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(argument, "requires grad, and dino gives it none")
        temperatures.append(check_scale(value, argument, like))

    if BACKENDS.choose(like.device, like.dtype) == "reference":
        stacked = (
            torch.cat([b.detach() if side == "teacher" else b for b in blocks])
            for blocks, side in ((of_student, "student"), (of_teacher, "teacher"))
        )
        terms = R.dino_terms(
            *stacked, center=center, student_temperature=temperatures[0],
            teacher_temperature=temperatures[1], student_lengths=lengths, skip_same=skip_same,
            reduction=reduction,
        )  # fmt: skip
        check_finite_inputs((terms.loss, terms.teacher_mean), inputs, lengths)
        return terms
    bias = None if center is None else -center.detach().float().reshape(-1, shape[-1]).contiguous()
    valid = valid_rows(lengths, shape, like.device)
    rows = shape[:-1].numel()
    if valid is None:
        number = torch.full((), float(rows), device=like.device)
        weights = torch.ones(rows, device=like.device)
    else:
        number, weights = valid.sum().float(), valid.float()
    if reduction == "mean":
        weights = weights / number
    needed = torch.is_grad_enabled() and any(block.requires_grad for block in of_student)
    losses, entropy, total, *_ = torch.ops.speechft.dino(
        [block.reshape(len(block), rows, -1) for block in of_student],
        [block.detach().reshape(len(block), rows, -1) for block in of_teacher],
        bias, *temperatures, weights, skip_same, needed,
    )  # fmt: skip
    check_finite_inputs((losses, total, entropy), inputs, lengths)
    loss = losses.view(shape[:-1]) if reduction == "none" else losses.sum()
    total_loss = losses.detach().sum()
    return DINOTerms(
        loss,
        total_loss if reduction == "mean" else total_loss / number,
        entropy.sum() / number,
        total / (number * V_t),
        number,
    )


def _blocks(views: Views, argument: str) -> tuple[list[Tensor], torch.Size]:
    """Blocks (v, B, K) or (v, B, T, K) of views, and the shape of one view."""
    if isinstance(views, Tensor):
        check_floating(views, argument, "(V, B, T, K)" if views.dim() == 4 else "(V, B, K)")
        return [views], views.shape[1:]
    if not isinstance(views, Sequence) or not views:
        raise ArgumentTypeError(
            argument, f"wants a tensor (V, B, K) or a list of views (B, K); got {views!r}"
        )
    for k, view in enumerate(views):
        frames = isinstance(view, Tensor) and view.dim() == 3
        check_floating(view, argument, "(B, T, K)" if frames else "(B, K)")
        if view.shape != views[0].shape:
            raise ArgumentError(
                argument,
                f"wants views of one shape; view {k} has {tuple(view.shape)}, view 0 "
                f"{tuple(views[0].shape)}",
            )
        if view.dtype != views[0].dtype or view.device != views[0].device:
            raise ArgumentTypeError(
                argument,
                f"wants views of one dtype and device; view {k} has {view.dtype} on {view.device}, "
                f"view 0 {views[0].dtype} on {views[0].device}",
            )
    return [view[None] for view in views], views[0].shape
