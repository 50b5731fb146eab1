"""The losses on two views, and the triplet loss, held to every promise of an op."""

from __future__ import annotations

import math
import resource

import pytest
import torch
from contract import assert_as_accurate, assert_deterministic
from distributed_ranks import run_on_ranks
from torch import Tensor, distributed

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.functional import _gram
from speechft.functional.barlow_twins import barlow_twins
from speechft.functional.orthogonality import orthogonality
from speechft.functional.triplet import triplet
from speechft.functional.vicreg import vicreg
from speechft.losses.barlow_twins import BarlowTwinsLoss
from speechft.losses.orthogonality import OrthogonalityLoss
from speechft.losses.triplet import TripletLoss
from speechft.losses.vicreg import VICRegLoss
from speechft.reference.barlow_twins import barlow_twins as barlow_twins_by_definition
from speechft.reference.orthogonality import orthogonality as orthogonality_by_definition
from speechft.reference.triplet import triplet as triplet_by_definition
from speechft.reference.vicreg import vicreg as vicreg_by_definition

VIEWS = {
    "barlow_twins": (barlow_twins, barlow_twins_by_definition, {"lambd": 0.02}),
    "vicreg": (
        vicreg,
        vicreg_by_definition,
        {"sim_weight": 3.0, "var_weight": 7.0, "cov_weight": 2.0},
    ),
    "feature": (orthogonality, orthogonality_by_definition, {"form": "feature"}),
    "sample": (orthogonality, orthogonality_by_definition, {"form": "sample"}),
    "legacy feature": (
        orthogonality,
        orthogonality_by_definition,
        {"form": "feature", "legacy": True},
    ),
    "legacy sample": (
        orthogonality,
        orthogonality_by_definition,
        {"form": "sample", "legacy": True},
    ),
}
TRIPLET = (triplet, triplet_by_definition, {"margin": 0.6})
SHAPES = [(3, 5), (4, 30), (30, 4), (9, 9), (16, 200), (200, 16)]  # both Gram sides


def views(n: int, d: int, *, count: int = 2, seed: int = 0, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return [
        (shared + torch.randn(n, d, generator=generator, dtype=torch.float64)).to(dtype)
        for _ in range(count)
    ]


def of(name: str):
    """Functional, reference (both with the case's settings) and the number of inputs."""
    function, reference, options = TRIPLET if name == "triplet" else VIEWS[name]
    return (
        lambda *z, **more: function(*z, **options, **more),
        lambda *z: reference(*z, **options),
        3 if name == "triplet" else 2,
    )


@pytest.fixture(params=["triplet", *VIEWS])
def case(request):
    return of(request.param)


class TestAccuracy:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("scale", [1, 100, 1e-2])
    def test_value_and_gradients(self, case, shape, scale):
        op, reference, count = case
        for seed in range(3):
            inputs = [scale * z for z in views(*shape, count=count, seed=seed)]
            assert_as_accurate(op, reference, inputs, message=f"seed {seed}")

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
    def test_far_from_the_origin(self, name, shape):
        op, reference, _ = of(name)
        for seed in range(3):
            inputs = [z + 300 for z in views(*shape, seed=seed)]
            assert_as_accurate(op, reference, inputs, message=f"seed {seed}")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(12, 60), (60, 12)], ids=str)
    def test_half_precision(self, case, shape, dtype):
        op, reference, count = case
        inputs = views(*shape, count=count, dtype=dtype)
        assert op(*inputs).dtype == torch.float32
        assert_as_accurate(op, reference, inputs)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_float64_is_exact(self, case, shape):
        op, reference, count = case
        inputs = [z.requires_grad_() for z in views(*shape, count=count, dtype=torch.float64)]
        got, want = op(*inputs), reference(*inputs)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        pairs = zip(
            torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
        )
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("shape", [(3, 8), (8, 3)], ids=str)
    def test_first_and_second_derivatives(self, case, shape):
        op, reference, count = case
        inputs = [z.requires_grad_() for z in views(*shape, count=count, dtype=torch.float64)]
        for function in (op, reference):
            assert torch.autograd.gradcheck(function, inputs)
            assert torch.autograd.gradgradcheck(function, inputs)

    @pytest.mark.parametrize("name", VIEWS)
    @pytest.mark.parametrize("shape", [(10, 40), (40, 10)], ids=str)
    def test_both_gram_sides_agree(self, monkeypatch, name, shape):
        op, _, _ = of(name)
        inputs = [z.requires_grad_() for z in views(*shape)]
        monkeypatch.setattr(_gram, "CANCELLED", 0)
        found = []
        for rows in (True, False):
            monkeypatch.setattr(_gram, "rows_are_fewer", lambda *_, rows=rows: rows)
            value = op(*inputs)
            found.append([value, *torch.autograd.grad(value, inputs)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())

    @pytest.mark.parametrize("name", VIEWS)
    @pytest.mark.parametrize("shape", [(24, 100), (100, 24)], ids=str)
    def test_rank_deficient(self, name, shape):
        """Two of the dimensions' directions carry all, but for a thousandth."""
        op, reference, _ = of(name)
        n, d = shape
        inputs = [
            torch.randn(n, 2, generator=torch.Generator().manual_seed(k))
            @ torch.randn(2, d, generator=torch.Generator().manual_seed(9))
            + 1e-3 * z
            for k, z in enumerate(views(n, d))
        ]
        assert_as_accurate(op, reference, inputs)

    @pytest.mark.parametrize("shape", [(16, 80), (80, 16)], ids=str)
    def test_loud_dimension(self, shape):
        """As some layers of speech models have: its variance is not what counts."""
        op, reference, _ = of("vicreg")
        inputs = views(*shape)
        for z in inputs:
            z[:, 5] *= 1e4
        assert_as_accurate(op, reference, inputs)


class TestDegenerate:
    @pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
    @pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
    def test_constant_dimensions(self, name, shape):
        op, reference, _ = of(name)
        inputs = views(*shape)
        for z in inputs:
            z[:, 1] = 0.5
        inputs[0][:, 2] = -3
        assert_as_accurate(op, reference, inputs)
        leaves = [z.requires_grad_() for z in inputs]
        for gradient in torch.autograd.grad(op(*leaves), leaves):
            assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
    @pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
    def test_all_constant(self, name, shape):
        leaves = [torch.full(shape, 2.0).requires_grad_() for _ in range(2)]
        value = of(name)[0](*leaves)
        # no dimension is correlated with its twin; all standard deviations are 0.01
        want = shape[1] if name == "barlow_twins" else 7.0 * 0.99
        assert value.item() == pytest.approx(want, rel=1e-6)
        for gradient in torch.autograd.grad(value, leaves):
            assert (gradient == 0).all()

    @pytest.mark.parametrize("name", ["triplet", "feature", "sample"])
    def test_zero_vectors(self, name):
        op, _, count = of(name)
        leaves = views(5, 7, count=count)
        for z in leaves:
            z[2] = 0
        leaves = [z.requires_grad_() for z in leaves]
        value = op(*leaves)
        assert torch.isfinite(value)
        for gradient in torch.autograd.grad(value, leaves):
            assert gradient.abs().max() < 10

    @pytest.mark.parametrize("shape", [(2, 1), (3, 1), (2, 64)], ids=str)
    def test_smallest(self, case, shape):
        op, reference, count = case
        assert_as_accurate(op, reference, views(*shape, count=count))


class TestIntegration:
    @pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
    def test_non_contiguous(self, case, shape):
        op, _, count = case
        n, d = shape
        strided = [z.T.requires_grad_() for z in views(d, n, count=count)]
        holed = [torch.zeros(2 * n, 2 * d) for _ in range(count)]
        for hole, z in zip(holed, strided, strict=True):
            hole[::2, ::2] = z.detach()
        holed = [hole[::2, ::2].requires_grad_() for hole in holed]
        dense = [z.detach().contiguous().requires_grad_() for z in strided]
        want = torch.autograd.grad(op(*dense), dense)
        for inputs in (strided, holed):
            assert not inputs[0].is_contiguous()
            for one, other in zip(torch.autograd.grad(op(*inputs), inputs), want, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
    def test_deterministic(self, case, shape):
        op, _, count = case
        assert_deterministic(op, views(*shape, count=count))

    @pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
    def test_compiles_to_one_graph(self, case, shape):
        op, _, count = case
        inputs = [z.requires_grad_() for z in views(*shape, count=count)]

        def step(*inputs):
            return 3 * op(*(2 * z for z in inputs))

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got, want = compiled(*inputs), step(*inputs)
        torch.testing.assert_close(got, want)
        pairs = zip(
            torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
        )
        for one, other in pairs:
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
    def test_autocast_computes_in_float32(self, case, shape):
        op, reference, count = case
        inputs = [z.requires_grad_() for z in views(*shape, count=count)]
        want = op(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, other = op(*inputs), reference(*inputs)
        assert got.dtype == other.dtype == torch.float32
        assert torch.equal(got, want)
        torch.testing.assert_close(other, want)
        for one, two in zip(
            torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
        ):
            assert torch.equal(one, two)

    def test_one_gradient_alone(self, case):
        op, _, count = case
        inputs = views(5, 30, count=count)
        leaves = [z.clone().requires_grad_() for z in inputs]
        want = torch.autograd.grad(op(*leaves), leaves)
        for k in range(count):
            mixed = [leaf if j == k else z for j, (leaf, z) in enumerate(zip(leaves, inputs))]  # noqa: B905
            torch.testing.assert_close(torch.autograd.grad(op(*mixed), leaves[k])[0], want[k])
        with torch.no_grad():
            assert not op(*leaves).requires_grad

    def test_modules_keep_their_settings(self):
        a, p, n = views(6, 9, count=3)
        assert torch.equal(
            TripletLoss(0.3, reduction="sum")(a, p, n),
            triplet(a, p, n, margin=0.3, reduction="sum"),
        )
        assert torch.equal(BarlowTwinsLoss(0.3)(a, p), barlow_twins(a, p, lambd=0.3))
        assert torch.equal(
            VICRegLoss(1.0, 2.0, 3.0)(a, p),
            vicreg(a, p, sim_weight=1.0, var_weight=2.0, cov_weight=3.0),
        )
        assert torch.equal(
            OrthogonalityLoss("feature", legacy=True)(a, p), orthogonality(a, p, legacy=True)
        )
        assert repr(TripletLoss(0.3)) == "TripletLoss(margin=0.3, reduction='mean')"
        assert repr(BarlowTwinsLoss(0.3)) == "BarlowTwinsLoss(lambd=0.3, gather=False)"
        assert "cov_weight=3.0, gather=False" in repr(VICRegLoss(1.0, 2.0, 3.0))
        assert "form='sample', legacy=False, gather=True" in repr(
            OrthogonalityLoss("sample", gather=True)
        )


MEMORY = {"triplet": 4, "barlow_twins": 7, "vicreg": 6, "feature": 4, "sample": 4}


def tensors_taken(rank: int, world_size: int, name: str, n: int, d: int) -> float:
    """The most memory at a time beyond inputs and gradients, in tensors (N, D)."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / (4 * n * d)

    op, _, count = of(name)
    warm = [z.requires_grad_() for z in views(4, 8, count=count)]
    torch.autograd.grad(op(*warm), warm)
    inputs = [torch.randn(n, d).requires_grad_() for _ in range(count)]
    before = peak()
    torch.autograd.grad(op(*inputs), inputs)
    return peak() - before - count


@pytest.mark.parametrize(
    ("name", "shape"),
    [*((name, (128, 131072)) for name in MEMORY), ("barlow_twins", (32768, 512))],
    ids=str,
)
def test_memory_is_what_is_stated(name, shape):
    """Tensors of 64 MiB, which the allocator hands back; a D x D matrix would be 1024 of them."""
    (taken,) = run_on_ranks(tensors_taken, 1, name, *shape)
    assert taken < MEMORY[name] + 0.75  # of Gram matrices, and what torch itself touches


Z, NAN = torch.ones(3, 4), torch.ones(3, 4)
NAN[1, 2] = math.nan
DOOR = [  # for every loss on two views
    ("z1", ArgumentError, (Z[0], Z), {}),
    ("z1", ArgumentError, (Z[:, :0], Z), {}),
    ("z1", ArgumentTypeError, (Z.long(), Z.long()), {}),
    ("z1", ArgumentTypeError, ([[1.0]], Z), {}),
    ("z2", ArgumentError, (Z, Z[:2]), {}),
    ("z2", ArgumentTypeError, (Z, Z.double()), {}),
    ("z1", NonFiniteError, (NAN, Z), {}),
    ("z2", NonFiniteError, (Z, NAN), {}),
    ("gather", ArgumentError, (Z, Z), {"gather": True}),
]
BAD = [
    *((loss, *row) for loss in (barlow_twins, vicreg, orthogonality) for row in DOOR),
    *((loss, "z2", ArgumentError, (Z, Z[:, :3]), {}) for loss in (barlow_twins, vicreg)),
    *((loss, "z1", ArgumentError, (Z[:1], Z[:1]), {}) for loss in (barlow_twins, vicreg)),
    (barlow_twins, "lambd", ArgumentError, (Z, Z), {"lambd": -1.0}),
    (barlow_twins, "lambd", ArgumentError, (Z, Z), {"lambd": math.inf}),
    (barlow_twins, "lambd", ArgumentTypeError, (Z, Z), {"lambd": "1"}),
    (vicreg, "sim_weight", ArgumentError, (Z, Z), {"sim_weight": -1.0}),
    (vicreg, "var_weight", ArgumentError, (Z, Z), {"var_weight": -1.0}),
    (vicreg, "cov_weight", ArgumentError, (Z, Z), {"cov_weight": math.nan}),
    (orthogonality, "form", ArgumentError, (Z, Z), {"form": "row"}),
    (orthogonality, "z2", ArgumentError, (Z, Z[:, :3]), {"form": "sample"}),
    (triplet, "anchor", ArgumentError, (Z[0], Z, Z), {}),
    (triplet, "anchor", ArgumentTypeError, (Z.int(), Z, Z), {}),
    (triplet, "positive", ArgumentError, (Z, Z[:2], Z), {}),
    (triplet, "negative", ArgumentError, (Z, Z, Z[:, :2]), {}),
    (triplet, "negative", ArgumentTypeError, (Z, Z, Z.half()), {}),
    (triplet, "anchor", NonFiniteError, (NAN, Z, Z), {}),
    (triplet, "positive", NonFiniteError, (Z, NAN, Z), {}),
    (triplet, "negative", NonFiniteError, (Z, Z, NAN), {}),
    (triplet, "margin", ArgumentError, (Z, Z, Z), {"margin": -0.1}),
    (triplet, "margin", ArgumentTypeError, (Z, Z, Z), {"margin": None}),
    (triplet, "reduction", ArgumentError, (Z, Z, Z), {"reduction": "avg"}),
]


@pytest.mark.parametrize(("loss", "argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(loss, argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        loss(*args, **options)
    assert caught.value.argument == argument


def test_messages_say_what_to_do():
    with pytest.raises(ArgumentError, match="one has no variance"):
        barlow_twins(Z[:1], Z[:1])
    with pytest.raises(ArgumentError, match="feature, sample"):
        orthogonality(Z, Z, form="row")


RANKED = [(name, shape) for name in VIEWS for shape in [(8, 40), (8, 20), (40, 6)]]
"""Gathered; summed over the ranks, though the rows' side in one process; by columns in both."""


def on_a_rank(rank: int, world_size: int):
    """Values, and gradients as DDP would average them, over groups of 1, 2 and 4 ranks."""
    found = {}
    for size in (1, 2, 4):
        group = distributed.new_group(range(size))  # all ranks take part in making it
        if rank >= size:
            continue
        for name, (n, d) in RANKED:
            inputs = views(n, d)
            part = slice(rank * n // size, (rank + 1) * n // size)
            leaves = [z[part].clone().requires_grad_() for z in inputs]
            with torch.autocast("cpu", dtype=torch.bfloat16):  # changes nothing either
                value = of(name)[0](*leaves, gather=group)
            gradients = torch.autograd.grad(value, leaves)
            found[size, name, (n, d)] = value.detach(), [g / size for g in gradients]
        if size == 4:
            everyone = barlow_twins(*leaves, gather=True).detach()
            assert torch.equal(everyone, barlow_twins(*leaves, gather=group).detach())
    # one sample a rank has no variance, and the batch of all has
    row = views(4, 9)[0][rank : rank + 1]
    assert torch.isfinite(vicreg(row, row + 1, gather=True))
    unequal = torch.ones(3 + rank, 40)
    for loss in (barlow_twins, vicreg, orthogonality):
        with pytest.raises(ArgumentError, match="batches of one shape"):
            loss(unequal, unequal, gather=True)
    return found


def test_number_of_ranks_changes_nothing():
    found = run_on_ranks(on_a_rank, 4)
    for size in (1, 2, 4):
        for name, shape in RANKED:
            leaves = [z.requires_grad_() for z in views(*shape)]
            want = of(name)[0](*leaves)
            exact = torch.autograd.grad(want, leaves)
            ranks = [found[rank][size, name, shape] for rank in range(size)]
            for value, _ in ranks:
                torch.testing.assert_close(value, want.detach(), rtol=1e-6, atol=0)
            for k in range(2):
                got = torch.cat([gradients[k] for _, gradients in ranks])
                error = (got - exact[k]).abs().max() / exact[k].abs().max()
                assert error < 1e-6, (size, name, shape, float(error))
