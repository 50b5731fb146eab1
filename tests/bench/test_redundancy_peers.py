"""The peers compute what they are timed for: values and gradients by the definition in float64."""

from __future__ import annotations

import pytest
import torch
from speechft.bench.peers import redundancy as peers
from torch import Tensor

from speechft.reference.barlow_twins import barlow_twins
from speechft.reference.vicreg import vicreg


def views(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [
        torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(2)
    ]


@pytest.mark.parametrize("shape", [(5, 12), (12, 5)], ids=str)
@pytest.mark.parametrize(
    ("peer", "reference"),
    [(peers.authors_barlow_twins, barlow_twins), (peers.authors_vicreg, vicreg)],
)
def test_authors_agree_with_the_definition(peer, reference, shape):
    z = views(*shape)
    got, want = peer(*z), reference(*z)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    pairs = zip(torch.autograd.grad(got, z), torch.autograd.grad(want, z), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5)], ids=str)
def test_lightly_is_the_definition_with_the_unbiased_deviation(shape):
    z = views(*shape)
    n, d = shape
    first, second = (100 * v / v.std(0, correction=0) for v in z)  # far from the epsilon
    weights = torch.full((d, d), 0.3, dtype=torch.float64).fill_diagonal_(1)
    centred = [v - v.mean(0) for v in (first, second)]
    correlation = centred[0].T @ centred[1] / n / 1e4 * (n - 1) / n
    want = (weights * (correlation - torch.eye(d)).square()).sum()
    got = peers.lightly_barlow_twins(first, second, lambd=0.3)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
