"""Error rates against the edit distance, cell by cell."""

from __future__ import annotations

import random

import pytest

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.evaluation.metrics import error_rate


def edit_distance(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for i, token in enumerate(reference, 1):
        before, row = row, [i]
        for j, other in enumerate(hypothesis, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (token != other)))
    return row[-1]


@pytest.mark.parametrize("seed", range(20))
def test_against_the_edit_distance(seed):
    draw = random.Random(seed)
    kinds = [7, "7", "a b", "", "a", "A", ("t", 1)]  # all different, spaces or not
    pairs = [
        tuple([draw.choice(kinds) for _ in range(draw.randint(low, 12))] for low in (1, 0))
        for _ in range(10)
    ]
    references, hypotheses = map(list, zip(*pairs, strict=True))
    found = error_rate(references, hypotheses)
    edits = sum(edit_distance(*pair) for pair in pairs)
    length = sum(map(len, references))
    assert found.rate == pytest.approx(edits / length, abs=1e-15)
    assert found.reference_length == length
    assert found.substitutions + found.deletions + found.insertions == edits
    gained = sum(map(len, hypotheses)) - length
    assert found.insertions - found.deletions == gained


def test_known_values():
    assert error_rate([["a", "b"]], [["a", "b"]]) == (0.0, 0, 0, 0, 2)
    assert error_rate([["a", "b"]], [["a", "c"]]) == (0.5, 1, 0, 0, 2)
    assert error_rate([["a", "b"]], [["b"]]) == (0.5, 0, 1, 0, 2)
    assert error_rate([[1]], [[1, 2, 3, 4]]) == (3.0, 0, 0, 3, 1)  # above 1
    # of all tokens, not the mean of the sequences' rates
    assert error_rate([["a"], ["b"] * 9], [["x"], ["b"] * 9]).rate == 0.1


@pytest.mark.parametrize(
    ("references", "hypotheses", "error", "said"),
    [
        ([], [], ArgumentError, "references: wants at least one"),
        ([["a"], []], [["a"], []], ArgumentError, "references: the one at 1 is empty"),
        ([["a"]], [["a"], ["b"]], ArgumentError, "hypotheses: wants one a reference, 1, got 2"),
        (["a b"], [["a", "b"]], ArgumentTypeError, "references: .* got a string at 0"),
        ([["a", "b"]], ["a b"], ArgumentTypeError, "hypotheses: .* got a string at 0"),
        ("a", "b", ArgumentTypeError, "references: .* got a string at 0"),
    ],
)
def test_bad_input(references, hypotheses, error, said):
    with pytest.raises(error, match=said):
        error_rate(references, hypotheses)
