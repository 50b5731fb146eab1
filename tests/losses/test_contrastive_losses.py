"""The softmax losses as modules: what they keep, count and learn."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft import functional as F
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.losses import FactorSupConLoss, InfoNCELoss, MoCoLoss, NTXentLoss, SupConLoss


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 0, 2, 1, -1])


@pytest.mark.parametrize(
    ("loss", "same"),
    [
        (
            InfoNCELoss(0.3, symmetric=True, margin=0.1),
            lambda a, b: F.info_nce(a, b, temperature=0.3, symmetric=True, margin=0.1),
        ),
        (
            NTXentLoss(0.3, reduction="none"),
            lambda a, b: F.nt_xent(a, b, temperature=0.3, reduction="none"),
        ),
        (
            SupConLoss(0.3, denominator="none", margin=0.1),
            lambda a, b: F.sup_con(a, b, temperature=0.3, denominator="none", margin=0.1),
        ),
    ],
    ids=["info_nce", "nt_xent", "sup_con"],
)  # fmt: skip
def test_a_module_is_its_function_with_settings_kept(loss, same):
    a, b = rows(6, 4), LABELS if isinstance(loss, SupConLoss) else rows(6, 4, seed=1)
    assert torch.equal(loss(a, b), same(a, b))
    assert "0.3" in repr(loss)


class TestTemperature:
    def test_is_learnt_through_its_logarithm(self):
        loss = InfoNCELoss(0.2, learn_temperature=True)
        assert float(loss.temperature()) == pytest.approx(0.2)
        assert [name for name, _ in loss.named_parameters()] == ["temperature.log_scale"]
        optimizer = torch.optim.SGD(loss.parameters(), 0.05)
        a = rows(8, 4)
        values = []
        for _ in range(30):  # the right key is the query itself: the sharper, the better
            value = loss(a, a)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(float(value))
        assert values[-1] < values[0]
        assert float(loss.temperature()) < 0.2

    def test_does_not_fall_below_that_of_clip(self):
        loss = InfoNCELoss(0.2, learn_temperature=True)
        loss.temperature.log_scale.data.fill_(50.0)
        assert float(loss.temperature()) == pytest.approx(0.01)
        assert torch.isfinite(loss(rows(4, 3), rows(4, 3, seed=1)))

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
    def test_bad_ones(self, temperature):
        for make in (InfoNCELoss, NTXentLoss, SupConLoss, lambda t: MoCoLoss(3, 4, t)):
            with pytest.raises(ArgumentError, match="temperature"):
                make(temperature)
        with pytest.raises(ArgumentError, match="learnt"):
            InfoNCELoss(0.001, learn_temperature=True)


class TestSupCon:
    def test_counts_batches_without_a_positive_pair(self):
        loss, z = SupConLoss(), rows(6, 4).requires_grad_()
        loss(z, LABELS)
        assert int(loss.batches_without_positives) == 0
        value = loss(z, torch.arange(6))
        value.backward()
        assert float(value) == 0
        assert (z.grad == 0).all()
        loss(z, torch.full((6,), -1))
        assert int(loss.batches_without_positives) == 2
        again = SupConLoss()
        again.load_state_dict(loss.state_dict())
        assert int(again.batches_without_positives) == 2

    def test_views_are_positives_of_each_other(self):
        loss = SupConLoss()
        loss(rows(4, 2, 3), torch.arange(4))
        assert int(loss.batches_without_positives) == 0


class TestFactors:
    FACTORS = torch.stack([LABELS, torch.tensor([0, 0, 1, 1, -1, 2])], 1)

    def test_is_a_weighted_sum_over_factors(self):
        z, y = rows(6, 4), rows(6, 3, seed=1)
        parts = [
            F.sup_con(part, labels, temperature=0.2)
            for part, labels in zip((z, y), self.FACTORS.T, strict=True)
        ]
        loss = FactorSupConLoss((1.0, 0.5), 0.2)
        torch.testing.assert_close(loss([z, y], self.FACTORS), parts[0] + 0.5 * parts[1])
        each = FactorSupConLoss((1.0, 0.5), 0.2, reduction="none")([z, y], self.FACTORS)
        torch.testing.assert_close(each, torch.stack([parts[0], 0.5 * parts[1]]))

    def test_one_space_for_all_factors(self):
        z = rows(6, 4)
        want = sum(F.sup_con(z, labels) for labels in self.FACTORS.T)
        torch.testing.assert_close(FactorSupConLoss()(z, self.FACTORS), want)

    def test_unknown_factors_pull_and_push_nothing(self):
        z = rows(6, 4).requires_grad_()
        factors = torch.stack([LABELS, torch.full((6,), -1)], 1)
        FactorSupConLoss()(z, factors).backward()
        assert (z.grad[5] == 0).all()
        assert (z.grad[0] != 0).any()

    def test_counts_by_factor_and_in_the_state(self):
        loss = FactorSupConLoss((1.0, 1.0))
        loss(rows(6, 4), torch.stack([LABELS, torch.arange(6)], 1))
        assert loss.batches_without_positives.tolist() == [0, 1]
        again = FactorSupConLoss()  # which does not know yet how many factors there are
        again.load_state_dict(loss.state_dict())
        assert again.batches_without_positives.tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("argument", "error", "call"),
        [
            ("factors", ArgumentError, lambda z, f: FactorSupConLoss()(z, f[:, 0])),
            ("factors", ArgumentError, lambda z, f: FactorSupConLoss()(z, f[:4])),
            ("factors", ArgumentError, lambda z, f: FactorSupConLoss()(z, f - 1)),
            ("factors", ArgumentTypeError, lambda z, f: FactorSupConLoss()(z, f.float())),
            ("factors", ArgumentError, lambda z, f: FactorSupConLoss((1.0,))(z, f)),
            ("embeddings", ArgumentError, lambda z, f: FactorSupConLoss()([z], f)),
            ("reduction", ArgumentError, lambda z, f: FactorSupConLoss(reduction="mean")),
        ],
    )
    def test_bad_input(self, argument, error, call):
        with pytest.raises(error, match=argument):
            call(rows(6, 4), self.FACTORS)


class TestMoCo:
    def test_negatives_are_the_keys_of_the_batches_before(self):
        loss = MoCoLoss(dim=3, size=6, temperature=0.2)
        batches = [(rows(2, 3, seed=s), rows(2, 3, seed=s + 50)) for s in range(6)]
        for step, (query, key) in enumerate(batches):
            before = torch.cat([k for _, k in batches[max(0, step - 3) : step]] or [rows(0, 3)])
            q, k, past = (normalize(t, dim=1) for t in (query, key, before))
            positive = (q * k).sum(1, keepdim=True)
            logits = torch.cat([positive, q @ past.T], 1) / 0.2
            want = -logits.log_softmax(1)[:, 0].mean()
            torch.testing.assert_close(loss(query, key), want)

    @pytest.mark.parametrize("normalize", [False, True])
    def test_the_gradient_is_of_the_queue_as_it_was(self, normalize):
        loss = MoCoLoss(dim=3, size=4, normalize=normalize)
        loss(rows(2, 3), rows(2, 3, seed=1))
        past = loss.queue[:2].clone()
        query = rows(2, 3, seed=2).requires_grad_()
        key = rows(2, 3, seed=3)
        value = loss(query, key)
        value.backward()  # after the keys of this batch have entered
        same = query.detach().clone().requires_grad_()
        F.info_nce(
            same, key, queue=past, in_batch=False, temperature=0.07, normalize=normalize
        ).backward()
        torch.testing.assert_close(query.grad, same.grad)

    def test_a_checkpoint_goes_on_to_the_same_bits(self):
        def steps(loss: MoCoLoss, start: int, stop: int) -> list[float]:
            return [
                float(loss(rows(3, 4, seed=s), rows(3, 4, seed=s + 9))) for s in range(start, stop)
            ]

        whole, first = MoCoLoss(4, 8), MoCoLoss(4, 8)
        values = steps(whole, 0, 7)
        steps(first, 0, 4)
        second = MoCoLoss(4, 8)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert steps(second, 4, 7) == values[4:]
        assert set(first.state_dict()) == {"queue", "queue_labels", "place"}

    def test_labels_keep_false_negatives_out_of_the_denominator(self):
        loss = MoCoLoss(dim=3, size=4, temperature=0.2)
        loss(rows(2, 3), rows(2, 3, seed=1), labels=torch.tensor([0, 1]))
        query, key = rows(2, 3, seed=2), rows(2, 3, seed=3)
        q, k, past = (normalize(t, dim=1) for t in (query, key, rows(2, 3, seed=1)))
        positive, other = (q * k).sum(1) / 0.2, (q @ past.T) / 0.2
        kept = torch.stack([other[0, 1], other[1, 0]])  # of the other label
        want = (torch.logaddexp(positive, kept) - positive).mean()
        torch.testing.assert_close(loss(query, key, labels=torch.tensor([0, 1])), want)

    def test_in_batch_adds_the_other_keys(self):
        loss = MoCoLoss(dim=3, size=4, in_batch=True)
        query, key = rows(2, 3), rows(2, 3, seed=1)
        torch.testing.assert_close(loss(query, key), F.info_nce(query, key, temperature=0.07))

    def test_eval_mode_leaves_the_queue_alone(self):
        loss = MoCoLoss(dim=3, size=4).eval()
        loss(rows(2, 3), rows(2, 3, seed=1))
        assert int(loss.place) == 0
        assert (loss.queue_labels == -1).all()

    def test_half_precision(self):
        loss = MoCoLoss(dim=3, size=4)
        for seed in range(2):
            value = loss(rows(2, 3, seed=seed).bfloat16(), rows(2, 3, seed=seed + 5).bfloat16())
        assert value.dtype == torch.float32
        assert torch.isfinite(value)

    @pytest.mark.parametrize(
        ("argument", "call"),
        [
            ("key", lambda loss: loss(rows(2, 4), rows(2, 4))),
            ("key", lambda loss: loss(rows(5, 3), rows(5, 3))),
            ("size", lambda loss: MoCoLoss(3, 0)),
            ("dim", lambda loss: MoCoLoss(2.5)),
            ("labels", lambda loss: loss(rows(2, 3), rows(2, 3), labels=torch.tensor([0]))),
        ],
    )
    def test_bad_input(self, argument, call):
        with pytest.raises(ArgumentError, match=argument):
            call(MoCoLoss(3, 4))
