"""Schedules by their closed forms, and which tensors an optimizer decays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from speechft.errors import ConfigError
from speechft.models import DINOHead, EmbeddingSpec, make_embedding, tiny
from speechft.training import TrainingSettings
from speechft.training.loader import TrainingData
from speechft.training.optimisation import make_optimizer, make_schedule, share
from speechft.training.trainable import Trainable
from speechft.training.trainer import RefinementTrainer


def course(**settings):
    """Learning rates of every update, as an optimizer meets them."""
    chosen = TrainingSettings(**settings)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=chosen.learning_rate)
    schedule = make_schedule(chosen, optimizer)
    rates = []
    for _ in range(chosen.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_is_a_line_and_then_half_a_wave():
    rates = course(
        steps=20, warmup_steps=4, schedule="cosine", learning_rate=0.4, final_learning_rate=0.04
    )
    assert rates[:5] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    for step in range(4, 20):
        wave = 0.5 + 0.5 * math.cos(math.pi * (step - 4) / 16)
        assert rates[step] == pytest.approx(0.04 + 0.36 * wave)
    assert rates[12] == pytest.approx(0.22)  # the mean, half way
    settings = TrainingSettings(
        steps=20, warmup_steps=4, schedule="cosine", learning_rate=0.4, final_learning_rate=0.04
    )
    assert share(settings, 20) == pytest.approx(0.1)
    assert share(settings, 99) == pytest.approx(0.1)  # and does not come up again


def test_exponential_is_held_then_halved_and_stops_at_the_end():
    """hyperion's, which halves every so many steps; not below its least."""
    rates = course(
        steps=40, warmup_steps=4, schedule="exponential", hold_steps=6, halve_every=5,
        learning_rate=0.8, final_learning_rate=0.05,
    )  # fmt: skip
    assert rates[:5] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert rates[4:11] == pytest.approx([0.8] * 7)
    assert rates[15] == pytest.approx(0.4)
    assert rates[20] == pytest.approx(0.2)
    assert rates[13] == pytest.approx(0.8 * math.exp(-math.log(2) * 3 / 5))
    assert rates[30:] == pytest.approx([0.05] * 10)


def test_constant_and_no_warmup():
    assert course(steps=6, warmup_steps=2, schedule="constant", learning_rate=0.5) == pytest.approx(
        [0.0, 0.25, 0.5, 0.5, 0.5, 0.5]
    )
    for schedule in ("constant", "cosine", "exponential"):
        chosen = {"steps": 3, "warmup_steps": 0, "learning_rate": 0.5}
        assert course(schedule=schedule, **chosen)[0] == 0.5


def test_a_warmup_as_long_as_the_run_or_longer_only_rises():
    rates = course(steps=4, warmup_steps=8, schedule="cosine", learning_rate=0.8)
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    rates = course(steps=4, warmup_steps=4, schedule="cosine", learning_rate=0.8)
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6])


class Everything(Trainable):
    """What methods are made of: networks with norms, an encoder, a head."""

    def __init__(self):
        super().__init__()
        self.xvector = make_embedding(EmbeddingSpec("xvector-8", size=6, bands=20))
        self.ecapa = make_embedding(EmbeddingSpec("ecapa-8", size=6, bands=20))
        self.resnet = make_embedding(EmbeddingSpec("resnet34-8", size=6, bands=20))
        self.encoder = make_embedding(EmbeddingSpec("encoder", size=6), encoder=tiny("hubert"))
        self.head = DINOHead(6, 16, hidden_size=8, bottleneck=4, batch_norm=True)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def trainer(tmp_path, **settings):
    settings = TrainingSettings(steps=4, device="cpu", weight_decay=0.3, **settings)
    data = TrainingData(None, None, None, None, 16_000)  # type: ignore[arg-type]
    method = Everything()
    return method, RefinementTrainer(method, data, settings, tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_only_matrices_and_kernels_decay(tmp_path, optimizer):
    method, made = trainer(tmp_path, optimizer=optimizer)
    groups = made.create_optimizer().param_groups
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in method.parameters() if p.requires_grad}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {n: decay[id(p)] for n, p in method.named_parameters() if p.requires_grad}
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    of_norms = {
        f"{name}.{own}"
        for name, module in method.named_modules()
        if isinstance(module, norms)
        for own, _ in module.named_parameters(recurse=False)
    }
    assert len(of_norms) > 100
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = name in of_norms or name.endswith("bias")
        if parameter.dim() > 1 and not plain:
            assert found[name] == 0.3, name
        elif plain:
            assert found[name] == 0.0, name


def test_adamw_is_as_transformers_makes_it(tmp_path):
    _, made = trainer(tmp_path, betas=(0.8, 0.95))
    optimizer = made.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-8}
    schedule = made.create_scheduler(4, optimizer)
    made.lr_scheduler = None
    assert type(schedule) is torch.optim.lr_scheduler.LambdaLR
    assert [schedule.lr_lambdas[0](step) for step in (0, 1, 4)] == [0.0, 1.0, 0.0]  # one of warmup


def test_adam_and_sgd_are_as_asked_for(tmp_path):
    _, made = trainer(tmp_path, optimizer="adam", betas=(0.9, 0.95), amsgrad=True)
    optimizer = made.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert all(g["amsgrad"] and g["betas"] == (0.9, 0.95) for g in optimizer.param_groups)
    _, made = trainer(tmp_path, optimizer="sgd", momentum=0.8, learning_rate=0.1)
    optimizer = made.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert all(g["momentum"] == 0.8 and g["lr"] == 0.1 for g in optimizer.param_groups)
    assert made.create_optimizer() is optimizer


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_decay_is_a_part_of_the_gradient(optimizer):
    """By hand, two updates of one weight: SGD's momentum and Adam's moments hold the decay."""
    settings = TrainingSettings(
        optimizer=optimizer, learning_rate=0.1, betas=(0.5, 0.75), momentum=0.5
    )
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    made = make_optimizer(settings, [{"params": [weight], "weight_decay": 0.25}])
    at, first, second = 2.0, 0.0, 0.0
    for step, gradient in ((1, 1.0), (2, -3.0)):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        made.step()
        whole = gradient + 0.25 * at
        if optimizer == "sgd":
            first = 0.5 * first + whole
            at -= 0.1 * first
        else:
            first, second = 0.5 * first + 0.5 * whole, 0.75 * second + 0.25 * whole**2
            at -= 0.1 * first / (1 - 0.5**step) / (math.sqrt(second / (1 - 0.75**step)) + 1e-8)
        assert weight.item() == pytest.approx(at, rel=1e-12)


def test_settings_out_of_range_are_named():
    for bad in (
        {"betas": (0.9, 1.0)}, {"momentum": 1.0}, {"hold_steps": -1}, {"halve_every": 0},
        {"final_learning_rate": -1.0}, {"final_learning_rate": 1.0, "learning_rate": 0.1},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(bad))):
            TrainingSettings(**bad)
