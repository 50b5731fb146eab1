"""How classes lie: each figure against its definition, one vector at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics import (
    centroid_distance,
    centroid_separation,
    davies_bouldin,
    k_shot_accuracy,
)

FIGURES = (centroid_distance, centroid_separation, davies_bouldin)


def drawn(seed, classes=4, size=5, count=40):
    rng = np.random.default_rng(seed)
    labels = [f"class {n}" for n in rng.integers(0, classes, count)]
    labels[:classes] = [f"class {n}" for n in range(classes)]
    centres = rng.normal(size=(classes, size))
    places = [centres[int(label.split()[1])] for label in labels]
    return torch.from_numpy(np.array(places) + rng.normal(size=(count, size))), labels


def slow(embeddings, labels):
    rows = {name: [] for name in labels}
    for vector, name in zip(embeddings.tolist(), labels, strict=True):
        rows[name].append(vector)
    means = {
        name: [math.fsum(column) / len(own) for column in zip(*own, strict=True)]
        for name, own in rows.items()
    }
    spreads = {
        name: math.fsum(math.dist(vector, means[name]) for vector in own) / len(own)
        for name, own in rows.items()
    }
    pairs = list(itertools.combinations(means, 2))
    worst = [
        max(
            (spreads[one] + spreads[other]) / math.dist(means[one], means[other])
            for other in means
            if other != one
        )
        for one in means
    ]
    return (
        math.fsum(spreads.values()) / len(spreads),
        math.fsum(math.dist(means[a], means[b]) for a, b in pairs) / len(pairs),
        math.fsum(worst) / len(worst),
    )


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_their_definitions(seed):
    embeddings, labels = drawn(seed)
    for figure, wanted in zip(FIGURES, slow(embeddings, labels), strict=True):
        assert figure(embeddings, labels) == pytest.approx(wanted, abs=1e-9)


def test_the_index_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    embeddings, labels = drawn(7)
    wanted = metrics.davies_bouldin_score(embeddings.numpy(), labels)
    assert davies_bouldin(embeddings, labels) == pytest.approx(wanted, abs=1e-9)


def test_labels_may_be_numbers_and_their_order_does_not_matter():
    embeddings, labels = drawn(1)
    numbers = torch.tensor([9 - int(label.split()[1]) for label in labels])
    for figure in FIGURES:
        wanted = figure(embeddings, labels)
        assert figure(embeddings.float(), numbers) == pytest.approx(wanted, rel=1e-5)


def test_classes_at_one_place_are_infinitely_bad():
    assert davies_bouldin(torch.tensor([[1.0], [3.0], [2.0]]), [0, 0, 1]) == math.inf
    assert davies_bouldin(torch.tensor([[2.0], [2.0]]), [0, 1]) == math.inf


def slow_shots(support, known, queries, truth, shots, draws, seed):
    rng = np.random.default_rng(seed)
    names = sorted(set(known))
    total = 0.0
    for _ in range(draws):
        means = []
        for name in names:
            mine = [row for row, label in enumerate(known) if label == name]
            chosen = rng.permutation(mine)[:shots]
            means.append(np.mean([support[row].numpy() for row in chosen], axis=0))
        right = 0
        for query, label in zip(queries.numpy(), truth, strict=True):
            cosines = [
                query @ mean / (np.linalg.norm(query) * np.linalg.norm(mean)) for mean in means
            ]
            right += names[int(np.argmax(cosines))] == label
        total += right / len(truth)
    return total / draws


@pytest.mark.parametrize("shots", [1, 5, 1000])
def test_shots_are_their_definition(shots):
    support, known = drawn(2)
    queries, truth = drawn(3, classes=3)
    found = k_shot_accuracy(support, known, queries, truth, shots=shots, draws=7, seed=4)
    wanted = slow_shots(support, known, queries, truth, shots, 7, 4)
    assert found == pytest.approx(wanted, abs=1e-9)


def test_shots_are_of_cosines():
    support, known = drawn(2)
    queries, truth = drawn(3)
    one = k_shot_accuracy(support, known, queries, truth, shots=2)
    assert k_shot_accuracy(7 * support, known, 0.1 * queries, truth, shots=2) == one


def test_says_what_is_wrong():
    embeddings, labels = drawn(0)
    for figure in FIGURES:
        with pytest.raises(ArgumentError, match="labels: wants two classes or more, got 1"):
            figure(embeddings, ["a"] * len(labels))
        with pytest.raises(ArgumentError, match="labels: wants one for each of 40"):
            figure(embeddings, labels[1:])
        with pytest.raises(NonFiniteError):
            figure(embeddings / 0, labels)
        with pytest.raises(ArgumentTypeError):
            figure(embeddings.long(), labels)
    for changes, words in (
        ({"shots": 0}, "shots: wants at least 1"), ({"draws": 0}, "draws: wants at least 1"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            k_shot_accuracy(embeddings, labels, embeddings, labels, **{"shots": 1, **changes})
    with pytest.raises(ArgumentError, match="query_labels: class 'other' has no support"):
        k_shot_accuracy(embeddings, labels, embeddings[:1], ["other"], shots=1)
