"""The settings of Spin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechft.errors import ConfigError
from speechft.methods.base import MethodConfig, check_numbers


@dataclass(frozen=True)
class SpinConfig(MethodConfig):
    """Settings of Spin; the defaults are the published ones.

    Args:
        codes: K, of the codebook. A batch has to have as many frames.
        size: of a projected frame, and of a code.
        temperature: of the prediction.
        epsilon: of Sinkhorn's assignment.
        sinkhorn_iterations: of it.
        tuned_layers: transformer layers tuned, counted from the top; None: all. With
            ``pseudo_labels`` all may be; without, more than two collapse sooner.
        crop_seconds: a longer utterance is cut to so much, at random; None: none is.
        min_seconds: of an utterance.
        on_short: what becomes of a shorter one: ``"drop"`` and ``"repeat"`` are counted,
            ``"fail"`` is an error.
        formant, pitch: the most that either is moved by, as a ratio, up or down.
        decibels: the most that the equaliser raises or lowers a band by.
        augmentation: what is done to both views besides, each as it falls: ``"none"``, or a YAML
            chain (a file, or the list itself) that changes no timing. R-Spin adds noise.
        pseudo_labels: the folder of a run of Spin, whose units of the unperturbed utterances both
            views are to predict as well (R-Spin); None: there is no such loss.
        pieces: predict acoustic pieces, so many at most, in place of its units: runs of units that
            often stand together (byte-pair encoding), with repeated units merged.
        auxiliary_weight: of that loss.

    Raises:
        ConfigError: a value out of range, or settings that contradict each other.
    """

    codes: int = 256
    size: int = 256
    temperature: float = 0.1
    epsilon: float = 0.02
    sinkhorn_iterations: int = 3
    tuned_layers: int | None = 2
    crop_seconds: float | None = 17.0
    min_seconds: float = 2.5
    on_short: Literal["drop", "repeat", "fail"] = "drop"
    formant: float = 1.4
    pitch: float = 2.0
    decibels: float = 12.0
    augmentation: str = "none"
    pseudo_labels: str | None = None
    pieces: int | None = None
    auxiliary_weight: float = 5.0

    def __post_init__(self) -> None:
        check_numbers(
            self,
            at_least={
                "codes": 2, "size": 1, "sinkhorn_iterations": 1, "tuned_layers": 1,
                "min_seconds": 0, "formant": 1, "pitch": 1, "decibels": 0, "pieces": 2,
            },
            above_0=("temperature", "epsilon", "auxiliary_weight", "crop_seconds"),
        )  # fmt: skip
        for name, most in (("formant", 2), ("pitch", 4), ("decibels", 24)):
            if getattr(self, name) > most:
                raise ConfigError(f"{name}: wants at most {most}, got {getattr(self, name):g}")
        if self.crop_seconds is not None and self.crop_seconds < self.min_seconds:
            raise ConfigError(
                f"crop_seconds: {self.crop_seconds:g} is less than min_seconds, "
                f"{self.min_seconds:g}"
            )
        if self.pieces is not None and self.pseudo_labels is None:
            raise ConfigError("pieces: are made of pseudo_labels; name the folder of a Spin run")
