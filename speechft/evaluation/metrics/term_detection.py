r"""Term detection: do the scores of documents say in which of them a query is spoken?

The trials are pairs of a query and a document, as QUESST counts them, and a trial is accepted if
its score is at least the threshold :math:`t`. Queries that no document is relevant to, among those
that count, have no miss rate: they are left out of every figure, and counted.

The term-weighted value (NIST's spoken term detection evaluation, 2006) gives every query the same
weight:

.. math:: \mathrm{TWV}(t) = 1 - \frac{1}{Q} \sum_q
          \big( P_\text{miss}(q, t) + \beta P_\text{fa}(q, t) \big), \qquad
          \beta = \frac{c_\text{fa}}{c_\text{miss}} \cdot \frac{1 - \pi}{\pi},

with :math:`\pi` the prior of a relevant document: 1 is perfect, 0 is accepting nothing. *Maximum*
(MTWV) at the best threshold, one for all queries; *actual* (ATWV) at a given one.

After Rodriguez-Fuentes & Penagarikano, "MediaEval 2013 Spoken Web Search task: system performance
measures", 2013. The defaults are QUESST 2014's (Anguera et al., "Query by example search on speech
at MediaEval 2014"): :math:`\pi = 0.0008`, costs 1 and 100, so :math:`\beta = 12.49`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics.detection import _array, _weights

P_TARGET = 0.0008
C_MISS = 100.0
C_FA = 1.0


class TermWeightedValue(NamedTuple):
    """A term-weighted value.

    Attributes:
        value: at most 1.
        threshold: where it was taken; infinity accepts nothing.
        p_miss: mean over queries of the share of relevant documents that are not accepted.
        p_fa: mean over queries of the share of other documents that are; 0 for a query to which
            all documents are relevant.
        queries: how many have a relevant document.
        without_relevant: how many have none, and count nowhere.
    """

    value: float
    threshold: float
    p_miss: float
    p_fa: float
    queries: int
    without_relevant: int


class _Trials(NamedTuple):
    scores: NDArray[Any]  # (K,) of the trials that count
    relevant: NDArray[np.bool_]  # (K,)
    query: NDArray[np.int64]  # (K,) from 0, without the queries left out
    queries: int
    without_relevant: int

    def rates(self, accepted: NDArray[np.bool_]) -> tuple[float, float]:
        """P_miss and P_fa, means over queries."""
        means = []
        for chosen, wrong in ((self.relevant, ~accepted), (~self.relevant, accepted)):
            count = np.bincount(self.query[chosen], minlength=self.queries)
            errors = np.bincount(self.query[chosen & wrong], minlength=self.queries)
            means.append(float((errors / np.maximum(count, 1)).mean()))
        return means[0], means[1]


def mtwv(
    scores: ArrayLike,
    relevant: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    p_target: float = P_TARGET,
    c_miss: float = C_MISS,
    c_fa: float = C_FA,
) -> TermWeightedValue:
    """Maximum term-weighted value, over thresholds between distinct scores; 0 to 1.

    Args:
        scores: (Q, D) real numbers, the higher the more relevant; infinite ones are admitted.
        relevant: (Q, D) booleans.
        mask: (Q, D) booleans, False where a pair does not count; None counts all.
        p_target: prior of a relevant document.
        c_miss: cost of a miss.
        c_fa: cost of a false alarm.

    Raises:
        ArgumentTypeError: scores that are not real numbers, relevance that is not boolean.
        ArgumentError: wrong shapes, no query with a relevant document, a prior outside (0, 1), a
            cost that is not above 0.
        NonFiniteError: a score that counts is NaN.

    >>> mtwv([[3.0, 1.0], [2.0, 0.0]], [[True, False], [True, False]]).value
    1.0
    """
    trials, beta = _trials(scores, relevant, mask), _beta(p_target, c_miss, c_fa)
    # What accepting one more trial is worth to the sum over queries.
    hits = np.bincount(trials.query[trials.relevant], minlength=trials.queries)
    others = np.bincount(trials.query, minlength=trials.queries) - hits
    worth = 1.0 / hits, -beta / np.maximum(others, 1)
    gain = np.where(trials.relevant, worth[0][trials.query], worth[1][trials.query])
    order = np.argsort(-trials.scores, kind="stable")
    ordered = trials.scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # ties are accepted at once
    values = np.cumsum(gain[order])[last]
    best = int(values.argmax())
    if values[best] <= 0:
        return _value(trials, np.inf, np.zeros(len(ordered), dtype=bool), beta)
    threshold = float(ordered[last][best])
    return _value(trials, threshold, trials.scores >= threshold, beta)


def atwv(
    scores: ArrayLike,
    relevant: ArrayLike,
    *,
    threshold: float,
    mask: ArrayLike | None = None,
    p_target: float = P_TARGET,
    c_miss: float = C_MISS,
    c_fa: float = C_FA,
) -> TermWeightedValue:
    r"""Actual term-weighted value: of accepting scores of at least ``threshold``.

    For natural log-likelihood ratios the right threshold is :math:`\log \beta`, 2.52 by default.

    Args:
        scores: (Q, D) real numbers, the higher the more relevant; infinite ones are admitted.
        relevant: (Q, D) booleans.
        threshold: the lowest score that is accepted.
        mask: (Q, D) booleans, False where a pair does not count; None counts all.
        p_target: prior of a relevant document.
        c_miss: cost of a miss.
        c_fa: cost of a false alarm.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: as :func:`mtwv`; a threshold of NaN.

    >>> atwv([[3.0, 1.0]], [[True, False]], threshold=4.0).value
    0.0
    """
    if np.isnan(threshold):
        raise ArgumentError("threshold", "wants a number, got NaN")
    trials, beta = _trials(scores, relevant, mask), _beta(p_target, c_miss, c_fa)
    return _value(trials, float(threshold), trials.scores >= threshold, beta)


def standardize(scores: ArrayLike, *, mask: ArrayLike | None = None) -> NDArray[np.float64]:
    """Scores (Q, D) less the mean of their query, over its standard deviation, in float64.

    So one threshold serves all queries, whatever their lengths and voices. The deviation is that
    of the documents themselves (over D, not D - 1); a query whose scores are all one gets zeros.

    Args:
        scores: (Q, D) finite real numbers.
        mask: (Q, D) booleans: mean and deviation are of the pairs that count; the others are
            shifted and scaled as these. None counts all.

    Raises:
        ArgumentTypeError: scores that are not real numbers, a mask that is not boolean.
        ArgumentError: wrong shapes, a query of which nothing counts.
        NonFiniteError: a score that counts is NaN or infinite.

    >>> standardize([[1.0, 3.0], [5.0, 5.0]])
    array([[-1.,  1.],
           [ 0.,  0.]])
    """
    values = _matrix(scores)
    counted = np.ones(values.shape, dtype=bool) if mask is None else _like(mask, "mask", values)
    empty = np.flatnonzero(~counted.any(1))
    if len(empty):
        raise ArgumentError("mask", f"nothing counts of the query at {empty[0]}")
    _finite(values[counted])
    mean = values.mean(1, keepdims=True, where=counted)
    deviation = values.std(1, keepdims=True, where=counted)
    # Rounding of the mean is no deviation.
    constant = deviation <= 1e-12 * np.abs(mean)
    return np.where(constant, 0.0, (values - mean) / np.where(constant, 1.0, deviation))


def _value(
    trials: _Trials, threshold: float, accepted: NDArray[np.bool_], beta: float
) -> TermWeightedValue:
    p_miss, p_fa = trials.rates(accepted)
    counts = trials.queries, trials.without_relevant
    return TermWeightedValue(1.0 - p_miss - beta * p_fa, threshold, p_miss, p_fa, *counts)


def _beta(p_target: float, c_miss: float, c_fa: float) -> float:
    miss, false_alarm = _weights(p_target, c_miss, c_fa)
    return false_alarm / miss


def _trials(scores: ArrayLike, relevant: ArrayLike, mask: ArrayLike | None) -> _Trials:
    values = _matrix(scores)
    marks = _like(relevant, "relevant", values)
    counted = np.ones(values.shape, dtype=bool) if mask is None else _like(mask, "mask", values)
    usable: NDArray[np.bool_] = np.asarray((marks & counted).any(1))
    if not usable.any():
        raise ArgumentError("relevant", f"none of {len(values)} queries has a relevant document")
    counted = counted & usable[:, None]
    chosen = values[counted]
    nans = int(np.isnan(chosen).sum())
    if nans:
        raise NonFiniteError("scores", f"{nans} of {len(chosen)} that count are NaN")
    numbers = np.cumsum(usable) - 1
    query = np.broadcast_to(numbers[:, None], values.shape)[counted]
    return _Trials(chosen, marks[counted], query, int(usable.sum()), int((~usable).sum()))


def _matrix(scores: ArrayLike) -> NDArray[np.float64]:
    values = _array(scores)
    if values.dtype.kind not in "fiu":
        raise ArgumentTypeError("scores", f"wants real numbers, got {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        raise ArgumentError("scores", f"wants shape (queries, documents), got {values.shape}")
    return values.astype(np.float64)


def _like(flags: ArrayLike, argument: str, scores: NDArray[Any]) -> NDArray[np.bool_]:
    values = _array(flags)
    if values.dtype.kind != "b":
        raise ArgumentTypeError(argument, f"wants booleans, got {values.dtype}")
    if values.shape != scores.shape:
        raise ArgumentError(
            argument, f"wants the shape of scores, {scores.shape}, got {values.shape}"
        )
    return values


def _finite(scores: NDArray[Any]) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise NonFiniteError("scores", f"{bad} of {scores.size} are NaN or infinite")
