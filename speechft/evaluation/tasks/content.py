"""The same content in other voices: retrieval and ABX."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from speechft.data import Manifest, Utterance
from speechft.errors import ManifestError
from speechft.evaluation.conditions import CHANGED, UNCHANGED
from speechft.evaluation.metrics import abx, retrieval, sample_items
from speechft.evaluation.result import TaskResult, figures_of_layers
from speechft.evaluation.search import dtw_distances
from speechft.evaluation.tasks.alignment import Segment, cut, join, runs
from speechft.evaluation.tasks.base import (
    Context,
    Task,
    chosen_layers,
    kept,
    where,
    whole,
    with_phones,
)


@dataclass(frozen=True)
class Retrieval(Task):
    """Mean average precision of the same content in another voice, by cosine of mean vectors.

    Where texts are spoken by two speakers or more, the items are utterances: content is the text,
    voice is the speaker. Otherwise they are stretches of ``phones`` phones without a pause, cut out
    of utterances that are unchanged and under each condition (the utterance is changed and encoded
    whole, then cut), and a condition is a voice. The gallery of a query is every item of another
    voice (:func:`speechft.evaluation.metrics.retrieval`).

    Attributes:
        layers: None: all.
        conditions: that stand in for voices.
        phones: in a stretch.
        max_items: a voice, drawn by the seed where there are more.
        content, voice: labels of the manifest.
    """

    name: ClassVar[str] = "retrieval"

    layers: tuple[int, ...] | None = None
    conditions: tuple[str, ...] = CHANGED
    phones: int = 8
    max_items: int = 1000
    content: str = "text"
    voice: str = "speaker"

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        every = manifest = whole(context.data)
        parallel = _parallel(manifest, self.content, self.voice)
        layers = chosen_layers(self.layers, context.embeddings)
        maps: dict[tuple[int, str], list[float]] = defaultdict(list)
        tops: dict[tuple[int, str], list[float]] = defaultdict(list)
        if parallel:
            manifest = kept(every, lambda row: _says(row, self.content) and _says(row, self.voice))
            pooled = context.embeddings.pooled(manifest)
            labels = [str(row.label(self.content)) for row in manifest]
            voices = [str(row.label(self.voice)) for row in manifest]
            for layer in layers:
                found = retrieval(pooled[:, layer], labels, groups=voices)
                maps[layer, UNCHANGED].append(found.mean_average_precision)
                tops[layer, UNCHANGED].append(found.top1)
            counts = {"utterances": len(manifest), "queries": found.queries}
            protocol = f"utterances of one {self.content} by another {self.voice}"
        else:
            counts = self._segments(context, manifest, layers, maps, tops)
            protocol = f"stretches of {self.phones} phones across {', '.join(self.conditions)}"
        result = self.result(context, f"{protocol}; cosine of mean vectors")
        result.figures = figures_of_layers("MAP", maps) + figures_of_layers("top-1", tops)
        result.counts = counts
        if len(manifest) < len(every) and parallel:
            without = len(every) - len(manifest)
            result.notes.append(
                f"{without} utterances have no {self.content} or no {self.voice} and are left out"
            )
        if parallel and self.conditions != CHANGED:
            result.notes.append("there are other voices, so no condition stands in for one")
        return result

    def _segments(
        self, context: Context, manifest: Manifest, layers: tuple[int, ...], maps: Any, tops: Any
    ) -> dict[str, int]:
        manifest = with_phones(manifest)
        segments = [
            join(run[start : start + self.phones])
            for run in runs(manifest)
            for start in range(0, len(run) - self.phones + 1, self.phones)
        ]
        if len(segments) < 2:
            path, _ = where(manifest)
            raise ManifestError(path, None, f"no {self.phones} phones without a pause, twice over")
        voices = (UNCHANGED, *self.conditions)
        frames = {v: context.embeddings.frames(manifest, v, layers=layers) for v in voices}
        for seed in context.seeds:
            chosen = _draw(len(segments), self.max_items, seed)
            for layer in layers:
                means = {
                    v: torch.stack([cut(frames[v], layer, segments[i]).mean(0) for i in chosen])
                    for v in voices
                }
                for voice in self.conditions:
                    both = torch.cat([means[UNCHANGED], means[voice]])
                    found = retrieval(
                        both, [*chosen, *chosen],
                        groups=[UNCHANGED] * len(chosen) + [voice] * len(chosen),
                    )  # fmt: skip
                    maps[layer, voice].append(found.mean_average_precision)
                    tops[layer, voice].append(found.top1)
        return {"segments": min(len(segments), self.max_items), "voices": len(voices)}


@dataclass(frozen=True)
class ABX(Task):
    """ABX error: is a phone nearer to itself in another voice than to another phone?

    Items are phones, cut out of utterances; A and B are of one voice, X of another. Where
    utterances of several speakers have phones, voices are speakers; otherwise A and B are unchanged
    and X is under a condition. The distance is dynamic time warping of cosines along its path
    (:func:`speechft.evaluation.search.dtw_distances`), the error that of
    :func:`speechft.evaluation.metrics.abx`.

    Attributes:
        layers: None: all.
        conditions: that stand in for voices.
        max_items: a phone and voice, drawn by the seed where there are more.
        same_context: compare only phones between the same neighbours.
    """

    name: ClassVar[str] = "abx"

    layers: tuple[int, ...] | None = None
    conditions: tuple[str, ...] = CHANGED
    max_items: int = 10
    same_context: bool = False

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        manifest = with_phones(whole(context.data))
        layers = chosen_layers(self.layers, context.embeddings)
        speakers = [row.speaker or "" for row in manifest]
        natural = len(set(speakers)) > 1 and all(speakers)
        segments, contexts = _phones_in_context(manifest)
        labels = [segment.phones[0] for segment in segments]
        voices_of = [speakers[segment.utterance] for segment in segments]
        conditions = (UNCHANGED,) if natural else self.conditions
        frames = {
            v: context.embeddings.frames(manifest, v, layers=layers)
            for v in dict.fromkeys((UNCHANGED, *conditions))
        }
        errors: dict[tuple[int, str], list[float]] = defaultdict(list)
        triples = 0
        for seed in context.seeds:
            chosen = sample_items(
                labels, voices=voices_of, max_items=self.max_items, seed=seed
            ).tolist()
            for layer in layers:
                items = [cut(frames[UNCHANGED], layer, segments[i]) for i in chosen]
                for condition in conditions:
                    both = list(items)
                    voices = [voices_of[i] for i in chosen]
                    if not natural:
                        both += [cut(frames[condition], layer, segments[i]) for i in chosen]
                        voices = [UNCHANGED] * len(chosen) + [condition] * len(chosen)
                    times = len(both) // len(chosen)
                    found = abx(
                        dtw_distances(both, both, progress=False),
                        [labels[i] for i in chosen] * times,
                        voices=voices,
                        contexts=[contexts[i] for i in chosen] * times
                        if self.same_context
                        else None,
                        across=True,
                    )
                    errors[layer, condition].append(found.error)
                    triples = max(triples, found.triples)
        between = "speakers" if natural else "conditions"
        result = self.result(context, f"phones across {between}; DTW of cosines")
        result.figures = figures_of_layers("error", errors, higher_is_better=False)
        result.counts = {"phones": len(set(labels)), "tokens": len(labels), "triples": triples}
        if natural and self.conditions != CHANGED:
            result.notes.append("there are other speakers, so no condition stands in for one")
        return result


def _parallel(manifest: Manifest, content: str, voice: str) -> bool:
    """Whether some content is there in two voices."""
    voices: dict[Any, set[Any]] = defaultdict(set)
    for row in manifest:
        if _says(row, content) and _says(row, voice):
            voices[row.label(content)].add(row.label(voice))
    return any(len(said_by) > 1 for said_by in voices.values())


def _says(row: Utterance, label: str) -> bool:
    """Whether a label is there."""
    return row.label(label) not in (None, "")


def _phones_in_context(manifest: Manifest) -> tuple[list[Segment], list[str]]:
    segments, contexts = [], []
    for run in runs(manifest):
        names = ["#", *(segment.phones[0] for segment in run), "#"]
        for place, segment in enumerate(run):
            segments.append(segment)
            contexts.append(f"{names[place]} {names[place + 2]}")
    return segments, contexts


def _draw(count: int, most: int, seed: int) -> list[int]:
    """At most so many of ``count`` items, in order."""
    order: list[int] = np.random.default_rng(seed).permutation(count)[:most].tolist()
    return sorted(order)
