"""Speaker verification by cosine or PLDA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from speechft.data import Manifest
from speechft.errors import ArgumentError
from speechft.evaluation.calibration import PRIOR, cross_calibrated
from speechft.evaluation.conditions import UNCHANGED
from speechft.evaluation.metrics import Trials
from speechft.evaluation.result import Figure, TaskResult
from speechft.evaluation.scoring import CosineScorer, PLDAScorer, ScoredVectors
from speechft.evaluation.tasks.background import Background, background_speech
from speechft.evaluation.tasks.base import (
    Context,
    Task,
    check_distinct,
    chosen_layers,
    labels_of,
    views,
    whole,
)

_BLOCK = 1 << 20  # trials scored at once


@dataclass(frozen=True)
class Speaker(Task):
    """Speaker verification: EER, minDCF, actDCF and Cllr of cosine or PLDA scores.

    The embedding of an utterance is the mean over its frames; the score of a trial is the cosine of
    two of them, or their log-likelihood ratio by PLDA (:mod:`speechft.evaluation.plda`). Trials are
    those of the trial list, or every pair of utterances. EER and minDCF (costs of 1, target prior
    .05 and .01) are of the scores as they are. actDCF and Cllr need calibrated log-likelihood
    ratios: scale and offset are fitted by logistic regression on a half of the trials drawn by the
    seed and applied to the other, both ways round.

    PLDA is fitted on, and AS-norm (:mod:`speechft.evaluation.normalisation`) has its cohort from, a
    background of other speech under the same condition: ``background``, or else the part ``train``
    of the data; then trials without a list are the pairs of the part ``test``. The cohort is the
    mean vectors of the background's speakers, or its utterances where it has no labels.

    Attributes:
        layers: None: all.
        condition: what is done to both sides of a trial.
        label: whose equality makes a target where there is no trial list.
        backend: what scores a trial.
        norm: what is done to scores.
        cohort: how many of the cohort count for each utterance, those with the highest scores; all
            of them where it has fewer.
        background: a manifest, or a folder of audio, with ``label`` of each utterance for PLDA.
    """

    name: ClassVar[str] = "speaker"

    layers: tuple[int, ...] | None = None
    condition: str = UNCHANGED
    label: str = "speaker"
    backend: Literal["cosine", "plda"] = "cosine"
    norm: Literal["none", "as-norm"] = "none"
    cohort: int = 300
    background: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("backend", ("cosine", "plda")), ("norm", ("none", "as-norm"))):
            value = getattr(self, name)
            if value not in known:
                raise ArgumentError(name, f"wants one of {', '.join(known)}; got {value!r}")
        if self.cohort < 2:
            raise ArgumentError("cohort", f"wants 2 or more, got {self.cohort}")
        if self.background is not None and not self._wants_background:
            raise ArgumentError("background", "is for backend='plda' or norm='as-norm' only")

    @property
    def _wants_background(self) -> bool:
        return self.backend == "plda" or self.norm == "as-norm"

    @property
    def uses_parts(self) -> bool:  # type: ignore[override]
        """Whether train is the background of test."""
        return self._wants_background and self.background is None

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`.

        Raises:
            ArgumentError: PLDA or AS-norm without a background.
            ManifestError: labels that are missing or all one; a background that PLDA cannot be
                fitted on.
        """
        needed = self._wants_background
        others = background_speech(context, self.background) if needed else None
        manifest = self._manifest(context)
        layers = chosen_layers(self.layers, context.embeddings)
        speakers: list[str] = []
        if context.data.trials is None:
            speakers = labels_of(manifest, self.label)
            check_distinct(speakers, self.label, manifest)
        background = None if others is None else self._background(context, others, layers)
        pooled = context.embeddings.pooled(manifest, self.condition)
        result = self.result(context, self._protocol(background))
        judged = views(context, pooled, layers)
        for place, (of, layer, found) in enumerate(judged):
            vectors = self._scored(found, background, place)
            trials, scores, targets = Trials(), [], []
            for block_scores, block_targets in self._blocks(context, vectors, speakers):
                trials.update(block_scores, block_targets)
                scores.append(block_scores)
                targets.append(block_targets)
            all_scores, all_targets = np.concatenate(scores), np.concatenate(targets)
            self._figures(context, result, of, layer, trials, all_scores, all_targets)
            if of or layer == layers[-1]:
                result.curves.setdefault("det", {})[of] = trials.det_curve()
                result.counts = {
                    "utterances": len(manifest), "trials": len(all_targets),
                    "targets": int(all_targets.sum()),
                }  # fmt: skip
        if background is not None:
            self._account(result, background, manifest)
        return result

    def _manifest(self, context: Context) -> Manifest:
        """The utterances of the trials. The indices of a trial list are those of the part "all"."""
        if context.data.trials is not None:
            return context.data.parts["all"]
        if not self.uses_parts:
            return whole(context.data)
        if "test" not in context.data.parts:
            raise ArgumentError(
                "background",
                f"is missing: {context.data.name} has a part 'train' and no part 'test' of trials",
            )
        return context.data.parts["test"]

    def _background(
        self, context: Context, others: Manifest, layers: tuple[int, ...]
    ) -> Background:
        return Background(
            context, others, self.background or "train", label=self.label,
            labelled=self.backend == "plda", condition=self.condition, layers=layers,
        )  # fmt: skip

    def _protocol(self, background: Background | None) -> str:
        said = "cosine of mean vectors"
        if background is not None:
            if self.backend == "plda":
                said = f"two-covariance PLDA of mean vectors, fitted on {background.name}"
            if self.norm == "as-norm":
                top = min(self.cohort, background.cohort_size)
                kind = "speakers" if background.speakers else "utterances"
                said += f", AS-norm by the top {top} {kind} of {background.name}"
        return f"{said}; actDCF and Cllr cross-calibrated"

    def _account(self, result: TaskResult, background: Background, manifest: Manifest) -> None:
        """Counts of the background, and what a reader has to know about it."""
        result.counts["background utterances"] = len(background.manifest)
        if background.speakers:
            result.counts["background speakers"] = len(set(background.speakers))
        shared = background.shared([row.label(self.label) for row in manifest])
        if shared:
            some = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
            result.notes.append(
                f"{len(shared)} of the background's {self.label}s are in the trials ({some}): "
                "figures are not those of strangers"
            )
        if self.norm == "as-norm" and background.cohort_size < self.cohort:
            result.notes.append(f"the cohort has {background.cohort_size}: all of them count")

    def _scored(self, vectors: Tensor, background: Background | None, place: int) -> ScoredVectors:
        """The vectors of the view at this place, ready to be scored."""
        if background is None:
            return ScoredVectors(CosineScorer(), vectors)
        plda = self.backend == "plda"
        scorer = PLDAScorer(background.plda(place)) if plda else CosineScorer()
        cohort = background.cohort(place) if self.norm == "as-norm" else None
        return ScoredVectors(scorer, vectors, cohort, self.cohort)

    def _blocks(
        self, context: Context, vectors: ScoredVectors, speakers: list[str]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Scores and labels, some of the trials at a time."""
        trials = context.data.trials
        if trials is not None:
            for start in range(0, len(trials.target), _BLOCK):
                part = slice(start, start + _BLOCK)
                left, right = trials.left[part], trials.right[part]
                scores = vectors.pairs(left.astype(np.int64), right.astype(np.int64))
                yield scores, trials.target[part]
            return
        names = np.array(speakers)
        rows = max(1, _BLOCK // len(vectors))
        for start in range(0, len(vectors), rows):
            block = vectors.with_all(start, start + rows)
            same = names[start : start + rows, None] == names[None]
            later = np.arange(len(names))[None] > np.arange(start, start + len(block))[:, None]
            yield block[later], same[later]

    def _figures(
        self,
        context: Context,
        result: TaskResult,
        of: str,
        layer: int | None,
        trials: Trials,
        scores: NDArray[Any],
        targets: NDArray[Any],
    ) -> None:
        where = {"of": of, "layer": layer, "condition": self.condition, "higher_is_better": False}
        add = result.figures.append
        add(Figure("EER", (trials.eer(),), **where))  # type: ignore[arg-type]
        for prior in (0.05, 0.01):
            cost = trials.min_dcf(p_target=prior)
            add(Figure(f"minDCF({prior:g})", (cost,), **where))  # type: ignore[arg-type]
        calibrated = [cross_calibrated(scores, targets, seed) for seed in context.seeds]
        actual = tuple(found.act_dcf(p_target=PRIOR) for found in calibrated)
        add(Figure("actDCF(0.05)", actual, **where))  # type: ignore[arg-type]
        add(Figure("Cllr", tuple(t.cllr() for t in calibrated), **where))  # type: ignore[arg-type]
