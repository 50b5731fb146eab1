"""Any label of an utterance: emotion, keyword, language, diagnosis, speaker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft.data import Manifest
from speechft.errors import ManifestError
from speechft.evaluation.conditions import UNCHANGED
from speechft.evaluation.layouts import EvaluationData
from speechft.evaluation.metrics import accuracy, macro_f1, micro_f1, uar
from speechft.evaluation.probes import PENALTIES, fit_linear
from speechft.evaluation.result import Figure, TaskResult
from speechft.evaluation.splits import Split, given_split, stratified_split
from speechft.evaluation.tasks.base import (
    Context,
    Task,
    check_distinct,
    chosen_layers,
    codes,
    describe_split,
    labels_of,
    official_split,
    views,
    where,
    whole,
)


class _Data(NamedTuple):
    manifest: Manifest
    labels: Tensor
    names: list[str]


@dataclass(frozen=True)
class Label(Task):
    """A linear probe, and k-shot classification, of a label of the utterance.

    The embedding is the mean over frames. The probe is logistic regression, its penalty chosen on
    validation utterances. Parts named train, validation and test are used as they are; with
    ``groups`` (or where the data names them: sessions of IEMOCAP) each group is left out in turn,
    15 % of the others (at least one) validate, and the predictions of all are scored together;
    otherwise the seed draws utterances of each class. k-shot: the seed draws k fitting utterances a
    class, and a test utterance goes to the class whose mean is nearest by cosine, from the middle
    of these means. A class with fewer than k to fit on has them all.

    Figures: accuracy, UAR (mean recall over classes), micro-F1, macro-F1, k-shot accuracy.

    Attributes:
        label: of the manifest; None: what the data is for, or the speaker.
        groups: a label whose values are left out one by one, such as ``"speaker"``.
        layers: None: all.
        shots: k; 0 leaves it out.
        condition: what is done to the tested speech.
        penalties: of the probe, to choose from.
    """

    name: ClassVar[str] = "label"
    uses_parts: ClassVar[bool] = True

    label: str | None = None
    groups: str | None = None
    layers: tuple[int, ...] | None = None
    shots: int = 1
    condition: str = UNCHANGED
    penalties: tuple[float, ...] = PENALTIES

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        label = self.label or context.data.label or "speaker"
        manifest = whole(context.data)
        labels = labels_of(manifest, label)
        check_distinct(labels, label, manifest)
        numbers, names = codes(labels)
        data = _Data(manifest, torch.from_numpy(numbers), names)
        pooled = context.embeddings.pooled(manifest)
        tested = pooled
        if self.condition != UNCHANGED:
            tested = context.embeddings.pooled(manifest, self.condition)
        layers = chosen_layers(self.layers, context.embeddings)
        names_of = ["accuracy", "UAR", "micro-F1", "macro-F1"]
        names_of += [f"{self.shots}-shot"] * bool(self.shots)
        values: dict[str, dict[tuple[str, int | None], list[float]]] = {
            name: defaultdict(list) for name in names_of
        }
        judged = list(
            zip(views(context, pooled, layers), views(context, tested, layers), strict=True)
        )
        folds = 0
        for seed in context.seeds:
            splits = list(label_splits(context.data, label, self.groups, seed))
            folds = len(splits)
            for fitted, heard in judged:
                truth, guess, shot = [], [], []
                for split in splits:
                    truth.append(data.labels[split.test])
                    guess.append(self._probe(fitted.vectors, heard.vectors, data, split))
                    if self.shots:
                        shot.append(self._shots(fitted.vectors, heard.vectors, data, split, seed))
                true, guessed = torch.cat(truth), torch.cat(guess)
                key = (fitted.of, fitted.layer)
                values["accuracy"][key].append(accuracy(true, guessed))
                values["UAR"][key].append(uar(true, guessed))
                values["micro-F1"][key].append(micro_f1(true, guessed))
                values["macro-F1"][key].append(macro_f1(true, guessed))
                if self.shots:
                    values[f"{self.shots}-shot"][key].append(accuracy(true, torch.cat(shot)))
        result = self.result(
            context,
            f"linear probe of {label!r} on mean vectors; penalty chosen on validation; "
            + (f"{folds} folds of groups" if folds > 1 else describe_split(context)),
        )
        for name in names_of:
            result.figures += [
                Figure(name, tuple(seeds), layer=layer, condition=self.condition, of=of)
                for (of, layer), seeds in values[name].items()
            ]
        result.counts = {"utterances": len(manifest), "classes": len(names), "folds": folds}
        return result

    def _probe(self, fitted: Tensor, tested: Tensor, data: _Data, split: Split) -> Tensor:
        probe = fit_linear(
            fitted[split.fit], data.labels[split.fit], classes=len(data.names),
            validation=(fitted[split.validation], data.labels[split.validation]),
            penalties=self.penalties,
        )  # fmt: skip
        return probe.predict(tested[split.test])

    def _shots(
        self, fitted: Tensor, tested: Tensor, data: _Data, split: Split, seed: int
    ) -> Tensor:
        rng = np.random.default_rng(seed)
        means, numbers = [], sorted(set(data.labels[split.fit].tolist()))
        for number in numbers:
            mine = [row for row in split.fit if data.labels[row] == number]
            chosen = rng.permutation(mine)[: self.shots].astype(np.int64)
            means.append(fitted[torch.from_numpy(chosen)].mean(0))
        prototypes = torch.stack(means)
        centre = prototypes.mean(0)
        nearest = normalize(tested[split.test] - centre, dim=1) @ normalize(prototypes - centre).T
        return torch.tensor(numbers)[nearest.argmax(1)]


def label_splits(
    data: EvaluationData,
    label: str,
    groups: str | None,
    seed: int,
    *,
    folds: int | None = None,
) -> Iterator[Split]:
    """How utterances of all parts are divided for a label, as :class:`Label` says; one a fold.

    Args:
        data: the utterances.
        label: that is told.
        groups: a label whose values are left out one by one; None: as the data says.
        seed: of what is drawn.
        folds: leave groups out in so many parts, drawn by the seed; None: one by one.

    Raises:
        ManifestError: labels are missing, or cannot be divided so.
    """
    manifest = whole(data)
    labels = labels_of(manifest, label)
    check_distinct(labels, label, manifest)
    numbers, names = codes(labels)
    known = _Data(manifest, torch.from_numpy(numbers), names)
    given = official_split(data, manifest, labels, seed, groups=groups)
    if given is not None:
        yield _checked(given, known, label)
        return
    groups = groups or data.groups
    if groups is None:
        yield _checked(stratified(known, label, seed), known, label)
        return
    group_of = labels_of(manifest, groups)
    check_distinct(group_of, groups, manifest)
    found = sorted(set(group_of))
    if len(found) < 3:
        path, _ = where(manifest)
        raise ManifestError(
            path, None,
            f"{groups!r} has {len(found)} values; one to test, one to validate and one to fit "
            "need 3",
        )  # fmt: skip
    left_out = [{name} for name in found]
    if folds is not None and folds < len(found):
        drawn = np.random.default_rng(seed).permutation(len(found))
        left_out = [{found[place] for place in drawn[fold::folds]} for fold in range(folds)]
    for tests in left_out:
        parts = ["test" if group in tests else "train" for group in group_of]
        lost = {labels[row] for row, part in enumerate(parts) if part == "test"}
        lost -= {labels[row] for row, part in enumerate(parts) if part == "train"}
        if lost:
            row = next(r for r, part in enumerate(parts) if part == "test" and labels[r] in lost)
            having = {group_of[r] for r, value in enumerate(labels) if value == labels[row]}
            path, line = where(manifest, manifest[row])
            only = ", ".join(map(repr, sorted(having)))
            raise ManifestError(path, line, f"{label} {labels[row]!r} is in {groups} {only} only")
        yield given_split(parts, group_of, labels, seed)


def _checked(split: Split, data: _Data, label: str) -> Split:
    """Refuse a class that is tested and not fitted: no probe can know it.

    Raises:
        ManifestError: naming the file and the line of the first such utterance.
    """
    known = set(data.labels[split.fit].tolist())
    for row in split.test:
        if int(data.labels[row]) not in known:
            utterance = data.manifest[row]
            path, line = where(data.manifest, utterance)
            raise ManifestError(
                path, line,
                f"utterance {utterance.id!r}: {label} {data.names[int(data.labels[row])]!r} is "
                "in the test part only",
            )  # fmt: skip
    return split


def stratified(data: _Data, label: str, seed: int) -> Split:
    """A split of each class.

    Raises:
        ManifestError: a class of fewer than 3 utterances.
    """
    counts = torch.bincount(data.labels)
    if int(counts.min()) < 3:
        number = int(counts.argmin())
        row = next(r for r, code in zip(data.manifest, data.labels, strict=True) if code == number)
        path, line = where(data.manifest, row)
        raise ManifestError(
            path, line,
            f"{label} {data.names[number]!r} has {int(counts.min())} utterances; a split needs 3",
        )  # fmt: skip
    return stratified_split(data.labels.tolist(), seed)


@dataclass(frozen=True)
class Keyword(Label):
    """Keyword spotting: the linear probe of :class:`Label` for the label ``keyword``.

    Speech Commands is read with the official parts: ``layout="speech_commands"`` takes the SUPERB
    test set (12 classes) or the split that torchaudio makes (35 words); the result names which.
    """

    name: ClassVar[str] = "keyword"

    label: str | None = "keyword"
    shots: int = 0
