"""``F.vicreg`` by its formula; its promises are in ``test_redundancy.py``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechft.functional.vicreg import vicreg
from speechft.reference.vicreg import vicreg as by_definition


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_loops(z1: Tensor, z2: Tensor) -> tuple[float, float, float]:
    """The invariance, the variance and the covariance."""
    n, d = z1.shape
    similarity = sum((a - b) ** 2 for a, b in zip(z1.flatten(), z2.flatten(), strict=True)) / n / d
    variance = covariance = 0.0
    for z in (z1, z2):
        columns = [[v - sum(c) / n for v in c] for c in z.T.tolist()]
        for i in range(d):
            for j in range(d):
                pairs = zip(columns[i], columns[j], strict=True)
                value = sum(a * b for a, b in pairs) / (n - 1)
                if i == j:
                    variance += max(0.0, 1 - math.sqrt(value + 1e-4)) / d / 2
                else:
                    covariance += value**2 / d
    return float(similarity), variance, covariance


@pytest.mark.parametrize("shape", [(2, 3), (3, 9), (9, 3), (5, 5), (4, 1)], ids=str)
def test_is_the_formula(shape):
    z1, z2 = embeddings(*shape), 2 + 0.9 * embeddings(*shape, seed=1)
    parts = by_loops(z1, z2)
    for weights in [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]:
        want = sum(w * part for w, part in zip(weights, parts, strict=True))
        names = dict(zip(("sim_weight", "var_weight", "cov_weight"), weights, strict=True))
        for op in (vicreg, by_definition):
            assert op(z1, z2, **names).item() == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_default_weights():
    z1, z2 = embeddings(4, 6), 0.3 * embeddings(4, 6, seed=1)
    want = vicreg(z1, z2, sim_weight=25.0, var_weight=25.0, cov_weight=1.0)
    assert torch.equal(vicreg(z1, z2), want)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
def test_a_large_mean_takes_no_digits_from_the_variance(shape):
    z1, z2 = 0.5 * embeddings(*shape), 0.5 * embeddings(*shape, seed=1)
    far = [(z + 1000).float() for z in (z1, z2)]
    want = by_definition(*(z.double() for z in far))
    assert vicreg(*far).item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
def test_opposite_views(shape):
    z = embeddings(*shape)
    same, opposite = vicreg(z, z), vicreg(z, -z)
    torch.testing.assert_close(opposite - same, 25 * 4 * z.square().mean())


def test_loud_enough_and_uncorrelated_is_zero():
    z = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    leaf = z.clone().requires_grad_()
    loss = vicreg(leaf, z)
    loss.backward()
    assert loss.item() == 0
    assert (leaf.grad == 0).all()
