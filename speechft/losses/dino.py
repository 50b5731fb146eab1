"""DINO's loss with the state that it needs: centre, temperatures, step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from speechft.distributed import Gather, group_of, place_of
from speechft.errors import ArgumentError
from speechft.functional._checks import check_positive
from speechft.functional.dino import dino_terms
from speechft.functional.sinkhorn import sinkhorn_center
from speechft.lengths import LengthsLike
from speechft.reference.dino import Views

CENTERINGS = ("mean", "sinkhorn", "none")


class DINOLoss(nn.Module):
    r""":func:`speechft.functional.dino` with a centre that follows the teacher.

    .. math::

        P_u = \mathrm{softmax}\Bigl(\frac{t_u - c}{\tau_t}\Bigr), \qquad
        L = \frac{1}{|\mathcal P|} \sum_{(u, v) \in \mathcal P}
            - \sum_k P_u(k) \log \mathrm{softmax}(s_v / \tau_s)_k, \qquad
        c \leftarrow m\, c + (1 - m)\, \bar t

    with :math:`\bar t` the mean of the batch's teacher logits; a batch is centred by what came
    before it. Centre, temperatures and step are buffers, so a checkpoint has them. Centre and step
    move in training mode alone, once a call.

    Args:
        codes: K.
        student_temperature: above 0.
        teacher_temperature: above 0; or one of each step, the last of which is kept:
            :func:`linear_warmup` makes such a list.
        centering: ``"mean"``, as above; ``"sinkhorn"``: the centre is made of the batch itself, by
            :func:`speechft.functional.sinkhorn_center`, and nothing is kept; ``"none"``.
        center_momentum: m, from 0 to below 1.
        sinkhorn_iterations: 1 or more.
        skip_same: view i of teacher and student is the same crop, and that pair is skipped.
        gather: the mean (or Sinkhorn's assignment) is over the batches of all ranks, which may
            differ in size: True, or a process group. The mean travels while the step goes on. The
            loss is that of this rank's batch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        student (V_s, B, K) or a list of (B, K), teacher (V_t, B, K) or a list; or with frames and
        ``lengths`` as in the function. A scalar, or (B,) or (B, T) with ``reduction="none"``.

    No call makes the host wait for a GPU.

    Raises:
        ArgumentError: as :func:`speechft.functional.dino`, and another K than ``codes``.

    Source: Caron et al., ICCV 2021; for utterances, Cho et al., JSTSP 2022; with Sinkhorn, Oquab et
    al., "DINOv2", 2023.

    >>> import torch
    >>> loss = DINOLoss(8)
    >>> value = loss(torch.zeros(6, 3, 8), torch.ones(2, 3, 8))
    >>> round(float(value), 4), round(float(loss.center[0]), 4)
    (2.0794, 0.1)
    """

    center: Tensor
    step: Tensor
    teacher_temperatures: Tensor
    teacher_entropy: Tensor
    divergence: Tensor

    def __init__(
        self,
        codes: int,
        *,
        student_temperature: float = 0.1,
        teacher_temperature: float | Sequence[float] = 0.04,
        centering: str = "mean",
        center_momentum: float = 0.9,
        sinkhorn_iterations: int = 3,
        skip_same: bool = True,
        gather: Gather = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if isinstance(codes, bool) or not isinstance(codes, int) or codes < 1:
            raise ArgumentError("codes", f"wants a whole number from 1, got {codes!r}")
        if centering not in CENTERINGS:
            raise ArgumentError(
                "centering", f"wants one of {', '.join(CENTERINGS)}; got {centering!r}"
            )
        if not 0 <= center_momentum < 1:
            raise ArgumentError("center_momentum", f"wants 0 to below 1, got {center_momentum}")
        steps = [teacher_temperature] if isinstance(teacher_temperature, float | int) else [
            *teacher_temperature
        ]  # fmt: skip
        if not steps:
            raise ArgumentError("teacher_temperature", "is an empty list")
        for value in steps:
            check_positive(value, "teacher_temperature")
        self.student_temperature = check_positive(student_temperature, "student_temperature")
        self.centering = centering
        self.center_momentum = center_momentum
        self.sinkhorn_iterations = sinkhorn_iterations
        self.skip_same = skip_same
        self.gather = gather
        self.reduction = reduction
        self.register_buffer("center", torch.zeros(codes))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("teacher_temperatures", torch.tensor(steps, dtype=torch.float32))
        for name in ("teacher_entropy", "divergence"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self._under_way: tuple[Any, Tensor] | None = None  # a reduction, and what it sums

    def forward(
        self, student: Views, teacher: Views, *, lengths: LengthsLike | None = None
    ) -> Tensor:
        """The loss of the student's views; the centre then moves, in training mode."""
        self._settle()
        temperature = self.teacher_temperature()
        center = None
        if self.centering == "sinkhorn":
            center = sinkhorn_center(
                teacher, epsilon=temperature, iterations=self.sinkhorn_iterations,
                lengths=lengths, gather=self.gather,
            )  # fmt: skip
        elif self.centering == "mean":
            center = self.center
            first = teacher if isinstance(teacher, Tensor) else teacher[0]
            if first.shape[-1] != len(center):
                raise ArgumentError(
                    "teacher", f"wants K = {len(center)}, as the centre, got {first.shape[-1]}"
                )
        terms = dino_terms(
            student, teacher, center=center, student_temperature=self.student_temperature,
            teacher_temperature=temperature, student_lengths=lengths, skip_same=self.skip_same,
            reduction=self.reduction,
        )  # fmt: skip
        if self.training:
            self._follow(terms.teacher_mean, terms.rows)
            self.step.add_(1)
        with torch.no_grad():
            self.teacher_entropy.copy_(terms.teacher_entropy)
            self.divergence.copy_(terms.cross_entropy - terms.teacher_entropy)
        return terms.loss

    def teacher_temperature(self) -> Tensor:
        """That of the step now, on the device."""
        last = len(self.teacher_temperatures) - 1
        at = self.step.clamp(max=last).view(1)  # an index of no dimension would be read by the host
        return self.teacher_temperatures.index_select(0, at).view(())

    def monitors(self) -> dict[str, Tensor]:
        """What tells a collapse, of the last batch, on the device: read it at steps that log.

        ``teacher_entropy`` (log K: all codes alike for all; 0: one code), ``divergence`` of student
        from teacher (:math:`KL`; 0 in a collapse of either kind), ``teacher_temperature``, and
        ``center_norm``.
        """
        return {
            "teacher_entropy": self.teacher_entropy.clone(),
            "divergence": self.divergence.clone(),
            "teacher_temperature": self.teacher_temperature(),
            "center_norm": self.center.norm(),
        }

    @torch.no_grad()
    def _follow(self, mean: Tensor, rows: Tensor) -> None:
        if self.centering != "mean":
            return
        group = group_of(self.gather)
        if place_of(group)[1] == 1:
            self.center.lerp_(mean.to(self.center.dtype), 1 - self.center_momentum)
            return
        packed = torch.cat([mean * rows, rows.view(1).to(mean.dtype)])
        work = distributed.all_reduce(packed, group=group, async_op=True)
        self._under_way = work, packed

    @torch.no_grad()
    def _settle(self) -> None:
        """Take what the last step sent out into the centre; on a GPU only its stream waits."""
        if self._under_way is None:
            return
        work, packed = self._under_way
        self._under_way = None
        work.wait()
        mean = packed[:-1] / packed[-1]
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.center_momentum)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._settle()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._settle()
        super()._load_from_state_dict(*arguments)

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self._settle()
        return super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles
        self._settle()
        return self.__dict__.copy()

    def extra_repr(self) -> str:
        return (
            f"codes={len(self.center)}, student_temperature={self.student_temperature}, "
            f"centering={self.centering!r}, center_momentum={self.center_momentum}, "
            f"skip_same={self.skip_same}, gather={self.gather}, reduction={self.reduction!r}"
        )


def linear_warmup(start: float, end: float, steps: int) -> list[float]:
    """Temperatures from ``start``, in equal steps, to ``end`` at step ``steps``.

    Raises:
        ArgumentError: fewer than 1 step.

    >>> linear_warmup(0.04, 0.07, 3)
    [0.04, 0.05, 0.06, 0.07]
    """
    if steps < 1:
        raise ArgumentError("steps", f"wants 1 or more, got {steps}")
    return [round(start + (end - start) * k / steps, 12) for k in range(steps + 1)]
