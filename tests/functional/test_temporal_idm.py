"""``F.temporal_idm`` on every backend at hand, held to every promise of an op."""

from __future__ import annotations

import itertools
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
from speechft.backends import compiled_module
from speechft.errors import ArgumentError, ArgumentTypeError, BackendError, LengthError
from speechft.losses import TemporalIDMLoss
from speechft.reference.temporal_idm import distances

BACKENDS = available("temporal_idm")


@pytest.fixture(params=providers("temporal_idm"), ids=name_of)
def backend(request):
    """Each backend that runs here, and on the CPU each instruction set."""
    with running_on(request.param) as name:
        yield name


def sequences(*shape: int, seed: int = 0, apart: float = 1.0) -> Tensor:
    """Frames (B, T, D) whose distances are about so large."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return apart * x / (2 * shape[-1]) ** 0.5


def walks(*shape: int, step: float, seed: int = 0, turn: int = 15) -> Tensor:
    """Sequences whose neighbours are ``step`` apart, at a distance of about 2 from 0; some frames
    are equal.
    """
    steps = sequences(*shape, seed=seed, apart=2**0.5 * step)
    x = steps.cumsum(1) + sequences(shape[0], 1, shape[2], seed=seed + 1, apart=3.0)
    x[:, turn::turn] = x[:, turn - 1 :: turn][:, : x[:, turn::turn].shape[1]]
    return x


def lengths(batch: int, longest: int, seed: int = 0) -> Tensor:
    values = torch.randint(1, longest + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    values[0] = longest
    return values


def by_the_book(x: list[list[float]], sigma: float, margin: float) -> float:
    """The formula, pair by pair, in Python floats."""
    terms = []
    for (i, a), (j, b) in itertools.product(enumerate(x), repeat=2):
        weight, distance = (i - j) ** 2 + 1, math.dist(a, b)
        far = abs(i - j) > sigma
        terms.append(weight * max(0.0, margin - distance) if far else distance / weight)
    return math.fsum(terms) / len(x) ** 2


class TestReference:
    @settings(max_examples=60, deadline=None)
    @given(
        n=st.integers(1, 9),
        sigma=st.sampled_from([0, 0.5, 1, 1.5, 3, 20]),
        margin=st.sampled_from([0.1, 1.0, 1.1, 30.0]),
        seed=st.integers(0, 1000),
    )
    def test_is_the_definition(self, n, sigma, margin, seed):
        x = sequences(2, 9, 3, seed=seed).double()
        got = R.temporal_idm(x, torch.tensor([n, 9]), sigma=sigma, margin=margin, reduction="none")
        for value, frames in zip(got, (x[0, :n], x[1]), strict=True):
            want = by_the_book(frames.tolist(), sigma, margin)
            assert math.isclose(value, want, rel_tol=1e-12, abs_tol=1e-14)

    @pytest.mark.parametrize("sigma", [0, 2])
    def test_gradcheck(self, sigma):
        x = sequences(3, 6, 2).double().requires_grad_()
        n = torch.tensor([6, 4, 1])

        def op(x):
            return R.temporal_idm(x, n, sigma=sigma, margin=1.1, reduction="none")

        assert torch.autograd.gradcheck(op, x)
        assert torch.autograd.gradgradcheck(op, x)

    def test_equal_frames_have_no_gradient_from_each_other(self):
        x = sequences(1, 5, 3).double()
        x[:, 1:4] = x[:, :1]
        x.requires_grad_()
        (first,) = torch.autograd.grad(R.temporal_idm(x, sigma=1), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        assert torch.isfinite(first).all()
        assert torch.isfinite(second).all()
        alone = torch.zeros(1, 4, 3, dtype=torch.float64, requires_grad=True)
        R.temporal_idm(alone).backward()
        assert (alone.grad == 0).all()


# (B, T, D): one of everything; tails of vectors; whole tiles; several of them, an odd and an even
# number, with tails; long sums.
SHAPES = [
    (2, 1, 3),
    (3, 2, 1),
    (3, 9, 17),
    (2, 64, 16),
    (3, 65, 7),
    (2, 150, 40),
    (1, 200, 5),
    (1, 70, 530),
]


def assert_accurate(backend: str, x: Tensor, n: Tensor | None, **options) -> None:
    assert_as_accurate(
        lambda x: F.temporal_idm(x, n, reduction="none", **options),
        lambda x: R.temporal_idm(x, n, reduction="none", **options),
        (x,),
        device=device_of(backend),
        weights=torch.linspace(0.5, 1.5, len(x)),
        message=str(options),
    )


class TestAccuracy:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_values_and_gradients(self, backend, shape):
        x = sequences(*shape)
        for n in (None, lengths(*shape[:2])):
            for sigma, margin in ((0.0, 1.0), (0.0, 1.1), (2.5, 0.9), (70.0, 2.0), (1e9, 1.0)):
                assert_accurate(backend, x, n, sigma=sigma, margin=margin)

    @pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e4])
    @pytest.mark.parametrize("sigma", [0.0, 3.0])
    def test_scales(self, backend, scale, sigma):
        """With the margin of the frames' scale, and with a margin of 1."""
        x = sequences(2, 90, 20, apart=scale)
        for margin in (1.0, scale):
            assert_accurate(backend, x, lengths(2, 90), sigma=sigma, margin=margin)

    @pytest.mark.parametrize("exponent", [-100, 100])
    def test_squares_out_of_the_range_of_float32(self, backend, exponent):
        """Frames and margin times a power of two: bit for bit the same."""
        x, factor = sequences(2, 70, 20).to(device_of(backend)), 2.0**exponent

        def both(x, margin):
            leaf = x.requires_grad_()
            value = F.temporal_idm(leaf, sigma=3, margin=margin, reduction="none")
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

        value, gradient = both(x.clone(), 1.0)
        of_scaled = both(factor * x, factor)
        assert torch.equal(of_scaled[0], factor * value)
        assert torch.equal(of_scaled[1], gradient)

    @pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5])
    @pytest.mark.parametrize("sigma", [0.0, 2.0])
    def test_frames_that_are_nearly_equal(self, backend, step, sigma):
        x = walks(2, 150, 40, step=step)
        assert_accurate(backend, x, lengths(2, 150), sigma=sigma, margin=1.1)

    def test_a_gram_matrix_has_no_digits_of_them(self):
        x = walks(2, 150, 40, step=1e-5)
        squares = x.square().sum(2)
        gram = squares[:, :, None] + squares[:, None] - 2 * x @ x.transpose(1, 2)
        exact = distances(x.double())
        error = (gram.clamp_min(0).sqrt() - exact).abs() / exact
        assert error[exact > 0].max() > 1
        direct = (distances(x) - exact).abs() / exact
        assert direct[exact > 0].max() < 1e-6

    def test_many_features_that_differ_alike(self, backend):
        """Each square is rounded in the same way by a sum that grows: 62 epsilons, one by one."""
        x = sequences(16, 2, 1).expand(16, 2, 4096)
        assert_accurate(backend, x, None, sigma=1.0)

    def test_equal_frames(self, backend):
        x = sequences(1, 1, 6).expand(2, 80, 6)
        leaf = x.to(device_of(backend)).requires_grad_()
        value = F.temporal_idm(leaf, [80, 1], sigma=2, margin=1.5, reduction="none")
        value.sum().backward()
        assert (leaf.grad == 0).all()
        assert value[0].item() == pytest.approx(by_the_book([[0.0]] * 80, 2, 1.5), rel=1e-6)
        assert value[1].item() == 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, backend, dtype):
        for x in (walks(3, 90, 12, step=0.2), sequences(3, 90, 300)):
            x = x.to(dtype)
            assert F.temporal_idm(x.to(device_of(backend))).dtype == torch.float32
            assert_accurate(backend, x, lengths(3, 90), sigma=1.0, margin=1.1)

    def test_frames_beyond_the_margin_have_no_part(self, backend):
        """Two clusters: tiles of pairs with no weight, and tiles in which few have one."""
        x = sequences(1, 260, 10, apart=0.5)
        x[:, 130:] += 5
        x[:, 200] = x[:, 3]
        assert_accurate(backend, x, None)

    def test_non_contiguous_inputs_and_gradients(self, backend):
        x = sequences(6, 12, 40).to(device_of(backend)).transpose(1, 2)[::2, :, ::3]
        leaf = x.detach().requires_grad_()
        value = F.temporal_idm(leaf, reduction="none")
        incoming = torch.ones((), device=x.device).expand(3)  # stride 0
        (got,) = torch.autograd.grad(value, leaf, incoming)
        dense = x.detach().contiguous().requires_grad_()
        (want,) = torch.autograd.grad(F.temporal_idm(dense, reduction="sum"), dense)
        torch.testing.assert_close(got, want)


class TestLengths:
    @pytest.mark.parametrize("sigma", [0.0, 2.0])
    def test_padding_and_batch_mates_change_nothing(self, backend, sigma):
        device = device_of(backend)
        # Numbers of padding may not decide the scale of a sample either.
        x, n = (
            sequences(5, 70, 6) * torch.tensor([1, 1e-3, 1, 1e3, 1])[:, None, None],
            lengths(5, 70),
        )

        def op(inputs, lengths):
            x, n = (ts[0].to(device) for ts in (inputs, lengths))
            return F.temporal_idm(x, n, sigma=sigma, reduction="none").cpu()

        assert_padding_invariant(op, (x,), (n,))
        assert_padding_invariant(op, (x,), (n,), fill=1e30, grow=80)
        assert_alone_as_in_batch(op, (x,), (n,))

    def test_every_kind_of_lengths_is_taken(self, backend):
        x, n = sequences(4, 12, 3).to(device_of(backend)), lengths(4, 12)
        want = F.temporal_idm(x, n.to(x.device))
        for given_lengths in (n.tolist(), n.int(), speechft.Lengths(n)):
            assert torch.equal(F.temporal_idm(x, given_lengths), want)

    def test_reductions(self, backend):
        x, n = sequences(4, 12, 3).to(device_of(backend)), [12, 5, 1, 7]
        each = F.temporal_idm(x, n, reduction="none")
        assert each.shape == (4,)
        torch.testing.assert_close(F.temporal_idm(x, n), each.mean())
        torch.testing.assert_close(F.temporal_idm(x, n, reduction="sum"), each.sum())


class TestIntegration:
    def arguments(self, device: str):
        x = sequences(3, 8, 4).to(device).requires_grad_()
        return x, torch.tensor([7, 3, 1], device=device)

    @pytest.mark.parametrize("near", [0, 2])
    def test_opcheck(self, backend, near):
        x, n = self.arguments(device_of(backend))
        for lengths_given in (n, None):
            torch.library.opcheck(
                torch.ops.speechft.temporal_idm.default, (x, lengths_given, near, 1.0, True)
            )

    def test_compiles_to_one_graph(self, backend):
        x, n = self.arguments(device_of(backend))

        def step(x, n):
            return 3 * TemporalIDMLoss(margin=1.1)(torch.cat([2 * x, x], -1), n)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(x, n), x)
        want = torch.autograd.grad(step(x, n), x)
        torch.testing.assert_close(got, want)

    def test_autocast_computes_in_float32(self, backend):
        x, n = self.arguments(device_of(backend))
        want = F.temporal_idm(x, n, sigma=1)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            got = F.temporal_idm(x, n, sigma=1)
            with speechft.use_backend("reference"):
                reference = F.temporal_idm(x, n, sigma=1)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        torch.testing.assert_close(reference, want)

    @pytest.mark.parametrize("batch", [1, 5])
    def test_deterministic(self, backend, batch):
        x = walks(batch, 300, 12, step=0.1).to(device_of(backend))
        assert_deterministic(lambda x: F.temporal_idm(x, sigma=1, reduction="none"), (x,))

    def test_threads_change_no_bit(self):
        """Blocks of frames that meet twice in a round would be added to by two threads at once."""
        x = walks(2, 520, 12, step=0.05)
        threads, found = torch.get_num_threads(), []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            value = F.temporal_idm(leaf, [520, 300], sigma=1, reduction="none")
            found.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
        torch.set_num_threads(threads)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))

    def test_the_value_is_the_same_bits_without_a_gradient(self, backend):
        x = walks(3, 200, 12, step=0.1).to(device_of(backend))
        with_gradient = F.temporal_idm(x.clone().requires_grad_())
        assert torch.equal(F.temporal_idm(x), with_gradient)
        assert not F.temporal_idm(x).requires_grad
        with torch.no_grad():
            assert not F.temporal_idm(x.requires_grad_()).requires_grad

    def test_double_backward(self, backend):
        x, n = sequences(3, 6, 4).to(device_of(backend)), torch.tensor([6, 3, 1])

        def second(op, x):
            leaf = x.clone().requires_grad_()
            value = op(leaf, n.to(leaf.device), sigma=1)
            (first,) = torch.autograd.grad(value, leaf, create_graph=True)
            return torch.autograd.grad(first.square().sum(), leaf)[0]

        want = second(R.temporal_idm, x.cpu().double())
        torch.testing.assert_close(
            second(F.temporal_idm, x).cpu().double(), want, rtol=1e-4, atol=1e-5
        )

    def test_float64_runs_on_the_reference(self):
        x = sequences(2, 5, 3).double()
        assert torch.equal(F.temporal_idm(x), R.temporal_idm(x))
        if "cpu" in BACKENDS:
            with speechft.use_backend("cpu"), pytest.raises(BackendError, match="float64"):
                F.temporal_idm(x)

    def test_module(self):
        x, n = sequences(4, 12, 3), [12, 5, 1, 7]
        loss = TemporalIDMLoss(2, 1.1, reduction="sum")
        assert torch.equal(loss(x, n), F.temporal_idm(x, n, sigma=2, margin=1.1, reduction="sum"))
        assert "margin=1.1" in repr(loss)


def test_a_sequence_that_collapses_is_pushed_apart():
    """Gradient descent on frames that are nearly one point: in the end they keep the margin."""
    x = (1e-3 * sequences(1, 12, 16)).requires_grad_()
    assert F.temporal_idm(x, margin=1.1).item() > 20
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        F.temporal_idm(x, margin=1.1).backward()
        optimizer.step()
    between = torch.pdist(x.detach()[0])
    assert between.min() > 1.05


X = torch.zeros(2, 3, 4)
NAN = X.clone()
NAN[1, 2, 3] = math.nan
BAD = [
    ("x", ArgumentError, (X[0],), {}),
    ("x", ArgumentError, (X[:, :0],), {}),
    ("x", ArgumentTypeError, (X.long(),), {}),
    ("x", ArgumentTypeError, ([[1.0]],), {}),
    ("x", ArgumentError, (NAN,), {}),
    ("lengths", LengthError, (X, torch.tensor([3, 0])), {}),
    ("lengths", LengthError, (X, torch.tensor([3, 4])), {}),
    ("lengths", LengthError, (X, torch.tensor([3])), {}),
    ("lengths", ArgumentTypeError, (X, torch.tensor([1.0, 0.5])), {}),
    ("sigma", ArgumentError, (X,), {"sigma": -1.0}),
    ("sigma", ArgumentError, (X,), {"sigma": math.inf}),
    ("sigma", ArgumentTypeError, (X,), {"sigma": "1"}),
    ("margin", ArgumentError, (X,), {"margin": 0.0}),
    ("margin", ArgumentError, (X,), {"margin": math.nan}),
    ("margin", ArgumentTypeError, (X,), {"margin": None}),
    ("reduction", ArgumentError, (X,), {"reduction": "avg"}),
]


@pytest.mark.parametrize(("argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        F.temporal_idm(*args, **options)
    assert caught.value.argument == argument


def test_nan_in_padding_is_no_error():
    assert torch.isfinite(F.temporal_idm(NAN, [3, 2]))


MEMORY = """
import json
import torch
from speechft.bench.memory import resident_peak
from speechft import functional as F

x = torch.randn(4, 900, 512, requires_grad=True)  # 7 MiB; 4 x 900 x 900 distances are 12 MiB more
F.temporal_idm(x[:, :130].detach().clone().requires_grad_()).backward()
torch.set_num_threads(2)

def run():
    F.temporal_idm(x, margin=60.0).backward()

print(json.dumps(resident_peak(run) / x.numel() / 4))
"""


@pytest.mark.skipif(compiled_module() is None, reason="the compiled module is missing")
def test_memory_is_the_gradient():
    """Of the CPU: the gradient, once as made and once as returned, and tiles of two threads."""
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    tiles = 2 * 4 * 65 * 512 / (4 * 900 * 512)
    assert json.loads(result.stdout.splitlines()[-1]) < 2 + tiles + 0.4
