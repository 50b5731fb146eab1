"""Retrieval and spread against their definitions, item by item."""

from __future__ import annotations

import math
import random

import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation.metrics import rank_me, retrieval, unit_std


def slow_retrieval(similar, labels, groups):
    """Mean average precision and top 1 from a table of similarities."""
    precisions, firsts = [], []
    for q in range(len(labels)):
        gallery = [i for i in range(len(labels))
                   if i != q and (groups is None or groups[i] != groups[q])]  # fmt: skip
        relevant = [i for i in gallery if labels[i] == labels[q]]
        if not relevant:
            continue
        total = 0.0
        for t in sorted({similar[q][i] for i in gallery}, reverse=True):
            found = [i for i in gallery if similar[q][i] >= t]
            hits = sum(labels[i] == labels[q] for i in found)
            new = sum(similar[q][i] == t for i in relevant)
            total += new / len(relevant) * hits / len(found)
        precisions.append(total)
        best = max(similar[q][i] for i in gallery)
        tied = [labels[i] == labels[q] for i in gallery if similar[q][i] == best]
        firsts.append(sum(tied) / len(tied))
    return sum(precisions) / len(precisions), sum(firsts) / len(firsts), len(precisions)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_retrieval_is_its_definition(seed, grouped, monkeypatch):
    draw = random.Random(seed)
    count = draw.randint(4, 30)
    if seed % 2:  # axes and their opposites: similarities are -1, 0 or 1, nearly all tied
        rows = [[0.0] * 3 for _ in range(count)]
        for row in rows:
            row[draw.randrange(3)] = draw.choice((-2.0, 1.0))
    else:
        rows = [[draw.gauss(0, 1) for _ in range(5)] for _ in range(count)]
    labels = [draw.choice("abc") for _ in range(count - 2)] + ["a", "a"]
    groups = [draw.randrange(3) for _ in range(count - 2)] + [7, 8] if grouped else None
    embeddings = torch.tensor(rows, dtype=torch.float64)
    directions = torch.nn.functional.normalize(embeddings, dim=1)
    want = slow_retrieval((directions @ directions.T).tolist(), labels, groups)
    for cells in (1, 1 << 20):  # one query at a time, and all at once
        monkeypatch.setitem(retrieval.__globals__, "_CELLS", cells)
        found = retrieval(embeddings, labels, groups=groups)
        if seed % 2 or cells > 1:  # products of other shapes may round to other orders
            assert found.mean_average_precision == pytest.approx(want[0], abs=1e-12)
            assert found.top1 == pytest.approx(want[1], abs=1e-12)
        assert found.queries == want[2]
        assert found.queries + found.without_match == count


def test_retrieval_at_random_is_chance():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2000, 64, generator=generator)
    found = retrieval(embeddings, torch.arange(2000) % 10, groups=torch.arange(2000) // 500)
    assert found.chance == pytest.approx(0.1, abs=0.02)
    assert found.mean_average_precision == pytest.approx(found.chance, abs=0.01)


def test_another_voice_is_asked_for():
    """One voice repeats itself; across voices nothing matches."""
    embeddings = torch.eye(4).repeat_interleave(2, 0)
    labels = [0, 0, 1, 1, 0, 0, 1, 1]
    voices = [0, 0, 0, 0, 1, 1, 1, 1]
    assert retrieval(embeddings, labels).top1 == 1.0
    assert retrieval(embeddings, labels, groups=voices).top1 == 0.5


def test_spread():
    assert rank_me(torch.eye(5)) == pytest.approx(5.0, abs=1e-4)
    assert rank_me(torch.ones(7, 5)) == pytest.approx(1.0, abs=1e-4)
    two = torch.diag(torch.tensor([3.0, 1.0]))
    assert rank_me(two) == pytest.approx(4 / 3**0.75, rel=1e-5)
    even = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert unit_std(even) == pytest.approx(1 / math.sqrt(16), rel=0.01)
    assert unit_std(1e-3 * even) == pytest.approx(unit_std(even), rel=1e-6)


@pytest.mark.parametrize("metric", [lambda x: retrieval(x, [0] * len(x)), rank_me, unit_std])
@pytest.mark.parametrize(
    ("embeddings", "error", "said"),
    [
        ([[1.0]], ArgumentTypeError, "wants a floating-point tensor, got list"),
        (torch.ones(3, 2, dtype=torch.long), ArgumentTypeError, "got torch.int64"),
        (torch.ones(3), ArgumentError, r"wants shape \(N, D\)"),
        (torch.ones(3, 0), ArgumentError, r"wants shape \(N, D\)"),
        (torch.tensor([[1.0], [math.nan]]), NonFiniteError, "row 1 holds NaN"),
        (torch.tensor([[1.0], [0.0]]), ArgumentError, "row 1 is zero"),
    ],
)
def test_bad_embeddings(metric, embeddings, error, said):
    with pytest.raises(error, match=said):
        metric(embeddings)


def test_bad_labels():
    x = torch.eye(3)
    with pytest.raises(ArgumentError, match="labels: wants one an embedding, 3, got 2"):
        retrieval(x, [0, 1])
    with pytest.raises(ArgumentError, match="groups: wants one"):
        retrieval(x, [0, 0, 1], groups=[0])
    with pytest.raises(ArgumentError, match="none of 3 items has another one of its label"):
        retrieval(x, [0, 1, 2])
    with pytest.raises(ArgumentError, match="in another group"):
        retrieval(x, [0, 0, 1], groups=[4, 4, 5])
    with pytest.raises(ArgumentError, match="at least 2 rows"):
        unit_std(torch.ones(1, 3))
