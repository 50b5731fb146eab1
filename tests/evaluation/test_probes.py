"""Linear probes against scikit-learn's, and splits that keep their sides apart."""

from __future__ import annotations

import pytest
import torch

from speechft.errors import ArgumentError
from speechft.evaluation.probes import fit_linear
from speechft.evaluation.splits import given_split, random_split, stratified_split


def problem(seed=0, count=400, size=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, size, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    noise = torch.randn(count, size, generator=generator)
    return (centres[labels] + noise) * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0, 5.0]), labels


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_a_probe_is_the_solution_that_scikit_learn_finds(penalty):
    from sklearn.linear_model import LogisticRegression

    features, labels = problem()
    probe = fit_linear(features, labels, classes=4, penalties=[penalty], iterations=300)
    standard = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-10, max_iter=5000)
    theirs.fit(standard, labels.numpy())
    expected = torch.from_numpy(theirs.predict_proba(standard)).float()
    torch.testing.assert_close(probe.logits(features).softmax(1), expected, atol=2e-3, rtol=0)


def test_the_penalty_is_the_one_that_validates_best():
    features, labels = problem(count=40, size=6)
    noise = torch.randn(40, 200, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([features, 30 * noise], 1)
    validation = problem(count=400)
    others = 30 * torch.randn(400, 200, generator=torch.Generator().manual_seed(2))
    held = torch.cat([validation[0], others], 1), validation[1]
    penalties = (1e-6, 1e-2, 1.0)
    chosen = fit_linear(wide, labels, classes=4, validation=held, penalties=penalties)
    found = {}
    for penalty in penalties:
        one = fit_linear(wide, labels, classes=4, penalties=[penalty])
        found[penalty] = float((one.predict(held[0]) == held[1]).float().mean())
    assert found[chosen.penalty] == max(found.values())


def test_a_feature_that_never_changes_is_harmless():
    features, labels = problem()
    features = torch.cat([features, torch.full((400, 1), 3.0)], 1)
    probe = fit_linear(features, labels, classes=4)
    assert bool(probe.logits(features).isfinite().all())
    assert float((probe.predict(features) == labels).float().mean()) > 0.6


def test_one_class_or_nothing_is_an_error():
    with pytest.raises(ArgumentError, match="one class"):
        fit_linear(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64), classes=2)
    with pytest.raises(ArgumentError, match="at least one"):
        fit_linear(torch.randn(0, 2), torch.zeros(0, dtype=torch.int64), classes=2)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_every_item_is_somewhere(seed):
    groups = [f"g{index % 7}" for index in range(50)]
    split = random_split(groups, seed)
    sides = [{groups[row] for row in side} for side in split]
    assert sorted(row for side in split for row in side) == list(range(50))
    assert all(sides)
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert split == random_split(groups, seed)
    assert split != random_split(groups, seed + 5)


def test_every_class_is_on_every_side():
    labels = [0] * 4 + [1] * 10 + [2] * 30
    split = stratified_split(labels, 3)
    assert sorted(row for side in split for row in side) == list(range(44))
    for side in split:
        assert {labels[row] for row in side} == {0, 1, 2}
    assert len([row for row in split.test if labels[row] == 2]) == 8
    with pytest.raises(ArgumentError, match="class 1 has 2 items"):
        stratified_split([0, 0, 0, 1, 1], 0)


def test_a_given_validation_part_is_used_as_it_is():
    parts = ["train", "test", "validation", "train", "other"]
    split = given_split(parts, list("abcde"), list("xxxxx"), 0)
    assert split == ([0, 3], [2], [1])


def test_without_one_whole_groups_of_train_are_held_out_and_no_class_is_lost():
    parts = ["train"] * 20 + ["test"] * 4
    groups = [f"g{index // 2}" for index in range(24)]
    labels = ["rare", "rare", *(["a", "b"] * 11)]
    held = set()
    for seed in range(20):
        split = given_split(parts, groups, labels, seed)
        assert split.test == [20, 21, 22, 23]
        assert {groups[row] for row in split.validation}.isdisjoint(
            {groups[row] for row in split.fit}
        )
        assert len(split.validation) == 4
        assert {labels[row] for row in split.fit} == {"rare", "a", "b"}
        held.add(tuple(split.validation))
    assert len(held) > 5
    with pytest.raises(ArgumentError, match="no group that can be held out"):
        given_split(["train", "train", "test"], list("abc"), ["x", "y", "x"], 0)


def test_a_constant_that_moves_at_the_test_does_not_count():
    features, labels = problem()
    fitted = torch.cat([features, torch.full((400, 1), -23.03)], 1)
    moved = torch.cat([features, -23.03 + 1e-3 * torch.randn(400, 1)], 1)
    probe = fit_linear(fitted, labels, classes=4)
    assert torch.equal(probe.predict(fitted), probe.predict(moved))


def test_nan_in_features_is_an_error():
    from speechft.errors import NonFiniteError

    features, labels = problem()
    features[3, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="features"):
        fit_linear(features, labels, classes=4)
