"""``F.sinkhorn`` and ``F.swapped_prediction`` on every backend at hand."""

from __future__ import annotations

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
from distributed_ranks import run_on_ranks
from torch import Tensor

import speechft
from speechft import functional as F
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError, NonFiniteError


@pytest.fixture(params=providers("sinkhorn"), ids=name_of)
def backend(request):
    """Each backend that runs here, and on the CPU each instruction set."""
    with running_on(request.param) as name:
        yield name


def logits(*shape: int, seed: int = 0, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def swav(out: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The loop of SwAV's code, and of all that came from it, written anew."""
    Q = torch.exp(out / epsilon).T
    Q = Q / Q.sum()
    K, B = Q.shape
    for _ in range(iterations):
        Q = Q / Q.sum(1, keepdim=True) / K
        Q = Q / Q.sum(0, keepdim=True) / B
    return (Q * B).T


class TestReference:
    @pytest.mark.parametrize("iterations", [1, 2, 3, 10])
    def test_is_the_loop_of_swav(self, iterations):
        x = logits(40, 17).double()
        want = swav(x, 0.05, iterations)
        got = R.sinkhorn(x, iterations=iterations)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)

    def test_in_the_end_rows_and_columns_have_their_share(self):
        found = R.sinkhorn(logits(40, 8).double(), iterations=2000)
        torch.testing.assert_close(found.sum(1), torch.ones(40).double())
        torch.testing.assert_close(found.sum(0), torch.full((8,), 5.0).double())

    def test_swapped_prediction_is_the_formula_of_spin(self):
        one, two = logits(30, 9).double(), logits(30, 9, seed=1).double()
        q1, q2 = swav(one, 0.02, 3), swav(two, 0.02, 3)
        log_p = [(x / 0.1).log_softmax(-1) for x in (one, two)]
        want = -(q2 * log_p[0] + q1 * log_p[1]).sum(1).mean() / 2
        torch.testing.assert_close(R.swapped_prediction(one, two), want)


SHAPES = [(1, 1), (3, 5), (40, 33), (7, 2500), (600, 20), (70, 2100)]


class TestAccuracy:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("scale", [0.3, 30.0, 1e4])
    def test_as_accurate_as_the_reference(self, backend, shape, scale):
        x = logits(*shape, scale=scale)
        for iterations in (1, 3):
            truth = R.sinkhorn(x.double(), iterations=iterations)
            same = R.sinkhorn(x, iterations=iterations).double()
            got = F.sinkhorn(x.to(device_of(backend)), iterations=iterations).cpu().double()
            assert torch.isfinite(got).all()
            allowed = 3 * (same - truth).abs().max()  # the largest of few: a matter of luck
            assert (got - truth).abs().max() <= allowed + 5e-7

    def test_where_the_loop_of_swav_overflows(self, backend):
        """A logit of 3.7 at epsilon 0.04: e^92."""
        x = logits(50, 40)
        x[0, 0] = 3.7
        assert not torch.isfinite(swav(x, 0.04, 3)).all()
        got = F.sinkhorn(x.to(device_of(backend)), epsilon=0.04).cpu().double()
        torch.testing.assert_close(got, swav(x.double(), 0.04, 3), rtol=1e-5, atol=1e-6)

    def test_codes_that_no_row_favours(self, backend):
        """Their sums are below what float32 holds, and they are given their share all the same."""
        x = logits(64, 40)
        x[:, 30:] -= 50.0
        got = F.sinkhorn(x.to(device_of(backend))).cpu().double()
        want = R.sinkhorn(x.double())
        assert (want[:, 30:].sum(0) > 0.9).all()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, backend, dtype):
        x = logits(50, 40).to(dtype)
        got = F.sinkhorn(x.to(device_of(backend)))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.cpu().double(), R.sinkhorn(x.double()), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("scale", [0.3, 1e3])
    def test_swapped_prediction(self, backend, scale):
        one, two = logits(30, 90, scale=scale), logits(30, 90, seed=1, scale=scale)
        assert_as_accurate(
            F.swapped_prediction, R.swapped_prediction, [one, two], device=device_of(backend),
            factor=3.0,
        )  # fmt: skip


class TestMeaning:
    def test_the_centre_is_all_that_the_assignments_need(self, backend):
        x = logits(50, 40).to(device_of(backend))
        c = F.sinkhorn_center(x)
        torch.testing.assert_close(((x - c) / 0.05).softmax(1), F.sinkhorn(x), rtol=1e-5, atol=1e-6)

    def test_views_of_a_list_are_assigned_together(self, backend):
        x = logits(3, 20, 30).to(device_of(backend))
        want = F.sinkhorn_center(x)
        torch.testing.assert_close(F.sinkhorn_center(list(x)), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(R.sinkhorn_center(list(x)), want, rtol=1e-5, atol=1e-6)

    def test_epsilon_may_be_a_tensor(self, backend):
        x = logits(20, 30).to(device_of(backend))
        assert torch.equal(F.sinkhorn(x, epsilon=torch.tensor([0.07])), F.sinkhorn(x, epsilon=0.07))

    def test_dino_with_this_centre_has_the_assignments_for_targets(self, backend):
        device = device_of(backend)
        s, t = logits(3, 20, 30).to(device), logits(2, 20, 30, seed=1).to(device)
        targets = F.sinkhorn(t)
        terms = [
            -(targets[u] * (s[v] / 0.1).log_softmax(-1)).sum(-1).mean()
            for u in range(2) for v in range(3) if u != v
        ]  # fmt: skip
        got = F.dino(s, t, center=F.sinkhorn_center(t), teacher_temperature=0.05)
        torch.testing.assert_close(got, torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)

    def test_frames_beyond_the_lengths_have_no_part(self, backend):
        device = device_of(backend)
        n = torch.tensor([5, 1, 3], device=device)
        valid = torch.arange(7, device=device) < n[:, None]
        one, two = (logits(3, 7, 20, seed=k).to(device) for k in (0, 1))
        one, two = (x.masked_fill(~valid[..., None], math.nan) for x in (one, two))
        found = F.sinkhorn(one, lengths=n)
        torch.testing.assert_close(found[valid], F.sinkhorn(one[valid]), rtol=1e-6, atol=1e-6)
        assert (found[~valid] == 0).all()
        one.requires_grad_()
        value = F.swapped_prediction(one, two, lengths=n)
        (gradient,) = torch.autograd.grad(value, one)
        kept = one.detach()[valid].requires_grad_()
        alone = F.swapped_prediction(kept, two[valid])
        torch.testing.assert_close(value, alone, rtol=1e-6, atol=1e-6)
        (wanted,) = torch.autograd.grad(alone, kept)
        torch.testing.assert_close(gradient[valid], wanted, rtol=1e-5, atol=1e-7)
        assert (gradient[~valid] == 0).all()

    def test_leading_dimensions_are_rows(self, backend):
        x = logits(2, 5, 8).to(device_of(backend))
        want = F.sinkhorn(x.reshape(10, 8)).view(2, 5, 8)
        assert torch.equal(F.sinkhorn(x), want)

    def test_the_assignments_have_no_gradient(self, backend):
        x = logits(5, 8).to(device_of(backend)).requires_grad_()
        assert not F.sinkhorn(x).requires_grad

    def test_deterministic(self, backend):
        x = logits(300, 700).to(device_of(backend))
        assert torch.equal(F.sinkhorn(x), F.sinkhorn(x))
        y = logits(300, 700, seed=1).to(x)
        assert_deterministic(lambda a: F.swapped_prediction(a, y), [x])

    def test_opcheck_and_one_graph(self, backend):
        x = logits(6, 9).to(device_of(backend))
        bias, tau = -F.sinkhorn_center(x), torch.tensor(0.05, device=x.device)
        valid = torch.tensor([True] * 5 + [False], device=x.device)
        columns = torch.ops.speechft.sinkhorn_columns.default
        torch.library.opcheck(columns, (x, bias, tau, valid))
        torch.library.opcheck(columns, (x, None, tau, None))
        torch.library.opcheck(torch.ops.speechft.sinkhorn_assign.default, (x, bias, tau, valid))
        compiled = torch.compile(F.sinkhorn, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), F.sinkhorn(x))


def of_ranks(rank: int, ranks: int) -> list[Tensor]:
    """Each rank's part of the assignments: 24 rows, of which rank 0 has fewer than the others."""
    x = logits(24, 10)
    x[:, 9] -= 4.0
    first = [0, *(24 * (r + 1) // ranks - (r + 1 < ranks) for r in range(ranks))]
    mine = x[first[rank] : first[rank + 1]]
    gather = ranks > 1
    return [op.sinkhorn(mine, gather=gather) for op in (F, R)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_rows_of_all_ranks_are_assigned_together(ranks):
    want = of_ranks(0, 1)[0]
    results = run_on_ranks(of_ranks, ranks)
    for k in range(2):
        got = torch.cat([result[k] for result in results])
        torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)


X = logits(4, 6)
BAD = [
    ("logits", ArgumentError, (X[0],), {}),
    ("logits", ArgumentTypeError, (X.long(),), {}),
    ("logits", NonFiniteError, (X / 0,), {}),
    ("epsilon", ArgumentError, (X,), {"epsilon": 0.0}),
    ("iterations", ArgumentError, (X,), {"iterations": 0}),
    ("iterations", ArgumentTypeError, (X,), {"iterations": 1.5}),
    ("lengths", ArgumentError, (X,), {"lengths": [1, 1, 1, 1]}),
    ("lengths", LengthError, (X[None],), {"lengths": [0]}),
    ("gather", ArgumentError, (X,), {"gather": True}),
]


@pytest.mark.parametrize(("argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        F.sinkhorn(*args, **options)
    assert caught.value.argument == argument


def test_swapped_prediction_names_the_argument():
    for args, options, argument in (
        ((X, X[:3]), {}, "logits2"),
        ((X, X.double()), {}, "logits2"),
        ((X, X), {"temperature": 0.0}, "temperature"),
        ((X, X), {"epsilon": -1.0}, "epsilon"),
    ):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=argument):
            F.swapped_prediction(*args, **options)


def test_it_is_known_to_doctor():
    assert "sinkhorn" in speechft.backends.OPS
