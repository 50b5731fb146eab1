"""Classification metrics against scikit-learn, and against counts by hand."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.evaluation.metrics import accuracy, macro_f1, micro_f1, uar


def guesses(seed: int):
    """Labels and predictions; some classes in one of them only, some negative."""
    draw = np.random.default_rng(seed)
    count, classes = draw.integers(1, 60), draw.integers(1, 9)
    labels = draw.integers(-2, classes - 2, count)
    wild = draw.integers(-2, classes, count)
    return labels, np.where(draw.random(count) < draw.choice((0.1, 0.6)), wild, labels)


@pytest.mark.parametrize("seed", range(40))
def test_against_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predictions = guesses(seed)
    wanted = sorted({*labels.tolist(), 0, 40})[: 1 + seed % 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes without an item
        want = metrics.accuracy_score(labels, predictions)
        assert accuracy(labels, predictions) == pytest.approx(want, abs=1e-12)
        want = metrics.balanced_accuracy_score(labels, predictions)
        assert uar(labels, predictions) == pytest.approx(want, abs=1e-12)
        for classes in (None, wanted):
            for ours, average in ((macro_f1, "macro"), (micro_f1, "micro")):
                want = metrics.f1_score(labels, predictions, labels=classes, average=average)
                got = ours(labels, predictions, classes=classes)
                assert got == pytest.approx(want, abs=1e-12)


def test_by_hand():
    labels, predictions = [0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 0, 3]
    assert accuracy(labels, predictions) == float(Fraction(4, 7))
    assert uar(labels, predictions) == pytest.approx(float(Fraction(3, 4) + Fraction(1, 2)) / 3)
    # F1: class 0 has 3 right of 4 labelled and 4 predicted, class 1 has 1 of 2 and 2
    assert macro_f1(labels, predictions) == pytest.approx((0.75 + 0.5 + 0 + 0) / 4)
    assert micro_f1(labels, predictions) == pytest.approx(4 / 7)
    assert micro_f1(labels, predictions, classes=[1, 2]) == pytest.approx(2 / 5)


@pytest.mark.parametrize("metric", [accuracy, uar, macro_f1, micro_f1])
def test_tensors_and_perfection(metric):
    labels = torch.tensor([3, 1, 1, 0])
    assert metric(labels, labels) == 1.0
    assert metric(labels.tolist(), labels.to(torch.uint8)) == 1.0
    assert metric(labels, labels + 10) == 0.0


@pytest.mark.parametrize("metric", [accuracy, uar, macro_f1, micro_f1])
@pytest.mark.parametrize(
    ("labels", "predictions", "error", "said"),
    [
        ([], [], ArgumentError, "labels: wants at least one item"),
        ([0], [], ArgumentError, "predictions: wants at least one item"),
        ([0, 1], [0], ArgumentError, "predictions: wants one a label, 2, got 1"),
        ([[0, 1]], [0, 1], ArgumentError, r"labels: wants shape \(N,\), got \(1, 2\)"),
        ([0, 1], [0.0, 1.0], ArgumentTypeError, "predictions: wants integers, got float64"),
        (["a"], [0], ArgumentTypeError, "labels: wants integers"),
    ],
)
def test_bad_input(metric, labels, predictions, error, said):
    with pytest.raises(error, match=said):
        metric(labels, predictions)


@pytest.mark.parametrize("classes", [[], [1, 1]])
def test_bad_classes(classes):
    with pytest.raises(ArgumentError, match="classes: wants different integers"):
        macro_f1([0, 1], [0, 1], classes=classes)
