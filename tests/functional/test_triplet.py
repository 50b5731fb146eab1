"""``F.triplet`` by its formula; its promises are in ``test_redundancy.py``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechft.functional.triplet import triplet


def vectors(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cosine(u: list[float], v: list[float]) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0, 3.0])
def test_is_the_formula(margin):
    anchor, positive, negative = (vectors(30, 4, seed=k) for k in range(3))
    got = triplet(anchor, positive, negative, margin=margin, reduction="none")
    rows = zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True)
    want = [max(0.0, (1 - cosine(a, p)) - (1 - cosine(a, n)) + margin) for a, p, n in rows]
    assert margin == 3.0 or 0 < want.count(0.0) < 30  # both sides of the hinge
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_reductions():
    inputs = [vectors(5, 4, seed=k) for k in range(3)]
    values = triplet(*inputs, reduction="none")
    assert values.shape == (5,)
    torch.testing.assert_close(triplet(*inputs, reduction="sum"), values.sum())
    torch.testing.assert_close(triplet(*inputs), values.mean())


def test_only_directions_count():
    anchor, positive, negative = (vectors(6, 4, seed=k) for k in range(3))
    got = triplet(7 * anchor, 1e-3 * positive, 1e4 * negative)
    torch.testing.assert_close(got, triplet(anchor, positive, negative))


def test_opposite_vectors():
    x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[-2.0, 0.0]])
    assert triplet(x, x, y).item() == 0  # 2 apart
    assert triplet(x, y, x).item() == 3
    assert triplet(x, x, y, margin=2.5).item() == 0.5


def test_zero_vector_is_at_a_right_angle_to_all():
    x, zero = torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2, requires_grad=True)
    assert triplet(zero, x, -x, margin=0.4).item() == pytest.approx(0.4)
    assert triplet(x, x, zero, margin=1.4).item() == pytest.approx(0.4)
    triplet(x, zero, -x, margin=3).backward()  # cos(x, n) - cos(x, zero) + 3
    torch.testing.assert_close(zero.grad, -x / x.norm())  # as if it had length 1


def test_far_enough_has_no_gradient():
    x = torch.tensor([[1.0, 0.2]], requires_grad=True)
    triplet(x, torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])).backward()
    assert (x.grad == 0).all()
