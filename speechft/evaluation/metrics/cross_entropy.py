r"""Cross-entropy: are the scores of documents log-likelihood ratios?

Over all trials of all queries, :math:`R` of them relevant and :math:`N` not, the normalised
cross-entropy Cnxe of scores :math:`s` at the prior :math:`\pi` of a relevant document is

.. math:: \frac{1}{H(\pi)} \Big( \frac{\pi}{R} \sum_\text{relevant} \log(1 + e^{-s - \theta})
          + \frac{1 - \pi}{N} \sum_\text{others} \log(1 + e^{s + \theta}) \Big), \qquad
          \theta = \log \frac{\pi}{1 - \pi},

with :math:`H(\pi) = -\pi \log \pi - (1 - \pi) \log(1 - \pi)`: 0 is perfect, 1 says nothing, and
wrong certainty costs any amount. *Actual* of scores as they are, natural log-likelihood ratios;
*minimum* over the affine calibrations :math:`a s + b`, also those with a negative :math:`a`, as in
the campaigns (calibration by any monotone function, PAV, would give less).

Trials, queries that count, prior and source are those of
:mod:`speechft.evaluation.metrics.term_detection`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechft.errors import ArgumentError
from speechft.evaluation.metrics.detection import _mean_softplus, _weights
from speechft.evaluation.metrics.term_detection import P_TARGET, _finite, _Trials, _trials


class CrossEntropy(NamedTuple):
    """A normalised cross-entropy.

    Attributes:
        value: 0 or more.
        scale: the calibration is ``scale * score + offset``: 1 for scores as they are. Infinite
            where a threshold parts relevant documents from others: the minimum is then a limit.
        offset: 0 for scores as they are, NaN where the scale is infinite.
        queries: how many have a relevant document.
        without_relevant: how many have none, and count nowhere.
    """

    value: float
    scale: float
    offset: float
    queries: int
    without_relevant: int


def cnxe(
    scores: ArrayLike,
    relevant: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    p_target: float = P_TARGET,
) -> CrossEntropy:
    """Normalised cross-entropy of scores that are natural log-likelihood ratios.

    Args:
        scores: (Q, D) real numbers; infinite ones are admitted.
        relevant: (Q, D) booleans.
        mask: (Q, D) booleans, False where a pair does not count; None counts all.
        p_target: prior of a relevant document.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: as :func:`mtwv`; no document that is not
            relevant.

    >>> round(cnxe([[0.0, 0.0]], [[True, False]]).value, 12)
    1.0
    """
    prior = _prior(p_target)
    trials = _both_kinds(_trials(scores, relevant, mask))
    relevant_scores, others = trials.scores[trials.relevant], trials.scores[~trials.relevant]
    nats = p_target * _mean_softplus(relevant_scores + prior, -1.0)
    nats += (1.0 - p_target) * _mean_softplus(others + prior, 1.0)
    value = nats / _entropy(p_target, 1.0 - p_target)
    return CrossEntropy(value, 1.0, 0.0, trials.queries, trials.without_relevant)


def min_cnxe(
    scores: ArrayLike,
    relevant: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    p_target: float = P_TARGET,
) -> CrossEntropy:
    """Normalised cross-entropy after the affine calibration that is best for it; 0 to 1.

    The calibration is fitted by Newton's method to a gain below 1e-12 (it is convex).

    Args:
        scores: (Q, D) finite real numbers.
        relevant: (Q, D) booleans.
        mask: (Q, D) booleans, False where a pair does not count; None counts all.
        p_target: prior of a relevant document.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: as :func:`cnxe`; an infinite score.

    >>> min_cnxe([[1.0, 0.0]], [[True, False]])[:2]
    (0.0, inf)
    """
    prior = _prior(p_target)
    trials = _both_kinds(_trials(scores, relevant, mask))
    _finite(trials.scores)
    counts = trials.queries, trials.without_relevant
    unit = _entropy(p_target, 1.0 - p_target)
    marks = trials.relevant
    weights = np.where(marks, p_target / marks.sum(), (1.0 - p_target) / (~marks).sum())
    limit = _limit(trials.scores, marks, weights)
    if limit is not None:
        nats, scale = limit
        return CrossEntropy(nats / unit, scale, 0.0 if scale == 0 else np.nan, *counts)
    mean, deviation = trials.scores.mean(), trials.scores.std()
    nats, slope, level = _fit((trials.scores - mean) / deviation, marks, weights, prior)
    scale = slope / deviation
    return CrossEntropy(nats / unit, float(scale), float(level - scale * mean), *counts)


def _fit(
    scores: NDArray[Any], relevant: NDArray[np.bool_], weights: NDArray[Any], prior: float
) -> tuple[float, float, float]:
    """The least weighted cross-entropy in nats, and the slope and level that give it."""
    signs = np.where(relevant, -1.0, 1.0)

    def cost(point: NDArray[Any]) -> float:
        logits = point[0] * scores + point[1] + prior
        return float(weights @ np.logaddexp(0.0, signs * logits))

    point = np.zeros(2)
    least = cost(point)
    for _ in range(200):
        logits = point[0] * scores + point[1] + prior
        wrong = np.exp(-np.logaddexp(0.0, -signs * logits))  # probability of the other kind
        pull = weights * wrong * signs
        curve = weights * wrong * (1.0 - wrong)
        gradient = np.array([pull @ scores, pull.sum()])
        cross = curve @ scores
        hessian = np.array([[curve @ scores**2, cross], [cross, curve.sum()]])
        step = np.linalg.solve(hessian, gradient)
        gain = float(gradient @ step)  # twice what is left to gain, to second order
        if gain <= 1e-13 * least:
            break
        share = 1.0
        while cost(point - share * step) > least - 1e-4 * share * gain and share > 1e-9:
            share *= 0.5
        point = point - share * step
        least = cost(point)
    return least, float(point[0]), float(point[1])


def _limit(
    scores: NDArray[Any], relevant: NDArray[np.bool_], weights: NDArray[Any]
) -> tuple[float, float] | None:
    """Nats and scale where no finite calibration is best: a threshold parts the two kinds.

    Only trials with the very score where the kinds meet, if any, are then uncertain.
    """
    wanted, others = scores[relevant], scores[~relevant]
    above, below = float(wanted.min()) >= others.max(), float(wanted.max()) <= others.min()
    if not (above or below):
        return None
    meeting = scores == (wanted.min() if above else wanted.max())
    nats = _entropy(weights[meeting & relevant].sum(), weights[meeting & ~relevant].sum())
    return nats, 0.0 if above and below else np.inf if above else -np.inf


def _entropy(p: float, q: float) -> float:
    """Nats of the masses p and q: -p log(p / (p + q)) - q log(q / (p + q)).

    >>> _entropy(0.0, 0.3)
    0.0
    """
    return float(sum(mass * np.log((p + q) / mass) for mass in (p, q) if mass > 0))


def _prior(p_target: float) -> float:
    """Natural log-odds of the prior."""
    _weights(p_target, 1.0, 1.0)
    return float(np.log(p_target) - np.log1p(-p_target))


def _both_kinds(trials: _Trials) -> _Trials:
    if trials.relevant.all():
        raise ArgumentError("relevant", "every document that counts is relevant; both are needed")
    return trials
