"""The pooling modules: what others' weights make of frames, lengths, heads."""

from __future__ import annotations

import pytest
import torch
from speechft.bench.peers.pooling import ASP, ASTP
from torch import Tensor, nn

from speechft import functional as F
from speechft import pooling
from speechft.errors import ArgumentError, LengthError, NonFiniteError

MODULES = {
    "mean": pooling.MeanPooling,
    "max": pooling.MaxPooling,
    "statistics": pooling.StatisticsPooling,
    "unbiased": lambda: pooling.StatisticsPooling(correction=1),
    "attentive": lambda: pooling.AttentiveStatisticsPooling(8, 6),
    "no context": lambda: pooling.AttentiveStatisticsPooling(8, 6, global_context=False),
    "norm": lambda: pooling.AttentiveStatisticsPooling(8, 6, batch_norm=True),
    "self-attentive": lambda: pooling.SelfAttentivePooling(8, 6),
    "heads": lambda: pooling.MultiHeadAttentiveStatisticsPooling(8, 4, 6),
    "heads by channel": lambda: pooling.MultiHeadAttentiveStatisticsPooling(
        8, 2, 6, by_channel=True
    ),
    "heads, one product": lambda: pooling.MultiHeadAttentiveStatisticsPooling(8, 4, 0),
    "queries": lambda: pooling.MultiQueryAttentiveStatisticsPooling(8, 2, 4, 6),
}
each_module = pytest.mark.parametrize("name", MODULES)


def frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name]()


@each_module
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(name, training):
    """Neither the vectors nor any gradient, whatever the padding holds."""
    x, n = frames(3, 12, 8), torch.tensor([12, 7, 3])
    weights = None
    found = []
    for fill in (0.0, 1e6):
        module = made(name).train(training)
        leaf = torch.where((torch.arange(12) < n[:, None])[..., None], x, fill).requires_grad_()
        longer = torch.cat([leaf, torch.full((3, 5, 8), fill)], dim=1)
        for seen in (leaf, longer):
            value = module(seen, n)
            weights = frames(*value.shape, seed=9) if weights is None else weights
            leaves = [leaf, *module.parameters()]
            gradients = torch.autograd.grad((value * weights).sum(), leaves, retain_graph=True)
            found.append([value.detach(), *gradients])
            made_of = module.state_dict()
            module.load_state_dict(made(name).state_dict())  # running statistics start anew
            assert all(torch.isfinite(t).all() for t in made_of.values())
    assert value.shape == (3, module.output_size(8))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each_module
def test_an_utterance_is_the_same_alone(name):
    module = made(name).eval()
    x, n = frames(3, 12, 8), [12, 7, 3]
    together = module(x, n)
    for b in range(3):
        alone = module(x[b : b + 1, : n[b]])
        torch.testing.assert_close(alone[0], together[b], rtol=1e-6, atol=1e-6)


@each_module
def test_bad_input(name):
    module = made(name)
    x = frames(2, 5, 8)
    with pytest.raises(LengthError, match="lengths"):
        module(x, [5, 0])
    with pytest.raises(LengthError, match="lengths"):
        module(x, [5, 6])
    with pytest.raises((NonFiniteError, ArgumentError)):
        module(torch.full_like(x, torch.nan))


class TestSimple:
    def test_mean_and_maximum(self):
        x, n = frames(3, 6, 4), torch.tensor([6, 1, 4])
        means, maxima = (lambda t: t.mean(0)), (lambda t: t.amax(0))
        for pool, of in ((F.mean_pooling, means), (F.max_pooling, maxima)):
            got = pool(x, n)
            for b in range(3):
                torch.testing.assert_close(got[b], of(x[b, : n[b]]))
            torch.testing.assert_close(pool(x), torch.stack([of(t) for t in x]))

    def test_the_mean_of_bfloat16_is_summed_in_float32(self):
        x = (100 + frames(1, 4000, 3)).bfloat16()
        got = F.mean_pooling(x, [4000])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, x.float().mean(1), rtol=1e-6, atol=0)


class TestOthersWeights:
    @pytest.mark.parametrize("context", [True, False])
    def test_of_wespeaker(self, context):
        torch.manual_seed(0)
        theirs = ASTP(12, 5, context=context).double()
        x = frames(3, 40, 12).double()
        ours = pooling.AttentiveStatisticsPooling.from_state_dict(theirs.state_dict()).double()
        assert (ours.context is not None) == context
        torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)))
        self.same_gradients(ours, theirs, x)

    def test_of_speechbrain(self):
        torch.manual_seed(0)
        theirs = ASP(12, 5).double()
        with torch.no_grad():
            theirs.tdnn.norm.norm.running_mean += torch.rand(5)
            theirs.tdnn.norm.norm.running_var += torch.rand(5)
        x, n = frames(3, 40, 12).double(), torch.tensor([40, 8, 21])
        ours = pooling.AttentiveStatisticsPooling.from_state_dict(theirs.state_dict()).double()
        assert ours.norm is not None
        got = ours.eval()(x, n)
        torch.testing.assert_close(got, theirs.eval()(x.transpose(1, 2), n))
        # In training their batch norm counts padding; without any the two are the same.
        torch.testing.assert_close(
            ours.train()(x), theirs.train()(x.transpose(1, 2), torch.tensor([40] * 3))
        )
        assert ours.norm.running_mean is not None
        torch.testing.assert_close(ours.norm.running_mean, theirs.tdnn.norm.norm.running_mean)

    def same_gradients(self, ours, theirs, x):
        ours(x).square().sum().backward()
        theirs(x.transpose(1, 2)).square().sum().backward()
        C = ours.project.in_features
        want = theirs.linear1.weight.grad[..., 0]
        torch.testing.assert_close(ours.project.weight.grad, want[:, :C])
        if ours.context is not None:
            torch.testing.assert_close(ours.context.weight.grad, want[:, C:])

    def test_as_a_part_of_a_model(self):
        """``load_state_dict`` of a model that holds the pooling under their names."""
        torch.manual_seed(0)
        theirs = nn.ModuleDict({"pool": ASTP(12, 5), "bn": nn.BatchNorm1d(24)})
        ours = nn.ModuleDict({
            "pool": pooling.AttentiveStatisticsPooling(12, 5, correction=1),
            "bn": nn.BatchNorm1d(24),
        })  # fmt: skip
        before = {name: t.clone() for name, t in theirs.state_dict().items()}
        ours.load_state_dict(theirs.state_dict())
        x = frames(2, 9, 12)
        torch.testing.assert_close(
            ours["pool"](x), theirs["pool"](x.transpose(1, 2)), rtol=1e-4, atol=1e-5
        )
        assert all(torch.equal(t, before[name]) for name, t in theirs.state_dict().items())

    def test_its_own(self):
        one = made("norm")
        again = pooling.AttentiveStatisticsPooling.from_state_dict(one.state_dict())
        x = frames(2, 9, 8)
        assert torch.equal(again(x), one(x))

    def test_of_something_else(self):
        with pytest.raises(ArgumentError, match="state"):
            pooling.AttentiveStatisticsPooling.from_state_dict(nn.Linear(3, 4).state_dict())
        with pytest.raises(RuntimeError, match="size mismatch"):
            made("attentive").load_state_dict(ASTP(12, 6).state_dict())


class TestHeads:
    def test_a_head_sees_its_channels_alone(self):
        module = made("heads")
        x = frames(2, 9, 8).requires_grad_()
        (gradient,) = torch.autograd.grad(module(x)[:, 2:4].sum(), x)
        assert (gradient[..., :2] == 0).all()
        assert (gradient[..., 4:] == 0).all()
        assert (gradient[..., 2:4] != 0).any()

    def test_it_is_the_loop_over_heads(self):
        module = made("heads by channel")
        x = frames(2, 9, 8)
        parts = []
        for head, chunk in enumerate(x.chunk(2, dim=2)):
            hidden = torch.tanh(chunk @ module.project.weight[head] + module.project.bias[head])
            alpha = (hidden @ module.score.weight[head] + module.score.bias[head]).softmax(1)
            mean = (alpha * chunk).sum(1)
            parts.append((mean, (alpha * (chunk - mean[:, None]) ** 2).sum(1).sqrt()))
        want = torch.cat([p[0] for p in parts] + [p[1] for p in parts], 1)
        torch.testing.assert_close(module(x), want)

    def test_heads_that_do_not_divide(self):
        with pytest.raises(ArgumentError, match="heads"):
            pooling.MultiHeadAttentiveStatisticsPooling(8, 3)
        with pytest.raises(ArgumentError, match="queries"):
            pooling.MultiQueryAttentiveStatisticsPooling(8, 0)


def test_context_is_not_concatenated():
    """No tensor of 3 C channels is made: of 2,000 frames by 512, one more C would be 4 MiB."""
    module = pooling.AttentiveStatisticsPooling(512, 16)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)
            )
            return out

    with Watch():
        module(frames(1, 2000, 512).requires_grad_()).sum().backward()
    assert max(sizes) == 2000 * 512
