"""Detection metrics against their definitions in exact fractions, trial by trial."""

from __future__ import annotations

import itertools
import math
import random
import resource
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics import Trials, act_dcf, cllr, det_curve, eer, min_dcf


def operating_points(scores, labels):
    """(P_miss, P_fa) at each distinct score, from low to high, and above all."""
    targets = [s for s, l in zip(scores, labels, strict=True) if l]
    others = [s for s, l in zip(scores, labels, strict=True) if not l]
    points = []
    for t in sorted(set(scores)):
        missed = Fraction(sum(s < t for s in targets), len(targets))
        alarms = Fraction(sum(s >= t for s in others), len(others))
        points.append((missed, alarms))
    return [*points, (Fraction(1), Fraction(0))]


def slow_eer(scores, labels):
    points = operating_points(scores, labels)
    for (m0, a0), (m1, a1) in itertools.pairwise(points):
        if m1 >= a1:  # the line from one to the other meets miss = false alarm
            share = (a0 - m0) / ((a0 - m0) + (m1 - a1))
            return float(m0 + share * (m1 - m0))
    raise AssertionError


def slow_min_dcf(scores, labels, p, c_miss, c_fa):
    costs = [c_miss * p * float(m) + c_fa * (1 - p) * float(a)
             for m, a in operating_points(scores, labels)]  # fmt: skip
    return min(costs) / min(c_miss * p, c_fa * (1 - p))


def slow_act_dcf(scores, labels, p, c_miss, c_fa):
    t = math.log(c_fa * (1 - p) / (c_miss * p))
    targets = [s for s, l in zip(scores, labels, strict=True) if l]
    others = [s for s, l in zip(scores, labels, strict=True) if not l]
    missed = sum(s < t for s in targets) / len(targets)
    alarms = sum(s >= t for s in others) / len(others)
    return (c_miss * p * missed + c_fa * (1 - p) * alarms) / min(c_miss * p, c_fa * (1 - p))


def slow_cllr(scores, labels):
    of = {True: [], False: []}
    for s, l in zip(scores, labels, strict=True):
        of[bool(l)].append(math.log2(1 + math.exp(-s if l else s)))
    return (math.fsum(of[True]) / len(of[True]) + math.fsum(of[False]) / len(of[False])) / 2


def trial_set(seed: int):
    """Few or many trials, any balance; every third set is full of ties, some are constant."""
    draw = random.Random(seed)
    count = draw.randint(2, 60)
    labels = [1, 0] + [int(draw.random() < draw.choice((0.1, 0.5, 0.9))) for _ in range(count - 2)]
    scores = [draw.gauss(2.0 * label * draw.random(), 1.0) for label in labels]
    if seed % 3 == 0:
        scores = [round(score) / 2 for score in scores]
    if seed % 50 == 0:
        scores = [scores[0]] * count
    return scores, labels


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_sets_agree_with_the_definitions(block):
    for seed in range(100 * block, 100 * (block + 1)):
        scores, labels = trial_set(seed)
        assert eer(scores, labels) == pytest.approx(slow_eer(scores, labels), abs=1e-9)
        assert cllr(scores, labels) == pytest.approx(slow_cllr(scores, labels), abs=1e-9)
        for p, c_miss, c_fa in ((0.05, 1.0, 1.0), (0.01, 1.0, 1.0), (0.7, 10.0, 3.0)):
            costs = {"p_target": p, "c_miss": c_miss, "c_fa": c_fa}
            want = slow_min_dcf(scores, labels, p, c_miss, c_fa)
            assert min_dcf(scores, labels, **costs) == pytest.approx(want, abs=1e-9)
            want = slow_act_dcf(scores, labels, p, c_miss, c_fa)
            assert act_dcf(scores, labels, **costs) == pytest.approx(want, abs=1e-9)
        _, p_miss, p_fa = det_curve(scores, labels)
        want = np.array(operating_points(scores, labels), dtype=float)
        np.testing.assert_allclose(np.stack([p_miss, p_fa], 1), want, atol=1e-12)


@pytest.mark.parametrize("seed", range(0, 40))
@pytest.mark.parametrize("pieces", [1, 3, 10])
def test_updates_of_any_size_change_nothing(seed, pieces):
    scores, labels = trial_set(seed)
    trials = Trials()
    for part in np.array_split(np.arange(len(scores)), pieces):
        trials.update([scores[k] for k in part], [labels[k] for k in part])
        if 0 < len(part) < len(scores) and 0 < sum(labels[: part[-1] + 1]) < part[-1] + 1:
            trials.eer()  # looking at it in between neither
    assert len(trials) == len(scores)
    assert trials.eer() == eer(scores, labels)
    assert trials.min_dcf() == min_dcf(scores, labels)
    assert trials.cllr() == pytest.approx(cllr(scores, labels), abs=1e-15)


def test_known_values():
    assert eer([3, 2, 1, 0], [1, 1, 0, 0]) == 0.0
    assert eer([0, 1, 2, 3], [1, 1, 0, 0]) == 1.0
    assert eer([5, 5, 5, 5], [1, 0, 0, 0]) == 0.5
    assert min_dcf([3, 2, 1, 0], [1, 1, 0, 0]) == 0.0
    assert min_dcf([0, 1, 2, 3], [1, 1, 0, 0]) == 1.0
    assert cllr([50.0, -50.0], [1, 0]) == pytest.approx(0.0, abs=1e-20)
    assert cllr([-1000.0, 1000.0], [1, 0]) == pytest.approx(1000 / math.log(2))  # no overflow


@pytest.mark.parametrize("seed", range(60))
def test_infinite_scores_are_ordered_like_others(seed):
    scores, labels = trial_set(seed)
    scores = [round(score) for score in scores]
    low, high = min(scores), max(scores)
    infinite = [math.inf if s == high else -math.inf if s == low else s for s in scores]
    assert eer(infinite, labels) == eer(scores, labels)
    assert min_dcf(infinite, labels) == min_dcf(scores, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_precision(dtype):
    scores, labels = trial_set(7)
    tensor = torch.tensor(scores, dtype=dtype, requires_grad=True)
    exact = tensor.detach().double().tolist()
    for metric, slow in ((eer, slow_eer), (cllr, slow_cllr)):
        got = metric(tensor, torch.tensor(labels, dtype=torch.bool))
        assert got == pytest.approx(slow(exact, labels), abs=1e-9)
    assert act_dcf(tensor, labels) == pytest.approx(slow_act_dcf(exact, labels, 0.05, 1, 1))


def test_precisions_may_be_mixed():
    trials = Trials()
    trials.update(np.array([0.1, 0.3], np.float32), [0, 1])
    trials.update(np.array([0.1, 0.2]), [1, 0])  # below float32's 0.1
    both = [*np.array([0.1, 0.3], np.float32).astype(float), 0.1, 0.2]
    assert trials.eer() == slow_eer(both, [0, 1, 1, 0])


@pytest.mark.parametrize("count", [2_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_ten_million_trials(count):
    """Under 10 seconds, and under 1 GiB above what the scores take in the caller's hands."""
    generator = np.random.default_rng(0)
    labels = generator.random(count, dtype=np.float32) < 0.01
    scores = generator.standard_normal(count, dtype=np.float32) + 2 * labels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    trials = Trials()
    for k in range(0, len(scores), 1 << 20):
        trials.update(scores[k : k + (1 << 20)], labels[k : k + (1 << 20)])
    figures = trials.eer(), trials.min_dcf(p_target=0.01), trials.act_dcf(), trials.cllr()
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert seconds < 10
    assert rise < (1 << 30) * count // 10_000_000
    # two unit normals, 2 apart: the errors are equal half way
    assert figures[0] == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=2e-3)


@pytest.mark.parametrize(
    ("scores", "labels", "error", "said"),
    [
        ([], [], ArgumentError, "no non-target among 0"),
        ([1.0, 2.0], [1, 1], ArgumentError, "no non-target among 2"),
        ([1.0, 2.0], [0, 0], ArgumentError, "no target among 2"),
        ([1.0, math.nan], [1, 0], NonFiniteError, "1 of 2 are NaN, the first at 1"),
        ([1.0, 2.0], [1], ArgumentError, "wants the shape of scores"),
        ([[1.0, 2.0]], [[1, 0]], ArgumentError, r"wants shape \(N,\)"),
        ([1.0, 2.0], [1, 2], ArgumentError, "wants 0 or 1, got 2 at 1"),
        ([1.0, 2.0], [1.0, 0.0], ArgumentTypeError, "wants booleans or 0 and 1"),
        (["a", "b"], [1, 0], ArgumentTypeError, "wants real numbers"),
        ([1j, 2.0], [1, 0], ArgumentTypeError, "wants real numbers"),
    ],
)
@pytest.mark.parametrize("metric", [eer, min_dcf, act_dcf, cllr, det_curve])
def test_bad_trials(metric, scores, labels, error, said):
    with pytest.raises(error, match=said):
        metric(scores, labels)


@pytest.mark.parametrize("metric", [min_dcf, act_dcf])
@pytest.mark.parametrize(
    "costs", [{"p_target": 0.0}, {"p_target": 1.0}, {"c_miss": 0.0}, {"c_fa": math.inf}]
)
def test_bad_costs(metric, costs):
    with pytest.raises(ArgumentError, match=next(iter(costs))):
        metric([1.0, 0.0], [1, 0], **costs)
