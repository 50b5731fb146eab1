"""AS-norm by its definition, and what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from speechft.errors import ArgumentError, NonFiniteError
from speechft.evaluation.normalisation import adaptive_s_norm


def drawn(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).normal(size=shape)


def defined(scores, left, right, top):
    """One pair at a time."""

    def by(score, cohort):
        highest = sorted(cohort.tolist(), reverse=True)[:top]
        mean = math.fsum(highest) / len(highest)
        deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in highest) / len(highest))
        return (score - mean) / deviation

    sides = zip(scores, left, right, strict=True)
    return [(by(score, a) + by(score, b)) / 2 for score, a, b in sides]


@pytest.mark.parametrize("top", [2, 5, 11, 300])
def test_it_is_its_definition(top):
    scores, left, right = drawn(8), drawn(8, 11, seed=1), 3 * drawn(8, 17, seed=2) - 1
    wanted = defined(scores, left, right, top)
    np.testing.assert_allclose(adaptive_s_norm(scores, left, right, top=top), wanted, rtol=1e-12)


def test_all_with_all_are_the_pairs():
    scores, left, right = drawn(4, 6), drawn(4, 20, seed=1), drawn(6, 20, seed=2)
    found = adaptive_s_norm(scores, left, right, top=7)
    for i in range(4):
        for j in range(6):
            pair = adaptive_s_norm(scores[i, [j]], left[[i]], right[[j]], top=7)
            assert found[i, j] == pytest.approx(pair[0], rel=1e-12)


def test_a_side_s_own_scale_and_offset_cancel_and_order_does_not_count():
    scores, left, right = drawn(5), drawn(5, 30, seed=1), drawn(5, 30, seed=2)
    wanted = adaptive_s_norm(scores, left, right, top=10)
    scaled = adaptive_s_norm(4 * scores + 3, 4 * left + 3, 4 * right + 3, top=10)
    np.testing.assert_allclose(scaled, wanted, rtol=1e-9)
    order = np.random.default_rng(0).permutation(30)
    shuffled = adaptive_s_norm(scores, left[:, order], right[:, order], top=10)
    np.testing.assert_array_equal(shuffled, wanted)
    np.testing.assert_allclose(adaptive_s_norm(scores, right, left, top=10), wanted, rtol=1e-12)


def test_only_the_highest_count():
    scores, left, right = drawn(5), drawn(5, 30, seed=1), drawn(5, 30, seed=2)
    wanted = adaptive_s_norm(scores, left, right, top=10)
    lowest = np.argmin(left, axis=1)
    left[np.arange(5), lowest] = -1e6
    np.testing.assert_array_equal(adaptive_s_norm(scores, left, right, top=10), wanted)
    assert not np.allclose(adaptive_s_norm(scores, left, right, top=30), wanted)


@pytest.mark.parametrize(
    ("scores", "left", "right", "top", "error", "words"),
    [
        (drawn(3), drawn(3, 5), drawn(3, 5), 1, ArgumentError, "^top: wants 2"),
        (drawn(3), drawn(3, 1), drawn(3, 5), 4, ArgumentError, "^left_cohort_scores: .*two or"),
        (drawn(3), drawn(3, 5), np.full((3, 5), 0.1), 4, ArgumentError, "^right.*all 0.1"),
        (drawn(3), drawn(2, 5), drawn(3, 5), 4, ArgumentError, "^left_cohort_scores: wants 3"),
        (drawn(2, 3), drawn(2, 5), drawn(2, 5), 4, ArgumentError, "^right_.*: wants 3 rows"),
        (drawn(0), drawn(3, 5), drawn(3, 5), 4, ArgumentError, "^scores: there are none"),
        (drawn(3), drawn(3, 5) * np.nan, drawn(3, 5), 4, NonFiniteError, "^left_cohort_scores"),
    ],
)
def test_what_cannot_be_normalised_is_named(scores, left, right, top, error, words):
    with pytest.raises(error, match=words):
        adaptive_s_norm(scores, left, right, top=top)
