"""``F.dino`` on every backend at hand, held to every promise of an op."""

from __future__ import annotations

import json
import math
import subprocess
import sys

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
from speechft.backends import compiled_module
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError, NonFiniteError
from speechft.functional import _dino_op


@pytest.fixture(params=providers("dino"), ids=name_of)
def backend(request):
    """Each backend that runs here, and on the CPU each instruction set."""
    with running_on(request.param) as name:
        yield name


def logits(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_the_book(student, teacher, center, tau_s, tau_t, skip_same) -> float:
    """Number by number in Python floats, of one sample."""

    def log_softmax(row: list[float]) -> list[float]:
        most = max(row)
        log_sum = most + math.log(math.fsum(math.exp(x - most) for x in row))
        return [x - log_sum for x in row]

    terms = []
    for u, t in enumerate(teacher):
        target = log_softmax([(x - c) / tau_t for x, c in zip(t, center, strict=True)])
        for v, s in enumerate(student):
            if skip_same and u == v:
                continue
            found = log_softmax([x / tau_s for x in s])
            pairs = zip(target, found, strict=True)
            terms.append(-math.fsum(math.exp(p) * q for p, q in pairs))
    return math.fsum(terms) / len(terms)


class TestReference:
    @settings(max_examples=60, deadline=None)
    @given(
        students=st.integers(2, 5),
        teachers=st.integers(1, 2),
        codes=st.integers(1, 6),
        skip=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def test_is_the_definition(self, students, teachers, codes, skip, seed):
        s = logits(students, 3, codes, seed=seed).double()
        t = logits(teachers, 3, codes, seed=seed + 1).double()
        c = logits(codes, seed=seed + 2).double()
        got = R.dino(s, t, center=c, skip_same=skip, reduction="none")
        want = [
            by_the_book(s[:, b].tolist(), t[:, b].tolist(), c.tolist(), 0.1, 0.04, skip)
            for b in range(3)
        ]
        exact = torch.tensor(want, dtype=torch.float64)
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)

    def test_gradcheck(self):
        s = logits(3, 2, 5).double().requires_grad_()
        t, c = logits(2, 2, 5, seed=1).double(), logits(5, seed=2).double()
        op = lambda s: R.dino(s, t, center=c, student_temperature=0.5)  # noqa: E731
        assert torch.autograd.gradcheck(op, s)
        assert torch.autograd.gradgradcheck(op, s)

    def test_it_is_the_published_loss(self):
        """Caron et al., algorithm 1, as the code of DINO writes it: chunks, and pairs skipped."""
        s, t, c = logits(6, 8, 30), logits(2, 8, 30, seed=1), logits(1, 30, seed=2)
        total, terms = 0.0, 0
        targets = ((t - c) / 0.04).softmax(-1).unbind(0)
        for u, q in enumerate(targets):
            for v, x in enumerate((s / 0.1).unbind(0)):
                if u != v:
                    total += torch.sum(-q * x.log_softmax(-1), dim=-1).mean()
                    terms += 1
        assert terms == 10
        torch.testing.assert_close(R.dino(s, t, center=c[0]), total / terms)

    def test_it_is_lightly_s_loss(self):
        """Its formula: probabilities by einsum over pairs of views, the same view's set to 0."""
        s, t, c = logits(4, 8, 30), logits(2, 8, 30, seed=1), logits(1, 1, 30, seed=2)
        q, p = ((t - c) / 0.05).softmax(-1), (s / 0.1).log_softmax(-1)
        pairs = -torch.einsum("tbk,sbk->ts", q, p)
        pairs.fill_diagonal_(0)
        want = pairs.sum() / (pairs.numel() - min(pairs.shape)) / s.shape[1]
        got = R.dino(s, t, center=c.flatten(), teacher_temperature=0.05)
        torch.testing.assert_close(got, want)


# (V_s, V_t, B, K): one of everything; tails of vectors; more than one chunk and one slab.
SHAPES = [(2, 1, 1, 1), (2, 2, 3, 5), (6, 2, 17, 33), (3, 3, 2, 1030), (4, 3, 40, 2100)]


class TestAccuracy:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("skip", [True, False], ids=["skip", "all"])
    def test_values_and_gradients(self, backend, shape, skip):
        V_s, V_t, B, K = shape
        s, t = logits(V_s, B, K), logits(V_t, B, K, seed=1)
        c, each = logits(K, seed=2), logits(V_t, K, seed=3)
        for case in ({}, {"center": c}, {"center": each}):

            def call(op, s, case=case):
                moved = {name: row.to(s) for name, row in case.items()}
                return op(s, t.to(s), skip_same=skip, reduction="none", **moved)

            assert_as_accurate(
                lambda s: call(F.dino, s), lambda s: call(R.dino, s), [s],
                device=device_of(backend), weights=logits(B, seed=5), message=str(case),
            )  # fmt: skip

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, backend, dtype):
        s, t = logits(4, 6, 300).to(dtype), logits(2, 6, 300, seed=1).to(dtype)
        c = logits(300, seed=2)
        for reduction in ("mean", "none"):

            def call(op, s, reduction=reduction):
                found = op(s, t.to(s), center=c.to(s.device), reduction=reduction)
                assert found.dtype == (torch.float64 if s.dtype == torch.float64 else torch.float32)
                return found

            assert_as_accurate(
                lambda s: call(F.dino, s), lambda s: call(R.dino, s), [s],
                device=device_of(backend),
            )  # fmt: skip

    def test_a_small_gradient_survives_in_float16(self, backend):
        """Of the mean over 4096 rows of 512 codes it is 5e-6: float16 has 80 steps up to there.

        Lifted by 2^8 and then scaled by 2^16, steps are of 1.5e-5.
        """
        device = device_of(backend)
        s = logits(2, 4096, 512, scale=0.1).half().to(device).requires_grad_()
        t = logits(2, 4096, 512, seed=1).half().to(device)
        value = F.dino(s, t) * 2.0**16  # as a gradient scaler does
        (got,) = torch.autograd.grad(value, s)
        wide = s.detach().double().requires_grad_()
        (want,) = torch.autograd.grad(R.dino(wide, t.double()) * 2.0**16, wide)
        torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=1e-5)

    @pytest.mark.parametrize("scale", [1e2, 1e4])
    def test_logits_of_1e4(self, backend, scale):
        s, t = logits(3, 5, 1500, scale=scale), logits(2, 5, 1500, seed=1, scale=scale)
        assert_as_accurate(
            lambda s: F.dino(s, t.to(s), reduction="none"),
            lambda s: R.dino(s, t.to(s), reduction="none"),
            [s],
            device=device_of(backend),
        )

    def test_a_row_whose_logits_grow(self, backend):
        """Each chunk has logits far above all before it, and far below in the other view."""
        ramp = torch.linspace(-2000, 2000, 5000)
        s, t = torch.stack([ramp, ramp.flip(0)])[:, None], logits(2, 1, 5000, seed=1) + ramp
        assert_as_accurate(
            lambda s: F.dino(s, t.to(s)), lambda s: R.dino(s, t.to(s)), [s],
            device=device_of(backend),
        )  # fmt: skip


class TestMeaning:
    def test_terms(self, backend):
        device = device_of(backend)
        s, t = logits(3, 40, 2500).to(device), logits(2, 40, 2500, seed=1).to(device)
        t = t + torch.linspace(0, 3, 2500, device=device)  # later chunks have larger logits
        c = logits(2500, seed=2).to(device)
        got, want = (op(s, t, center=c) for op in (F.dino_terms, R.dino_terms))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.teacher_mean, t.mean((0, 1)), rtol=1e-5, atol=1e-6)

    def test_lists_of_views_are_stacked_views(self, backend):
        device = device_of(backend)
        s, t = logits(4, 5, 60).to(device).requires_grad_(), logits(2, 5, 60, seed=1).to(device)
        want = F.dino(s, t)
        (of_stacked,) = torch.autograd.grad(want, s)
        views = [view.detach().clone().requires_grad_() for view in s]
        got = F.dino(views, list(t))
        of_views = torch.autograd.grad(got, views)
        assert torch.equal(got, want)
        assert torch.equal(torch.stack(of_views), of_stacked)
        # One pass of a head over all crops, in chunks: strided views of one tensor.
        chunks = s.detach().reshape(20, 60).chunk(4)
        assert torch.equal(F.dino(chunks, t.reshape(10, 60).chunk(2)), want)

    def test_reductions(self, backend):
        s, t = (x.to(device_of(backend)) for x in (logits(3, 5, 60), logits(2, 5, 60, seed=1)))
        each = F.dino(s, t, reduction="none")
        assert each.shape == (5,)
        torch.testing.assert_close(F.dino(s, t, reduction="sum"), each.sum())
        torch.testing.assert_close(F.dino(s, t), each.mean())

    def test_temperatures_may_be_tensors(self, backend):
        device = device_of(backend)
        s, t = logits(2, 5, 60).to(device), logits(2, 5, 60, seed=1).to(device)
        temperatures = {"student_temperature": 0.2, "teacher_temperature": 0.07}
        tensors = {name: torch.tensor([value]) for name, value in temperatures.items()}
        assert torch.equal(F.dino(s, t, **tensors), F.dino(s, t, **temperatures))

    def test_frames_beyond_the_lengths_have_no_part(self, backend):
        device = device_of(backend)
        n = torch.tensor([4, 1, 3], device=device)
        valid = torch.arange(6, device=device) < n[:, None]
        s, t = logits(3, 3, 6, 40).to(device), logits(2, 3, 6, 40, seed=1).to(device)
        s, t = (x.masked_fill(~valid[..., None], math.nan) for x in (s, t))
        s.requires_grad_()
        terms = F.dino_terms(s, t, student_lengths=n)
        (gradient,) = torch.autograd.grad(terms.loss, s)
        kept = s.detach()[:, valid].requires_grad_()
        alone = F.dino_terms(kept, t[:, valid])
        (wanted,) = torch.autograd.grad(alone.loss, kept)
        for a, b in zip(terms, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient[:, valid], wanted, rtol=1e-6, atol=1e-7)
        assert (gradient[:, ~valid] == 0).all()
        each = F.dino(s, t, student_lengths=n, reduction="none")
        assert each.shape == (3, 6)
        assert (each[~valid] == 0).all()
        torch.testing.assert_close(each.sum() / n.sum(), terms.loss, rtol=1e-6, atol=1e-6)

    def test_a_sample_is_the_same_alone(self, backend):
        device = device_of(backend)
        s, t = logits(3, 9, 400).to(device), logits(2, 9, 400, seed=1).to(device)
        together = F.dino(s, t, reduction="none")
        for b in range(9):
            alone = F.dino(s[:, b : b + 1], t[:, b : b + 1], reduction="none")
            torch.testing.assert_close(alone[0], together[b], rtol=1e-6, atol=1e-6)

    def test_a_view_without_a_pair_gets_no_gradient(self, backend):
        device = device_of(backend)
        s = logits(2, 3, 8).to(device).requires_grad_()
        (gradient,) = torch.autograd.grad(F.dino(s, logits(1, 3, 8, seed=1).to(device)), s)
        assert (gradient[0] == 0).all()
        assert (gradient[1] != 0).all()


class TestBackward:
    def test_what_comes_in_scales_it(self, backend):
        device = device_of(backend)
        t = logits(2, 5, 60, seed=1).to(device)
        s = logits(3, 5, 60).to(device).requires_grad_()
        (once,) = torch.autograd.grad(F.dino(s, t), s)
        (thrice,) = torch.autograd.grad(3 * F.dino(s, t), s)
        torch.testing.assert_close(thrice, 3 * once)

    def test_a_second_pass_over_the_same_graph(self, backend):
        """Right, or refused: never what the first left behind."""
        device = device_of(backend)
        s = logits(3, 5, 60).to(device).requires_grad_()
        value = 3 * F.dino(s, logits(2, 5, 60, seed=1).to(device))
        (first,) = torch.autograd.grad(value, s, retain_graph=True)
        first = first.clone()
        if device == "cuda":
            with pytest.raises(RuntimeError, match="runs once"):
                torch.autograd.grad(value, s)
        else:
            assert torch.equal(torch.autograd.grad(value, s)[0], first)

    def test_scaled_in_place_it_runs_once(self, monkeypatch):
        """What the backward does on a GPU, on the CPU."""
        t = logits(2, 5, 60, seed=1)
        for dtype in (torch.float32, torch.float16):
            s = logits(3, 5, 60).to(dtype).requires_grad_()
            (want,) = torch.autograd.grad(3 * F.dino(s, t.to(dtype)), s)
            with monkeypatch.context() as patched:
                patched.setattr(_dino_op, "scales_in_place", lambda gradient: True)
                value = 3 * F.dino(s, t.to(dtype))
                (got,) = torch.autograd.grad(value, s, retain_graph=True)
                torch.testing.assert_close(got, want)
                with pytest.raises(RuntimeError, match="runs once"):
                    torch.autograd.grad(value, s)

    def test_there_is_no_second_derivative(self, backend):
        device = device_of(backend)
        s = logits(3, 5, 60).to(device).requires_grad_()
        value = F.dino(s, logits(2, 5, 60, seed=1).to(device))
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(value, s, create_graph=True)

    def test_without_a_gradient_none_is_made(self, backend):
        s = logits(3, 5, 60).to(device_of(backend))
        out = torch.ops.speechft.dino(
            [s], [s[:2]], None, torch.tensor(0.1, device=s.device),
            torch.tensor(0.1, device=s.device), torch.ones(5, device=s.device), True, False,
        )  # fmt: skip
        assert out[3] == []


class TestIntegration:
    def test_opcheck(self, backend):
        device = device_of(backend)
        tau = torch.tensor(0.1, device=device)
        s = logits(3, 5, 20).to(device).requires_grad_()
        t, w = logits(2, 5, 20, seed=1).to(device), torch.ones(5, device=device)
        op = torch.ops.speechft.dino.default
        bias = logits(2, 20, seed=3).to(device)
        # What it returns for the gradient is no output to differentiate by itself.
        tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
        torch.library.opcheck(op, ([s], [t], bias, tau, tau, w, True, True), test_utils=tests)
        torch.library.opcheck(op, ([s], [t], None, tau, tau, w, False, False), test_utils=tests)

    def test_compiles_to_one_graph(self, backend):
        device = device_of(backend)
        s = logits(3, 5, 20).to(device).requires_grad_()
        t = logits(2, 5, 20, seed=1).to(device)
        c = logits(20, seed=2).to(device)

        def step(s):
            return F.dino(2 * s, t, center=c) * 3

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        (got,) = torch.autograd.grad(compiled(s), s)
        (want,) = torch.autograd.grad(step(s), s)
        torch.testing.assert_close(got, want)

    def test_autocast_changes_nothing(self, backend):
        device = device_of(backend)
        s, t = logits(3, 5, 20).to(device), logits(2, 5, 20, seed=1).to(device)
        want = F.dino(s, t)
        with torch.autocast(device, dtype=torch.bfloat16):
            assert torch.equal(F.dino(s, t), want)

    def test_deterministic(self, backend):
        device = device_of(backend)
        s, t = logits(3, 70, 300).to(device), logits(2, 70, 300, seed=1).to(device)
        assert_deterministic(lambda s: F.dino(s, t), [s])
        threads = torch.get_num_threads()
        means = []
        try:
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                means.append(F.dino_terms(s, t))
        finally:
            torch.set_num_threads(threads)
        for other in means[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, means[0], strict=True))


def test_float64_runs_on_the_reference():
    s, t = logits(2, 3, 9).double(), logits(2, 3, 9, seed=1).double()
    assert F.dino(s, t).dtype == torch.float64
    assert torch.equal(F.dino(s, t), R.dino(s, t))


_PEAK = """
import json, sys
import torch
from speechft import functional as F
from speechft.bench.memory import resident_peak
def run(B, K):
    s, t = torch.randn(2, B, K, requires_grad=True), torch.randn(2, B, K)
    def step():
        value = F.dino(s, t)
        value.backward()
        return value, s.grad
    return step
run(2, 64)()  # starts the threads
print(json.dumps(resident_peak(run(64, 65536))))
"""


@pytest.mark.skipif(compiled_module() is None, reason="the compiled module is missing")
def test_memory_is_one_gradient():
    """2 views of 64 x 65,536: the gradient is 32 MiB, sums and targets some; eager holds 200."""
    result = subprocess.run(
        [sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) < 48 << 20


S, T = logits(3, 4, 6), logits(2, 4, 6, seed=1)
NAN = S.clone()
NAN[1, 2, 3] = math.nan
BAD = [
    ("teacher", ArgumentError, (S, T.clone().requires_grad_()), {}),
    ("teacher", ArgumentError, (S, T[..., :5]), {}),
    ("teacher", ArgumentTypeError, (S, T.double()), {}),
    ("teacher", NonFiniteError, (S, NAN[:2]), {}),
    ("student", NonFiniteError, (NAN, T), {}),
    ("student", ArgumentError, (S[:1], T), {}),
    ("student", ArgumentError, (S[:1], T[:1]), {}),
    ("student", ArgumentError, (S[0, 0], T), {}),
    ("student", ArgumentTypeError, (S.long(), T), {}),
    ("student", ArgumentTypeError, ([], T), {}),
    ("student", ArgumentError, ([S[0], S[0, :2]], T), {}),
    ("student_temperature", ArgumentError, (S, T), {"student_temperature": 0.0}),
    ("teacher_temperature", ArgumentError, (S, T), {"teacher_temperature": -1.0}),
    (
        "teacher_temperature",
        ArgumentError,
        (S, T),
        {"teacher_temperature": torch.tensor(0.1, requires_grad=True)},
    ),
    ("center", ArgumentError, (S, T), {"center": torch.zeros(5)}),
    ("center", ArgumentError, (S, T), {"center": torch.zeros(6, requires_grad=True)}),
    ("center", NonFiniteError, (S, T), {"center": torch.full((6,), math.inf)}),
    ("center", ArgumentError, (S, T), {"center": torch.zeros(3, 6)}),
    ("student_lengths", ArgumentError, (S, T), {"student_lengths": [1, 1, 1, 1]}),
    ("student_lengths", LengthError, (S[None, None, 0], T[None, None, 0]),
     {"student_lengths": [0], "skip_same": False}),
    ("reduction", ArgumentError, (S, T), {"reduction": "most"}),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        F.dino(*args, **options)
    assert caught.value.argument == argument


def test_it_is_known_to_doctor():
    assert "dino" in speechft.backends.OPS
