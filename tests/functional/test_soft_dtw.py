"""``F.soft_dtw`` on every backend at hand, held to every promise of an op."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from contract import (
    assert_alone_as_in_batch,
    assert_as_accurate,
    assert_deterministic,
    assert_padding_invariant,
    available,
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
from speechft.errors import ArgumentError, ArgumentTypeError, BackendError, LengthError

BACKENDS = available("soft_dtw")


@pytest.fixture(params=providers("soft_dtw"), ids=name_of)
def backend(request):
    """Each backend that runs here, and on the CPU each instruction set."""
    with running_on(request.param) as name:
        yield name


def sequences(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lengths(batch: int, longest: int, seed: int = 0) -> Tensor:
    values = torch.randint(1, longest + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    values[0] = longest
    return values


def by_the_book(cost: Tensor, gamma: float, bandwidth: int | None = None) -> float:
    """Algorithm 1 of Cuturi & Blondel, cell by cell, for one pair in Python floats."""
    n, m = cost.shape
    table = [[math.inf] * (m + 1) for _ in range(n + 1)]
    table[0][0] = 0.0
    for i, j in itertools.product(range(1, n + 1), range(1, m + 1)):
        if bandwidth is not None and abs(i * m - j * n) > bandwidth * max(n, m):
            continue
        before = [table[i - 1][j - 1], table[i - 1][j], table[i][j - 1]]
        lowest = min(before)
        if lowest < math.inf:
            total = sum(math.exp((lowest - b) / gamma) for b in before)
            table[i][j] = float(cost[i - 1, j - 1]) + lowest - gamma * math.log(total)
    return table[n][m]


def dtw(cost: Tensor) -> float:
    n, m = cost.shape
    table = torch.full((n + 1, m + 1), math.inf, dtype=torch.float64)
    table[0, 0] = 0
    for i, j in itertools.product(range(n), range(m)):
        best = min(table[i, j], table[i, j + 1], table[i + 1, j])
        table[i + 1, j + 1] = cost[i, j] + best
    return float(table[n, m])


class TestReference:
    @settings(max_examples=60, deadline=None)
    @given(
        n=st.integers(1, 9),
        m=st.integers(1, 9),
        gamma=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
        bandwidth=st.sampled_from([None, 0, 1, 2, 4]),
        seed=st.integers(0, 1000),
    )
    def test_is_the_definition(self, n, m, gamma, bandwidth, seed):
        cost = sequences(2, n, m, seed=seed).abs().double()
        got = R.soft_dtw_from_cost(cost, gamma=gamma, bandwidth=bandwidth, reduction="none")
        want = torch.tensor([by_the_book(c, gamma, bandwidth) for c in cost], dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    def test_cost_is_the_squared_distance(self):
        x, y = sequences(2, 5, 3).double(), sequences(2, 4, 3, seed=1).double()
        want = (x[:, :, None] - y[:, None]).square().sum(-1)
        got = R.soft_dtw(x, y, gamma=0.5, reduction="none")
        torch.testing.assert_close(got, R.soft_dtw_from_cost(want, gamma=0.5, reduction="none"))

    @pytest.mark.parametrize("options", [{}, {"divergence": True, "length_normalize": True}])
    @pytest.mark.parametrize("bandwidth", [None, 2])
    def test_gradcheck(self, options, bandwidth):
        x = sequences(3, 4, 2).double().requires_grad_()
        y = sequences(3, 5, 2, seed=1).double().requires_grad_()
        n, m = lengths(3, 4), lengths(3, 5, seed=1)

        def op(x, y):
            return R.soft_dtw(
                x, y, n, m, gamma=0.7, bandwidth=bandwidth, reduction="none", **options
            )

        assert torch.autograd.gradcheck(op, (x, y))
        assert torch.autograd.gradgradcheck(op, (x, y))


class TestMeaning:
    def test_small_gamma_is_dtw(self, backend):
        x, y = sequences(3, 12, 2), sequences(3, 9, 2, seed=1)
        device = device_of(backend)
        got = F.soft_dtw(x.to(device), y.to(device), gamma=1e-4, reduction="none").cpu()
        cost = (x[:, :, None] - y[:, None]).square().sum(-1)
        want = torch.tensor([dtw(c) for c in cost])
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

    def test_paths_are_counted_where_the_cost_is_zero(self, backend):
        # -gamma log(number of paths): Delannoy numbers
        for size, paths in ((1, 1), (2, 3), (3, 13), (4, 63), (5, 321)):
            cost = torch.zeros(1, size, size, device=device_of(backend))
            got = F.soft_dtw_from_cost(cost, gamma=2.0).item()
            assert got == pytest.approx(-2.0 * math.log(paths), rel=1e-6)

    def test_divergence_is_zero_for_itself_and_positive(self, backend):
        x, y = sequences(4, 20, 3).to(device_of(backend)), sequences(4, 25, 3, seed=1)
        assert F.soft_dtw(x, x, divergence=True).abs().item() < 1e-4
        values = F.soft_dtw(x, y.to(x.device), divergence=True, gamma=1.0, reduction="none")
        assert (values > 0).all()

    def test_terms_and_normalisation_of_score(self, backend):
        device = device_of(backend)
        x, y = sequences(3, 8, 4).to(device), sequences(3, 6, 4, seed=1).to(device)
        n, m = lengths(3, 8).to(device), lengths(3, 6, seed=3).to(device)

        def sdtw(a, b, la, lb):
            return F.soft_dtw(a, b, la, lb, gamma=0.3, reduction="none")

        want = sdtw(x, y, n, m) - 0.5 * (sdtw(x, x, n, n) + sdtw(y, y, m, m))
        got = F.soft_dtw(
            x, y, n, m, gamma=0.3, divergence=True, length_normalize=True, reduction="none"
        )
        torch.testing.assert_close(got, want / (n + m), rtol=1e-5, atol=1e-5)

    def test_reductions(self, backend):
        x, y = sequences(3, 4, 2).to(device_of(backend)), sequences(3, 5, 2, seed=1)
        y = y.to(x.device)
        values = F.soft_dtw(x, y, reduction="none")
        assert values.shape == (3,)
        torch.testing.assert_close(F.soft_dtw(x, y, reduction="sum"), values.sum())
        torch.testing.assert_close(F.soft_dtw(x, y), values.mean())

    def test_symmetric_also_with_a_band(self, backend):
        device = device_of(backend)
        x, y = sequences(4, 14, 3).to(device), sequences(4, 9, 3, seed=1).to(device)
        for bandwidth in (None, 1, 3):
            torch.testing.assert_close(
                F.soft_dtw(x, y, bandwidth=bandwidth), F.soft_dtw(y, x, bandwidth=bandwidth)
            )

    def test_alignment_is_a_distribution_of_paths(self, backend):
        cost = sequences(5, 9, 13).abs().to(device_of(backend)).requires_grad_()
        F.soft_dtw_from_cost(cost, gamma=0.2, reduction="sum").backward()
        grad = cost.grad
        assert (grad >= 0).all()
        torch.testing.assert_close(grad[:, 0, 0], torch.ones_like(grad[:, 0, 0]))
        torch.testing.assert_close(grad[:, -1, -1], torch.ones_like(grad[:, 0, 0]))
        assert (grad.sum(1) > 1 - 1e-5).all()  # a path visits every row and column
        assert (grad.sum(2) > 1 - 1e-5).all()


GRID = [
    # batch, N, M, D: one cell, one row, one column, odd sizes, more than a group of any lanes
    (1, 1, 1, 1),
    (2, 1, 9, 3),
    (3, 11, 1, 2),
    (4, 2, 2, 5),
    (5, 17, 23, 8),
    (19, 12, 10, 4),
    (33, 6, 31, 16),
    (2, 70, 64, 32),
]


class TestAccuracy:
    @pytest.mark.parametrize("shape", GRID, ids=str)
    @pytest.mark.parametrize("gamma", [1e-3, 0.1, 10.0])
    def test_value_and_gradients(self, backend, shape, gamma):
        batch, N, M, D = shape
        n, m = lengths(batch, N, seed=2), lengths(batch, M, seed=3)
        weights = sequences(batch, seed=5)
        for k, (scale, bandwidth, divergence) in enumerate(
            [(1, None, False), (100, None, True), (1, 1, True), (100, 4, False), (1, 4, True)]
        ):
            x = sequences(batch, N, D, seed=10 * k, scale=scale)
            y = sequences(batch, M, D, seed=10 * k + 1, scale=scale)
            options = {
                "gamma": gamma,
                "bandwidth": bandwidth,
                "divergence": divergence,
                "reduction": "none",
            }
            device = device_of(backend)
            assert_as_accurate(
                lambda x, y: F.soft_dtw(x, y, n.to(x.device), m.to(x.device), **options),  # noqa: B023
                lambda x, y: R.soft_dtw(x, y, n, m, **options),  # noqa: B023
                (x, y),
                device=device,
                weights=weights,
                message=f"{options}, scale {scale}",
            )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, backend, dtype):
        x, y = sequences(4, 20, 16).to(dtype), sequences(4, 25, 16, seed=1).to(dtype)
        got = F.soft_dtw(x.to(device_of(backend)), y.to(device_of(backend)), reduction="none")
        assert got.dtype == torch.float32
        assert_as_accurate(
            lambda x, y: F.soft_dtw(x, y, divergence=True, reduction="none"),
            lambda x, y: R.soft_dtw(x, y, divergence=True, reduction="none"),
            (x, y),
            device=device_of(backend),
            message=str(dtype),
        )

    @pytest.mark.parametrize("bandwidth", [None, 3])
    def test_ready_costs(self, backend, bandwidth):
        cost = sequences(9, 21, 18).abs()
        n, m = lengths(9, 21), lengths(9, 18, seed=1)
        options = {"gamma": 0.05, "bandwidth": bandwidth, "reduction": "none"}
        assert_as_accurate(
            lambda c: F.soft_dtw_from_cost(c, n.to(c.device), m.to(c.device), **options),
            lambda c: R.soft_dtw_from_cost(c, n, m, **options),
            (cost,),
            device=device_of(backend),
            weights=sequences(9, seed=4),
        )

    def test_costs_of_1e4_at_gamma_1e_3(self, backend):
        cost = 1e4 * sequences(6, 30, 40).abs()
        options = {"gamma": 1e-3, "reduction": "none"}
        assert_as_accurate(
            lambda c: F.soft_dtw_from_cost(c, **options),
            lambda c: R.soft_dtw_from_cost(c, **options),
            (cost,),
            device=device_of(backend),
        )

    def test_non_contiguous_inputs_and_gradients(self, backend):
        device = device_of(backend)
        x = sequences(6, 3, 20).to(device).transpose(1, 2)  # (6, 20, 3), strided
        y = sequences(12, 22, 6, seed=1).to(device)[::2, :, ::2]
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        value = F.soft_dtw(x, y, reduction="none")
        incoming = torch.ones((), device=device).expand(6)  # stride 0
        got = torch.autograd.grad(value, (x, y), incoming)
        dense = [t.detach().contiguous().requires_grad_() for t in (x, y)]
        want = torch.autograd.grad(F.soft_dtw(*dense, reduction="sum"), dense)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

    def test_long_and_sharp_where_the_usual_recursion_loses_its_digits(self, backend):
        """T = 1500 at gamma = 0.01: at most 1e-3 off, where R' - R - d in float32 gives 6e-2."""
        size = 1500
        cost = sequences(1, size, size, seed=7).abs()
        leaf = cost.clone().to(device_of(backend)).requires_grad_()
        F.soft_dtw_from_cost(leaf, gamma=0.01).backward()
        exact = cost.double().requires_grad_()
        R.soft_dtw_from_cost(exact, gamma=0.01).backward()
        error = (leaf.grad.cpu() - exact.grad).abs().max()
        assert error <= 1e-4, error
        assert leaf.grad.sum().item() == pytest.approx(exact.grad.sum().item(), rel=1e-5)

    def test_4096_frames(self, backend):
        x = sequences(1, 4096, 4).to(device_of(backend)).requires_grad_()
        value = F.soft_dtw(x, x.detach().roll(1, 1), bandwidth=None)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(x.grad).all()


class TestLengths:
    def setup_method(self):
        self.inputs = (sequences(5, 12, 3), sequences(5, 15, 3, seed=1))
        self.lengths = (lengths(5, 12, seed=8), lengths(5, 15, seed=9))

    @pytest.mark.parametrize("bandwidth", [None, 2])
    def test_padding_and_batch_mates_change_nothing(self, backend, bandwidth):
        device = device_of(backend)

        def op(inputs, lengths):
            inputs, lengths = ([t.to(device) for t in ts] for ts in (inputs, lengths))
            return F.soft_dtw(
                *inputs,
                *lengths,
                divergence=True,
                length_normalize=True,
                bandwidth=bandwidth,
                reduction="none",
            ).cpu()

        assert_padding_invariant(op, self.inputs, self.lengths)
        assert_alone_as_in_batch(op, self.inputs, self.lengths)

    def test_every_kind_of_lengths_is_taken(self, backend):
        x, y = (t.to(device_of(backend)) for t in self.inputs)
        n, m = self.lengths
        want = F.soft_dtw(x, y, n.to(x.device), m.to(x.device))
        for lengths_x in (n.tolist(), n.int(), speechft.Lengths(n)):
            assert torch.equal(F.soft_dtw(x, y, lengths_x, m.tolist()), want)


class TestIntegration:
    def arguments(self, device: str):
        x = sequences(3, 6, 4).to(device).requires_grad_()
        y = sequences(3, 7, 4, seed=1).to(device).requires_grad_()
        return x, y, None, torch.tensor([7, 3, 1], device=device)

    @pytest.mark.parametrize("divergence", [False, True])
    def test_opcheck(self, backend, divergence):
        arguments = self.arguments(device_of(backend))
        torch.library.opcheck(
            torch.ops.speechft.soft_dtw.default, (*arguments, 0.1, None, divergence, True, True)
        )
        cost = torch.rand(2, 4, 5, device=device_of(backend), requires_grad=True)
        torch.library.opcheck(
            torch.ops.speechft.soft_dtw_from_cost.default, (cost, None, None, 0.1, 2, True)
        )

    def test_compiles_to_one_graph(self, backend):
        x, y, _, m = self.arguments(device_of(backend))

        def step(x, y, m):
            loss = F.soft_dtw(2 * x, torch.cat([y, y], -1)[..., :4], None, m, divergence=True)
            return loss * 3

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(x, y, m), (x, y))
        want = torch.autograd.grad(step(x, y, m), (x, y))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

    def test_autocast_computes_in_float32(self, backend):
        x, y, _, m = self.arguments(device_of(backend))
        want = F.soft_dtw(x, y, None, m)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            got = F.soft_dtw(x, y, None, m)
            with speechft.use_backend("reference"):
                reference = F.soft_dtw(x, y, None, m)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        torch.testing.assert_close(reference, want)

    def test_deterministic(self, backend):
        x, y = (
            t.to(device_of(backend)) for t in (sequences(9, 40, 8), sequences(9, 50, 8, seed=1))
        )
        assert_deterministic(lambda x, y: F.soft_dtw(x, y, divergence=True), (x, y))

    @pytest.mark.parametrize("name", ["soft_dtw", "soft_dtw_from_cost"])
    def test_double_backward(self, backend, name):
        shape = ((3, 6, 4), (3, 7, 4)) if name == "soft_dtw" else ((3, 6, 7),)
        inputs = [sequences(*s, seed=k).to(device_of(backend)) for k, s in enumerate(shape)]

        def second(op, inputs):
            leaves = [t.clone().requires_grad_() for t in inputs]
            first = torch.autograd.grad(op(*leaves), leaves, create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

        got = second(getattr(F, name), inputs)
        want = second(getattr(R, name), [t.cpu().double() for t in inputs])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-3, atol=1e-4)

    def test_only_the_gradients_asked_for(self, backend):
        x, y, _, m = self.arguments(device_of(backend))
        both = torch.autograd.grad(F.soft_dtw(x, y, None, m, divergence=True), (x, y))
        only_x = torch.autograd.grad(F.soft_dtw(x, y.detach(), None, m, divergence=True), x)[0]
        only_y = torch.autograd.grad(F.soft_dtw(x.detach(), y, None, m, divergence=True), y)[0]
        torch.testing.assert_close(only_x, both[0])
        torch.testing.assert_close(only_y, both[1])
        assert not F.soft_dtw(x.detach(), y.detach()).requires_grad
        with torch.no_grad():
            assert not F.soft_dtw(x, y).requires_grad

    @pytest.mark.parametrize("gamma", [0.01, 1.0, 100.0])
    @pytest.mark.parametrize("divergence", [False, True])
    @pytest.mark.parametrize("ragged", [False, True])
    def test_one_tensor_on_both_sides(self, backend, gamma, divergence, ragged):
        """Each side has the gradient of its own, also where both are one piece of memory."""
        x = sequences(3, 60, 12, scale=0.5)
        shift = torch.linspace(0.5, 1.5, 60)[None, :, None]
        x = x * shift  # not the same forth and back
        n, m = torch.tensor([60, 50, 40]), torch.tensor([45, 60, 30])
        options = {"gamma": gamma, "divergence": divergence, "reduction": "none"}

        def gradients(op, leaf, stopped):
            lengths = (n.to(leaf.device), m.to(leaf.device)) if ragged else ()
            sides = (leaf.detach(), leaf) if stopped == "x" else (leaf, leaf.detach())
            value = op(*sides, *lengths, **options)
            return torch.autograd.grad(value, leaf, torch.ones_like(value))[0].cpu().double()

        for stopped in "xy":
            exact = gradients(R.soft_dtw, x.double().requires_grad_(), stopped)
            got = gradients(F.soft_dtw, x.to(device_of(backend)).requires_grad_(), stopped)
            # Without lengths this is a sequence against itself: the pulls cancel.
            scale = max(float(exact.abs().max()), 1.0)
            assert float((got - exact).abs().max()) < 1e-4 * scale

    def test_float64_runs_on_the_reference(self):
        x = sequences(2, 5, 3).double()
        assert torch.equal(F.soft_dtw(x, x), R.soft_dtw(x, x))
        if "cpu" in BACKENDS:
            with speechft.use_backend("cpu"), pytest.raises(BackendError, match="float64"):
                F.soft_dtw(x, x)


X, Y = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
NAN = X.clone()
NAN[1, 2, 3] = math.nan
BAD = [
    ("x", ArgumentError, (X[0], Y), {}),
    ("x", ArgumentError, (X[:, :0], Y), {}),
    ("x", ArgumentTypeError, (X.long(), Y.long()), {}),
    ("x", ArgumentTypeError, ([[1.0]], Y), {}),
    ("y", ArgumentError, (X, Y[:1]), {}),
    ("y", ArgumentError, (X, Y[..., :3]), {}),
    ("y", ArgumentTypeError, (X, Y.double()), {}),
    ("x_lengths", LengthError, (X, Y, torch.tensor([3, 0])), {}),
    ("x_lengths", LengthError, (X, Y, torch.tensor([3, 4])), {}),
    ("x_lengths", LengthError, (X, Y, torch.tensor([3])), {}),
    ("x_lengths", ArgumentTypeError, (X, Y, torch.tensor([1.0, 0.5])), {}),
    ("y_lengths", LengthError, (X, Y, None, [5, -1]), {}),
    ("gamma", ArgumentError, (X, Y), {"gamma": 0.0}),
    ("gamma", ArgumentError, (X, Y), {"gamma": -1.0}),
    ("gamma", ArgumentError, (X, Y), {"gamma": math.nan}),
    ("bandwidth", ArgumentError, (X, Y), {"bandwidth": 0}),
    ("bandwidth", ArgumentError, (X, X, [3, 3], [3, 2]), {"bandwidth": 0}),
    ("bandwidth", ArgumentError, (X, Y), {"bandwidth": -2}),
    ("bandwidth", ArgumentTypeError, (X, Y), {"bandwidth": 1.5}),
    ("reduction", ArgumentError, (X, Y), {"reduction": "avg"}),
    ("x", ArgumentError, (NAN, Y), {}),
    ("y", ArgumentError, (Y, NAN), {}),
]


@pytest.mark.parametrize(("argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        F.soft_dtw(*args, **options)
    assert caught.value.argument == argument


def test_nan_in_padding_is_no_error():
    assert torch.isfinite(F.soft_dtw(NAN, Y, [3, 2]))


def test_unknown_backend():
    with pytest.raises(BackendError, match="triton, cuda"), speechft.use_backend("numpy"):
        pass
