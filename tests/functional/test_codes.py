"""KoLeo, mean entropy and the monitors of codes."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from distributed_ranks import run_on_ranks
from torch import Tensor, distributed

from speechft import functional as F
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError, NonFiniteError


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestKoLeo:
    @pytest.mark.parametrize("normalize", [True, False])
    def test_is_the_definition(self, monkeypatch, normalize):
        module = importlib.import_module("speechft.functional.koleo")  # the name is the function's
        monkeypatch.setattr(module, "ROWS", 16)
        x = rows(70, 5).double().requires_grad_()
        got, want = (op(x, normalize=normalize) for op in (F.koleo, R.koleo))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(v, x) for v in (got, want)))
        unit = x.detach() / x.detach().norm(dim=1, keepdim=True) if normalize else x.detach()
        gaps = torch.cdist(unit, unit) + torch.diag(torch.full((70,), math.inf))
        torch.testing.assert_close(got, -gaps.min(1).values.log().mean(), rtol=1e-6, atol=1e-6)

    def test_gradcheck(self):
        x = rows(6, 3).double().requires_grad_()
        assert torch.autograd.gradcheck(F.koleo, x)

    def test_rows_that_are_the_same(self):
        x = rows(4, 3)
        x[1] = x[0]
        x.requires_grad_()
        value = F.koleo(x)
        (gradient,) = torch.autograd.grad(value, x)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()

    def test_half_precision_and_autocast(self):
        x = rows(20, 8).bfloat16()
        want = R.koleo(x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(F.koleo(x), want, rtol=1e-2, atol=1e-2)
            assert torch.equal(F.koleo(x.float()), F.koleo(x.float()))
            torch.testing.assert_close(F.koleo(x.float()), want)

    def test_bad_input(self):
        with pytest.raises(ArgumentError, match="x"):
            F.koleo(rows(1, 3))
        with pytest.raises(ArgumentTypeError, match="x"):
            F.koleo(torch.ones(3, 3, dtype=torch.int64))
        with pytest.raises(NonFiniteError, match="x"):
            F.koleo(rows(3, 3) / 0)
        with pytest.raises(ArgumentError, match="epsilon"):
            F.koleo(rows(3, 3), epsilon=0.0)


class TestCodes:
    def test_me_max(self):
        x = rows(9, 5).double().requires_grad_()
        share = (x / 0.3).softmax(-1).mean(0)
        want = math.log(5) + (share * share.log()).sum()
        torch.testing.assert_close(F.me_max(x, temperature=0.3), want)
        assert torch.autograd.gradcheck(lambda x: F.me_max(x, temperature=0.3), x)

    def test_me_max_of_one_code_is_log_k(self):
        x = torch.zeros(6, 4, requires_grad=True)
        value = F.me_max(x + 1e3 * torch.eye(4)[0], temperature=1.0)
        torch.testing.assert_close(value, torch.tensor(math.log(4)))
        assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()

    def test_perplexity(self):
        x = torch.eye(8)[[0, 0, 1, 1, 2, 2, 3, 3]]
        assert math.isclose(F.code_perplexity(x), 4.0, rel_tol=1e-6)
        soft = F.code_perplexity(torch.zeros(3, 8), temperature=1.0)
        assert math.isclose(soft, 8.0, rel_tol=1e-6)

    def test_mean_entropy(self):
        x = rows(9, 5)
        want = torch.distributions.Categorical(logits=x / 0.2).entropy().mean()
        torch.testing.assert_close(F.mean_entropy(x, temperature=0.2), want)

    @pytest.mark.parametrize("op", [F.me_max, F.code_perplexity, F.mean_entropy])
    def test_frames_beyond_the_lengths_have_no_part(self, op):
        x, n = rows(3, 6, 5), torch.tensor([6, 1, 4])
        valid = torch.arange(6) < n[:, None]
        filled = x.masked_fill(~valid[..., None], math.nan)
        torch.testing.assert_close(op(filled, lengths=n), op(x[valid]))

    @pytest.mark.parametrize("op", [F.me_max, F.code_perplexity, F.mean_entropy])
    def test_bad_input(self, op):
        with pytest.raises(ArgumentError, match="logits"):
            op(rows(3))
        with pytest.raises(NonFiniteError, match="logits"):
            op(rows(3, 3) / 0)
        with pytest.raises(ArgumentError, match="temperature"):
            op(rows(3, 3), temperature=0.0)
        with pytest.raises(LengthError, match="lengths"):
            op(rows(1, 3, 3), lengths=[0])
        with pytest.raises(ArgumentError, match="lengths"):
            op(rows(3, 3), lengths=[1, 1, 1])


def of_ranks(rank: int, ranks: int) -> list[Tensor]:
    found = []
    for op in (F.koleo, R.koleo, F.me_max, F.code_perplexity):
        x = rows(8, 4)[rank * 8 // ranks : (rank + 1) * 8 // ranks].requires_grad_()
        value = op(x, gather=ranks > 1)
        found.append(value.detach())
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, x)
            every = torch.zeros(8, 4)
            every[rank * 8 // ranks : (rank + 1) * 8 // ranks] = gradient / ranks
            if ranks > 1:  # what DistributedDataParallel makes of the gradient of a row
                distributed.all_reduce(every)
            found.append(every)
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_world_size_changes_nothing(ranks):
    want = of_ranks(0, 1)
    for result in run_on_ranks(of_ranks, ranks):
        for a, b in zip(result, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
