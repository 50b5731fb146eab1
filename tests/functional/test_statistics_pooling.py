"""``F.statistics_pooling`` and ``F.attentive_statistics_pooling`` on every backend at hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from contract import (
    assert_alone_as_in_batch,
    assert_as_accurate,
    assert_deterministic,
    assert_padding_invariant,
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
from speechft.backends import compiled_module
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError, NonFiniteError


@pytest.fixture(params=providers("statistics_pooling"), ids=name_of)
def backend(request):
    """Each backend that runs here, and on the CPU each instruction set."""
    with running_on(request.param) as name:
        yield name


def frames(*shape: int, seed: int = 0, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    return mean + scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shares(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def by_the_book(column: list[float], weights: list[float], correction: int, epsilon: float):
    """Of one channel, in Python floats: mean and deviation."""
    total = math.fsum(weights)
    mean = math.fsum(w * x for w, x in zip(weights, column, strict=True)) / total
    squares = math.fsum(w * (x - mean) ** 2 for w, x in zip(weights, column, strict=True))
    count = len(column)
    variance = squares / total * (count / (count - correction) if correction else 1)
    return mean, math.sqrt(max(variance, epsilon))


class TestReference:
    @settings(max_examples=60, deadline=None)
    @given(
        steps=st.integers(1, 6),
        groups=st.sampled_from([1, 2, 4]),
        kind=st.sampled_from(["equal", "unbiased", "weights", "scores"]),
        seed=st.integers(0, 1000),
    )
    def test_is_the_definition(self, steps, groups, kind, seed):
        if kind == "unbiased" and steps == 1:
            return
        x = frames(1, steps + 2, 4, seed=seed).double()
        w = shares(1, steps + 2, groups, seed=seed + 1).double()
        n = torch.tensor([steps])
        if kind == "scores":
            got = R.attentive_statistics_pooling(x, w, n)
            used = w.exp()
        else:
            weights = w if kind == "weights" else None
            got = R.statistics_pooling(x, n, weights=weights, correction=int(kind == "unbiased"))
            used = w if kind == "weights" else torch.ones_like(w)
        for c in range(4):
            of_frames = used[0, :steps, c * groups // 4].tolist()
            mean, deviation = by_the_book(
                x[0, :steps, c].tolist(), of_frames, int(kind == "unbiased"), 1e-7
            )
            assert math.isclose(got[0, c], mean, abs_tol=1e-12)
            assert math.isclose(got[0, 4 + c], deviation, rel_tol=1e-9)

    def test_gradcheck(self):
        x = frames(2, 5, 4).double().requires_grad_()
        w = (shares(2, 5, 2) + 0.1).double().requires_grad_()
        n = torch.tensor([5, 3])
        for op in (
            lambda x, w: R.statistics_pooling(x, n, weights=w),
            lambda x, w: R.statistics_pooling(x, n, correction=1) + 0 * w.sum(),
            lambda x, w: R.attentive_statistics_pooling(x, w, n),
        ):
            assert torch.autograd.gradcheck(op, (x, w))
            assert torch.autograd.gradgradcheck(op, (x, w))

    def test_torch_s_own(self):
        x = frames(3, 50, 8).double()
        want = torch.cat([x.mean(1), x.std(1)], 1)
        torch.testing.assert_close(R.statistics_pooling(x, correction=1), want)
        want = torch.cat([x.mean(1), x.std(1, correction=0)], 1)
        torch.testing.assert_close(R.statistics_pooling(x), want)


def ops(case: str):
    """Name -> op of (M, x, second input, lengths), M the functional module or the reference."""
    return {
        "equal": lambda M, x, w, n: M.statistics_pooling(x, n),
        "unbiased": lambda M, x, w, n: M.statistics_pooling(x, n, correction=1),
        "weights": lambda M, x, w, n: M.statistics_pooling(x, n, weights=w),
        "scores": lambda M, x, w, n: M.attentive_statistics_pooling(x, w, n),
    }[case]


# (B, T, C): one of everything, tails of vectors and blocks of frames, several blocks of channels.
SHAPES = [(1, 2, 1), (2, 3, 5), (3, 17, 33), (2, 70, 1100), (5, 33, 12)]
# Each case, and groups of channels.
CASES = [
    ("equal", None),
    ("unbiased", None),
    ("weights", 1),
    ("weights", "half"),
    ("scores", 1),
    ("scores", "half"),
    ("scores", "all"),
]


def second(case: str, groups, B: int, T: int, C: int) -> Tensor:
    G = {None: 1, 1: 1, "half": C // 2 if C % 2 == 0 else 1, "all": C}[groups]
    return shares(B, T, G, seed=3) + 0.05 if case == "weights" else frames(B, T, G, seed=3)


class TestAccuracy:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize(("case", "groups"), CASES)
    def test_values_and_gradients(self, backend, shape, case, groups):
        B, T, C = shape
        x, w = frames(*shape), second(case, groups, *shape)
        n = torch.randint(2, T + 1, (B,), generator=torch.Generator().manual_seed(4))
        op = ops(case)
        leaves = [x] if case in ("equal", "unbiased") else [x, w]
        for lengths in (None, n):

            def call(M, *leaves, lengths=lengths):
                of = None if lengths is None else lengths.to(leaves[0].device)
                return op(M, leaves[0], leaves[-1], of)

            assert_as_accurate(
                lambda *ls: call(F, *ls), lambda *ls: call(R, *ls), leaves,
                device=device_of(backend), weights=frames(B, 2 * C, seed=5), factor=3.0,
                message=case,
            )  # fmt: skip

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(
        ("case", "groups"),
        [("equal", 1), ("weights", 1), ("scores", 1), ("scores", "half"), ("scores", "all")],
    )
    def test_half_precision(self, backend, case, groups, dtype):
        x = frames(3, 50, 20).to(dtype)
        w = second(case, groups, 3, 50, 20).to(dtype)
        op = ops(case)
        device = device_of(backend)
        assert op(F, x.to(device), w.to(device), None).dtype == torch.float32
        leaves = [x] if case == "equal" else [x, w]
        assert_as_accurate(
            lambda *ls: op(F, ls[0], ls[-1], None), lambda *ls: op(R, ls[0], ls[-1], None), leaves,
            device=device, weights=frames(3, 40, seed=5),
        )  # fmt: skip

    def test_a_mean_of_30_in_bfloat16(self, backend):
        """E[x^2] - mean^2 is below 0, and clamped, in most of these channels."""
        x = frames(2, 400, 512, scale=0.1, mean=30.0).bfloat16()
        square = x.square().mean(1) - x.mean(1).square()
        assert (square <= 0).float().mean() > 0.4
        want = x.double().std(1, correction=0)
        for got in (
            F.statistics_pooling(x.to(device_of(backend))),
            F.attentive_statistics_pooling(
                x.to(device_of(backend)), torch.zeros_like(x).to(device_of(backend))
            ),
        ):
            torch.testing.assert_close(got[:, 512:].cpu().double(), want, rtol=1e-5, atol=0)

    def test_a_mean_of_1e4(self, backend):
        x = frames(2, 1500, 40, mean=1e4)
        want = x.double().std(1, correction=0)
        got = F.statistics_pooling(x.to(device_of(backend)))[:, 40:].cpu().double()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=0)

    def test_scores_of_1e4_and_a_sharp_maximum(self, backend):
        x, s = frames(3, 60, 20), frames(3, 60, 20, seed=1, scale=1e4)
        s[:, 31:] -= 1e6
        assert_as_accurate(
            F.attentive_statistics_pooling, R.attentive_statistics_pooling, [x, s],
            device=device_of(backend), weights=frames(3, 40, seed=5),
        )  # fmt: skip

    def test_frames_of_minus_infinity_are_left_out(self, backend):
        device = device_of(backend)
        x, s = frames(2, 80, 6).to(device), frames(2, 80, 6, seed=1).to(device)
        s[:, :40] = -math.inf  # whole blocks of frames
        got = F.attentive_statistics_pooling(x.requires_grad_(), s.requires_grad_())
        want = F.attentive_statistics_pooling(x[:, 40:], s[:, 40:])
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        for gradient in torch.autograd.grad(got.sum(), (x, s)):
            assert torch.isfinite(gradient).all()
            assert (gradient[:, :40] == 0).all()

    def test_a_constant_channel(self, backend):
        """The deviation is the least there is, and has no gradient: no infinite one."""
        device = device_of(backend)
        x = torch.full((2, 9, 3), 5.0, device=device, requires_grad=True)
        s = torch.zeros(2, 9, 3, device=device)
        for found in (
            F.statistics_pooling(x, correction=1),
            F.attentive_statistics_pooling(x, s),
        ):
            torch.testing.assert_close(found[:, 3:], torch.full_like(found[:, 3:], 1e-7**0.5))
            (gradient,) = torch.autograd.grad(found[:, 3:].sum(), x)
            assert (gradient == 0).all()


class TestMeaning:
    @pytest.mark.parametrize("case", ["equal", "unbiased", "scores"])
    def test_padding_changes_nothing(self, backend, case):
        device = device_of(backend)
        x = frames(4, 30, 6).to(device)
        s = frames(4, 30, 6, seed=1).to(device)
        n = torch.tensor([30, 2, 17, 9], device=device)
        op = ops(case)
        leaves = [x, s] if case == "scores" else [x]

        def call(xs, ns):
            return op(F, xs[0], xs[-1], ns[0])

        assert_padding_invariant(call, leaves, [n] * len(leaves))
        assert_alone_as_in_batch(call, leaves, [n] * len(leaves))

    def test_weights_in_the_padding_do_not_count(self, backend):
        device = device_of(backend)
        x, w = frames(2, 9, 4).to(device), shares(2, 9, seed=1).to(device)
        w[1, 5:] = math.nan
        got = F.statistics_pooling(x, [9, 5], weights=w)
        want = F.statistics_pooling(x[1:, :5], weights=w[1:, :5])
        torch.testing.assert_close(got[1:], want, rtol=1e-6, atol=1e-6)

    def test_frames_of_weight_0_are_left_out(self, backend):
        device = device_of(backend)
        x, w = frames(2, 60, 4).to(device), shares(2, 60, seed=1).to(device)
        w[:, :40] = 0  # whole blocks of frames
        got = F.statistics_pooling(x, weights=w)
        want = F.statistics_pooling(x[:, 40:], weights=w[:, 40:])
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)

    def test_whole_weights_repeat_frames(self, backend):
        device = device_of(backend)
        x = frames(1, 4, 3).to(device)
        w = torch.tensor([[1.0, 3.0, 0.0, 2.0]], device=device)
        want = F.statistics_pooling(x[:, [0, 1, 1, 1, 3, 3]])
        torch.testing.assert_close(F.statistics_pooling(x, weights=w), want)

    def test_heads_are_groups_of_channels(self, backend):
        device = device_of(backend)
        x, s = frames(2, 12, 8).to(device), frames(2, 12, 4, seed=1).to(device)
        got = F.attentive_statistics_pooling(x, s)
        for head in range(4):
            mine = slice(2 * head, 2 * head + 2)
            want = F.attentive_statistics_pooling(x[..., mine], s[..., head : head + 1])
            torch.testing.assert_close(got[:, mine], want[:, :2], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(got[:, 8:][:, mine], want[:, 2:], rtol=1e-6, atol=1e-6)

    def test_non_contiguous(self, backend):
        device = device_of(backend)
        x = frames(2, 8, 30).to(device).transpose(1, 2).detach().requires_grad_()
        s = frames(2, 60, 16, seed=1).to(device)[:, ::2, ::2].detach().requires_grad_()
        found = F.attentive_statistics_pooling(x, s)
        incoming = torch.ones((), device=device).expand_as(found)
        got = torch.autograd.grad(found, (x, s), incoming)
        dense = [t.detach().contiguous().requires_grad_() for t in (x, s)]
        want = torch.autograd.grad(F.attentive_statistics_pooling(*dense).sum(), dense)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

    def test_only_the_gradients_asked_for(self, backend):
        device = device_of(backend)
        for case in ("weights", "scores"):
            x = frames(2, 9, 4).to(device)
            w = second(case, "all" if case == "scores" else "half", 2, 9, 4).to(device)
            both = [t.clone().requires_grad_() for t in (x, w)]
            want = torch.autograd.grad(ops(case)(F, *both, None).square().sum(), both)
            for k in range(2):
                leaves = [x.clone(), w.clone()]
                leaves[k].requires_grad_()
                value = ops(case)(F, *leaves, None).square().sum()
                (got,) = torch.autograd.grad(value, leaves[k])
                torch.testing.assert_close(got, want[k])

    def test_a_second_derivative(self, backend):
        device = device_of(backend)
        x = frames(2, 6, 3).to(device).requires_grad_()
        s = frames(2, 6, 3, seed=1).to(device).requires_grad_()

        def second_of(M):
            value = M.attentive_statistics_pooling(x, s).square().sum()
            value = value + M.statistics_pooling(x, [6, 4]).sum()
            (first,) = torch.autograd.grad(value, x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), (x, s))

        for a, b in zip(second_of(F), second_of(_OnTensors), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class _OnTensors:
    """The reference, with lengths as the functional module takes them."""

    attentive_statistics_pooling = staticmethod(R.attentive_statistics_pooling)

    @staticmethod
    def statistics_pooling(x, lengths):
        return R.statistics_pooling(x, torch.tensor(lengths, device=x.device))


class TestIntegration:
    def test_opcheck(self, backend):
        device = device_of(backend)
        x = frames(2, 9, 4).to(device).requires_grad_()
        w = (shares(2, 9, 2) + 0.1).to(device).requires_grad_()
        s = frames(2, 9, 4, seed=1).to(device).requires_grad_()
        n = torch.tensor([9, 4], device=device)
        statistics = torch.ops.speechft.statistics.default
        torch.library.opcheck(statistics, (x, w, n, 0, 1e-7))
        torch.library.opcheck(statistics, (x, None, None, 1, 1e-7))
        attentive = torch.ops.speechft.attentive_statistics.default
        torch.library.opcheck(attentive, (x, s, n, 1e-7))

    def test_compiles_to_one_graph(self, backend):
        device = device_of(backend)
        x = frames(2, 9, 4).to(device).requires_grad_()
        s = frames(2, 9, 4, seed=1).to(device).requires_grad_()
        n = torch.tensor([9, 4], device=device)

        def step(x, s):
            value = F.attentive_statistics_pooling(2 * x, s, n)
            return (value + F.statistics_pooling(x, n)).square().sum()

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(x, s), (x, s))
        want = torch.autograd.grad(step(x, s), (x, s))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

    def test_autocast_changes_nothing(self, backend):
        device = device_of(backend)
        x, s = frames(2, 9, 4).to(device), frames(2, 9, 1, seed=1).to(device)
        want = F.attentive_statistics_pooling(x, s)
        with torch.autocast(device, dtype=torch.bfloat16):
            assert torch.equal(F.attentive_statistics_pooling(x, s), want)

    def test_deterministic(self, backend):
        device = device_of(backend)
        x = frames(4, 90, 600).to(device)
        s, w = frames(4, 90, 600, seed=1).to(device), shares(4, 90, seed=2).to(device)
        assert_deterministic(F.attentive_statistics_pooling, [x, s])
        assert_deterministic(lambda x, w: F.statistics_pooling(x, weights=w), [x, w])


_PEAK = """
import json
import torch
from speechft import functional as F
from speechft.bench.memory import resident_peak
def run(B):
    x, s = (torch.randn(B, 500, 1536, requires_grad=True) for _ in range(2))
    def step():
        value = F.attentive_statistics_pooling(x, s).sum()
        value.backward()
        return value, x.grad, s.grad
    return step
run(1)()  # starts the threads
print(json.dumps(resident_peak(run(8))))
"""


@pytest.mark.skipif(compiled_module() is None, reason="the compiled module is missing")
def test_memory_is_the_gradients():
    """8 x 500 x 1536: each of two gradients is 23.4 MiB; eager PyTorch holds several more."""
    result = subprocess.run(
        [sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) < 56 << 20


X, N = frames(3, 5, 4), torch.tensor([5, 2, 3])
NAN = X.clone()
NAN[1, 1, 2] = math.nan
NEGATIVE = torch.ones(3, 5)
NEGATIVE[1, 1] = -1
NOTHING = torch.ones(3, 5)
NOTHING[1, :2] = 0
BAD = [
    ("x", ArgumentError, (X[0],), {}),
    ("x", ArgumentTypeError, (X.long(),), {}),
    ("x", NonFiniteError, (NAN,), {}),
    ("lengths", LengthError, (X, [5, 0, 3]), {}),
    ("lengths", LengthError, (X, [5, 6, 3]), {}),
    ("lengths", LengthError, (X, [5, 1, 3]), {"correction": 1}),
    ("correction", ArgumentError, (X,), {"correction": 2}),
    ("correction", ArgumentError, (X,), {"correction": 1, "weights": torch.ones(3, 5)}),
    ("epsilon", ArgumentError, (X,), {"epsilon": 0.0}),
    ("weights", ArgumentError, (X,), {"weights": torch.ones(3, 4)}),
    ("weights", ArgumentError, (X,), {"weights": torch.ones(3, 5, 3)}),
    ("weights", ArgumentTypeError, (X,), {"weights": torch.ones(3, 5).double()}),
    ("weights", ArgumentError, (X,), {"weights": NEGATIVE}),
    ("weights", ArgumentError, (X, N), {"weights": NOTHING}),
]


@pytest.mark.parametrize(("argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        F.statistics_pooling(*args, **options)
    assert caught.value.argument == argument


LEFT_OUT = X.clone()
LEFT_OUT[1, :2, 3] = -math.inf
SCORES = [
    ("scores", ArgumentError, (X, X[:, :4])),
    ("scores", ArgumentError, (X, X[..., :3])),
    ("scores", ArgumentTypeError, (X, X.double())),
    ("scores", NonFiniteError, (X, NAN, N)),
    ("scores", NonFiniteError, (X, -1 / (0 * X))),
    ("scores", ArgumentError, (X, LEFT_OUT, N)),
    ("lengths", LengthError, (X, X, [5, 0, 3])),
]


@pytest.mark.parametrize(("argument", "error", "args"), SCORES)
def test_bad_scores_name_the_argument(argument, error, args):
    with pytest.raises(error, match=argument) as caught:
        F.attentive_statistics_pooling(*args)
    assert caught.value.argument == argument


def test_they_are_known_to_doctor():
    assert {"statistics_pooling", "attentive_statistics_pooling"} <= set(speechft.backends.OPS)
