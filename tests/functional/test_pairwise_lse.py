"""``F.pairwise_lse`` on every backend at hand, held to every promise of an op."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from contract import (
    assert_as_accurate,
    assert_deterministic,
    device_of,
    name_of,
    providers,
    running_on,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import speechft
from speechft import functional as F
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError


@pytest.fixture(params=providers("pairwise_lse"), ids=name_of)
def backend(request):
    """Each backend that runs here, and on the CPU each instruction set."""
    with running_on(request.param) as name:
        yield name


def rows(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(size: int, seed: int, kinds: int = 4) -> Tensor:
    """Integers from 0, and -1 for unknown."""
    return torch.randint(-1, kinds, (size,), generator=torch.Generator().manual_seed(seed))


def by_the_book(logits: list[list[float]], query_labels, key_labels, self_offset, own):
    """Pair by pair in Python floats: negatives, positives, positive sum of each row."""

    def lse(values: list[float]) -> float:
        return math.log(math.fsum(map(math.exp, values))) if values else -math.inf

    found = []
    for i, row in enumerate(logits):
        negative, positive = [], []
        for j, logit in enumerate(row):
            if self_offset is not None and j == i + self_offset:
                continue
            if query_labels is None:
                negative.append(logit)
            elif query_labels[i] >= 0 and key_labels[j] >= 0:
                (positive if query_labels[i] == key_labels[j] else negative).append(logit)
        n = lse(negative)
        terms = [-math.log1p(math.exp(n - s)) for s in positive] if own else positive
        found.append((n, lse(positive), math.fsum(terms)))
    return torch.tensor(found, dtype=torch.float64).T


class TestReference:
    @settings(max_examples=80, deadline=None)
    @given(
        n=st.integers(1, 6),
        m=st.integers(1, 6),
        labelled=st.booleans(),
        offset=st.sampled_from([None, 0, 1, -2]),
        own=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def test_is_the_definition(self, n, m, labelled, offset, own, seed):
        q, k = rows(n, 3, seed=seed).double(), rows(m, 3, seed=seed + 1).double()
        of_q, of_k = (labels(n, seed), labels(m, seed + 1)) if labelled else (None, None)
        settings = {"query_labels": of_q, "key_labels": of_k, "self_offset": offset}
        got = R.pairwise_lse(q, k, scale=1.5, own=own, columns=True, **settings)
        logits = (1.5 * (q @ k.T)).tolist()
        want = by_the_book(logits, of_q, of_k, offset, own)
        torch.testing.assert_close(torch.stack(got[:3]), want, rtol=1e-12, atol=1e-12)
        back = None if offset is None else -offset
        columns = by_the_book(list(map(list, zip(*logits, strict=True))), of_k, of_q, back, own)
        torch.testing.assert_close(got.column_negatives, columns[0], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("own", [False, True])
    @pytest.mark.parametrize("same", [False, True])
    def test_gradcheck(self, own, same):
        q, k = (rows(5, 3, seed=s).double().requires_grad_() for s in (0, 1))
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        known = torch.tensor([0, 1, 0, 1, 0])  # every row has a pair of each kind

        def op(q, k, scale):
            found = R.pairwise_lse(
                q, None if same else k, scale=scale, query_labels=known,
                key_labels=None if same else known, self_offset=0, columns=True, own=own,
            )  # fmt: skip
            return tuple(found) if not same else (*found, k.sum())

        assert torch.autograd.gradcheck(op, (q, k, scale))
        assert torch.autograd.gradgradcheck(op, (q, k, scale))


SHAPES = [(1, 1, 1), (1, 9, 3), (7, 1, 2), (33, 70, 20), (130, 517, 8), (600, 40, 5)]


def flat(op, case):
    """All that an op returns in one vector; what is infinite is 0."""

    def values(*leaves):
        query, scale = leaves[0], leaves[-1]
        key = leaves[1] if len(leaves) == 3 else None
        moved = {n: v.to(query.device) if isinstance(v, Tensor) else v for n, v in case.items()}
        parts = [p for p in op(query, key, scale=scale, **moved) if p is not None]
        return torch.cat([torch.where(torch.isfinite(p), p, 0.0) for p in parts])

    return values


def assert_accurate(case, leaves, backend, scale: float = 1.3) -> None:
    """The oracle, at 3 times the reference's error: what decides is how the logits are rounded,
    which is the same on both sides, and of few rows the largest error is a matter of luck.
    """
    size = len(leaves[0]) * 3 + len(leaves[-1]) * case.get("columns", False)
    assert_as_accurate(
        lambda *ls: flat(F.pairwise_lse, case)(*ls, torch.tensor(scale).to(ls[0])),
        lambda *ls: flat(R.pairwise_lse, case)(*ls, torch.tensor(scale).to(ls[0])),
        leaves,
        device=device_of(backend),
        weights=rows(size, seed=5),
        factor=3.0,
        message=str(case),
    )


class TestAccuracy:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("same", [False, True])
    def test_values_and_gradients(self, backend, shape, same):
        N, M, D = shape
        q, k = rows(N, D), rows(N if same else M, D, seed=1)
        of_q, of_k = labels(N, 2), labels(len(k), 3)
        cases = itertools.product([None, 0, 3, -2], [False, True], [False, True], [False, True])
        for offset, labelled, columns, own in cases:
            if own and not labelled:
                continue
            case = {"self_offset": offset, "columns": columns, "own": own}
            if labelled:
                case |= {"query_labels": of_q} | ({} if same else {"key_labels": of_k})
            assert_accurate(case, [q] if same else [q, k], backend)

    @pytest.mark.parametrize("same", [False, True])
    def test_each_value_and_infinity(self, backend, same):
        """Row by row, not summed: also which rows have no pair of a kind."""
        q, k = rows(40, 6), rows(40 if same else 90, 6, seed=1)
        of_q, of_k = labels(40, 2, kinds=90), labels(len(k), 3, kinds=90)
        device = device_of(backend)
        case = {"self_offset": 0, "columns": True}
        for own in (False, True):
            got = F.pairwise_lse(
                q.to(device), None if same else k.to(device), query_labels=of_q.to(device),
                key_labels=None if same else of_k.to(device), own=own, **case,
            )  # fmt: skip
            want = R.pairwise_lse(
                q, None if same else k, query_labels=of_q, key_labels=None if same else of_k,
                own=own, **case,
            )  # fmt: skip
            assert torch.isinf(want.positives).any()
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a.cpu(), b, rtol=2e-6, atol=2e-6)

    @pytest.mark.parametrize("same", [False, True])
    def test_the_gradient_by_the_scale(self, backend, same):
        """Its terms cancel, so it is held to the size of the terms, not of what is left."""
        q, k = rows(150, 16), rows(150, 16, seed=1)
        known = labels(150, 2)
        weights = rows(4 * 150, seed=5)
        for own in (False, True):
            case = {"query_labels": known, "self_offset": 0, "own": own, "columns": True}
            if not same:
                case["key_labels"] = known

            def gradient(op, dtype, device, case=case):
                leaves = [t.to(device, dtype) for t in ([q] if same else [q, k])]
                scale = torch.tensor(0.8, dtype=dtype, device=device, requires_grad=True)
                found = flat(op, case)(*leaves, scale)
                value = (found * weights.to(found)).sum()
                return torch.autograd.grad(value, scale)[0].cpu().double()

            exact = gradient(R.pairwise_lse, torch.float64, "cpu")
            got = gradient(F.pairwise_lse, torch.float32, device_of(backend))
            assert abs(got - exact) <= 1e-5 * max(1.0, float(exact.abs()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, backend, dtype):
        q, k = rows(50, 24).to(dtype), rows(60, 24, seed=1).to(dtype)
        case = {
            "query_labels": labels(50, 2),
            "key_labels": labels(60, 3),
            "self_offset": 2,
            "columns": True,
        }
        found = F.pairwise_lse(q.to(device_of(backend)), k.to(device_of(backend)))
        assert found.negatives.dtype == torch.float32
        assert_accurate(case, (q, k), backend)

    def test_logits_of_1e4(self, backend):
        """Rows whose largest logits are far apart, in one tile: each has its own maximum."""
        q = rows(70, 4) * torch.logspace(-2, 2, 70)[:, None]
        k = 1e2 * rows(80, 4, seed=1)
        case = {"query_labels": labels(70, 2), "key_labels": labels(80, 3), "columns": True}
        for scale in (1.0, 1e-2):
            assert_accurate(case, (q, k), backend, scale)

    def test_non_contiguous(self, backend):
        device = device_of(backend)
        q = rows(6, 40).to(device).T.detach().requires_grad_()
        k = rows(100, 12, seed=1).to(device)[::2, ::2].detach().requires_grad_()
        found = F.pairwise_lse(q, k).negatives
        got = torch.autograd.grad(found, (q, k), torch.ones((), device=device).expand(40))
        dense = [t.detach().contiguous().requires_grad_() for t in (q, k)]
        want = torch.autograd.grad(F.pairwise_lse(*dense).negatives.sum(), dense)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


class TestMeaning:
    def test_without_a_key_the_queries_are_the_keys(self, backend):
        x = rows(600, 7).to(device_of(backend))  # more than a tile
        known = labels(600, 1).to(x.device)
        for own in (False, True):
            ours, same = (x.clone().requires_grad_() for _ in range(2))
            one = F.pairwise_lse(ours, query_labels=known, self_offset=0, own=own)
            two = F.pairwise_lse(
                same, same, query_labels=known, key_labels=known, self_offset=0, own=own
            )
            for a, b in zip(one[:3], two[:3], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            for found in (one, two):
                sum(t[t.isfinite()].sum() for t in found[:3]).backward()
            torch.testing.assert_close(ours.grad, same.grad, rtol=1e-4, atol=1e-4)

    def test_unknown_labels_are_in_no_pair(self, backend):
        device = device_of(backend)
        q, k = rows(5, 3).to(device), rows(8, 3, seed=1).to(device)
        of_k = torch.tensor([0, -1, 1, 0, -1, 1, 2, -1], device=device)
        of_q = torch.tensor([0, 1, 2, 0, -1], device=device)
        got = F.pairwise_lse(q, k, query_labels=of_q, key_labels=of_k)
        known = of_k >= 0
        want = F.pairwise_lse(q, k[known], query_labels=of_q, key_labels=of_k[known])
        torch.testing.assert_close(got.negatives, want.negatives)
        assert torch.isinf(got.negatives[4])
        assert torch.isinf(got.positives[4])
        assert got.positive_sum[4] == 0

    def test_only_the_gradients_asked_for(self, backend):
        device = device_of(backend)
        q, k = rows(9, 4).to(device), rows(11, 4, seed=1).to(device)
        scale = torch.tensor(1.2, device=device)

        def gradients(wanted: str):
            leaves = {"q": q.clone(), "k": k.clone(), "s": scale.clone()}
            for name in wanted:
                leaves[name].requires_grad_()
            found = F.pairwise_lse(leaves["q"], leaves["k"], scale=leaves["s"], columns=True)
            total = found.negatives.sum() + 2 * found.column_negatives.square().sum()
            total.backward()
            return [leaves[name].grad for name in wanted]

        every = dict(zip("qks", gradients("qks"), strict=True))
        for wanted in ("q", "k", "s", "qs", "ks", "qk"):
            for name, got in zip(wanted, gradients(wanted), strict=True):
                torch.testing.assert_close(got, every[name], rtol=1e-5, atol=1e-5)
        assert not F.pairwise_lse(q, k).negatives.requires_grad

    def test_wide_labels_are_compared_whole(self, backend):
        """Labels that are the same modulo 2^32 are not the same."""
        device = device_of(backend)
        x = rows(4, 3).to(device)
        wide = torch.tensor([1, 1 + 2**32, 1 + 2**33, 1], device=device)
        found = F.pairwise_lse(x, query_labels=wide, self_offset=0)
        assert torch.isfinite(found.positives).tolist() == [True, False, False, True]


class TestIntegration:
    def arguments(self, device):
        q = rows(6, 4).to(device).requires_grad_()
        k = rows(7, 4, seed=1).to(device).requires_grad_()
        scale = torch.tensor(1.1, device=device, requires_grad=True)
        return q, k, scale, labels(6, 2).to(device), labels(7, 3).to(device)

    def test_opcheck(self, backend):
        q, k, scale, of_q, of_k = self.arguments(device_of(backend))
        op = torch.ops.speechft.pairwise_lse.default
        torch.library.opcheck(op, (q, k, scale, of_q, of_k, 1, True, False))
        torch.library.opcheck(op, (q, k, scale, of_q, of_k, None, False, True))
        torch.library.opcheck(op, (q, None, scale, None, None, 0, False, False))

    def test_compiles_to_one_graph(self, backend):
        q, k, scale, of_q, of_k = self.arguments(device_of(backend))

        def step(q, k, scale):
            found = F.pairwise_lse(
                2 * q, k, scale=scale, query_labels=of_q, key_labels=of_k, columns=True
            )
            total = found.positive_sum.sum()
            for t in found:
                total = total + torch.where(torch.isfinite(t), t, 0.0).sum()
            return total * 3

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(q, k, scale), (q, k, scale))
        want = torch.autograd.grad(step(q, k, scale), (q, k, scale))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

    def test_autocast_changes_nothing(self, backend):
        q, k, *_ = self.arguments(device_of(backend))
        want = F.pairwise_lse(q, k).negatives
        with torch.autocast(q.device.type, dtype=torch.bfloat16):
            got = F.pairwise_lse(q, k).negatives
        assert got.dtype == torch.float32
        assert torch.equal(got, want)

    def test_deterministic(self, backend):
        device = device_of(backend)
        q, k = rows(700, 8).to(device), rows(600, 8, seed=1).to(device)
        case = {"query_labels": labels(700, 2), "key_labels": labels(600, 3), "columns": True}
        assert_deterministic(
            lambda q, k: flat(F.pairwise_lse, case)(q, k, torch.tensor(1.0).to(q)), (q, k)
        )

    def test_double_backward(self, backend):
        q, k, scale, *_ = self.arguments(device_of(backend))

        def second(op, leaves):
            leaves = [t.detach().requires_grad_() for t in leaves]
            found = op(leaves[0], leaves[1], scale=leaves[2], columns=True)
            total = found.negatives.sum() + found.column_negatives.square().sum()
            first = torch.autograd.grad(total, leaves, create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

        got = second(F.pairwise_lse, (q, k, scale))
        want = second(R.pairwise_lse, [t.cpu().double() for t in (q, k, scale)])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-4)

    def test_float64_runs_on_the_reference(self):
        x = rows(5, 3).double()
        assert torch.equal(F.pairwise_lse(x).negatives, R.pairwise_lse(x).negatives)


X, Y = torch.ones(3, 4), torch.ones(5, 4)
NAN = X.clone()
NAN[1, 2] = math.nan
KNOWN, OTHERS = torch.tensor([0, 1, 0]), torch.zeros(5, dtype=torch.int64)
BAD = [
    ("query", ArgumentError, (X[0],), {}),
    ("query", ArgumentError, (X[:0],), {}),
    ("query", ArgumentTypeError, (X.long(),), {}),
    ("key", ArgumentError, (X, Y[:, :3]), {}),
    ("key", ArgumentTypeError, (X, Y.double()), {}),
    ("query", NonFiniteError, (NAN,), {}),
    ("key", NonFiniteError, (X, NAN), {}),
    ("scale", ArgumentError, (X,), {"scale": 0.0}),
    ("scale", ArgumentError, (X,), {"scale": torch.tensor(-1.0)}),
    ("scale", ArgumentError, (X,), {"scale": torch.tensor([1.0, 2.0])}),
    ("scale", ArgumentTypeError, (X,), {"scale": "1"}),
    ("query_labels", ArgumentError, (X,), {"query_labels": KNOWN[:2]}),
    ("query_labels", ArgumentError, (X,), {"query_labels": KNOWN - 2}),
    ("query_labels", ArgumentTypeError, (X,), {"query_labels": KNOWN.float()}),
    ("query_labels", ArgumentTypeError, (X,), {"query_labels": [0, 1, 0]}),
    ("key_labels", ArgumentError, (X, Y), {"query_labels": KNOWN}),
    ("query_labels", ArgumentError, (X, Y), {"key_labels": OTHERS}),
    ("key_labels", ArgumentError, (X,), {"query_labels": KNOWN, "key_labels": KNOWN}),
    ("self_offset", ArgumentTypeError, (X,), {"self_offset": 0.5}),
    ("own", ArgumentError, (X,), {"own": True}),
]


@pytest.mark.parametrize(("argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        F.pairwise_lse(*args, **options)
    assert caught.value.argument == argument


def test_it_is_known_to_doctor():
    assert "pairwise_lse" in speechft.backends.OPS
