"""Clustering metrics against scikit-learn, and against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.evaluation.metrics import coverage, normalized_mutual_information, purity


@pytest.mark.parametrize("seed", range(40))
def test_against_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 80))
    truth = draw.integers(-1, draw.integers(1, 9), count)
    labels = np.where(draw.random(count) < draw.choice((0.0, 0.7)), 3 * truth + 40, truth)
    labels[draw.random(count) < 0.2] = -1
    labels[0], truth[0] = 2, 1  # one that counts
    known = (labels >= 0) & (truth >= 0)
    want = metrics.normalized_mutual_info_score(truth[known], labels[known])
    assert normalized_mutual_information(labels, truth) == pytest.approx(want, abs=1e-9)
    table = metrics.cluster.contingency_matrix(truth[known], labels[known])
    assert purity(labels, truth) == pytest.approx(table.max(0).sum() / table.sum(), abs=1e-12)
    assert coverage(labels) == pytest.approx((labels != -1).mean())


def test_by_hand():
    labels, truth = [0, 0, 0, 7, 7, 7, -1, -1], [1, 1, 2, 2, 2, 2, 2, 1]
    assert purity(labels, truth) == pytest.approx(5 / 6)
    h = lambda *p: -sum(q * np.log(q) for q in p)  # noqa: E731
    apart, together = h(1 / 2, 1 / 2) + h(1 / 3, 2 / 3), h(1 / 3, 1 / 6, 1 / 2)
    got = normalized_mutual_information(labels, truth)
    assert got == pytest.approx(2 * (apart - together) / apart)
    assert coverage(labels) == 0.75


def test_the_ends():
    one = torch.tensor([4, 4, 9, 9])
    assert purity(one, one + 1) == normalized_mutual_information(one, one + 1) == 1.0
    assert normalized_mutual_information([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0, abs=1e-12)
    assert normalized_mutual_information([0, 0], [5, 5]) == 1.0
    assert normalized_mutual_information([0, 0], [5, 6]) == 0.0
    assert coverage([-1, -1]) == 0.0


@pytest.mark.parametrize("metric", [purity, normalized_mutual_information])
@pytest.mark.parametrize(
    ("labels", "truth", "error", "said"),
    [
        ([], [], ArgumentError, r"labels: wants shape \(N,\)"),
        ([0, 1], [0], ArgumentError, "truth: wants one a label, 2, got 1"),
        ([[0, 1]], [0, 1], ArgumentError, r"labels: .* got \(1, 2\)"),
        ([0, 1], [0.0, 1.0], ArgumentTypeError, "truth: wants integers, got float64"),
        ([-1, 0], [0, -1], ArgumentError, "labels: wants an item with a cluster and a class"),
    ],
)
def test_bad_input(metric, labels, truth, error, said):
    with pytest.raises(error, match=said):
        metric(labels, truth)
