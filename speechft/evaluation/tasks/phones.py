"""Phones: which phone is spoken in a frame, as a linear probe reads it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from speechft.data import Manifest
from speechft.errors import ManifestError
from speechft.evaluation.conditions import UNCHANGED
from speechft.evaluation.embeddings import Frames
from speechft.evaluation.probes import PENALTIES, LinearProbe, fit_linear
from speechft.evaluation.result import TaskResult, figures_of_layers
from speechft.evaluation.splits import Split, random_split
from speechft.evaluation.tasks.alignment import frame_labels, phones_of
from speechft.evaluation.tasks.base import (
    Context,
    Task,
    chosen_layers,
    describe_split,
    official_split,
    where,
    whole,
    with_phones,
)


@dataclass(frozen=True)
class Phones(Task):
    """Frame accuracy of a linear phone probe, layer by layer.

    Every frame has the phone that is spoken at its middle, pauses included. The probe
    (:mod:`speechft.evaluation.probes`) is fitted on frames of unchanged speech, its penalty chosen
    on validation utterances, and tested on frames of other utterances, unchanged and under each
    condition. Parts named train, validation and test are used as they are; otherwise utterances
    are drawn by the seed: 25 % to test, 15 % to validate.

    Attributes:
        layers: None: all.
        conditions: what is done to the tested speech, see
            :class:`speechft.evaluation.conditions.Condition`.
        test: share of utterances to test on where the data has no parts.
        max_frames: to fit on, drawn by the seed where there are more.
        penalties: of the probe, to choose from.
    """

    name: ClassVar[str] = "phones"
    uses_parts: ClassVar[bool] = True

    layers: tuple[int, ...] | None = None
    conditions: tuple[str, ...] = (UNCHANGED,)
    test: float = 0.25
    max_frames: int = 200_000
    penalties: tuple[float, ...] = PENALTIES

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        every = whole(context.data)
        manifest = with_phones(every)
        phones = [phones_of(row) for row in manifest]
        names = sorted({phone.label for spoken in phones for phone in spoken})
        codes = {name: number for number, name in enumerate(names)}
        layers = chosen_layers(self.layers, context.embeddings)

        result = self.result(
            context,
            "linear probe on frames of unchanged speech; penalty chosen on validation utterances; "
            f"accuracy over frames of other utterances; {describe_split(context)}",
        )
        spoken: dict[str, tuple[Frames, list[Tensor]]] = {}
        for condition in dict.fromkeys((UNCHANGED, *self.conditions)):
            frames = context.embeddings.frames(manifest, condition, layers=layers)
            labels = [
                frame_labels(said, frames.times(row), codes) for row, said in enumerate(phones)
            ]
            spoken[condition] = frames, labels

        values: dict[tuple[int, str], list[float]] = defaultdict(list)
        unseen = 0
        for seed in context.seeds:
            split = self._split(context, manifest, seed)
            for layer in layers:
                probe, known = self._fit(spoken[UNCHANGED], split, layer, len(names), seed)
                for condition in self.conditions:
                    features, labels_ = _gather(*spoken[condition], layer, split.test)
                    right = probe.predict(features) == labels_
                    values[layer, condition].append(float(right.double().mean()))
                    unseen += int((~known[labels_]).sum())
        result.figures = figures_of_layers("accuracy", values)
        result.counts = {
            "utterances": len(manifest),
            "phones": len(names),
            "frames": sum(int((row >= 0).sum()) for row in spoken[UNCHANGED][1]),
        }
        if len(manifest) < len(every):
            without = len(every) - len(manifest)
            result.notes.append(f"{without} utterances have no phones and are left out")
        if unseen:
            result.notes.append(
                f"{unseen} tested frames, over all seeds, layers and conditions, are of phones "
                "that the fitted frames do not have; they count as wrong"
            )
        return result

    def _split(self, context: Context, manifest: Manifest, seed: int) -> Split:
        given = official_split(context.data, manifest, [""] * len(manifest), seed)
        if given is not None:
            return given
        if len(manifest) < 3:
            path, _ = where(manifest)
            raise ManifestError(path, None, f"{len(manifest)} utterances with phones; wants 3")
        return random_split([row.id for row in manifest], seed, test=self.test)

    def _fit(
        self, spoken: tuple[Frames, list[Tensor]], split: Split, layer: int, classes: int, seed: int
    ) -> tuple[LinearProbe, Tensor]:
        """The probe, and which classes it has seen."""
        features, labels = _gather(*spoken, layer, split.fit)
        if len(features) > self.max_frames:
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(len(features), self.max_frames, replace=False))
            features, labels = features[chosen], labels[chosen]
        probe = fit_linear(
            features, labels, classes=classes, penalties=self.penalties,
            validation=_gather(*spoken, layer, split.validation),
        )  # fmt: skip
        known = torch.zeros(classes, dtype=torch.bool)
        known[labels] = True
        return probe, known


def _gather(
    frames: Frames, labels: list[Tensor], layer: int, rows: list[int]
) -> tuple[Tensor, Tensor]:
    """Frames with a label and their labels."""
    position = frames.layers.index(layer)
    features = torch.cat([frames.values[row][:, position] for row in rows])
    codes = torch.cat([labels[row] for row in rows])
    return features[codes >= 0], codes[codes >= 0]
