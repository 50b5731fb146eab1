"""Units: what discrete units say of phones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from speechft.errors import ArgumentError
from speechft.evaluation.conditions import UNCHANGED
from speechft.evaluation.metrics import perplexity, pnmi, purity
from speechft.evaluation.result import TaskResult, figures_of_layers
from speechft.evaluation.tasks.alignment import frame_labels, phones_of
from speechft.evaluation.tasks.base import Context, Task, whole, with_phones


@dataclass(frozen=True)
class Units(Task):
    """PNMI, phone purity and cluster purity of a model's own units, frame by frame.

    For models with a unit head (:func:`speechft.models.load_units`), such as Spin writes. Every
    frame has the phone that is spoken at its middle, pauses included, and the unit of the encoder's
    last layer; nothing is fitted and nothing is drawn, so there is one value of each figure. PNMI
    (:func:`speechft.evaluation.metrics.pnmi`) is the share of what there is to know of the phone
    that the unit tells; it rises with the number of codes, so it is comparable between models of as
    many. Code perplexity and active codes say how many are used.

    Attributes:
        conditions: what is done to the speech, see
            :class:`speechft.evaluation.conditions.Condition`.
    """

    name: ClassVar[str] = "units"

    conditions: tuple[str, ...] = (UNCHANGED,)

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        head = context.embeddings.unit_head
        if head is None:
            raise ArgumentError(
                "model",
                "has no unit head, and this task judges units; give it the folder of a run of "
                "Spin, or what load_units makes of it",
            )
        every = whole(context.data)
        manifest = with_phones(every)
        phones = [phones_of(row) for row in manifest]
        names = sorted({phone.label for spoken in phones for phone in spoken})
        codes = {name: number for number, name in enumerate(names)}
        last = context.embeddings.layers[-1]
        device = head.codebook.device
        figures: dict[str, dict[tuple[int, str], list[float]]] = defaultdict(dict)
        counted = 0
        for condition in self.conditions:
            frames = context.embeddings.frames(manifest, condition, layers=(last,))
            units: list[Tensor] = [head(row.to(device)).cpu() for row in frames.layer(last)]
            spoken = [
                frame_labels(said, frames.times(row), codes) for row, said in enumerate(phones)
            ]
            unit, phone = torch.cat(units), torch.cat(spoken)
            unit, phone = unit[phone >= 0], phone[phone >= 0]
            counted = max(counted, len(unit))
            key = (last, condition)
            figures["PNMI"][key] = [pnmi(unit, phone)]
            figures["phone purity"][key] = [purity(unit, phone)]
            figures["cluster purity"][key] = [purity(phone, unit)]
            figures["code perplexity"][key] = [perplexity(unit)]
            figures["active codes"][key] = [float(len(set(unit.tolist())))]
        result = self.result(
            context, f"units of the last layer, {head.codes} codes, against the phone at each frame"
        )
        for name, values in figures.items():
            better = None if "code" in name else True
            result.figures += figures_of_layers(name, values, higher_is_better=better)
        result.counts = {"utterances": len(manifest), "phones": len(names), "frames": counted}
        if len(manifest) < len(every):
            without = len(every) - len(manifest)
            result.notes.append(f"{without} utterances have no phones and are left out")
        return result
