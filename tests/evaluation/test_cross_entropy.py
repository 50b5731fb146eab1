"""Cnxe against its definition term by term, its minimum against what makes a minimum."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from test_term_detection import search_results

from speechft.errors import ArgumentError, NonFiniteError
from speechft.evaluation.metrics import cnxe, min_cnxe


def trials(scores, relevant, mask):
    """Scores of relevant documents, and of others; of queries that have a relevant one."""
    found = ([], [])
    for q, row in enumerate(scores):
        counted = [d for d in range(len(row)) if mask is None or mask[q][d]]
        if any(relevant[q][d] for d in counted):
            for d in counted:
                found[not relevant[q][d]].append(row[d])
    return found


def slow_cnxe(wanted, others, p):
    odds = math.log(p / (1 - p))
    of_wanted = math.fsum(math.log2(1 + math.exp(-s - odds)) for s in wanted) / len(wanted)
    of_others = math.fsum(math.log2(1 + math.exp(s + odds)) for s in others) / len(others)
    prior = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    return (p * of_wanted + (1 - p) * of_others) / prior


def slope_and_level(wanted, others, p, scale, offset):
    """The derivatives of the unnormalised cost, in nats, by scale and offset."""
    odds = math.log(p / (1 - p))
    terms = [(-p / len(wanted) / (1 + math.exp(scale * s + offset + odds)), s) for s in wanted]
    terms += [
        ((1 - p) / len(others) / (1 + math.exp(-scale * s - offset - odds)), s) for s in others
    ]
    return math.fsum(w * s for w, s in terms), math.fsum(w for w, s in terms)


def mixed_sets(count):
    """Sets in which both kinds are there."""
    for seed in range(count):
        scores, relevant, mask = search_results(seed)
        wanted, others = trials(scores, relevant, mask)
        if others:
            yield seed, (scores, relevant, mask), wanted, others


def test_hundreds_of_sets_agree_with_the_definition():
    for seed, given, wanted, others in mixed_sets(300):
        p = (0.0008, 0.1, 0.5)[seed % 3]
        found = cnxe(given[0], given[1], mask=given[2], p_target=p)
        assert found.value == pytest.approx(slow_cnxe(wanted, others, p), abs=1e-9)
        assert (found.scale, found.offset) == (1.0, 0.0)
        assert found.queries + found.without_relevant == len(given[0])


def test_the_minimum_is_one():
    """The cost is convex: where its derivatives vanish, no calibration is better."""
    finite = 0
    for seed, given, wanted, others in mixed_sets(300):
        p = (0.0008, 0.1, 0.5)[seed % 3]
        found = min_cnxe(given[0], given[1], mask=given[2], p_target=p)
        assert 0 <= found.value <= min(1, slow_cnxe(wanted, others, p)) + 1e-12
        if not math.isfinite(found.scale):
            assert min(wanted) >= max(others) or max(wanted) <= min(others)
            continue
        finite += 1
        calibrated = [
            [found.scale * s + found.offset for s in kind] for kind in (wanted, others)
        ]  # fmt: skip
        assert found.value == pytest.approx(slow_cnxe(*calibrated, p), abs=1e-9)
        for derivative in slope_and_level(wanted, others, p, found.scale, found.offset):
            assert abs(derivative) < 1e-6 * p
    assert finite > 200


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_a_threshold_parts(sign):
    relevant = [[True, True, False, False, False]]
    found = min_cnxe([[sign * s for s in (3.0, 2.0, 1.0, 0.0, -5.0)]], relevant, p_target=0.2)
    assert found.value == 0.0
    assert found.scale == sign * math.inf
    assert math.isnan(found.offset)
    # the kinds meet at 2: one of two relevant ones, one of three others
    scores = [sign * s for s in (3.0, 2.0, 2.0, 0.0, -5.0)]
    found = min_cnxe([scores], relevant, p_target=0.2)
    p, q = Fraction(1, 5) / 2, Fraction(4, 5) / 3
    nats = -p * math.log(p / (p + q)) - q * math.log(q / (p + q))
    assert found.value == pytest.approx(nats / -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)))
    llr = math.log(p / q) - math.log(0.2 / 0.8)
    steep = [[300 * (sign * s - 2.0) + llr for s in kind] for kind in (scores[:2], scores[2:])]
    assert found.value == pytest.approx(slow_cnxe(*steep, 0.2), abs=1e-12)


@pytest.mark.parametrize("seed", range(1, 20))
def test_what_calibration_cannot_change(seed):
    scores, relevant, _ = search_results(seed)
    relevant[0] = [d == 0 for d in range(len(relevant[0]))]
    if len(relevant[0]) < 3:
        return
    want = min_cnxe(scores, relevant)
    for scale, offset in ((5.0, -1e4), (1e-6, 3.0), (-2.0, 1.0)):
        changed = min_cnxe(scale * np.array(scores) + offset, relevant)
        assert changed.value == pytest.approx(want.value, abs=1e-7)
    if math.isfinite(want.scale):
        calibrated = want.scale * np.array(scores) + want.offset
        assert cnxe(calibrated, relevant).value == pytest.approx(want.value, abs=1e-12)


def test_known_values():
    relevant = [[True, False, False], [False, False, True]]
    assert cnxe(np.zeros((2, 3)), relevant).value == pytest.approx(1.0, abs=1e-12)
    assert min_cnxe(np.full((2, 3), 0.3), relevant)[:3] == pytest.approx((1.0, 0.0, 0.0))
    sure = np.where(relevant, np.inf, -np.inf)
    assert cnxe(sure, relevant).value == 0.0
    assert cnxe(-sure, relevant).value == math.inf
    large = cnxe(np.where(relevant, -1e4, 1e4), relevant, p_target=0.5).value
    assert large == pytest.approx(1e4 / math.log(2))  # no overflow


def test_a_hundred_thousand_trials():
    generator = np.random.default_rng(0)
    relevant = generator.random((100, 1000)) < 0.01
    relevant[:, 0] = True
    scores = generator.standard_normal(relevant.shape) + 3 * relevant
    found = min_cnxe(scores, relevant)
    # of two unit normals 3 apart, the log-likelihood ratio is 3 s - 4.5
    assert found.scale == pytest.approx(3.0, abs=0.2)
    assert found.offset == pytest.approx(-4.5, abs=0.5)
    assert found.value == pytest.approx(cnxe(3 * scores - 4.5, relevant).value, abs=5e-3)


@pytest.mark.parametrize("figure", [cnxe, min_cnxe])
def test_bad_input(figure):
    with pytest.raises(ArgumentError, match="relevant: every document that counts"):
        figure([[1.0, 2.0]], [[True, True]])
    with pytest.raises(ArgumentError, match="none of 1 queries"):
        figure([[1.0, 2.0]], [[False, False]])
    with pytest.raises(ArgumentError, match="p_target"):
        figure([[1.0, 2.0]], [[True, False]], p_target=1.0)
    with pytest.raises(NonFiniteError, match="scores"):
        figure([[1.0, math.nan]], [[True, False]])


def test_no_calibration_of_infinite_scores():
    with pytest.raises(NonFiniteError, match="scores: 1 of 2"):
        min_cnxe([[1.0, math.inf]], [[True, False]])
