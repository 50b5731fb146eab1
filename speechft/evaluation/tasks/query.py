"""Query by example: find a spoken query in spoken documents."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from speechft.errors import ManifestError
from speechft.evaluation.conditions import CHANGED, UNCHANGED
from speechft.evaluation.metrics import min_cnxe, mtwv, standardize
from speechft.evaluation.result import Figure, TaskResult
from speechft.evaluation.search import FrameDistance, subsequence_dtw
from speechft.evaluation.tasks.alignment import Segment, cut, join, phones_of, runs
from speechft.evaluation.tasks.base import Context, Task, chosen_layers, where, whole, with_phones


@dataclass(frozen=True)
class Query(Task):
    """Query by example with subsequence DTW: MTWV, minimum Cnxe, and top-1.

    A data set with parts ``queries`` and ``documents`` (QUESST14) is used as it is. Otherwise the
    queries are stretches of ``phones`` phones without a pause, drawn by the seed and cut out of
    utterances with phones, and the documents are all these utterances, unchanged. A document is
    relevant if it contains the query's phones in a row. Where the query is changed, the document
    that it was cut from counts as one of them: the task is to find the known item. Where it is not,
    that document is left out of this query's trials, and only queries that occur elsewhere count.

    The score is that of :func:`speechft.evaluation.search.subsequence_dtw`, standardised a query.
    MTWV and Cnxe: see :mod:`speechft.evaluation.metrics.term_detection`. ``top-1``: the share of
    queries whose best document is relevant.

    Attributes:
        layers: None: the last.
        conditions: what is done to the query. ``"unchanged"`` wants stretches that recur.
        phones: in a query.
        max_queries: drawn by the seed.
        distance: between frames, see :func:`~speechft.evaluation.search.subsequence_dtw`.
    """

    name: ClassVar[str] = "query"
    uses_parts: ClassVar[bool] = True

    layers: tuple[int, ...] | None = None
    conditions: tuple[str, ...] = CHANGED
    phones: int = 5
    max_queries: int = 60
    distance: FrameDistance = "cosine"

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        layers = chosen_layers(self.layers, context.embeddings)
        if self.layers is None:
            layers = layers[-1:]
        result = self.result(
            context, f"subsequence DTW of {self.distance} distances, scores standardised a query"
        )
        values: dict[tuple[str, int, str], list[float]] = defaultdict(list)
        if {"queries", "documents"} <= set(context.data.parts):
            self._given(context, layers, values, result)
        else:
            self._drawn(context, layers, values, result)
        better = {"MTWV": True, "min Cnxe": False, "top-1": True}
        result.figures = [
            Figure(name, tuple(seeds), layer, condition, higher_is_better=better[name])
            for (name, layer, condition), seeds in values.items()
        ]
        return result

    def _given(
        self,
        context: Context,
        layers: tuple[int, ...],
        values: dict[tuple[str, int, str], list[float]],
        result: TaskResult,
    ) -> None:
        queries, documents = context.data.parts["queries"], context.data.parts["documents"]
        relevance = context.data.relevance
        if relevance is None:
            path, _ = where(queries)
            raise ManifestError(path, None, "there are queries and documents, but no relevance")
        rows = {row.id: index for index, row in enumerate(queries)}
        columns = {row.id: index for index, row in enumerate(documents)}
        relevant = torch.zeros(len(queries), len(documents), dtype=torch.bool)
        for query, document in relevance:
            relevant[rows[query], columns[document]] = True
        for layer in layers:
            spoken = context.embeddings.frames(queries, layers=[layer]).layer(layer)
            searched = context.embeddings.frames(documents, layers=[layer]).layer(layer)
            scores = subsequence_dtw(
                spoken, searched, distance=self.distance, progress=context.embeddings.progress
            )
            self._score(scores, relevant, None, layer, UNCHANGED, values)
        result.counts = {"queries": len(queries), "documents": len(documents)}
        without = int((~relevant.any(1)).sum())
        if without:
            result.notes.append(f"{without} queries have no relevant document and do not count")
        if self.conditions != CHANGED:
            result.notes.append("the queries are given, so no condition is put on them")

    def _drawn(
        self,
        context: Context,
        layers: tuple[int, ...],
        values: dict[tuple[str, int, str], list[float]],
        result: TaskResult,
    ) -> None:
        manifest = with_phones(whole(context.data))
        spoken = [[phone.label for phone in phones_of(row)] for row in manifest]
        found = [
            join(run[start : start + self.phones])
            for run in runs(manifest)
            for start in range(0, len(run) - self.phones + 1)
        ]
        contained: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, said in enumerate(spoken):
            stretches = {tuple(said[at : at + self.phones]) for at in range(len(said))}
            for phones in stretches:
                contained[phones].append(row)
        recurring = [segment for segment in found if len(contained[segment.phones]) > 1]
        embeddings, queries = context.embeddings, 0
        documents = embeddings.frames(manifest, layers=layers)
        for condition in self.conditions:
            known_item = condition != UNCHANGED
            pool = found if known_item else recurring
            if len(pool) < 2:
                path, _ = where(manifest)
                raise ManifestError(
                    path, None,
                    f"fewer than two stretches of {self.phones} phones for {condition!r} queries; "
                    "set fewer phones",
                )  # fmt: skip
            changed = embeddings.frames(manifest, condition, layers=layers)
            for seed in context.seeds:
                drawn = _draw(pool, self.max_queries, seed)
                queries = max(queries, len(drawn))
                relevant = torch.zeros(len(drawn), len(manifest), dtype=torch.bool)
                counted = torch.ones_like(relevant)
                for row, segment in enumerate(drawn):
                    relevant[row, contained[segment.phones]] = True
                    counted[row, segment.utterance] = known_item
                for layer in layers:
                    scores = subsequence_dtw(
                        [cut(changed, layer, segment) for segment in drawn],
                        documents.layer(layer), distance=self.distance, progress=False,
                    )  # fmt: skip
                    self._score(scores, relevant, counted, layer, condition, values)
        result.counts = {"queries": queries, "documents": len(manifest)}

    def _score(
        self,
        scores: Tensor,
        relevant: Tensor,
        counted: Tensor | None,
        layer: int,
        condition: str,
        values: dict[tuple[str, int, str], list[float]],
    ) -> None:
        standard = standardize(scores, mask=counted)
        values["MTWV", layer, condition].append(mtwv(standard, relevant, mask=counted).value)
        values["min Cnxe", layer, condition].append(
            min_cnxe(standard, relevant, mask=counted).value
        )
        eligible = scores if counted is None else scores.masked_fill(~counted, -torch.inf)
        best = eligible.argmax(1)
        hits = relevant[torch.arange(len(best)), best]
        # As in MTWV, a query without a relevant document does not count.
        hits = hits[(relevant if counted is None else relevant & counted).any(1)]
        values["top-1", layer, condition].append(float(hits.double().mean()))


def _draw(pool: list[Segment], most: int, seed: int) -> list[Segment]:
    """One occurrence of each of so many different stretches."""
    by_phones: dict[tuple[str, ...], list[Segment]] = defaultdict(list)
    for segment in pool:
        by_phones[segment.phones].append(segment)
    rng = np.random.default_rng(seed)
    names = list(by_phones)
    chosen = rng.permutation(len(names))[:most]
    drawn = []
    for index in sorted(chosen.tolist()):
        occurrences = by_phones[names[index]]
        drawn.append(occurrences[int(rng.integers(len(occurrences)))])
    return drawn
