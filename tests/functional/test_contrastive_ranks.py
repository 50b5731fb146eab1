"""World size changes nothing: the softmax losses on 1, 2 and 4 ranks, gathered and in a ring."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from distributed_ranks import run_on_ranks
from torch import Tensor, distributed, nn

from speechft import losses
from speechft import reference as R
from speechft.backends import compiled_module
from speechft.errors import ArgumentError

N, D = 16, 6  # of the whole batch
RINGS = [False, "ring"] if compiled_module() is not None else [False]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of two views, labels with one unknown, factors."""
    x, y = (torch.randn(N, D, generator=generator(seed)) for seed in (1, 2))
    labels = torch.randint(0, 5, (N,), generator=generator(3))
    labels[3] = -1
    return x, y, labels, torch.stack([labels, torch.arange(N) // 4], 1)


def cases(gather):
    """Name -> (loss module, how it is called)."""
    kept = {"learn_temperature": True, "gather": gather}
    pair = lambda loss, a, b, labels, factors: loss(a, b)  # noqa: E731
    labelled = lambda loss, a, b, labels, factors: loss(a, b, labels=labels)  # noqa: E731
    found = {
        "info_nce": (losses.InfoNCELoss(0.2, **kept), pair),
        "info_nce symmetric": (losses.InfoNCELoss(0.2, symmetric=True, **kept), pair),
        "info_nce labels": (losses.InfoNCELoss(0.2, symmetric=True, margin=0.1, **kept), labelled),
        "info_nce sum": (losses.InfoNCELoss(0.2, reduction="sum", **kept), pair),
        "nt_xent": (losses.NTXentLoss(0.2, **kept), pair),
        "sup_con": (
            losses.SupConLoss(0.2, **kept),
            lambda loss, a, b, labels, factors: loss(a, labels),
        ),
        "sup_con views": (
            losses.SupConLoss(0.2, denominator="none", margin=0.1, **kept),
            lambda loss, a, b, labels, factors: loss(torch.stack([a, b], 1), labels),
        ),
        "factors": (
            losses.FactorSupConLoss((1.0, 0.5), gather=gather),
            lambda loss, a, b, labels, factors: loss([a, b], factors),
        ),
        "moco": (losses.MoCoLoss(4, 24, gather=gather, in_batch=True), _twice),
    }
    if gather != "ring":
        found["nt_xent labels"] = (losses.NTXentLoss(0.2, **kept), labelled)
        found["sup_con own"] = (
            losses.SupConLoss(0.2, denominator="own", **kept),
            lambda loss, a, b, labels, factors: loss(a, labels),
        )
    return found


def _twice(loss, a, b, labels, factors):
    loss(b, a)  # what enters the queue is there the next time
    return loss(a, b)


def losses_and_gradients(rank: int, ranks: int, gather) -> dict[str, tuple[Tensor, ...]]:
    """Of each loss: its value, and the gradients as DistributedDataParallel averages them."""
    mine = slice(rank * N // ranks, (rank + 1) * N // ranks)
    x, y, labels, factors = (tensor[mine] for tensor in batch())
    found = {}
    for name, (loss, call) in cases(gather).items():
        torch.manual_seed(0)
        encoder = nn.Linear(D, 4)
        value = call(loss, encoder(x), encoder(y), labels, factors)
        value.backward()
        gradients = [p.grad for p in encoder.parameters()]
        if ranks > 1:
            for gradient in gradients:
                distributed.all_reduce(gradient)
                gradient /= ranks
        gradients += [p.grad for p in loss.parameters()]  # right on each rank, averaged or not
        buffers = [buffer.double() for buffer in loss.buffers()]
        found[name] = (value.detach(), *gradients, *buffers)
    return found


def on_a_rank(rank: int, ranks: int) -> list[dict[str, tuple[Tensor, ...]]]:
    results = [losses_and_gradients(rank, ranks, gather) for gather in (True, *RINGS[1:])]
    if ranks > 1:
        check_what_is_refused(rank)
    check_reference(rank, ranks)
    return results


def check_what_is_refused(rank: int) -> None:
    x = torch.randn(4 + (rank == 0), D)
    with pytest.raises(ArgumentError, match="rank"):
        losses.InfoNCELoss(gather=True)(x, x)
    x = torch.randn(4, D, requires_grad=True)
    value = losses.SupConLoss(gather=True)(x, torch.tensor([0, 0, 1, 1]))
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
    if len(RINGS) > 1:
        with pytest.raises(ArgumentError, match="ring"):
            losses.SupConLoss(gather="ring", denominator="own")(
                torch.randn(4, D), torch.tensor([0, 0, 1, 1])
            )


def check_reference(rank: int, ranks: int) -> None:
    """The definitions take ``gather`` as well."""
    mine = slice(rank * N // ranks, (rank + 1) * N // ranks)
    x, y, labels, _ = batch()
    for op in (
        partial(R.info_nce, symmetric=True),
        R.nt_xent,
        lambda a, b, **kept: R.sup_con(a, labels if len(a) == N else labels[mine], **kept),
    ):
        whole, ours = op(x, y), op(x[mine], y[mine], gather=True)
        torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def one_process() -> dict[str, tuple[Tensor, ...]]:
    return losses_and_gradients(0, 1, False)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_has_the_loss_and_gradient_of_one_process(one_process, ranks):
    for results in run_on_ranks(on_a_rank, ranks):
        for result in results:
            for name, values in result.items():
                for got, want in zip(values, one_process[name], strict=True):
                    error, size = (got - want).abs().max(), want.abs().max().clamp_min(1)
                    assert error <= 1e-6 * size, f"{name}: off by {error} of {size}"


def test_without_a_process_group_gather_is_refused():
    x = torch.randn(4, D)
    for gather in (True, "ring", "everyone"):
        with pytest.raises(ArgumentError, match="gather"):
            losses.InfoNCELoss(gather=gather)(x, x)
