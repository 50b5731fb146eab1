r"""Adaptive symmetric normalisation of scores: each side's own scores of strangers set the scale.

.. math::

    s' = \frac 1 2 \Bigl( \frac{s - \mu_l}{\sigma_l} + \frac{s - \mu_r}{\sigma_r} \Bigr),

where :math:`\mu` and :math:`\sigma` are mean and deviation of the highest scores that a side has
with a cohort of other speakers.

Source: Matějka et al., "Analysis of score normalization in multilingual speaker recognition",
Interspeech 2017 (AS-norm1: each side chooses its cohort by its own scores).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechft.errors import ArgumentError, NonFiniteError

Array = NDArray[np.float64]


def adaptive_s_norm(
    scores: NDArray[Any],
    left_cohort_scores: NDArray[Any],
    right_cohort_scores: NDArray[Any],
    *,
    top: int = 300,
) -> Array:
    """Normalise the scores of pairs, or of all with all.

    Args:
        scores: (N,) of pairs, or (N, M).
        left_cohort_scores: (N, C), of the left sides with the cohort.
        right_cohort_scores: (N, C), or (M, C), of the right sides; C may be another.
        top: the highest so many count. All count where the cohort has fewer, which is S-norm.

    Returns:
        As ``scores``, float64.

    Raises:
        ArgumentError: other shapes, a ``top`` or a cohort under 2, or a side whose cohort scores
            are all the same, which have no deviation.
        NonFiniteError: NaN or infinity.

    >>> scores = np.array([3.0])
    >>> adaptive_s_norm(scores, np.array([[0.0, 2.0, -9.0]]), np.array([[1.0, 5.0, -9.0]]), top=2)
    array([1.])
    """
    found = _finite(scores, "scores")
    if found.ndim not in (1, 2):
        raise ArgumentError("scores", f"wants shape (N,) or (N, M), got {found.shape}")
    left = cohort_statistics(left_cohort_scores, top=top, argument="left_cohort_scores")
    right = cohort_statistics(right_cohort_scores, top=top, argument="right_cohort_scores")
    for name, size, side in (
        ("left_cohort_scores", found.shape[0], left),
        ("right_cohort_scores", found.shape[-1], right),
    ):
        if side.shape[1] != size:
            raise ArgumentError(name, f"wants {size} rows, as scores; got {side.shape[1]}")
    return s_norm(found, left[:, :, None] if found.ndim == 2 else left, right)


def cohort_statistics(
    cohort_scores: NDArray[Any], *, top: int = 300, argument: str = "cohort_scores"
) -> Array:
    """Mean and deviation (of N, not N - 1) of the highest scores of each row: (N, C) -> (2, N).

    Args:
        cohort_scores: (N, C).
        top: how many; all where there are fewer.
        argument: what an error calls the scores.

    Raises:
        ArgumentError, NonFiniteError: as :func:`adaptive_s_norm`.
    """
    found = _finite(cohort_scores, argument)
    if top < 2:
        raise ArgumentError("top", f"wants 2 or more, got {top}")
    if found.ndim != 2 or found.shape[1] < 2:
        raise ArgumentError(
            argument, f"wants shape (N, C), two or more of a cohort; got {found.shape}"
        )
    if top < found.shape[1]:
        found = np.partition(found, -top, axis=1)[:, -top:]
    # In whatever order the cohort came, the sums are the same.
    found = np.sort(np.ascontiguousarray(found), axis=1)
    mean, deviation = found.mean(1), found.std(1)
    still = deviation <= 1e-9 * np.abs(found).max(1)  # rounding
    if still.any():
        row = int(np.flatnonzero(still)[0])
        raise ArgumentError(
            argument, f"row {row}: the highest {found.shape[1]} are all {mean[row]:g}"
        )
    return np.stack([mean, deviation])


def s_norm(scores: Array, left: Array, right: Array) -> Array:
    """Scores by the statistics of both sides, each (2, ...): see :func:`cohort_statistics`."""
    found: Array = ((scores - left[0]) / left[1] + (scores - right[0]) / right[1]) / 2
    return found


def _finite(scores: NDArray[Any], argument: str) -> Array:
    found = np.asarray(scores, dtype=np.float64)
    if not found.size:
        raise ArgumentError(argument, "there are none")
    if not np.isfinite(found).all():
        raise NonFiniteError(argument, "hold NaN or infinity")
    return found
