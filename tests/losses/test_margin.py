"""Angular-margin softmax: its formula, its margins, what it keeps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.losses import AAMSoftmaxLoss, SubCenterArcFaceLoss

LABELS = torch.tensor([0, 3, 1, -1, 4, 3])


def rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(kind=AAMSoftmaxLoss, size=4, classes=5, **settings):
    torch.manual_seed(1)
    return kind(size, classes, **settings).double()


def defined(loss, embeddings: Tensor, labels: Tensor, share: float = 1.0) -> list[float]:
    """Each row's loss by its angles, one by one."""

    def farther(angle: float, margin: float) -> float:
        if angle + margin < math.pi:
            return math.cos(angle + margin)
        return math.cos(angle) - margin * math.sin(margin)

    losses = []
    for x, y in zip(embeddings.tolist(), labels.tolist(), strict=True):
        angles = []
        for j in range(loss.classes):
            of_class = []
            for k in range(loss.sub_centers):
                w = loss.weight[j * loss.sub_centers + k].tolist()
                dot = math.fsum(a * b for a, b in zip(x, w, strict=True))
                of_class.append(math.acos(dot / math.hypot(*x) / math.hypot(*w)))
            angles.append(min(of_class))
        if y < 0:
            losses.append(0.0)
            continue
        cosines = [math.cos(angle) for angle in angles]
        nearest = sorted((j for j in range(loss.classes) if j != y), key=lambda j: angles[j])
        for j in nearest[: loss.top_k]:  # the mirror: the opposite of the centre comes nearer
            cosines[j] = -farther(math.pi - angles[j], share * loss.top_k_margin)
        cosines[y] = farther(angles[y], share * loss.margin)
        logits = [loss.scale * cosine for cosine in cosines]
        log_sum = max(logits) + math.log(math.fsum(math.exp(v - max(logits)) for v in logits))
        e = loss.label_smoothing
        losses.append(log_sum - (1 - e) * logits[y] - e * math.fsum(logits) / len(logits))
    return losses


SETTINGS = [
    {},
    {"margin": 0.5, "scale": 8.0},
    {"margin": 1.8},  # beyond pi for some rows
    {"top_k": 2, "top_k_margin": 0.3},
    {"top_k": 4, "top_k_margin": 1.5, "scale": 4.0},  # nearer than the margin for some
    {"label_smoothing": 0.2},
    {"sub_centers": 3, "top_k": 1, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_its_definition(settings):
    loss, x = made(**settings, reduction="none"), rows(6, 4)
    wanted = torch.tensor(defined(loss, x, LABELS), dtype=torch.float64)
    torch.testing.assert_close(loss(x, LABELS), wanted, atol=1e-12, rtol=1e-12)
    loss.reduction = "mean"
    assert float(loss(x, LABELS).detach()) == pytest.approx(float(wanted.sum()) / 5, rel=1e-12)
    loss.reduction = "sum"
    assert float(loss(x, LABELS).detach()) == pytest.approx(float(wanted.sum()), rel=1e-12)
    loss.reduction = "none"
    single = loss.float()(x.float(), LABELS)
    torch.testing.assert_close(single, wanted.float(), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_are_true(settings):
    loss, x = made(**settings), rows(6, 4).requires_grad_()

    def of(embeddings: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"weight": weight}, (embeddings, LABELS))

    assert torch.autograd.gradcheck(of, (x, loss.weight.detach().clone().requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_embedding_on_its_centre_or_opposite_has_a_finite_gradient(dtype):
    loss = AAMSoftmaxLoss(2, 3, scale=1.0, top_k=1, reduction="none").to(dtype)
    loss.weight.data.copy_(torch.tensor([[1, 0], [-1, 0], [0, 1]]))
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=dtype, requires_grad=True)
    values = loss(x, torch.tensor([0, 0]))
    values.sum().backward()
    assert x.grad.isfinite().all()
    assert loss.weight.grad.isfinite().all()
    near = 3e-3 if dtype == torch.float32 else 1e-7  # the sine of what counts as no angle
    m, k = 0.2, 0.1
    turned = [math.cos(m), math.cos(math.pi / 2 - k), -1.0]
    wanted = math.log(sum(map(math.exp, turned))) - turned[0]
    assert float(values[0].detach()) == pytest.approx(wanted, abs=near)
    # The opposite: own angle pi, continued; the wrong class at angle 0, continued as its mirror.
    turned = [-1 - m * math.sin(m), 1 + k * math.sin(k), 0.0]
    wanted = math.log(sum(map(math.exp, turned))) - turned[0]
    assert float(values[1].detach()) == pytest.approx(wanted, abs=near)


def test_the_logit_falls_with_the_angle_and_the_loss_grows_with_the_margin():
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1)
    before = None
    for margin in (0.0, 0.2, 0.5, 1.0, 1.5):
        loss = made(size=2, classes=2, margin=margin, scale=2.0, reduction="none")
        loss.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))  # the other: cosine 0
        values = loss(x, torch.zeros(2001, dtype=torch.int64)).detach()
        assert (values.diff() > 0).all()
        if before is not None:
            assert (values > before).all()
        before = values


def test_wrong_classes_farther_than_the_top_k_have_no_margin():
    x, labels = rows(6, 4), LABELS.clamp_min(0)
    plain = [float(made(top_k=k)(x, labels).detach()) for k in range(5)]
    assert plain == sorted(plain)
    assert len(set(plain)) == 5
    with pytest.raises(ArgumentError, match="top_k: wants fewer than classes=5"):
        made(top_k=5)


def test_one_sub_centre_is_plain_and_equal_ones_change_nothing():
    x = rows(6, 4)
    plain = made()
    assert torch.equal(made(SubCenterArcFaceLoss, sub_centers=1)(x, LABELS), plain(x, LABELS))
    twice = made(SubCenterArcFaceLoss)
    twice.weight.data.copy_(plain.weight.repeat_interleave(2, 0))
    torch.testing.assert_close(twice(x, LABELS), plain(x, LABELS))
    assert twice.weight.shape == (10, 4)


def test_only_the_nearest_sub_centre_learns_from_its_own_row():
    loss = made(SubCenterArcFaceLoss, size=2, classes=2)
    loss.weight.data.copy_(torch.tensor([[1.0, 0.1], [-1.0, 0.1], [0.0, -1.0], [0.1, -1.0]]))
    loss(torch.tensor([[1.0, 0.3]], dtype=torch.float64), torch.tensor([0])).backward()
    assert loss.weight.grad[0].abs().sum() > 0
    assert loss.weight.grad[1].abs().sum() == 0


def test_logits_are_scaled_cosines():
    loss, x = made(SubCenterArcFaceLoss, scale=7.0), rows(6, 4)
    cosines = normalize(x, dim=1) @ normalize(loss.weight, dim=1).T
    wanted = 7 * torch.stack([cosines[:, ::2], cosines[:, 1::2]]).max(0).values
    torch.testing.assert_close(loss.logits(x), wanted)
    assert int(loss.step) == 0


def test_embeddings_of_any_length_are_the_same():
    loss, x = made(), rows(6, 4)
    torch.testing.assert_close(loss(x * torch.arange(1.0, 7.0)[:, None], LABELS), loss(x, LABELS))


def test_unknown_labels_change_nothing():
    loss, x = made(top_k=1), rows(6, 4)
    known = LABELS >= 0
    torch.testing.assert_close(loss(x, LABELS), loss(x[known], LABELS[known]))
    x.requires_grad_()
    nothing = loss(x, torch.full((6,), -1))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert float(x.grad.abs().max()) == 0
    assert float(loss.weight.grad.abs().max()) == 0


class TestWarmUp:
    def test_grows_linearly_with_both_margins(self):
        loss = made(margin=0.8, top_k=2, margin_warmup_steps=4, reduction="none")
        x = rows(6, 4)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0):
            wanted = torch.tensor(defined(loss, x, LABELS, share), dtype=torch.float64)
            torch.testing.assert_close(loss(x, LABELS), wanted)
        assert int(loss.step) == 6

    def test_waits_in_eval_mode_and_is_in_a_checkpoint(self):
        loss, x = made(margin=0.8, margin_warmup_steps=4), rows(6, 4)
        for _ in range(2):
            loss(x, LABELS)
        loss.eval()
        first = loss(x, LABELS)
        assert torch.equal(loss(x, LABELS), first)
        saved = copy.deepcopy(loss.state_dict())
        assert saved["step"].dtype == torch.int64
        resumed = made(margin=0.8, margin_warmup_steps=4, scale=30.0)
        assert not torch.equal(resumed.eval()(x, LABELS), first)
        resumed.load_state_dict(saved)
        assert torch.equal(resumed(x, LABELS), first)
        assert int(resumed.step) == 2

    def test_a_backward_after_another_call_is_of_its_own_step(self):
        x = rows(6, 4).requires_grad_()
        gradients = []
        for later in (0, 3):
            loss = made(margin=0.8, margin_warmup_steps=4)
            loss(x, LABELS)
            value = loss(x, LABELS)
            for _ in range(later):
                loss(x, LABELS)
            gradients.append(torch.autograd.grad(value, x)[0])
        assert torch.equal(*gradients)


def test_half_precision_and_autocast_compute_in_float32():
    loss = made(top_k=1, reduction="none").float()
    x = rows(6, 4).bfloat16()
    plain = loss(x.float(), LABELS)
    assert torch.equal(loss(x, LABELS), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(x.float(), LABELS), plain)
        assert loss.logits(x).dtype == torch.float32


def test_it_is_the_same_twice_and_compiles_whole():
    loss, x = made(SubCenterArcFaceLoss, margin_warmup_steps=3, top_k=2), rows(6, 4)
    whole = torch.compile(copy.deepcopy(loss), fullgraph=True, backend="eager")
    again = copy.deepcopy(loss)
    for _ in range(3):
        values = [module(x, LABELS) for module in (loss, again, whole)]
        assert torch.equal(values[0], values[1])
        torch.testing.assert_close(values[0], values[2])


def test_it_learns_classes():
    torch.manual_seed(0)
    centres = torch.randn(10, 8)
    loss = AAMSoftmaxLoss(8, 10, margin_warmup_steps=20)
    encoder = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam([*loss.parameters(), *encoder.parameters()], 0.05)
    for _ in range(80):
        labels = torch.randint(0, 10, (64,))
        optimizer.zero_grad()
        loss(encoder(centres[labels] + 0.3 * torch.randn(64, 8)), labels).backward()
        optimizer.step()
    labels = torch.randint(0, 10, (500,))
    found = loss.logits(encoder(centres[labels] + 0.3 * torch.randn(500, 8))).argmax(1)
    assert (found == labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"size": 0}, "size"),
        ({"classes": 1}, "classes"),
        ({"margin": -0.1}, "margin"),
        ({"margin": 4.0}, "margin"),
        ({"margin": math.nan}, "margin"),
        ({"scale": 0}, "scale"),
        ({"sub_centers": 0}, "sub_centers"),
        ({"margin_warmup_steps": 1.5}, "margin_warmup_steps"),
        ({"top_k": -1}, "top_k"),
        ({"top_k_margin": -1.0}, "top_k_margin"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"reduction": "average"}, "reduction"),
    ],
)
def test_settings_out_of_range_are_named(settings, argument):
    with pytest.raises(ArgumentError, match=f"^{argument}: "):
        made(**settings)


def test_bad_batches_are_named():
    loss, x = made(), rows(6, 4)
    with pytest.raises(ArgumentError, match=r"^labels: wants numbers below 5, got 5 at 1"):
        loss(x, torch.tensor([0, 5, 0, 0, 0, 0]))
    with pytest.raises(ArgumentError, match=r"^labels: .*-1 for unknown"):
        loss(x, torch.full((6,), -2))
    with pytest.raises(ArgumentError, match=r"^labels: "):
        loss(x, LABELS[:5])
    with pytest.raises(ArgumentTypeError, match=r"^labels: "):
        loss(x, LABELS.double())
    with pytest.raises(ArgumentError, match=r"^embeddings: wants rows of size=4"):
        loss(rows(6, 3), LABELS)
    with pytest.raises(NonFiniteError, match=r"^embeddings: "):
        loss(x * math.nan, LABELS)
    assert int(loss.step) == 0
