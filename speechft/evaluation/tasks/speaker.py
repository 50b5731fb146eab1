"""Speaker verification by cosine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from speechft.data import Manifest
from speechft.evaluation.conditions import UNCHANGED
from speechft.evaluation.metrics import Trials
from speechft.evaluation.result import Figure, TaskResult
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
_CALIBRATION = 400_000  # trials to calibrate on, at most
_PRIOR = 0.05  # of targets, for which scores are calibrated


@dataclass(frozen=True)
class Speaker(Task):
    """Speaker verification: EER, minDCF, actDCF and Cllr of cosine scores.

    The embedding of an utterance is the mean over its frames; the score of a trial is the cosine of
    two of them. Trials are those of the trial list, or every pair of utterances. EER and minDCF
    (costs of 1, target prior .05 and .01) are of the cosines as they are. actDCF and Cllr need
    log-likelihood ratios: scale and offset are fitted by logistic regression on a half of the
    trials drawn by the seed and applied to the other, both ways round.

    Attributes:
        layers: None: all.
        condition: what is done to both sides of a trial.
        label: whose equality makes a target where there is no trial list.
    """

    name: ClassVar[str] = "speaker"

    layers: tuple[int, ...] | None = None
    condition: str = UNCHANGED
    label: str = "speaker"

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        # The indices of a trial list are those of the part "all".
        listed = context.data.trials is not None
        manifest = context.data.parts["all"] if listed else whole(context.data)
        layers = chosen_layers(self.layers, context.embeddings)
        speakers: list[str] = []
        if context.data.trials is None:
            speakers = labels_of(manifest, self.label)
            check_distinct(speakers, self.label, manifest)
        pooled = context.embeddings.pooled(manifest, self.condition)
        result = self.result(context, "cosine of mean vectors; actDCF and Cllr cross-calibrated")
        judged = views(context, pooled, layers)
        for of, layer, found in judged:
            vectors = normalize(found.double(), dim=1).float()
            trials, scores, targets = Trials(), [], []
            for block_scores, block_targets in self._blocks(context, manifest, vectors, speakers):
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
        return result

    def _blocks(
        self, context: Context, manifest: Manifest, vectors: Tensor, speakers: list[str]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Scores and labels, some of the trials at a time."""
        trials = context.data.trials
        if trials is not None:
            for start in range(0, len(trials.target), _BLOCK):
                part = slice(start, start + _BLOCK)
                left = torch.from_numpy(trials.left[part].astype(np.int64))
                right = torch.from_numpy(trials.right[part].astype(np.int64))
                yield (vectors[left] * vectors[right]).sum(1).numpy(), trials.target[part]
            return
        names = np.array(speakers)
        rows = max(1, _BLOCK // len(vectors))
        for start in range(0, len(vectors), rows):
            block = (vectors[start : start + rows] @ vectors.T).numpy()
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
        actual = tuple(found.act_dcf(p_target=_PRIOR) for found in calibrated)
        add(Figure("actDCF(0.05)", actual, **where))  # type: ignore[arg-type]
        add(Figure("Cllr", tuple(t.cllr() for t in calibrated), **where))  # type: ignore[arg-type]


def cross_calibrated(scores: NDArray[Any], targets: NDArray[Any], seed: int) -> Trials:
    """Trials whose scores are log-likelihood ratios, from the other half's calibration.

    Each half has half of the targets and half of the others. Scale and offset are those of
    logistic regression, by Newton's method.
    """
    rng = np.random.default_rng(seed)
    half = np.zeros(len(targets), dtype=bool)
    for kind in (True, False):
        mine = np.flatnonzero(targets == kind)
        half[rng.permutation(mine)[: len(mine) // 2]] = True
    trials = Trials()
    for side in (half, ~half):
        other = ~side
        if targets[other].all() or not targets[other].any():
            other = np.ones_like(side)  # a single target: nothing else to calibrate on
        chosen = np.flatnonzero(other)
        if len(chosen) > _CALIBRATION:  # two numbers need no more
            chosen = np.concatenate(
                [
                    rng.permutation(chosen[targets[chosen] == kind])[: _CALIBRATION // 2]
                    for kind in (True, False)
                ]
            )
        scale, offset = _calibrate(scores[chosen].astype(np.float64), targets[chosen])
        trials.update(scale * scores[side].astype(np.float64) + offset, targets[side])
    return trials


def _calibrate(scores: NDArray[Any], targets: NDArray[Any]) -> tuple[float, float]:
    """Scale and offset of logistic regression, for a prior of targets of 0.05 as actDCF has it.

    A penalty of 1e-6 on the scale (of standardised scores) keeps it finite where scores separate.
    """
    odds = float(np.log(_PRIOR / (1 - _PRIOR)))
    mean, deviation = float(scores.mean()), float(scores.std()) or 1.0
    x = np.stack([(scores - mean) / deviation, np.ones_like(scores)], 1)
    weight = np.where(targets, _PRIOR / targets.sum(), (1 - _PRIOR) / (~targets).sum())
    solution, penalty = np.zeros(2), np.array([1e-6, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ solution + odds, -700, 700)))
        slope = x.T @ (weight * (p - targets)) + penalty * solution
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curve, slope)
        # Newton overshoots where the curve is flat: never go farther than this at once.
        solution -= step * min(1.0, 5.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-9:
            break
    return float(solution[0] / deviation), float(solution[1] - solution[0] * mean / deviation)
