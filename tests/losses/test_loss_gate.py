"""The loss gate: its weights, what it holds, and where it puts its threshold."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from distributed_ranks import run_on_ranks
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError, TrainingError
from speechft.losses import LossGate
from speechft.losses.loss_gate import two_gaussians


def humps(count: int, wrong: float, seed: int = 0) -> Tensor:
    """Losses of which a share ``wrong`` is around 5, the others around 0.1."""
    draw = torch.Generator().manual_seed(seed)
    logs = torch.randn(count, generator=draw) * 0.7 + math.log(0.1)
    high = torch.randn(count, generator=draw) * 0.4 + math.log(5.0)
    order = torch.arange(count) < round(wrong * count)
    return torch.where(order, high, logs).exp()


def fitted(losses: Tensor) -> LossGate:
    gate = LossGate(size=len(losses))
    gate(losses)
    gate.fit()
    return gate


class TestWeights:
    def test_a_fixed_threshold(self):
        gate = LossGate(threshold=2.0)
        losses = torch.tensor([0.5, 2.0, 2.5, math.nan, math.inf], requires_grad=True)
        weights = gate(losses)
        assert weights.tolist() == [1, 1, 0, 0, 0]
        assert not weights.requires_grad
        assert gate.fit() == 2.0  # does not move
        assert gate.losses.isnan().all()

    def test_what_is_left_out_has_no_gradient(self):
        losses = torch.tensor([0.5, 3.0], requires_grad=True)
        (LossGate(threshold=1.0)(losses) * losses).sum().backward()
        assert losses.grad.tolist() == [1, 0]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_has_the_dtype_of_the_losses(self, dtype):
        assert LossGate(8)(torch.ones(3, dtype=dtype)).dtype == dtype

    def test_keeps_everything_before_the_first_fit(self):
        assert LossGate(8)(torch.tensor([1.0, 1e30])).tolist() == [1, 1]

    def test_the_device_is_not_waited_for(self):
        """Tensors without values: to read one is an error."""
        gate = LossGate(8).to("meta")
        for _ in range(2):
            assert gate(torch.rand(5, device="meta")).shape == (5,)
        with pytest.raises((RuntimeError, NotImplementedError)):
            gate.fit()


class TestRing:
    def test_holds_the_latest(self):
        gate = LossGate(5)
        for batch in torch.arange(1.0, 10.0).split(3):
            gate(batch)
        assert sorted(gate.losses.tolist()) == [5, 6, 7, 8, 9]
        gate(torch.arange(20.0, 28.0))  # larger than the ring
        assert sorted(gate.losses.tolist()) == [23, 24, 25, 26, 27]

    def test_takes_in_nothing_in_eval_mode(self):
        gate = LossGate(4).eval()
        gate(torch.ones(2))
        assert gate.losses.isnan().all()

    def test_a_fit_forgets(self):
        gate = fitted(humps(400, 0.3))
        assert gate.losses.isnan().all()
        assert int(gate.place) == 0
        with pytest.raises(TrainingError, match="before fit"):
            gate.fit()

    def test_a_checkpoint_goes_on_where_it_was(self):
        losses = humps(400, 0.3)[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
        gate = LossGate(300)
        gate(losses[:250])
        other = LossGate(300)
        other.load_state_dict(copy.deepcopy(gate.state_dict()))
        for each in (gate, other):
            each(losses[250:])
            each.fit()
        assert torch.equal(gate.threshold, other.threshold)
        again = LossGate(300)
        again.load_state_dict(gate.state_dict())
        assert torch.equal(again(losses), gate(losses))


class TestFit:
    @pytest.mark.parametrize(("wrong", "seed"), [(0.1, 0), (0.3, 1), (0.5, 2), (0.8, 3)])
    def test_the_mixture_is_that_of_scikit_learn(self, wrong, seed):
        mixture = pytest.importorskip("sklearn.mixture")
        logs = humps(2000, wrong, seed).double().log()
        want = mixture.GaussianMixture(2, tol=1e-10, max_iter=2000, random_state=0, reg_covar=0)
        want.fit(logs[:, None].numpy())
        order = want.means_[:, 0].argsort()
        got = two_gaussians(logs, enough=1e-12)
        for part, theirs in (
            (got.weights, want.weights_),
            (got.means, want.means_[:, 0]),
            (got.variances, want.covariances_[:, 0, 0]),
        ):
            np.testing.assert_allclose(part.numpy(), theirs[order], rtol=1e-3, atol=1e-3)
        # The threshold is where either component explains a loss as well.
        gate = fitted(humps(2000, wrong, seed))
        of = want.predict_proba([[math.log(float(gate.threshold))]])[0]
        assert of == pytest.approx([0.5, 0.5], abs=0.01)
        assert want.means_.min() < math.log(float(gate.threshold)) < want.means_.max()

    def test_by_hand(self):
        """Two humps alike but for their place cross half way."""
        hump = torch.linspace(-1, 1, 201, dtype=torch.float64) ** 3
        gate = fitted(torch.cat([hump - 2, hump + 2]).exp().float())
        assert float(gate.threshold) == pytest.approx(1.0, rel=1e-4)

    def test_finds_the_wrong_ones(self):
        losses = humps(3000, 0.25)
        weights = fitted(losses)(losses)
        wrong = torch.arange(3000) < 750
        assert float(weights[wrong].mean()) < 0.02
        assert float(weights[~wrong].mean()) > 0.98

    @pytest.mark.parametrize("count", [30, 500])
    @pytest.mark.parametrize(
        "draw",
        [
            lambda rng, n: rng.normal(0, 1, n),
            lambda rng, n: rng.uniform(-2, 2, n),
            lambda rng, n: np.log(rng.exponential(1, n)),  # skewed
            lambda rng, n: rng.standard_t(3, n),  # tails
        ],
        ids=["normal", "uniform", "skewed", "tails"],
    )
    def test_one_hump_keeps_everything(self, count, draw):
        for seed in range(5):
            losses = torch.from_numpy(np.exp(draw(np.random.default_rng(seed), count))).float()
            assert math.isinf(float(fitted(losses).threshold))

    @pytest.mark.parametrize("losses", [[1.0], [0.0] * 50, [2.0] * 50])
    def test_no_hump_keeps_everything(self, losses):
        assert math.isinf(float(fitted(torch.tensor(losses)).threshold))

    def test_losses_of_zero_and_those_not_finite_do_no_harm(self):
        losses = humps(1000, 0.3)
        broken = torch.cat([losses, torch.tensor([math.nan, math.inf])])
        assert torch.equal(fitted(broken).threshold, fitted(losses).threshold)
        for zeros in (5, 20, 100):
            losses[-zeros:] = 0.0
            assert 0.5 < float(fitted(losses).threshold) < 3.0

    def test_follows_the_scale_of_the_losses(self):
        small, large = (fitted(humps(500, 0.3) * scale).threshold for scale in (1.0, 64.0))
        assert float(large) == pytest.approx(64 * float(small), rel=1e-3)

    def test_the_order_does_not_matter(self):
        losses = humps(500, 0.3)
        assert torch.allclose(fitted(losses).threshold, fitted(losses.flip(0)).threshold, rtol=1e-3)


def apart(rank: int, ranks: int, losses: Tensor) -> float:
    gate = LossGate(len(losses), gather=True)
    gate(losses[rank::ranks][: 150 if rank else None])  # not as many on each rank
    return gate.fit()


def test_ranks_have_one_threshold():
    losses = humps(400, 0.3)
    one, other = run_on_ranks(apart, 2, losses)
    alone = fitted(torch.cat([losses[::2], losses[1::2][:150]]))
    assert one == other == float(alone.threshold)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: LossGate(0), ArgumentError, "size: wants a whole number from 1, got 0"),
        (lambda: LossGate(threshold=0.0), ArgumentError, "threshold: wants a finite number"),
        (lambda: LossGate(4)(torch.ones(2, 2)), ArgumentError, r"losses: wants shape \(B\)"),
        (lambda: LossGate(4)(torch.ones(2).long()), ArgumentTypeError, "losses: wants floating"),
        (lambda: LossGate(4)(torch.ones(2, device="meta")), ArgumentError, "losses: are on meta"),
        (lambda: LossGate(4).fit(), TrainingError, "no finite loss"),
    ],
)
def test_bad_input(call, error, said):
    with pytest.raises(error, match=said):
        call()
