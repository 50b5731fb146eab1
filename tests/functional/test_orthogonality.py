"""``F.orthogonality`` by its formula; its promises are in ``test_redundancy.py``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechft.functional.orthogonality import orthogonality
from speechft.reference.orthogonality import orthogonality as by_definition

FORMS = [("feature", False), ("feature", True), ("sample", False), ("sample", True)]


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_loops(z1: Tensor, z2: Tensor, form: str, legacy: bool) -> float:
    first, second = ([[v / math.hypot(*row) for v in row] for row in z.tolist()] for z in (z1, z2))
    b = len(first)
    if form == "sample":
        terms = [sum(u * v for u, v in zip(p, q, strict=True)) ** 2 for p in first for q in second]
        return sum(terms) / b**2
    terms = [
        sum(first[k][i] * second[k][j] for k in range(b)) ** 2
        for i in range(len(first[0]))
        for j in range(len(second[0]))
    ]
    return sum(terms) / (len(terms) if legacy else b**2)


@pytest.mark.parametrize("shape", [(1, 3), (3, 9), (9, 3), (5, 5), (4, 1)], ids=str)
@pytest.mark.parametrize(("form", "legacy"), FORMS)
def test_is_the_formula(shape, form, legacy):
    z1, z2 = embeddings(*shape), 1 + 3 * embeddings(*shape, seed=1)
    want = by_loops(z1, z2, form, legacy)
    for op in (orthogonality, by_definition):
        assert op(z1, z2, form=form, legacy=legacy).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("sizes", [(3, 9, 4), (3, 20, 31), (12, 5, 2)], ids=str)
@pytest.mark.parametrize("legacy", [False, True])
def test_subspaces_of_unequal_sizes(sizes, legacy):
    b, d1, d2 = sizes
    z1, z2 = embeddings(b, d1), embeddings(b, d2, seed=1)
    want = by_loops(z1, z2, "feature", legacy)
    for op in (orthogonality, by_definition):
        assert op(z1, z2, legacy=legacy).item() == pytest.approx(want, rel=1e-12)


def test_feature_is_the_default():
    z1, z2 = embeddings(4, 6), embeddings(4, 6, seed=1)
    assert torch.equal(orthogonality(z1, z2), orthogonality(z1, z2, form="feature", legacy=False))


@pytest.mark.parametrize(("form", "legacy"), FORMS)
def test_a_batch_repeated_has_the_same_loss_but_for_the_published_form(form, legacy):
    z1, z2 = embeddings(6, 20), embeddings(6, 20, seed=1)
    once = orthogonality(z1, z2, form=form, legacy=legacy)
    for times in (2, 5, 20):
        again = orthogonality(z1.repeat(times, 1), z2.repeat(times, 1), form=form, legacy=legacy)
        grows = times**2 if legacy and form == "feature" else 1
        assert again.item() == pytest.approx(grows * once.item(), rel=1e-12)


@pytest.mark.parametrize("form", ["feature", "sample"])
@pytest.mark.parametrize("sign", [1, -1])
def test_between_0_and_1(form, sign):
    same = torch.tensor([[3.0, 4.0, 0.0]]).repeat(5, 1)
    other = torch.tensor([[0.0, 0.0, 2.0]]).repeat(5, 1)
    assert orthogonality(same, sign * same, form=form).item() == pytest.approx(1)
    assert orthogonality(same, sign * other, form="sample").item() == 0
    # one direction each, always together: the features go with each other all the same
    assert orthogonality(same, sign * other).item() == pytest.approx(1)
    balanced = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None] * same[:4]
    assert orthogonality(balanced, sign * other[:4]).item() == pytest.approx(0, abs=1e-12)
    for seed in range(20):
        value = orthogonality(embeddings(7, 5, seed=seed), embeddings(7, 5, seed=99), form=form)
        assert 0 <= value.item() <= 1


@pytest.mark.parametrize(("form", "legacy"), FORMS)
def test_only_directions_count(form, legacy):
    z1, z2 = embeddings(6, 20), embeddings(6, 20, seed=1)
    lengths = embeddings(6, 1, seed=2).abs() * 100
    want = orthogonality(z1, z2, form=form, legacy=legacy)
    torch.testing.assert_close(orthogonality(lengths * z1, z2, form=form, legacy=legacy), want)
