"""A teacher is an average of its student's past, in float32 and with its buffers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError
from speechft.methods.teacher import Teacher, cosine_momentum
from speechft.models.networks._frames import MaskedBatchNorm


class Network(nn.Module):
    """A bit of everything: weights, two kinds of batch norm, dropout, a counter of integers."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.masked = MaskedBatchNorm(4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.masked(self.norm(self.linear(x))[..., None])[..., 0])


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()


def wander(student: nn.Module, generator: torch.Generator) -> None:
    """Move every tensor, as an update and a forward pass would."""
    with torch.no_grad():
        for tensor in student.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
            else:
                tensor.add_(1)


def test_every_tensor_is_the_average_by_its_definition():
    """Unrolled: m_1 ... m_n theta_0 + sum of (1 - m_k) m_{k + 1} ... m_n theta_k, in float64."""
    student = network()
    teacher = Teacher(student)
    momenta = [0.0, 0.9, 0.5, 0.99, 0.996]
    past = [{name: t.clone().double().numpy() for name, t in student.state_dict().items()}]
    generator = torch.Generator().manual_seed(1)
    for momentum in momenta:
        wander(student, generator)
        past.append({name: t.clone().double().numpy() for name, t in student.state_dict().items()})
        teacher.follow(student, momentum)
    shares = [math.prod(momenta)] + [
        (1 - m) * math.prod(momenta[k + 1 :]) for k, m in enumerate(momenta)
    ]
    assert sum(shares) == pytest.approx(1)
    for name, tensor in teacher.module.state_dict().items():
        if tensor.is_floating_point():
            wanted = sum(share * then[name] for share, then in zip(shares, past, strict=True))
        else:
            wanted = past[-1][name]
        np.testing.assert_allclose(tensor.double().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_student_in_half_precision_moves_it_all_the_same():
    """One step at 0.9999 is a ten thousandth: in bfloat16, where 1 + 1/256 is 1, it is nothing."""
    student = nn.Linear(2, 2).bfloat16()
    nn.init.ones_(student.weight)
    teacher = Teacher(student)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    nn.init.constant_(student.weight, 2.0)
    for _ in range(100):
        teacher.follow(student, 0.9999)
    moved = teacher.module.weight
    torch.testing.assert_close(moved, torch.full((2, 2), 2 - 0.9999**100), rtol=0, atol=2e-6)
    half = torch.ones((), dtype=torch.bfloat16)
    assert half.lerp(2 * half, 1 - 0.9999) == half  # what the float32 master is for


def test_with_statistics_of_the_batch_buffers_are_its_own():
    student = network()
    teacher = Teacher(student, batch_statistics=True)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    wander(student, torch.Generator().manual_seed(1))
    teacher.follow(student, 0.0)
    own, theirs = teacher.module.state_dict(), student.state_dict()
    for name in own:
        is_buffer = name.endswith(("running_mean", "running_var", "tracked", "calls"))
        assert torch.equal(own[name], theirs[name]) is not is_buffer, name

    before = own["norm.running_mean"].clone()
    hidden = teacher.module.linear(x)
    found = teacher(x)
    centred = hidden - hidden.mean(0)
    wanted = centred / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    wanted = wanted * teacher.module.norm.weight + teacher.module.norm.bias
    torch.testing.assert_close(teacher.module.norm(hidden), wanted)
    assert found.shape == (8, 4)
    # Two passes by now: torch's momentum of 0.1 each.
    after = 0.81 * before + 0.19 * hidden.mean(0)
    torch.testing.assert_close(teacher.module.norm.running_mean, after)


def test_a_counter_of_integers_is_copied():
    student, teacher = network(), Teacher(network())
    student.calls.fill_(7)
    teacher.follow(student, 0.999)
    assert teacher.module.calls == 7
    assert teacher.module.calls.dtype == torch.int64


@pytest.mark.parametrize("statistics", [False, True])
def test_modes(statistics):
    """Dropout is never on; batch norm is in train mode only where the batch is to be used."""
    teacher = Teacher(network().train(), batch_statistics=statistics)
    norms = (teacher.module.norm, teacher.module.masked)
    holder = nn.Sequential(teacher)
    for mode in (True, False, True):
        holder.train(mode)
        assert teacher.training is mode
        assert not teacher.module.dropout.training
        assert not teacher.module.training
        assert [norm.training for norm in norms] == [mode and statistics] * 2
    x = torch.ones(4, 3)
    holder.eval()
    assert torch.equal(teacher(x), teacher(x))


def test_it_is_a_copy_without_gradients_and_its_state_is_whole():
    student = network()
    teacher = Teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    ours = {t.data_ptr() for t in student.state_dict().values()}
    assert ours.isdisjoint(t.data_ptr() for t in teacher.state_dict().values())
    assert set(teacher.state_dict()) == {f"module.{name}" for name in student.state_dict()}
    x = torch.ones(4, 3, requires_grad=True)
    assert not teacher(x).requires_grad

    other = Teacher(network(seed=1))
    other.load_state_dict(teacher.state_dict())
    wander(student, torch.Generator().manual_seed(2))
    for each in (teacher, other):
        each.follow(student, 0.97)
    one, two = teacher.state_dict(), other.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_at_momentum_one_it_stays_and_at_zero_it_is_the_student():
    student, teacher = network(1), Teacher(network())
    before = {name: t.clone() for name, t in teacher.module.named_parameters()}
    teacher.follow(student, 1.0)
    assert all(torch.equal(t, before[name]) for name, t in teacher.module.named_parameters())
    teacher.follow(student, 0.0)
    theirs = student.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in teacher.module.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_a_momentum_out_of_range(momentum):
    with pytest.raises(ArgumentError, match="momentum: wants 0 to 1"):
        Teacher(network()).follow(network(), momentum)


def test_another_module_is_refused_and_nothing_moves():
    teacher = Teacher(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="zip"):
        teacher.follow(nn.Linear(2, 2, bias=False), 0.5)


def test_the_momentum_goes_to_one_along_a_cosine():
    """Half of the way is half of the distance; a quarter of it is sin^2(pi / 8)."""
    assert cosine_momentum(0.996, 0, 1000) == pytest.approx(0.996, abs=1e-15)
    assert cosine_momentum(0.996, 500, 1000) == pytest.approx(0.998, abs=1e-15)
    way = math.sin(math.pi / 8) ** 2
    assert cosine_momentum(0.996, 250, 1000) == pytest.approx(0.996 + 0.004 * way, abs=1e-15)
    assert cosine_momentum(0.996, 1000, 1000) == 1.0
    assert cosine_momentum(0.996, 1001, 1000) == 1.0
    course = [cosine_momentum(0.9, step, 50) for step in range(51)]
    assert course == sorted(course)
