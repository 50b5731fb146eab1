"""ABX against three nested loops over the items, in exact fractions."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics import abx, sample_items


def items(seed: int):
    """Distances with many ties, not symmetric; labels, voices and contexts of any balance."""
    draw = random.Random(seed)
    count = draw.randint(4, 24)
    labels = [draw.choice("abbc") for _ in range(count)]
    voices = [draw.choice((1, 1, 2, 3)) for _ in range(count)]
    contexts = [draw.choice("xxy") for _ in range(count)]
    distances = [[draw.randint(0, 6) / 2 for _ in range(count)] for _ in range(count)]
    return distances, labels, voices, contexts


def mean(values):
    values = list(values)
    return sum(values, Fraction(0)) / len(values)


def slow_abx(distances, labels, voices, contexts, across):
    wrong = defaultdict(list)
    for a, b, x in itertools.permutations(range(len(labels)), 3):
        alike = labels[a] == labels[x] != labels[b] and voices[a] == voices[b]
        alike = alike and contexts[a] == contexts[b] == contexts[x]
        if alike and (voices[x] != voices[a]) == across:
            cell = labels[a], labels[b], voices[a], contexts[a], voices[x]
            to_a, to_b = distances[x][a], distances[x][b]
            wrong[cell].append(Fraction(to_a > to_b) + Fraction(to_a == to_b) / 2)
    if not wrong:
        return None
    by_voice, by_order, by_pair = (defaultdict(list) for _ in range(3))
    for (a, b, voice, _, _), errors in wrong.items():
        by_voice[a, b, voice].append(mean(errors))
    for (a, b, _), errors in by_voice.items():
        by_order[a, b].append(mean(errors))
    for (a, b), errors in by_order.items():
        by_pair[frozenset((a, b))].append(mean(errors))
    error = mean(map(mean, by_pair.values()))
    return float(error), len(by_pair), len(wrong), sum(map(len, wrong.values()))


@pytest.mark.parametrize("across", [False, True])
def test_hundreds_of_sets_agree_with_the_definition(across):
    empty = 0
    for seed in range(200):
        distances, labels, voices, contexts = items(seed)
        want = slow_abx(distances, labels, voices, contexts, across)
        given = {"voices": voices, "contexts": contexts, "across": across}
        if want is None:
            empty += 1
            with pytest.raises(ArgumentError, match="no triple"):
                abx(distances, labels, **given)
            continue
        found = abx(distances, labels, **given)
        assert found.error == pytest.approx(want[0], abs=1e-12)
        assert found[1:] == (*want[1:], len(labels))
    assert empty < 50


@pytest.mark.parametrize("seed", range(20))
def test_one_voice_and_context_unless_they_are_given(seed):
    distances, labels, voices, _ = items(seed)
    count = len(labels)
    want = slow_abx(distances, labels, [0] * count, [0] * count, False)
    assert abx(distances, labels)[1:4] == want[1:]
    assert abx(distances, labels).error == pytest.approx(want[0], abs=1e-12)
    if (want := slow_abx(distances, labels, voices, [0] * count, True)) is not None:
        got = abx(distances, labels, voices=voices, across=True)
        assert got.error == pytest.approx(want[0], abs=1e-12)


def test_known_values():
    points = torch.tensor([0.0, 1.0, 10.0, 11.0])
    distances = (points[:, None] - points).abs()
    labels = torch.tensor([0, 0, 1, 1])
    assert abx(distances, labels).error == 0.0
    assert abx(-distances, labels).error == 1.0
    assert abx(torch.zeros(4, 4), labels).error == 0.5
    assert abx(distances, ["a", "b", "a", "b"]).error == 0.75  # two triples of 8 right
    # across voices it is the voice that is near
    assert abx(distances, ["a", "b", "a", "b"], voices=[1, 1, 2, 2], across=True).error == 0.5
    distances.fill_diagonal_(math.nan)  # not looked at
    assert abx(distances, labels).error == 0.0


def test_no_label_weighs_more_for_being_frequent():
    draw = np.random.default_rng(0)
    points = np.concatenate([draw.normal(0, 1, 5), draw.normal(0, 1, 5), draw.normal(50, 1, 90)])
    labels = [0] * 5 + [1] * 5 + [2] * 90
    found = abx(abs(points[:, None] - points), labels)
    only = abx(abs(points[:10, None] - points[:10]), labels[:10])
    assert found.error == pytest.approx(only.error / 3)  # the other two pairs are perfect
    assert (found.pairs, only.pairs) == (3, 1)


def test_samples():
    draw = np.random.default_rng(1)
    labels, voices = draw.integers(0, 4, 400), draw.integers(0, 3, 400)
    chosen = sample_items(labels, voices=voices, max_items=7, seed=5)
    assert np.array_equal(chosen, np.unique(chosen))
    kinds = Counter(zip(labels[chosen].tolist(), voices[chosen].tolist(), strict=True))
    assert set(kinds.values()) == {7}
    assert len(kinds) == 12
    assert np.array_equal(chosen, sample_items(labels, voices=voices, max_items=7, seed=5))
    assert not np.array_equal(chosen, sample_items(labels, voices=voices, max_items=7, seed=6))
    points = draw.normal(labels, 1.0)
    distances = abs(points[:, None] - points)
    found = abx(distances, labels, voices=voices, across=True, max_items=7, seed=5)
    part = distances[np.ix_(chosen, chosen)]
    assert found == abx(part, labels[chosen], voices=voices[chosen], across=True)
    whole = abx(distances, labels, voices=voices, across=True)
    assert abs(found.error - whole.error) < 0.1
    assert abx(distances, labels, voices=voices, across=True, max_items=400) == whole


def test_every_item_is_as_likely():
    counts = np.zeros(6)
    for seed in range(600):
        counts[sample_items([0, 0, 0, 0, 0, 1], max_items=2, seed=seed)] += 1
    assert counts[5] == 600
    assert abs(counts[:5] - 240).max() < 50  # four standard deviations


def test_two_thousand_items_in_seconds():
    draw = np.random.default_rng(2)
    labels, voices = draw.integers(0, 40, 2000), draw.integers(0, 10, 2000)
    points = draw.normal(labels / 3, 1.0)
    distances = abs(points[:, None] - points).astype(np.float32)
    start = time.perf_counter()
    found = abx(distances, labels, voices=voices, across=True)
    assert time.perf_counter() - start < 10
    assert found.pairs == 780
    assert 0.05 < found.error < 0.3


@pytest.mark.parametrize(
    ("distances", "labels", "given", "error", "said"),
    [
        ([[0.0, 1.0]], ["a", "b"], {}, ArgumentError, r"distances: wants shape \(N, N\), got"),
        ([["x"]], ["a"], {}, ArgumentTypeError, "distances: wants real numbers"),
        (np.eye(2), ["a"], {}, ArgumentError, "labels: wants one for each of 2 items, got 1"),
        (np.eye(2), "ab", {"voices": [1]}, ArgumentError, "voices: wants one for each of 2"),
        (np.eye(2), "ab", {"contexts": [1]}, ArgumentError, "contexts: wants one for each of 2"),
        (np.eye(2), "ab", {"across": True}, ArgumentError, "voices: wants the voice"),
        (np.eye(3), "abc", {}, ArgumentError, "labels: no triple"),
        (np.eye(3), "aab", {"max_items": 0}, ArgumentError, "max_items: wants 1 or more, got 0"),
        ([[0, math.nan], [0, 0]], "ab", {}, NonFiniteError, "distances: NaN between items 0 and 1"),
    ],
)
def test_bad_input(distances, labels, given, error, said):
    with pytest.raises(error, match=said):
        abx(distances, labels, **given)
