"""Term-weighted values against the definition in exact fractions, threshold by threshold."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics import atwv, mtwv, standardize

QUESST = ("0.0008", "100", "1")
COSTS = (QUESST, ("0.3", "1", "1"), ("0.9", "1", "1"), ("0.5", "1", "3"))


def search_results(seed: int):
    """Scores, relevance and mask; many ties, some queries without a relevant document."""
    draw = random.Random(seed)
    queries, documents = draw.randint(1, 7), draw.randint(1, 25)
    share = draw.choice((0.1, 0.4, 0.8))
    relevant = [[draw.random() < share for _ in range(documents)] for _ in range(queries)]
    relevant[0][0] = True
    scores = [[draw.gauss(2.0 * mark, 1.0) for mark in row] for row in relevant]
    if seed % 2:
        scores = [[round(score) / 2 for score in row] for row in scores]
    if seed % 20 == 0:
        scores = [[0.25] * documents for _ in range(queries)]
    mask = [[draw.random() < 0.8 for _ in row] for row in relevant] if seed % 3 else None
    if mask:
        mask[0][0] = True
    return scores, relevant, mask


def slow_value(scores, relevant, mask, threshold, costs):
    p, c_miss, c_fa = map(Fraction, costs)
    beta = c_fa / c_miss * (1 - p) / p
    values = []
    for q, row in enumerate(scores):
        counted = [d for d in range(len(row)) if mask is None or mask[q][d]]
        targets = [d for d in counted if relevant[q][d]]
        others = [d for d in counted if not relevant[q][d]]
        if targets:
            missed = Fraction(sum(row[d] < threshold for d in targets), len(targets))
            alarms = Fraction(sum(row[d] >= threshold for d in others), len(others) or 1)
            values.append(1 - missed - beta * alarms)
    return sum(values) / len(values), len(values)


def named(costs):
    return dict(zip(("p_target", "c_miss", "c_fa"), map(float, costs), strict=True))


@pytest.mark.parametrize("block", range(3))
def test_hundreds_of_sets_agree_with_the_definition(block):
    for seed in range(100 * block, 100 * (block + 1)):
        scores, relevant, mask = search_results(seed)
        costs = COSTS[seed % len(COSTS)]
        thresholds = sorted({score for row in scores for score in row})
        steps = [slow_value(scores, relevant, mask, t, costs)[0] for t in (*thresholds, math.inf)]
        found = mtwv(scores, relevant, mask=mask, **named(costs))
        assert found.value == pytest.approx(float(max(steps)), abs=1e-9)
        at, queries = slow_value(scores, relevant, mask, found.threshold, costs)
        assert found.value == pytest.approx(float(at), abs=1e-9)
        assert (found.queries, found.without_relevant) == (queries, len(scores) - queries)
        beta = float(costs[2]) / float(costs[1]) * (1 / float(costs[0]) - 1)
        assert found.value == pytest.approx(1 - found.p_miss - beta * found.p_fa)
        for threshold in (thresholds[0], thresholds[-1], 0.6, math.inf, -math.inf):
            want = float(slow_value(scores, relevant, mask, threshold, costs)[0])
            got = atwv(scores, relevant, threshold=threshold, mask=mask, **named(costs))
            assert got.value == pytest.approx(want, abs=1e-9)


def test_the_costs_of_quesst_2014_are_the_defaults():
    scores, relevant, _ = search_results(4)
    assert mtwv(scores, relevant) == mtwv(scores, relevant, **named(QUESST))
    one_alarm = atwv([[1.0, 0.0, 0.0]], [[True, False, False]], threshold=0.0)
    assert one_alarm.value == pytest.approx(1 - 12.49)
    assert one_alarm.p_fa == 1.0


def test_known_values():
    relevant = np.random.default_rng(0).random((9, 30)) < 0.2
    relevant[:, 0] = True
    perfect = mtwv(relevant.astype(float), relevant)
    assert perfect[:4] == (1.0, 1.0, 0.0, 0.0)
    worst = mtwv(1.0 - relevant, relevant)
    assert worst[:4] == (0.0, math.inf, 1.0, 0.0)
    nothing = atwv(relevant.astype(float), relevant, threshold=1.5)
    assert nothing[:4] == (0.0, 1.5, 1.0, 0.0)
    assert mtwv(np.zeros((9, 30)), relevant).value == 0.0  # constant: all or nothing
    assert mtwv(np.zeros((2, 3)), np.ones((2, 3), dtype=bool)).value == 1.0  # no alarm possible


@pytest.mark.parametrize("seed", range(30))
def test_only_the_order_of_scores_counts(seed):
    scores, relevant, mask = search_results(seed)
    found = mtwv(scores, relevant, mask=mask)
    for rising in (np.arctan, np.exp, lambda s: 3 * s - 7):
        changed = mtwv(rising(np.array(scores)), relevant, mask=mask)
        assert changed._replace(threshold=0) == found._replace(threshold=0)
    low, high = np.min(scores), np.max(scores)
    if low < high:
        infinite = np.where(np.array(scores) == high, np.inf, scores)
        infinite[infinite == low] = -np.inf
        assert mtwv(infinite, relevant, mask=mask).value == found.value


@pytest.mark.parametrize("seed", range(1, 30, 3))
def test_what_does_not_count_may_be_anything(seed):
    scores, relevant, mask = map(np.array, search_results(seed))
    want = mtwv(scores, relevant, mask=mask)
    assert mtwv(np.where(mask, scores, math.nan), relevant, mask=mask) == want
    assert mtwv(scores, relevant ^ ~mask, mask=mask) == want


def test_tensors_and_memory_layouts():
    scores, relevant, _ = search_results(7)
    want = mtwv(scores, relevant)
    tensor = torch.tensor(scores, dtype=torch.bfloat16, requires_grad=True)
    rounded = tensor.detach().double().tolist()
    assert mtwv(tensor, torch.tensor(relevant)) == mtwv(rounded, relevant)
    assert mtwv(np.asfortranarray(scores), np.asfortranarray(relevant)) == want


@pytest.mark.parametrize("seed", range(10))
def test_standardize(seed):
    scores, _, mask = search_results(seed)
    mask = np.ones(np.shape(scores), dtype=bool) if mask is None else np.array(mask)
    mask[:, 0] = True
    found = standardize(np.where(mask, scores, np.inf), mask=mask)
    for row, got, counts in zip(scores, found, mask, strict=True):
        counted = [score for score, counts_ in zip(row, counts, strict=True) if counts_]
        mean = math.fsum(counted) / len(counted)
        deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in counted) / len(counted))
        want = [(s - mean) / deviation if deviation else 0.0 for s in counted]
        np.testing.assert_allclose(got[counts], want, atol=1e-9)


def test_standardize_makes_one_threshold_serve_all_queries():
    relevant = np.eye(6, dtype=bool)
    scores = relevant * 0.1 + np.arange(6.0)[:, None]  # each query on a level of its own
    assert mtwv(scores, relevant).value < 0.5
    assert mtwv(standardize(scores), relevant).value == 1.0
    assert not standardize(np.full((1, 7), 0.1)).any()


@pytest.mark.parametrize(
    ("scores", "relevant", "mask", "error", "said"),
    [
        ([1.0, 2.0], [True, False], None, ArgumentError, r"scores: wants shape \(queries, doc"),
        (np.ones((2, 0)), np.ones((2, 0), bool), None, ArgumentError, "scores: wants shape"),
        ([["a"]], [[True]], None, ArgumentTypeError, "scores: wants real numbers"),
        ([[1.0]], [[1]], None, ArgumentTypeError, "relevant: wants booleans, got int64"),
        ([[1.0, 0.0]], [[True]], None, ArgumentError, r"relevant: wants .* \(1, 2\), got \(1, 1\)"),
        ([[1.0]], [[True]], [[True], [True]], ArgumentError, "mask: wants the shape of scores"),
        ([[1.0], [2.0]], [[False]] * 2, None, ArgumentError, "none of 2 queries has a relevant"),
        ([[1.0, 2.0]], [[True, False]], [[False, True]], ArgumentError, "none of 1 queries"),
        ([[1.0, math.nan]], [[True, False]], None, NonFiniteError, "scores: 1 of 2 .* are NaN"),
    ],
)
def test_bad_input(scores, relevant, mask, error, said):
    with pytest.raises(error, match=said):
        mtwv(scores, relevant, mask=mask)
    with pytest.raises(error, match=said):
        atwv(scores, relevant, threshold=0.0, mask=mask)


def test_bad_settings():
    for name, value in (("p_target", 0.0), ("c_miss", -1.0), ("c_fa", math.inf)):
        with pytest.raises(ArgumentError, match=name):
            mtwv([[1.0]], [[True]], **{name: value})
    with pytest.raises(ArgumentError, match="threshold"):
        atwv([[1.0]], [[True]], threshold=math.nan)
    with pytest.raises(NonFiniteError, match="1 of 2 are NaN or infinite"):
        standardize([[1.0, math.inf]])
    with pytest.raises(ArgumentError, match="nothing counts of the query at 1"):
        standardize([[1.0], [2.0]], mask=[[True], [False]])
