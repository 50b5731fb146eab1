"""The settings of DINO for utterances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechft.errors import ConfigError
from speechft.methods.base import MethodConfig, check_numbers
from speechft.methods.crop_augmentation import check_augmentation
from speechft.models.embedding import Pooling


@dataclass(frozen=True)
class DinoConfig(MethodConfig):
    """Settings of DINO; the defaults are those of Cho et al. (preset ``cho``).

    Args:
        size: D of an utterance's vector, for a model that is made anew.
        pooling: likewise; None: as published with the backbone, attentive for an encoder.
        layer: of a speech foundation model; None: a learnt weighting of all.
        tuned_layers: of a speech foundation model, from the top; None: all. Its convolutions stay
            frozen.
        spec_augment: mask the student's log-mel features: 5 frames and 8 bands at most.
        long, short: how many crops.
        long_seconds, short_seconds: of a crop; an utterance between the two is taken whole.
        regions: ``"shared"``: crops lie anywhere; ``"disjoint"``: long and short ones in parts of
            the utterance that share no sample.
        spread: the probability that the two long crops are put far apart.
        segment_seconds: cut a segment of so many seconds (from, to) first; None: take all.
        student_views: ``"all"`` crops, or ``"short"`` ones alone.
        augment_long, augment_short: of each crop by itself: ``"none"``; ``"student"``: reverb
            p = 0.45, noise or babble p = 0.7 at 0 to 18 dB; ``"teacher"``: reverb p = 0.3, noise
            p = 0.7 at 10 to 28 dB; or a YAML chain.
        noise, rooms: folders of recordings for these two (MUSAN, OpenSLR-28); None: synthesized.
        on_short: what becomes of utterances shorter than a short crop: ``"drop"`` and ``"repeat"``
            are counted, ``"fail"`` is an error.
        codes: K.
        hidden_size, hidden_layers, bottleneck, batch_norm: of the head.
        freeze_last_steps: updates in which the head's last layer stays as it is.
        student_temperature, teacher_temperature: of the softmax.
        teacher_temperature_start, temperature_warmup_steps: the teacher's goes from here, linearly,
            in so many steps.
        centering: ``"mean"``, ``"sinkhorn"`` or ``"none"``.
        center_momentum, sinkhorn_iterations: of these.
        teacher_momentum: of the teacher at first; it goes to 1 along a cosine.
        teacher_statistics: batch norm of the teacher uses those of the ``"batch"``, as published,
            or ``"averaged"`` ones of the student.
        cosine_weight: of 1 - cosine of the student's and teacher's vectors of different crops.
        koleo_weight: of KoLeo on the student's vectors of its first crops.
        variance_weight, covariance_weight: of VICReg's terms on two student crops, behind a linear
            layer on the bottleneck.
        expanded_size: outputs of that layer.
        regulariser_start: share of the two weights at step 0.
        mean_entropy_weight: of the entropy of the student's mean distribution, which is raised.
        ramp_steps: in which the cosine's weight goes from 0, and those of variance and covariance
            from ``regulariser_start``, to all; 0: all at once.

    Raises:
        ConfigError: a value out of range, or settings that contradict each other.
    """

    size: int = 256
    pooling: Pooling | None = None
    layer: int | None = None
    tuned_layers: int | None = None
    spec_augment: bool = False
    long: int = 2
    short: int = 4
    long_seconds: float = 4.0
    short_seconds: float = 2.0
    regions: Literal["shared", "disjoint"] = "shared"
    spread: float = 0.0
    segment_seconds: tuple[float, float] | None = None
    student_views: Literal["all", "short"] = "all"
    augment_long: str = "student"
    augment_short: str = "student"
    noise: str | None = None
    rooms: str | None = None
    on_short: Literal["drop", "repeat", "fail"] = "drop"
    codes: int = 65_536
    hidden_size: int = 2048
    hidden_layers: int = 2
    bottleneck: int = 256
    batch_norm: bool = False
    freeze_last_steps: int = 8_531
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    teacher_temperature_start: float = 0.04
    temperature_warmup_steps: int = 0
    centering: Literal["mean", "sinkhorn", "none"] = "mean"
    center_momentum: float = 0.9
    sinkhorn_iterations: int = 3
    teacher_momentum: float = 0.996
    teacher_statistics: Literal["batch", "averaged"] = "batch"
    cosine_weight: float = 0.0
    koleo_weight: float = 0.0
    variance_weight: float = 0.0
    covariance_weight: float = 0.0
    expanded_size: int = 8192
    regulariser_start: float = 1.0
    mean_entropy_weight: float = 0.0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        at_least = {
            "size": 1, "long": 1, "short": 0, "codes": 2, "hidden_size": 1, "hidden_layers": 0,
            "bottleneck": 1, "freeze_last_steps": 0, "temperature_warmup_steps": 0,
            "sinkhorn_iterations": 1, "cosine_weight": 0, "koleo_weight": 0, "variance_weight": 0,
            "covariance_weight": 0, "expanded_size": 1, "mean_entropy_weight": 0, "ramp_steps": 0,
            "tuned_layers": 0, "layer": 0,
        }  # fmt: skip
        positive = (
            "long_seconds", "short_seconds", "student_temperature", "teacher_temperature",
            "teacher_temperature_start",
        )  # fmt: skip
        check_numbers(self, at_least=at_least, above_0=positive)
        for name in ("spread", "teacher_momentum", "regulariser_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: wants 0 to 1, got {getattr(self, name)}")
        for name in ("augment_long", "augment_short"):
            check_augmentation(name, getattr(self, name))
        if self.short and self.short_seconds > self.long_seconds:
            raise ConfigError(
                f"short_seconds: {self.short_seconds:g} is longer than long_seconds, "
                f"{self.long_seconds:g}"
            )
        if self.student_views == "short" and not self.short:
            raise ConfigError("student_views: there are no short crops; set short to 1 or more")
        if self.long + self.short < 2:
            raise ConfigError("long: one crop makes no pair; ask for two or more")
        seen = self.short + (self.long if self.student_views == "all" else 0)
        if (self.variance_weight or self.covariance_weight) and seen < 2:
            raise ConfigError("variance_weight: wants two crops of the student")
        if self.segment_seconds is not None:
            least, most = self.segment_seconds
            if not 0 < least <= most:
                raise ConfigError(f"segment_seconds: wants from and to, got {self.segment_seconds}")
