"""``DINOLoss`` and its kin: what they keep, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from distributed_ranks import run_on_ranks
from torch import Tensor, distributed

from speechft import functional as F
from speechft import losses
from speechft.errors import ArgumentError

K = 12


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(step: int, size: int = 6) -> tuple[Tensor, Tensor]:
    """Student and teacher views of a step."""
    return logits(4, size, K, seed=2 * step), 1 + logits(2, size, K, seed=2 * step + 1)


def made(**settings) -> losses.DINOLoss:
    return losses.DINOLoss(K, **settings)


class TestCentre:
    def test_a_batch_is_centred_by_what_came_before_it(self):
        loss, centre = made(), torch.zeros(K)
        for step in range(5):
            student, teacher = batch(step)
            want = F.dino(student, teacher, center=centre)
            torch.testing.assert_close(loss(student, teacher), want)
            centre = 0.9 * centre + 0.1 * teacher.mean((0, 1))
            torch.testing.assert_close(loss.center, centre)
        assert int(loss.step) == 5

    def test_in_eval_mode_nothing_moves(self):
        loss = made(teacher_temperature=[0.04, 0.07])
        loss(*batch(0))
        before = copy.deepcopy(loss.state_dict())
        loss.eval()
        assert torch.equal(loss(*batch(1)), loss(*batch(1)))
        for name, value in loss.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_sinkhorn(self):
        loss = made(centering="sinkhorn", teacher_temperature=0.06)
        student, teacher = batch(0)
        centre = F.sinkhorn_center(teacher, epsilon=0.06)
        want = F.dino(student, teacher, center=centre, teacher_temperature=0.06)
        torch.testing.assert_close(loss(student, teacher), want)
        torch.testing.assert_close(loss(list(student), list(teacher)), want)
        assert (loss.center == 0).all()

    def test_none(self):
        student, teacher = batch(0)
        loss = made(centering="none")
        torch.testing.assert_close(loss(student, teacher), F.dino(student, teacher))
        assert (loss.center == 0).all()

    def test_frames_beyond_the_lengths_do_not_move_it(self):
        student, teacher = logits(2, 3, 5, K), logits(2, 3, 5, K, seed=1)
        n = torch.tensor([5, 1, 3])
        valid = torch.arange(5) < n[:, None]
        teacher[:, ~valid] = math.nan
        loss = made()
        assert torch.isfinite(loss(student, teacher, lengths=n))
        torch.testing.assert_close(loss.center, 0.1 * teacher[:, valid].mean((0, 1)))


class TestTemperature:
    def test_a_schedule_is_followed_and_its_end_kept(self):
        loss = made(teacher_temperature=losses.linear_warmup(0.04, 0.07, 2))
        for step, temperature in enumerate((0.04, 0.055, 0.07, 0.07)):
            student, teacher = batch(step)
            want = F.dino(student, teacher, center=loss.center, teacher_temperature=temperature)
            torch.testing.assert_close(loss(student, teacher), want)

    def test_linear_warmup(self):
        assert losses.linear_warmup(0.1, 0.2, 1) == [0.1, 0.2]
        with pytest.raises(ArgumentError, match="steps"):
            losses.linear_warmup(0.1, 0.2, 0)


class TestCheckpoint:
    def test_a_resumed_run_is_the_same_run(self):
        schedule = losses.linear_warmup(0.04, 0.07, 6)
        whole = made(teacher_temperature=schedule)
        values = [whole(*batch(step)) for step in range(8)]
        first = made(teacher_temperature=schedule)
        for step in range(4):
            first(*batch(step))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        again = made(teacher_temperature=schedule)
        again.load_state_dict(torch.load(file))
        for step in range(4, 8):
            assert torch.equal(again(*batch(step)), values[step])

    def test_all_that_changes_is_in_it(self):
        """Every tensor and number of the module that a step moves is a buffer of the state."""
        loss = made(teacher_temperature=[0.04, 0.05])
        before = copy.deepcopy(loss)
        loss(*batch(0))
        kept = set(loss.state_dict())
        assert kept == {"center", "step", "teacher_temperatures"}
        plain = {name: value for name, value in vars(loss).items() if not name.startswith("_")}
        assert plain == {name: vars(before)[name] for name in plain}
        assert loss._under_way is None

    def test_another_schedule_is_refused(self):
        with pytest.raises(RuntimeError, match="teacher_temperatures"):
            made(teacher_temperature=[0.1, 0.2]).load_state_dict(made().state_dict())


class TestMonitors:
    def test_values(self):
        loss = made()
        student, teacher = batch(0)
        value = loss(student, teacher)
        found = loss.monitors()
        entropy = torch.distributions.Categorical(logits=teacher / 0.04).entropy().mean()
        torch.testing.assert_close(found["teacher_entropy"], entropy)
        torch.testing.assert_close(found["divergence"], (value - entropy).detach())
        torch.testing.assert_close(found["center_norm"], loss.center.norm())
        assert not any(tensor.requires_grad for tensor in found.values())

    def test_a_collapse_shows(self):
        """All rows the same: the student has learnt it all, and the teacher says nothing."""
        loss = made()
        same = torch.zeros(2, 6, K)
        loss(same, same)
        found = loss.monitors()
        assert math.isclose(found["teacher_entropy"], math.log(K), rel_tol=1e-6)
        assert abs(found["divergence"]) < 1e-6

    def test_they_do_not_depend_on_the_reduction(self):
        found = []
        for reduction in ("mean", "sum", "none"):
            loss = made(reduction=reduction)
            loss(*batch(0))
            found.append(loss.monitors())
        for other in found[1:]:
            for name, value in other.items():
                torch.testing.assert_close(value, found[0][name])


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        ("centering", {"centering": "median"}),
        ("center_momentum", {"center_momentum": 1.0}),
        ("teacher_temperature", {"teacher_temperature": []}),
        ("teacher_temperature", {"teacher_temperature": [0.04, 0.0]}),
        ("student_temperature", {"student_temperature": -1.0}),
    ],
)
def test_bad_settings(argument, settings):
    with pytest.raises(ArgumentError, match=argument):
        made(**settings)


def test_another_number_of_codes():
    with pytest.raises(ArgumentError, match="teacher"):
        losses.DINOLoss(K + 1)(*batch(0))
    with pytest.raises(ArgumentError, match="codes"):
        losses.DINOLoss(0)


def of_ranks(rank: int, ranks: int, centering: str) -> list[Tensor]:
    """Three steps; each rank has a part of the batch, the first one sample less than the others."""
    loss = made(gather=ranks > 1, centering=centering)
    found = []
    for step in range(3):
        student, teacher = batch(step, size=8)
        first = [0, *(8 * (r + 1) // ranks - (r + 1 < ranks) for r in range(ranks))]
        mine = slice(first[rank], first[rank + 1])
        student = student[:, mine].detach().requires_grad_()
        value = loss(student, teacher[:, mine]) * student.shape[1] / 8
        (gradient,) = torch.autograd.grad(value, student)
        every = torch.zeros(4, 8, K)
        every[:, mine] = gradient
        value = value.detach()
        if ranks > 1:
            distributed.all_reduce(value)
            distributed.all_reduce(every)
        found += [value, every]
    assert (loss._under_way is not None) == (ranks > 1 and centering == "mean")
    state = loss.state_dict()  # also takes in what is under way
    return [*found, state["center"], copy.deepcopy(loss).center]


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_centre_is_of_all_ranks(ranks, centering):
    want = of_ranks(0, 1, centering)
    for result in run_on_ranks(of_ranks, ranks, centering):
        for got, one in zip(result, want, strict=True):
            error = (got - one).abs().max()
            assert error <= 2e-6 * one.abs().max().clamp_min(1), error


class TestSwappedPrediction:
    def test_it_is_the_function_of_cosines(self):
        loss = losses.SwappedPredictionLoss(5, 7)
        one, two = logits(9, 5), logits(9, 5, seed=1)
        unit = torch.nn.functional.normalize
        cosines = [unit(z) @ unit(loss.codebook).T for z in (one, two)]
        torch.testing.assert_close(loss(one, two), F.swapped_prediction(*cosines))

    def test_the_length_of_a_code_means_nothing(self):
        loss = losses.SwappedPredictionLoss(5, 7)
        one, two = logits(9, 5), logits(9, 5, seed=1)
        before = loss(one, two)
        before.backward()
        along = (loss.codebook.grad * loss.codebook).sum(1)
        torch.testing.assert_close(along, torch.zeros(7), atol=1e-6, rtol=0)
        with torch.no_grad():
            loss.codebook.mul_(torch.linspace(0.5, 3, 7)[:, None])
        torch.testing.assert_close(loss(one, two), before)

    def test_codes(self):
        loss = losses.SwappedPredictionLoss(5, 7)
        z = loss.codebook.detach()[[3, 0, 6, 6]]
        assert loss.codes(z).tolist() == [3, 0, 6, 6]
        assert loss.codes(z[None]).shape == (1, 4)

    def test_frames_beyond_the_lengths_have_no_part(self):
        loss = losses.SwappedPredictionLoss(5, 7)
        one, two = logits(2, 6, 5), logits(2, 6, 5, seed=1)
        valid = torch.arange(6) < torch.tensor([6, 2])[:, None]
        got = loss(one, two, lengths=[6, 2])
        torch.testing.assert_close(got, loss(one[valid], two[valid]))

    def test_bad_input(self):
        with pytest.raises(ArgumentError, match="z"):
            losses.SwappedPredictionLoss(5, 7)(logits(9, 4), logits(9, 4))
        with pytest.raises(ArgumentError, match="codes"):
            losses.SwappedPredictionLoss(5, 0)


def test_koleo_keeps_its_settings():
    x = logits(6, 4)
    loss = losses.KoLeoLoss(normalize=False, epsilon=1e-3)
    assert torch.equal(loss(x), F.koleo(x, normalize=False, epsilon=1e-3))
    assert "normalize=False" in repr(loss)
