"""``Cached``: any mini-batch gives the loss and the gradients of the whole batch."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from distributed_ranks import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from speechft.errors import ArgumentError, ArgumentTypeError, TrainingError
from speechft.losses import Cached, FactorSupConLoss, InfoNCELoss, NTXentLoss, SupConLoss

B, D = 12, 5
SIZES = [1, 3, 5, 12, 100]


def x(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(*(shape or (B, D)), generator=torch.Generator().manual_seed(seed))


def encoder(seed: int = 0, **extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 8), *extra.values(), nn.Tanh(), nn.Linear(8, 4))


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [p.grad for module in modules for p in module.parameters()]


def assert_same(got, want, tolerance: float = 1e-6) -> None:
    for a, b in zip(got, want, strict=True):
        a, b = a.detach(), b.detach()
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


LABELS = torch.arange(B) % 4
CASES = {
    "info_nce": (lambda: InfoNCELoss(0.2, symmetric=True), {}),
    "nt_xent": (lambda: NTXentLoss(0.2), {"labels": LABELS}),
    "triplet of torch": (lambda: nn.CosineEmbeddingLoss(), {"target": torch.ones(B)}),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_any_mini_batch_is_the_whole_batch(name, size):
    make, more = CASES[name]
    plain, loss = encoder(), make()
    (3 * loss(plain(x(1)), plain(x(2)), **more)).backward()
    ours, same_loss = encoder(), make()
    value = Cached(same_loss, size)(ours, x(1), x(2), **more)
    (3 * value).backward()
    assert_same([value], [make()(plain(x(1)), plain(x(2)), **more)])
    assert_same(gradients(ours, same_loss), gradients(plain, loss))


@pytest.mark.parametrize("size", SIZES)
def test_a_learnt_temperature_has_its_gradient(size):
    """In float64: the terms of its gradient cancel, and a mini-batch rounds embeddings its way."""
    found = []
    for cached in (False, True):
        model = encoder().double()
        loss = InfoNCELoss(0.2, symmetric=True, learn_temperature=True).double()
        a, b = x(1).double(), x(2).double()
        value = Cached(loss, size)(model, a, b) if cached else loss(model(a), model(b))
        value.backward()
        found.append(gradients(model, loss))
    assert_same(*found, tolerance=1e-12)


def test_one_batch_with_labels_or_factors():
    for loss, more in (
        (SupConLoss(), {"labels": LABELS}),
        (FactorSupConLoss(), {"factors": torch.stack([LABELS, torch.arange(B) // 3], 1)}),
    ):
        plain, ours = encoder(), encoder()
        loss(plain(x()), **more).backward()
        Cached(loss, 5)(ours, x(), **more).backward()
        assert_same(gradients(ours), gradients(plain))


class Masked(nn.Module):
    """Takes keyword arguments, as encoders of transformers do, and a setting that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(D, 4)

    def forward(self, values: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return self.linear(values * mask * scale)


def test_dicts_tuples_and_an_encoder_a_batch():
    mask = (x(4) > 0).float()
    one, two = Masked(), encoder()
    loss = InfoNCELoss()
    loss(one(x(1), mask, scale=0.5), two(x(2))).backward()
    want = gradients(one, two)
    one, two = Masked(), encoder()
    batch = {"values": x(1), "mask": mask, "scale": 0.5}
    Cached(loss, 5)([one, two], batch, x(2)).backward()
    assert_same(gradients(one, two), want)
    one, two = Masked(), encoder()
    Cached(loss, 5)([one, two], (x(1), mask, 0.5), (x(2),)).backward()
    assert_same(gradients(one, two), want)


class Noisy(nn.Module):
    """Draws from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = encoder(0, drop=nn.Dropout(0.5))
        self.drawn: list[float] = []

    def forward(self, values: Tensor) -> Tensor:
        noise = float(np.random.rand()) + random.random() + float(torch.rand(()))
        self.drawn.append(noise)
        return self.body(values * (1 + noise))


def test_random_states_are_replayed_bit_for_bit_and_left_as_after_one_pass():
    def seed() -> None:
        torch.manual_seed(7), np.random.seed(7), random.seed(7)

    plain = Noisy()
    seed()
    parts = [torch.cat([plain(chunk) for chunk in x(k).split(5)]) for k in (1, 2)]
    InfoNCELoss()(*parts).backward()
    after = (torch.rand(()), np.random.rand(), random.random())
    ours = Noisy()
    seed()
    Cached(InfoNCELoss(), 5)(ours, x(1), x(2)).backward()
    assert (torch.rand(()), np.random.rand(), random.random()) == after
    assert ours.drawn == plain.drawn * 2
    assert_same(gradients(ours), gradients(plain))


def test_running_means_move_once():
    plain, ours = (encoder(0, norm=nn.BatchNorm1d(8)) for _ in range(2))
    for chunk in (*x(1).split(4), *x(2).split(4)):
        plain(chunk)
    Cached(InfoNCELoss(), 4)(ours, x(1), x(2)).backward()
    for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_autocast_is_as_it_was():
    seen: list[torch.dtype] = []
    ours = encoder()
    ours.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = Cached(InfoNCELoss(), 5)(ours, x(1), x(2))
    value.backward()
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 12


def test_without_a_graph_it_encodes_once():
    ours = Noisy()
    with torch.no_grad():
        value = Cached(InfoNCELoss(), 6)(ours, x(1), x(2))
    assert not value.requires_grad
    assert len(ours.drawn) == 4


def test_memory_of_one_mini_batch():
    """Between the passes no graph lives: nothing that the encoder makes is kept but embeddings."""
    alive: list[int] = []

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(D, 4)

        def forward(self, values: Tensor) -> Tensor:
            graphs.append(values.requires_grad or torch.is_grad_enabled())
            return self.linear(values)

    graphs: list[bool] = alive  # type: ignore[assignment]
    value = Cached(InfoNCELoss(), 3)(Wide(), x(1), x(2))
    assert graphs == [False] * 8
    value.backward()
    assert graphs == [False] * 8 + [True] * 8


class Forgetful(nn.Module):
    """Keeps a count that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.count = nn.Linear(D, 4), 0

    def forward(self, values: Tensor) -> Tensor:
        self.count += 1
        return self.linear(values) + self.count


def test_what_cannot_be_replayed_is_an_error():
    value = Cached(InfoNCELoss(), 3)(Forgetful(), x(1), x(2))
    with pytest.raises(TrainingError, match="other embeddings"):
        value.backward()


def test_backward_goes_once():
    value = Cached(InfoNCELoss(), 3)(encoder(), x(1), x(2))
    value.backward()
    with pytest.raises(TrainingError, match="once"):
        value.backward()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Cached(InfoNCELoss(), 0), ArgumentError, "mini_batch_size"),
        (lambda: Cached(InfoNCELoss())(encoder()), ArgumentError, "batches"),
        (lambda: Cached(InfoNCELoss())(encoder(), "speech", x()), ArgumentError, "tensor"),
        (lambda: Cached(InfoNCELoss())(encoder(), (x(), x()[:3]), x()), ArgumentError, "12"),
        (lambda: Cached(InfoNCELoss())([encoder()], x(), x()), ArgumentError, "one a batch"),
        (lambda: Cached(InfoNCELoss(reduction="none"))(encoder(), x(), x()), ArgumentError, "scal"),
        (lambda: Cached(InfoNCELoss())(lambda v: [v], x(), x()), ArgumentTypeError, "embeddings"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def on_a_rank(rank: int, ranks: int) -> list[list[Tensor | None]]:
    mine = slice(rank * B // ranks, (rank + 1) * B // ranks)
    found = []
    for size in (2, 100):
        model = DistributedDataParallel(encoder())
        loss = InfoNCELoss(0.2, symmetric=True, gather=True)
        value = Cached(loss, size)(model, x(1)[mine], x(2)[mine])
        value.backward()
        found.append([value.detach(), *gradients(model)])
    return found


def test_on_two_ranks_in_distributed_data_parallel():
    plain = encoder()
    value = InfoNCELoss(0.2, symmetric=True)(plain(x(1)), plain(x(2)))
    value.backward()
    for results in run_on_ranks(on_a_rank, 2):
        for got in results:
            assert_same(got, [value.detach(), *gradients(plain)])


def test_it_can_be_copied_and_saved():
    cached = Cached(InfoNCELoss(learn_temperature=True), 4)
    state = copy.deepcopy(cached).state_dict()
    assert list(state) == ["loss.temperature.log_scale"]
