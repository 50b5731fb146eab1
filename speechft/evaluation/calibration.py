"""Scores of verification made log-likelihood ratios."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechft.evaluation.metrics import Trials

PRIOR = 0.05
"""Of targets, for which scores are calibrated."""

_CALIBRATION = 400_000  # trials to calibrate on, at most


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
    odds = float(np.log(PRIOR / (1 - PRIOR)))
    mean, deviation = float(scores.mean()), float(scores.std()) or 1.0
    x = np.stack([(scores - mean) / deviation, np.ones_like(scores)], 1)
    weight = np.where(targets, PRIOR / targets.sum(), (1 - PRIOR) / (~targets).sum())
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
