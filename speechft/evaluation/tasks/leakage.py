"""Leakage: does a subspace know what it should not?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from speechft.data import Manifest
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.metrics import accuracy, eer
from speechft.evaluation.probes import fit_linear
from speechft.evaluation.result import Figure, TaskResult
from speechft.evaluation.splits import stratified_split
from speechft.evaluation.tasks.base import Context, Task, codes, where, whole

_BLOCK = 1 << 16  # pairs scored at once


@dataclass(frozen=True)
class Leakage(Task):
    """For every subspace and factor: verification EER, and a linear probe against chance.

    A factor should be found in its own subspace (*matched*: a low EER, a probe far above chance)
    and not in another (*mismatched*: an EER near 0.5, a probe near chance). An encoder that is not
    split has one subspace, called ``whole``, which shows what there is to separate; a model that
    gives several is read through ``subspaces``.

    EER: cosine of mean vectors, over the pairs of utterances that differ in every other factor
    given, so that a factor is not found through another (one that never varies while this one stays
    cannot be held apart, and a note says so). Probe: logistic regression, utterances of
    each class drawn by the seed (25 % to test, 15 % to validate); classes of fewer than 4
    utterances are left to the EER alone.

    Attributes:
        factors: labels of the manifest; None: speaker, language and every other factor that has
            two values or more, one of them twice.
        layer: None: the last.
        subspaces: name -> (first, last + 1) dimensions of the layer; None: those of the model, with
            what it starts from, or all of the layer.
        max_pairs: of utterances for the EER, drawn by the first seed where there are more.
    """

    name: ClassVar[str] = "leakage"

    factors: tuple[str, ...] | None = None
    layer: int | None = None
    subspaces: tuple[tuple[str, int, int], ...] | None = None
    max_pairs: int = 2_000_000

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        manifest = whole(context.data)
        factors = self.factors or _factors(manifest)
        layer = context.embeddings.layers[-1] if self.layer is None else self.layer
        if layer not in context.embeddings.layers:
            raise ArgumentError("layer", f"wants 0 to {context.embeddings.layers[-1]}, got {layer}")
        vectors = context.embeddings.pooled(manifest)[:, layer]
        of_model = tuple((name, a, b) for name, (a, b) in context.embeddings.spaces.items())
        subspaces = self.subspaces or of_model or (("whole", 0, vectors.shape[1]),)
        self._check(subspaces, vectors.shape[1])
        labels = {name: _labels(manifest, name) for name in factors}
        result = self.result(context, "EER over pairs that differ in the other factors; probe")
        shown = None if context.embeddings.spaces else layer
        for space, first, last in subspaces:
            part = vectors[:, first:last]
            result.curves.setdefault("maps", []).append(
                (space, part, labels[factors[0]], factors[0])
            )
            for factor in factors:
                of = f"{factor} from {space}"
                self._eer(context, result, part, labels, factor, of, shown)
                self._probe(context, result, part, labels[factor], of, shown)
        result.counts = {"utterances": len(manifest), "subspaces": len(subspaces)}
        result.counts |= {
            f"values of {name}": len({v for v in labels[name] if v is not None}) for name in factors
        }
        return result

    def _check(self, subspaces: tuple[tuple[str, int, int], ...], size: int) -> None:
        for name, first, last in subspaces:
            if not 0 <= first < last <= size:
                raise ArgumentError(
                    "subspaces", f"{name!r} is of dimensions {first} to {last}; there are {size}"
                )
            if not name or set(name) & set("/\\\0"):
                raise ArgumentError("subspaces", f"{name!r} cannot name a picture")
        if len({name for name, _, _ in subspaces}) < len(subspaces):
            raise ArgumentError("subspaces", "two have one name")

    def _eer(
        self,
        context: Context,
        result: TaskResult,
        vectors: Tensor,
        labels: dict[str, list[str | None]],
        factor: str,
        of: str,
        layer: int | None,
    ) -> None:
        others = [name for name in labels if name != factor]
        rows = [i for i, label in enumerate(labels[factor]) if label is not None]
        left, right = _pairs(np.array(rows), self.max_pairs, context.seeds[0])
        numbers = {name: _numbers(labels[name]) for name in labels}
        apart = np.ones(len(left), dtype=bool)
        same = numbers[factor][left] == numbers[factor][right]
        for name in others:
            mine = numbers[name]
            differs = (mine[left] != mine[right]) | (mine[left] < 0)
            if (differs & same & apart).any():
                apart &= differs
            else:
                result.notes.append(
                    f"{of}: {name} never varies while {factor} stays: not held apart"
                )
        left, right = left[apart], right[apart]
        target = same[apart]
        if target.all() or not target.any():
            result.notes.append(
                f"{of}: no EER, all pairs are {'of one' if target.all() else 'of two'}"
            )
            return
        unit = normalize(vectors.double(), dim=1)
        scores = torch.cat(
            [
                (unit[left[at : at + _BLOCK]] * unit[right[at : at + _BLOCK]]).sum(1)
                for at in range(0, len(left), _BLOCK)
            ]
        )
        value = eer(scores, target)
        result.figures.append(Figure("EER", (value,), layer, of=of, higher_is_better=None))

    def _probe(
        self,
        context: Context,
        result: TaskResult,
        vectors: Tensor,
        labels: list[str | None],
        of: str,
        layer: int | None,
    ) -> None:
        counts = Counter(label for label in labels if label is not None)
        rows = [i for i, label in enumerate(labels) if label is not None and counts[label] >= 4]
        numbers, names = codes([str(labels[i]) for i in rows])
        if len(names) < 2:
            result.notes.append(f"{of}: no probe, fewer than two values have 4 utterances")
            return
        features, target = vectors[rows], torch.from_numpy(numbers)
        found, chance = [], []
        for seed in context.seeds:
            split = stratified_split(numbers.tolist(), seed)
            probe = fit_linear(
                features[split.fit], target[split.fit], classes=len(names),
                validation=(features[split.validation], target[split.validation]),
            )  # fmt: skip
            found.append(accuracy(target[split.test], probe.predict(features[split.test])))
            commonest = target[split.fit].mode().values
            chance.append(float((target[split.test] == commonest).double().mean()))
        result.figures.append(Figure("probe", tuple(found), layer, of=of, higher_is_better=None))
        result.figures.append(Figure("chance", tuple(chance), layer, of=of, higher_is_better=None))


def _pairs(
    rows: NDArray[np.int64], most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair of different rows or, where they are more than ``most``, some at random."""
    if len(rows) * (len(rows) - 1) // 2 <= most:
        left, right = np.triu_indices(len(rows), 1)
    else:
        left, right = np.random.default_rng(seed).integers(0, len(rows), (2, most))
        left, right = left[left != right], right[left != right]
    return rows[left], rows[right]


def _factors(manifest: Manifest) -> tuple[str, ...]:
    names = ["speaker", "language", *sorted({name for row in manifest for name in row.factors})]
    found = []
    for name in names:
        labels = [row.label(name) for row in manifest]
        counts = Counter(label for label in labels if label is not None)
        if len(counts) >= 2 and counts.most_common(1)[0][1] >= 2:
            found.append(name)
    if not found:
        path, _ = where(manifest)
        raise ManifestError(path, None, "no label has two values, one of them twice")
    return tuple(found)


def _labels(manifest: Manifest, name: str) -> list[str | None]:
    labels = [row.label(name) for row in manifest]
    if all(label is None for label in labels):
        path, _ = where(manifest)
        raise ManifestError(path, None, f"no utterance has {name!r}")
    return [None if label is None else str(label) for label in labels]


def _numbers(labels: list[str | None]) -> NDArray[np.int64]:
    known = sorted({label for label in labels if label is not None})
    names = {name: number for number, name in enumerate(known)}
    return np.array([-1 if label is None else names[label] for label in labels])
