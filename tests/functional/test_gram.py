"""The energy of a product by either Gram side: the same value, gradient and digits."""

from __future__ import annotations

import pytest
import torch
from contract import assert_as_accurate, assert_deterministic
from torch import Tensor

from speechft.functional import _gram
from speechft.functional._gram import cross_energy, rows_are_fewer

SHAPES = [
    *[(3, 17, 17), (9, 9, 9), (40, 7, 7), (4, 30, 11), (25, 6, 31)],
    *[(1, 5, 5), (5, 1, 1), (2, 6, 6), (2, 5, 9), (6, 2, 5), (6, 5, 5)],
]


def matrix(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_entries(a: Tensor, b: Tensor | None = None, *, off_diagonal: bool = False) -> Tensor:
    product = a.T @ (a if b is None else b)
    if off_diagonal:
        product = product * (1 - torch.eye(len(product), dtype=a.dtype))
    return product.square().sum()


@pytest.fixture(params=["rows", "columns", "blocks"])
def side(request, monkeypatch):
    """Each of the two sides, whatever the shape, and the second in several blocks."""
    monkeypatch.setattr(_gram, "rows_are_fewer", lambda *_: request.param == "rows")
    monkeypatch.setattr(_gram, "CANCELLED", 0)
    if request.param == "blocks":
        monkeypatch.setattr(_gram, "BLOCK", 4)
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("off_diagonal", [False, True])
def test_value_and_derivatives_of_both_sides(side, shape, alone, off_diagonal):
    n, d1, d2 = shape
    if off_diagonal and d1 != d2:
        d2 = d1
    leaves = [matrix(n, d1).requires_grad_()]
    if not alone:
        leaves.append(matrix(n, d2, seed=1).requires_grad_())

    def op(*leaves):
        return cross_energy(*leaves, off_diagonal=off_diagonal)

    value, want = op(*leaves), by_entries(*leaves, off_diagonal=off_diagonal)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)
    exact = torch.autograd.grad(2 * want, leaves)
    for create_graph in (True, False):  # which have gradients of their own
        got = torch.autograd.grad(2 * value, leaves, create_graph=create_graph)
        for one, other in zip(got, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    if n * (d1 + d2) < 110:
        assert torch.autograd.gradcheck(op, leaves)
        assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize("shape", [(30, 200), (200, 30)], ids=str)
def test_digits(side, shape, off_diagonal):
    inputs = [matrix(*shape, seed=k, dtype=torch.float32) for k in range(2)]

    def op(a, b):
        return cross_energy(a, b, off_diagonal=off_diagonal)

    assert_as_accurate(op, lambda a, b: by_entries(a, b, off_diagonal=off_diagonal), inputs)
    assert_deterministic(op, inputs)


@pytest.mark.parametrize("alone", [False, True])
def test_only_the_gradients_asked_for(side, alone):
    a, b = matrix(6, 9).requires_grad_(), matrix(6, 9, seed=1).requires_grad_()
    second = None if alone else b
    both = torch.autograd.grad(cross_energy(a, second), a)[0]
    torch.testing.assert_close(
        torch.autograd.grad(cross_energy(a, None if alone else b.detach()), a)[0], both
    )
    if not alone:
        other = torch.autograd.grad(cross_energy(a.detach(), b), b)[0]
        torch.testing.assert_close(other, torch.autograd.grad(by_entries(a, b), b)[0])
    _, da, db = torch.ops.speechft.cross_energy(a, second, False, False, False)
    assert da.numel() == db.numel() == 0
    with torch.no_grad():
        assert not cross_energy(a, second).requires_grad


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_opcheck(side, off_diagonal):
    a, b = matrix(5, 8).requires_grad_(), matrix(8, 5, seed=1).T.requires_grad_()
    op = torch.ops.speechft.cross_energy.default
    torch.library.opcheck(op, (a, b, off_diagonal, True, True))
    torch.library.opcheck(op, (a.detach(), b, off_diagonal, False, True))
    torch.library.opcheck(op, (b, None, off_diagonal, True, False))


def test_smaller_side():
    assert rows_are_fewer(256, 8192, 8192)
    assert rows_are_fewer(4, 8, 8)
    assert not rows_are_fewer(5, 8, 8)
    assert not rows_are_fewer(4, 8, 4)  # the harmonic mean of both counts
    assert not rows_are_fewer(4, 8, 8, gathered=True)
    assert rows_are_fewer(2, 8, 8, gathered=True)


class TestCancellation:
    """What the N x N side would subtract from itself, the other side is asked for (on the CPU)."""

    def taken(self, monkeypatch) -> list[str]:
        taken = []
        by_columns = _gram._by_columns
        monkeypatch.setattr(
            _gram, "_by_columns", lambda *args: taken.append("columns") or by_columns(*args)
        )
        return taken

    def test_one_loud_dimension(self, monkeypatch):
        a = matrix(16, 200, dtype=torch.float32)
        a[:, 7] *= 3e4
        taken = self.taken(monkeypatch)
        assert_as_accurate(
            lambda a: cross_energy(a, off_diagonal=True),
            lambda a: by_entries(a, off_diagonal=True),
            [a],
        )
        assert taken == ["columns"]

    def test_one_dimension_alone(self):
        a = torch.zeros(8, 64)
        a[:, 3] = matrix(8, dtype=torch.float32)
        a.requires_grad_()
        value = cross_energy(a, off_diagonal=True)
        value.backward()
        assert value.item() == 0
        assert (a.grad == 0).all()

    def test_orthogonal_but_for_a_little(self, monkeypatch):
        a, b = torch.zeros(8, 64), torch.zeros(8, 64)
        basis = torch.linalg.qr(matrix(8, 8))[0].float()
        a[:, :4], b[:, :4] = basis[:, :4], basis[:, 4:]
        b[:, 5] = 1e-3 * basis[:, 0]
        taken = self.taken(monkeypatch)
        assert_as_accurate(cross_energy, by_entries, [a, b])
        assert taken == ["columns"]

    def test_never_negative(self, monkeypatch):
        monkeypatch.setattr(_gram, "CANCELLED", -1)  # as on a GPU
        values = []
        for seed in range(40):
            a = torch.zeros(8, 64)
            a[:, 3] = matrix(8, dtype=torch.float32, seed=seed)
            values.append(cross_energy(a, off_diagonal=True).item())
        assert min(values) == 0
        assert max(values) < 1e-3

    def test_whitened_at_the_bound_keeps_its_digits_without_help(self, monkeypatch):
        """Unit columns that are as uncorrelated as N < D allows: the least there is left over."""
        monkeypatch.setattr(_gram, "CANCELLED", -1)
        n, d = 32, 64
        rows = torch.linalg.qr(matrix(d, n))[0].T * (d / n) ** 0.5  # a tight frame
        a = (rows / rows.norm(dim=0)).float()
        exact = by_entries(a.double(), off_diagonal=True)
        got = cross_energy(a, off_diagonal=True)
        assert got.item() == pytest.approx(exact.item(), rel=2e-6)
        assert exact < 1.2 * (d * d / n - d)
