"""How a list of augmentations is run: neighbours of one kind together.

Two kinds have mathematics that neighbours share. What is done to each sample of the waveform apart
(:class:`Pointwise`) is done to all of a block while it is in the cache, or in registers; filters
(:class:`Filter`) are multiplied with each other before the waveform meets them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft import functional as F
from speechft.augment.base import Augmentation, values_are_at_hand, zero_padding
from speechft.augment.parameters import Parameters
from speechft.reference.pointwise import PointwiseStep

Response = tuple[Tensor, Tensor]


class Pointwise(Augmentation):
    """Base of what is a list of steps of :func:`speechft.functional.pointwise`.

    Attributes:
        starts_stage: its steps are made of the waveforms themselves, as they are before it.
    """

    starts_stage = False

    def steps(self, waveforms: Tensor, lengths: Tensor, drawn: Parameters) -> list[PointwiseStep]:
        """The steps; a sample that is not applied has neutral values in them."""
        raise NotImplementedError

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        return run_stages([(self, parameters)], waveforms, lengths)


class Filter(Augmentation):
    """Base of linear filters that do not change in time: convolution with an impulse response."""

    def responses(self, drawn: Parameters, dtype: torch.dtype) -> list[Response]:
        """Impulse responses (B, L) and their delays (B,), int64: where time 0 is in them.

        Several are one after another.
        """
        raise NotImplementedError

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        return run_stages([(self, parameters)], waveforms, lengths)


Planned = list[tuple[Augmentation, Parameters]]


def plan(steps: Planned) -> list[Planned]:
    """The list cut into stages: neighbours that are run together."""
    stages: list[Planned] = []
    for step in steps:
        kind = _kind(step[0])
        if (
            stages
            and kind is not None
            and kind is _kind(stages[-1][-1][0])
            and not getattr(step[0], "starts_stage", False)
        ):
            stages[-1].append(step)
        else:
            stages.append([step])
    return stages


def run_stages(steps: Planned, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Do what the list says, a stage at a time."""
    if values_are_at_hand(waveforms):
        waveforms = waveforms[:, : int(lengths.max())]
    if not steps:
        return zero_padding(waveforms, lengths).clone(), lengths
    for stage in plan(steps):
        kind = _kind(stage[0][0])
        if kind is Pointwise:
            waveforms = _run_pointwise(stage, waveforms, lengths)
        elif kind is Filter:
            waveforms = _run_filters(stage, waveforms, lengths)
        else:
            [(augmentation, drawn)] = stage
            waveforms, lengths = augmentation.perturb(waveforms, lengths, drawn)
    return waveforms, lengths


def _kind(augmentation: Augmentation) -> type[Augmentation] | None:
    for kind in (Pointwise, Filter):
        if isinstance(augmentation, kind):
            return kind
    return None


def _run_pointwise(stage: Planned, waveforms: Tensor, lengths: Tensor) -> Tensor:
    made: list[PointwiseStep] = []
    owners: list[Augmentation] = []  # of the steps that may be skipped
    for augmentation, drawn in stage:
        assert isinstance(augmentation, Pointwise)
        here = augmentation.steps(waveforms, lengths, drawn)
        made += here
        owners += [augmentation for step in here if step.may_skip]
    result, skipped = F.pointwise(waveforms, lengths, made)
    for column, owner in enumerate(owners):
        owner.count_skipped(skipped[:, column])
    return result


def _run_filters(stage: Planned, waveforms: Tensor, lengths: Tensor) -> Tensor:
    responses, applied = [], torch.zeros_like(lengths, dtype=torch.bool)
    for augmentation, drawn in stage:
        assert isinstance(augmentation, Filter)
        here = drawn["applied"]
        applied = applied | here
        for response, delay in augmentation.responses(drawn, waveforms.dtype):
            # A filter that is not applied is the impulse at time 0.
            time = torch.arange(response.shape[1], device=response.device)
            impulse = (time == delay[:, None]).to(response.dtype)
            responses.append((torch.where(here[:, None], response, impulse), delay))
    return F.convolve(waveforms, lengths, responses, applied=applied)
