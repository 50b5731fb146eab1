"""``F.barlow_twins`` by its formula; its promises are in ``test_redundancy.py``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from speechft.functional.barlow_twins import barlow_twins
from speechft.reference.barlow_twins import barlow_twins as by_definition


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_loops(z1: Tensor, z2: Tensor, lambd: float) -> float:
    n, d = z1.shape

    def column(z: Tensor, i: int) -> list[float]:
        values = z[:, i].tolist()
        mean = sum(values) / n
        variance = sum((v - mean) ** 2 for v in values) / n
        return [(v - mean) / math.sqrt(variance + 1e-5) for v in values]

    loss = 0.0
    for i in range(d):
        for j in range(d):
            pairs = zip(column(z1, i), column(z2, j), strict=True)
            c = sum(a * b for a, b in pairs) / n
            loss += (c - 1) ** 2 if i == j else lambd * c**2
    return loss


@pytest.mark.parametrize("shape", [(2, 3), (3, 9), (9, 3), (5, 5), (4, 1)], ids=str)
@pytest.mark.parametrize("lambd", [0.0, 5e-3, 1.0, 40.0])
def test_is_the_formula(shape, lambd):
    z1, z2 = embeddings(*shape), 2 + 3 * embeddings(*shape, seed=1)
    for op in (barlow_twins, by_definition):
        assert op(z1, z2, lambd=lambd).item() == pytest.approx(by_loops(z1, z2, lambd), rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
def test_is_batch_norm_as_people_have_it(shape):
    z1, z2 = (embeddings(*shape, seed=k).requires_grad_() for k in range(2))
    norm = nn.BatchNorm1d(shape[1], affine=False, dtype=torch.float64)
    correlation = norm(z1).T @ norm(z2) / len(z1)
    weights = torch.full_like(correlation, 0.01).fill_diagonal_(1)
    want = (weights * (correlation - torch.eye(shape[1])).square()).sum()
    got = barlow_twins(z1, z2, lambd=0.01)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    pairs = zip(
        torch.autograd.grad(got, (z1, z2)), torch.autograd.grad(want, (z1, z2)), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_default_weight():
    z1, z2 = embeddings(4, 6), embeddings(4, 6, seed=1)
    assert torch.equal(barlow_twins(z1, z2), barlow_twins(z1, z2, lambd=5e-3))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
def test_scale_and_shift_of_a_dimension_change_nothing(shape):
    z1, z2 = embeddings(*shape), embeddings(*shape, seed=1)
    scale, shift = 100 * embeddings(shape[1], seed=2).abs() + 100, 30 * embeddings(shape[1], seed=3)
    want = barlow_twins(100 * z1, z2)  # far from the epsilon
    assert barlow_twins(scale * z1 + shift, z2).item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
def test_symmetric_in_the_views(shape):
    z1, z2 = embeddings(*shape), embeddings(*shape, seed=1)
    torch.testing.assert_close(barlow_twins(z1, z2), barlow_twins(z2, z1))


def test_opposite_views():
    z = 100 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert barlow_twins(z, z).item() == pytest.approx(0, abs=1e-6)
    assert barlow_twins(z, -z).item() == pytest.approx(8, rel=1e-6)  # each C_ii is -1


@pytest.mark.parametrize("d", [3, 64])
def test_two_samples(d):
    """Then all is 1 or -1, and the gradient what the epsilon leaves: the rest cancels."""
    z1, z2 = embeddings(2, d), embeddings(2, d, seed=1)
    exact = [z.clone().requires_grad_() for z in (z1, z2)]
    want = by_definition(*exact)
    single = [z.float().requires_grad_() for z in (z1, z2)]
    got = barlow_twins(*single)
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    pairs = zip(
        torch.autograd.grad(got, single), torch.autograd.grad(want, exact), single, strict=True
    )
    for one, other, z in pairs:
        slope = 2 * d / z.detach().std(0, correction=0)  # of the loss by a dimension, if alone
        assert ((one - other).abs() < 1e-6 * slope).all()
