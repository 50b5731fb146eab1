"""InfoNCE, NT-Xent and SupCon: what they mean, on every backend at hand, and beside a peer."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from contract import (
    assert_as_accurate,
    assert_deterministic,
    device_of,
    name_of,
    providers,
    running_on,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from speechft import functional as F
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError


@pytest.fixture(params=[*providers("pairwise_lse"), ("reference", "")], ids=name_of)
def backend(request):
    """Each backend that runs here, the reference among them."""
    with running_on(request.param) as name:
        yield name


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(size: int, seed: int = 0, kinds: int = 5, lowest: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lowest, kinds, (size,), generator=generator)


OF_ONE, OF_BOTH = labels(70, 1), labels(140, 1, lowest=-1)


def gradients(op, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = op(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def assert_same(got, want, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def log_probability(positive: float, negatives: list[float]) -> float:
    """Of one pair against others, in Python floats."""
    return positive - math.log(math.fsum(map(math.exp, [positive, *negatives])))


class TestInfoNCE:
    def test_is_a_cross_entropy(self, backend):
        q, k = rows(9, 4), rows(9, 4, seed=1)

        def clip(q, k):
            logits = normalize(q, dim=1) @ normalize(k, dim=1).T / 0.3
            y = torch.arange(9)
            return (cross_entropy(logits, y) + cross_entropy(logits.T, y)) / 2

        got = gradients(lambda q, k: F.info_nce(q, k, temperature=0.3, symmetric=True), q, k)
        assert_same(got, gradients(clip, q, k))

    def test_a_loss_that_is_small_keeps_its_digits(self, backend):
        """With cosines of 1 and -1 at temperature 0.1 the loss is 2e-9; lse - s would be 0."""
        q = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        value = F.info_nce(q, q, temperature=0.1)
        exact = math.log1p(math.exp(-20.0))
        if backend == "reference":  # the definition in float64 has them
            value = R.info_nce(q.double(), q.double(), temperature=0.1)
        assert float(value) == pytest.approx(exact, rel=1e-5)

    def test_false_negatives_are_left_out_and_queues_come_in(self, backend):
        q, k, queue = rows(6, 3), rows(6, 3, seed=1), rows(8, 3, seed=2)
        of, of_queue = labels(6, 1, lowest=-1), labels(8, 2, lowest=-1)
        u, v, w = (normalize(t, dim=1).double() for t in (q, k, queue))
        for in_batch in (True, False):
            want = []
            for i in range(6):
                known = int(of[i]) >= 0
                negatives = [
                    float(u[i] @ v[j] / 0.2)
                    for j in range(6)
                    if in_batch and known and j != i and of[j] >= 0 and of[j] != of[i]
                ]
                negatives += [
                    float(u[i] @ w[j] / 0.2)
                    for j in range(8)
                    if known and of_queue[j] >= 0 and of_queue[j] != of[i]
                ]
                want.append(-log_probability(float(u[i] @ v[i] / 0.2), negatives))
            got = F.info_nce(
                q, k, temperature=0.2, labels=of, queue=queue, queue_labels=of_queue,
                in_batch=in_batch, reduction="none",
            )  # fmt: skip
            torch.testing.assert_close(got, torch.tensor(want).float(), rtol=1e-5, atol=1e-6)

    def test_margins_are_of_the_positive_alone(self, backend):
        q, k = rows(5, 3), rows(5, 3, seed=1)
        u, v = normalize(q, dim=1).double(), normalize(k, dim=1).double()
        want = []
        for i in range(5):
            angle = math.acos(float(u[i] @ v[i])) + 0.3
            assert angle < math.pi
            positive = (math.cos(angle) - 0.1) / 0.2
            others = [float(u[i] @ v[j] / 0.2) for j in range(5) if j != i]
            want.append(-log_probability(positive, others))
        got = F.info_nce(q, k, temperature=0.2, margin=0.1, angular_margin=0.3, reduction="none")
        torch.testing.assert_close(got, torch.tensor(want).float(), rtol=1e-5, atol=1e-5)

    def test_an_angular_margin_falls_on_beyond_pi(self):
        """The loss rises with the angle, also where angle + margin is more than pi."""
        angles = torch.linspace(0.1, math.pi - 0.01, 40)
        key = torch.tensor([[1.0, 0.0]])
        other = torch.tensor([[0.0, 1.0]])
        values = [
            float(
                F.info_nce(
                    torch.stack([a.cos(), -a.sin()])[None], key, queue=other, in_batch=False,
                    angular_margin=0.5, temperature=1.0, normalize=True,
                )
                - F.info_nce(
                    torch.stack([a.cos(), -a.sin()])[None], key, queue=other, in_batch=False,
                    temperature=1.0,
                )
            )
            for a in angles
        ]  # fmt: skip
        assert all(v > 0 for v in values)

    def test_the_gradient_by_the_temperature(self, backend):
        q, k = rows(20, 6), rows(20, 6, seed=1)
        t = torch.tensor(0.2, requires_grad=True)
        F.info_nce(q, k, temperature=t, symmetric=True, margin=0.1).backward()

        def value(temperature: float) -> float:
            return float(
                R.info_nce(
                    q.double(), k.double(), temperature=temperature, symmetric=True, margin=0.1
                )
            )

        slope = (value(0.2 + 1e-5) - value(0.2 - 1e-5)) / 2e-5
        assert float(t.grad) == pytest.approx(slope, rel=1e-4)


class TestNTXent:
    def test_is_the_loss_of_simclr(self, backend):
        a, b = rows(7, 4), rows(7, 4, seed=1)
        z = normalize(torch.cat([a, b]), dim=1).double()
        logits = (z @ z.T / 0.3).tolist()
        want = [
            -log_probability(
                logits[i][(i + 7) % 14],
                [logits[i][j] for j in range(14) if j not in (i, (i + 7) % 14)],
            )
            for i in range(14)
        ]
        got = F.nt_xent(a, b, temperature=0.3, reduction="none")
        torch.testing.assert_close(got, torch.tensor(want).float(), rtol=1e-5, atol=1e-6)

    def test_labels_are_more_positives(self, backend):
        a, b, of = rows(6, 4), rows(6, 4, seed=1), labels(6, 3, kinds=3, lowest=-1)
        z = normalize(torch.cat([a, b]), dim=1).double()
        logits, every = (z @ z.T / 0.3).tolist(), [*of.tolist()] * 2
        pairs = []
        for i, p in ((i, p) for i in range(12) for p in range(12) if i != p):
            if every[i] == every[p] >= 0:
                others = [logits[i][j] for j in range(12) if every[j] >= 0 and every[j] != every[i]]
                pairs.append(-log_probability(logits[i][p], others))
        got = F.nt_xent(a, b, labels=of, temperature=0.3)
        assert float(got) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


class TestSupCon:
    @pytest.mark.parametrize("denominator", ["all", "own", "none"])
    @pytest.mark.parametrize("margin", [0.0, 0.2])
    def test_is_the_definition(self, backend, denominator, margin):
        if margin and denominator == "own":
            pytest.skip("no margin there")
        z, of = rows(12, 4), labels(12, 1, kinds=4, lowest=-1)
        u = normalize(z, dim=1).double()
        cosine = (u @ u.T).tolist()
        want = []
        for i in range(12):
            known = [j for j in range(12) if j != i and of[i] >= 0 and of[j] >= 0]
            positives = [j for j in known if of[j] == of[i]]
            negatives = [cosine[i][j] / 0.3 for j in known if of[j] != of[i]]
            pulled = {p: (cosine[i][p] - margin) / 0.3 for p in positives}
            terms = []
            for p in positives:
                among = negatives + {
                    "all": list(pulled.values()), "own": [pulled[p]], "none": []
                }[denominator]  # fmt: skip
                terms.append(math.log(math.fsum(map(math.exp, among))) - pulled[p])
            want.append(sum(terms) / len(terms) if terms else 0.0)
        kept = {"temperature": 0.3, "denominator": denominator, "margin": margin}
        got = F.sup_con(z, of, reduction="none", **kept)
        torch.testing.assert_close(got, torch.tensor(want).float(), rtol=1e-5, atol=1e-5)
        have = sum(any(of[j] == of[i] >= 0 for j in range(12) if j != i) for i in range(12))
        assert float(F.sup_con(z, of, **kept)) == pytest.approx(sum(want) / have, rel=1e-5)
        assert float(F.sup_con(z, of, reduction="sum", **kept)) == pytest.approx(
            sum(want), rel=1e-5
        )

    def test_views_are_samples_of_one_label(self, backend):
        z, of = rows(5, 3, 4), labels(5, 1, kinds=3)
        got = gradients(lambda z: F.sup_con(z, of), z)
        want = gradients(lambda z: F.sup_con(z.flatten(0, 1), of.repeat_interleave(3)), z)
        assert_same(got, want)

    @pytest.mark.parametrize("denominator", ["all", "own", "none"])
    def test_no_positive_pair_is_a_zero_with_a_graph(self, backend, denominator):
        z = rows(4, 3).requires_grad_()
        for of in (torch.arange(4), torch.tensor([0, 1, -1, -1]), torch.full((4,), -1)):
            value = F.sup_con(z, of, denominator=denominator)
            assert float(value) == 0
            (gradient,) = torch.autograd.grad(value, z)
            assert (gradient == 0).all()

    def test_all_of_one_label_is_uniform_over_positives(self, backend):
        """No negatives: the loss of the paper is defined, and least where all cosines are equal."""
        z = normalize(torch.ones(4, 3), dim=1).requires_grad_()
        value = F.sup_con(z, torch.zeros(4, dtype=torch.int64))
        assert float(value) == pytest.approx(math.log(3), rel=1e-6)
        assert torch.isfinite(torch.autograd.grad(value, z)[0]).all()

    def test_matches_of_a_sample_with_views_alone(self, backend):
        """Labels that are each sample's own, with two views: NT-Xent."""
        a, b = rows(6, 4), rows(6, 4, seed=1)
        got = F.sup_con(torch.stack([a, b], 1), torch.arange(6), temperature=0.2)
        torch.testing.assert_close(got, F.nt_xent(a, b, temperature=0.2), rtol=1e-5, atol=1e-6)


CASES = {
    "info_nce": lambda op, q, k: op.info_nce(q, k, temperature=0.07, reduction="none"),
    "info_nce symmetric": lambda op, q, k: op.info_nce(q, k, symmetric=True, reduction="none"),
    "info_nce labels": lambda op, q, k: op.info_nce(
        q, k, labels=OF_ONE[: len(q)].to(q.device), margin=0.1, reduction="none"
    ),
    "info_nce dot": lambda op, q, k: op.info_nce(q, k, normalize=False, reduction="none"),
    "nt_xent": lambda op, q, k: op.nt_xent(q, k, reduction="none"),
    "nt_xent labels": lambda op, q, k: op.nt_xent(
        q, k, labels=OF_ONE[: len(q)].to(q.device), reduction="none"
    ),
    **{
        f"sup_con {denominator}": lambda op, q, k, d=denominator: op.sup_con(
            torch.cat([q, k]),
            OF_BOTH[: 2 * len(q)].to(q.device),
            denominator=d,
            reduction="none",
        )
        for denominator in ("all", "own", "none")
    },
}


@pytest.mark.parametrize("name", CASES)
class TestPromises:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_accuracy(self, backend, name, dtype):
        q, k = rows(70, 12).to(dtype), rows(70, 12, seed=1).to(dtype)
        size = 140 if name.startswith(("nt", "sup")) else 70
        assert_as_accurate(
            lambda q, k: CASES[name](F, q, k),
            lambda q, k: CASES[name](R, q, k),
            (q, k),
            device=device_of(backend),
            weights=rows(size, seed=3),
            factor=3.0,
            message=f"{name} {dtype}",
        )

    def test_gradcheck_of_the_definition(self, name):
        q, k = (rows(5, 3, seed=s).double().requires_grad_() for s in (0, 1))
        assert torch.autograd.gradcheck(lambda q, k: CASES[name](R, q, k), (q, k))

    def test_compiles_to_one_graph(self, name):
        q, k = rows(6, 4).requires_grad_(), rows(6, 4, seed=1).requires_grad_()
        torch._dynamo.reset()  # it counts how often one line of code was compiled
        step = lambda q, k: CASES[name](F, q, k).sum()  # noqa: E731
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(q, k), (q, k))
        assert_same(got, torch.autograd.grad(step(q, k), (q, k)))

    def test_deterministic_and_the_same_under_autocast(self, backend, name):
        q, k = rows(40, 8).to(device_of(backend)), rows(40, 8, seed=1).to(device_of(backend))
        assert_deterministic(lambda q, k: CASES[name](F, q, k).sum(), (q, k))
        want = CASES[name](F, q, k)
        with torch.autocast(q.device.type, dtype=torch.bfloat16):
            assert torch.equal(CASES[name](F, q, k), want)


@pytest.mark.skipif(
    importlib.util.find_spec("pytorch_metric_learning") is None,
    reason="pytorch-metric-learning is not installed",
)
class TestAPeer:
    """Values and gradients of pytorch-metric-learning, where its formula is ours."""

    def test_sup_con(self, backend):
        from pytorch_metric_learning.losses import SupConLoss

        z, of = rows(30, 8), labels(30, 1)
        peer = SupConLoss(temperature=0.2)
        got = gradients(lambda z: F.sup_con(z, of, temperature=0.2), z)
        assert_same(got, gradients(lambda z: peer(z, of), z))

    def test_nt_xent(self, backend):
        from pytorch_metric_learning.losses import NTXentLoss

        a, b, of = rows(12, 8), rows(12, 8, seed=1), labels(12, 1, kinds=4)
        peer = NTXentLoss(temperature=0.2)
        got = gradients(lambda a, b: F.nt_xent(a, b, labels=of, temperature=0.2), a, b)
        both = torch.cat([of, of])
        assert_same(got, gradients(lambda a, b: peer(torch.cat([a, b]), both), a, b))


Q, K = rows(4, 3), rows(4, 3, seed=1)
NAN = Q.clone()
NAN[1, 2] = math.nan
OF = torch.tensor([0, 1, 0, 1])
SAME = torch.zeros(4, dtype=torch.int64)
BAD = [
    (F.info_nce, "query", ArgumentError, (Q[0], K), {}),
    (F.info_nce, "key", ArgumentError, (Q, K[:3]), {}),
    (F.info_nce, "key", ArgumentTypeError, (Q, K.double()), {}),
    (F.info_nce, "query", NonFiniteError, (NAN, K), {}),
    (F.info_nce, "key", NonFiniteError, (Q, NAN), {}),
    (F.info_nce, "temperature", ArgumentError, (Q, K), {"temperature": 0.0}),
    (F.info_nce, "temperature", ArgumentError, (Q, K), {"temperature": torch.tensor(-1.0)}),
    (F.info_nce, "key", ArgumentError, (Q[:1], K[:1]), {}),
    (F.info_nce, "key", ArgumentError, (Q, K), {"in_batch": False}),
    (F.info_nce, "labels", ArgumentError, (Q, K), {"labels": OF[:3]}),
    (F.info_nce, "labels", ArgumentTypeError, (Q, K), {"labels": OF.float()}),
    (F.info_nce, "labels", ArgumentError, (Q, K), {"queue": Q, "queue_labels": OF}),
    (F.info_nce, "queue_labels", ArgumentError, (Q, K), {"queue": Q, "labels": OF}),
    (F.info_nce, "queue_labels", ArgumentError, (Q, K), {"queue_labels": OF}),
    (F.info_nce, "queue", ArgumentError, (Q, K), {"queue": Q, "symmetric": True}),
    (F.info_nce, "queue", NonFiniteError, (Q, K), {"queue": NAN}),
    (F.info_nce, "margin", ArgumentError, (Q, K), {"margin": -0.1}),
    (F.info_nce, "margin", ArgumentError, (Q, K), {"margin": 0.1, "normalize": False}),
    (F.info_nce, "angular_margin", ArgumentError, (Q, K), {"angular_margin": 4.0}),
    (F.info_nce, "reduction", ArgumentError, (Q, K), {"reduction": "avg"}),
    (F.info_nce, "gather", ArgumentError, (Q, K), {"gather": True}),
    (F.nt_xent, "z1", ArgumentError, (Q[:1], K[:1]), {}),
    (F.nt_xent, "z2", ArgumentError, (Q, K[:3]), {}),
    (F.nt_xent, "labels", ArgumentError, (Q, K), {"labels": SAME}),
    (F.nt_xent, "labels", ArgumentError, (Q, K), {"labels": OF - 2}),
    (F.nt_xent, "margin", ArgumentError, (Q, K), {"labels": OF, "margin": 0.1}),
    (F.nt_xent, "gather", ArgumentError, (Q, K), {"gather": True}),
    (F.sup_con, "embeddings", ArgumentError, (Q[:1], OF[:1]), {}),
    (F.sup_con, "labels", ArgumentError, (Q, OF[:3]), {}),
    (F.sup_con, "labels", ArgumentTypeError, (Q, OF.float()), {}),
    (F.sup_con, "labels", ArgumentError, (Q, None), {}),
    (F.sup_con, "labels", ArgumentError, (Q, SAME), {"denominator": "none"}),
    (F.sup_con, "denominator", ArgumentError, (Q, OF), {"denominator": "some"}),
    (F.sup_con, "margin", ArgumentError, (Q, OF), {"denominator": "own", "margin": 0.1}),
    (F.sup_con, "temperature", ArgumentError, (Q, OF), {"temperature": math.nan}),
    (F.sup_con, "gather", ArgumentError, (Q, OF), {"gather": True}),
]


@pytest.mark.parametrize(("op", "argument", "error", "args", "options"), BAD)
def test_bad_input_names_the_argument(op, argument, error, args, options):
    with pytest.raises(error, match=argument) as caught:
        op(*args, **options)
    assert caught.value.argument == argument
