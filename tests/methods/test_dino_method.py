"""DINO for utterances: its loss by the definition, crops, presets, and what it tells of itself.

Networks are tiny and crops are of 0.4 and 0.2 s.
"""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from speechft import reference
from speechft.augment import make_keys
from speechft.data import Manifest, SpeechDataset, Utterance, embedded_corpus
from speechft.errors import ConfigError
from speechft.methods import Dino, DinoConfig
from speechft.methods.dino_parts import cosine_distance, told
from speechft.methods.teacher import cosine_momentum
from speechft.models import EmbeddingSpec, make_embedding
from speechft.training import TrainingSettings

SMALL = {
    "codes": 64, "hidden_size": 24, "bottleneck": 12, "long_seconds": 0.4, "short_seconds": 0.2,
    "augment_long": "none", "augment_short": "none", "freeze_last_steps": 0, "expanded_size": 20,
}  # fmt: skip
SETTINGS = {
    "steps": 6, "batch_size": 4, "log_every": 2, "learning_rate": 1e-3, "warmup_steps": 0,
    "schedule": "cosine", "optimizer": "adam", "device": "cpu", "evaluate_utterances": 4,
}  # fmt: skip
SECONDS = [1.5, 0.9, 1.2, 0.7, 0.65, 1.1, 0.8, 1.0]


def config(**changes) -> DinoConfig:
    return DinoConfig(**{**SMALL, **changes})


def network(seed: int = 0):
    return make_embedding(EmbeddingSpec("xvector-8", size=16, bands=20), seed=seed)


def speech_and_keys(batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(batch, 16_000, generator=generator)
    lengths = torch.tensor([16_000, 12_000, 9_000, 7_000, 6_000][:batch])
    return waveforms, lengths, make_keys(0, 0, torch.arange(batch))


@pytest.fixture(scope="module")
def speech() -> Manifest:
    """Pieces of the embedded corpus, from 0.65 s to 1.5 s."""
    rows = embedded_corpus()[: len(SECONDS)]
    return Manifest(
        [
            Utterance(u.id, u.audio, start=1.0, end=1.0 + s)
            for u, s in zip(rows, SECONDS, strict=True)
        ]
    )


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


class TestLoss:
    """A forward pass against one that is put together crop by crop, in the names of the paper."""

    def parts(self, method: Dino):
        """Crops; the student's vectors, bottlenecks and logits of each; and the teacher's."""
        waveforms, lengths, keys = speech_and_keys()
        long, short = method.views(waveforms, lengths, keys)
        crops = []
        for stacked in (long, short):
            if stacked is not None:
                whole, counts = stacked
                if counts is None:
                    counts = torch.full((len(whole),), whole.shape[1])
                crops += list(zip(whole.split(5), counts.split(5), strict=True))
        student, teacher = method.student, method.teacher.module

        def through(branch, crop):
            vectors = branch.model(*crop)
            hidden = branch.head.mlp(vectors)
            unit = torch_functional.normalize(hidden, dim=-1)
            rows = branch.head.codes / branch.head.codes.norm(dim=1, keepdim=True)
            return vectors, hidden, unit @ rows.T

        count = method.settings.long
        shown = crops if method.settings.student_views == "all" else crops[count:]
        with torch.no_grad():
            of_student = [through(student, crop) for crop in shown]
            of_teacher = [through(teacher, crop) for crop in crops[:count]]
        return of_student, of_teacher

    def method(self, **changes) -> Dino:
        method = Dino(network(), config(**changes))
        # A teacher of its own, and a centre that is not zero.
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            method.loss.center.normal_(0, 0.1, generator=generator)
        return method.eval()

    def found(self, method: Dino) -> float:
        waveforms, lengths, keys = speech_and_keys()
        with torch.no_grad():
            return float(method(waveforms, lengths, keys).loss)

    @pytest.mark.parametrize("centering", ["mean", "none", "sinkhorn"])
    def test_all_views_but_the_same(self, centering):
        method = self.method(centering=centering, teacher_temperature=0.07)
        of_student, of_teacher = self.parts(method)
        assert (len(of_student), len(of_teacher)) == (6, 2)
        center = {
            "mean": method.loss.center,
            "none": torch.zeros(64),
            "sinkhorn": None,
        }[centering]
        targets = [t for _, _, t in of_teacher]
        if center is None:
            # Sinkhorn-Knopp as SwAV writes it, over all rows of both views at once.
            Q = (torch.cat(targets).double() / 0.07).exp().T
            Q = Q / Q.sum()
            for _ in range(3):
                Q = Q / Q.sum(1, keepdim=True) / 64
                Q = Q / Q.sum(0, keepdim=True) / 10
            shares = list((10 * Q.T).split(5))
        else:
            shares = [((t.double() - center) / 0.07).softmax(-1) for t in targets]
        total, pairs = 0.0, 0
        for u, share in enumerate(shares):
            for v, (_, _, s) in enumerate(of_student):
                if u != v:
                    total += float(-(share * (s.double() / 0.1).log_softmax(-1)).sum(-1).mean())
                    pairs += 1
        assert pairs == 10
        assert self.found(method) == pytest.approx(total / pairs, rel=2e-5)

    def test_short_views_alone_make_all_pairs(self):
        method = self.method(student_views="short")
        of_student, of_teacher = self.parts(method)
        assert (len(of_student), len(of_teacher)) == (4, 2)
        wanted = reference.dino(
            [s for _, _, s in of_student], [t for _, _, t in of_teacher],
            center=method.loss.center, skip_same=False,
        )  # fmt: skip
        assert self.found(method) == pytest.approx(float(wanted), rel=1e-5)

    def test_disjoint_and_one_long_view(self):
        method = self.method(
            student_views="short", regions="disjoint", long=1, short=2, long_seconds=0.25
        )
        of_student, of_teacher = self.parts(method)
        wanted = reference.dino(
            [s for _, _, s in of_student], [t for _, _, t in of_teacher],
            center=method.loss.center, skip_same=False,
        )  # fmt: skip
        assert self.found(method) == pytest.approx(float(wanted), rel=1e-5)

    def excess(self, **weight) -> tuple[float, Dino]:
        """What regularisers add to the loss."""
        plain, with_it = self.method(), self.method(**weight)
        return self.found(with_it) - self.found(plain), with_it

    def test_cosine(self):
        excess, method = self.excess(cosine_weight=3.0)
        of_student, of_teacher = self.parts(method)
        values = [
            1 - float(torch.cosine_similarity(s[0][b], t[0][b], dim=0))
            for u, t in enumerate(of_teacher)
            for v, s in enumerate(of_student)
            for b in range(5)
            if u != v
        ]
        assert excess == pytest.approx(3 * sum(values) / len(values), rel=1e-4, abs=2e-6)

    def test_cosine_of_short_views_has_all_pairs(self):
        ours = torch.eye(3).view(3, 1, 3)
        theirs = torch.eye(3)[:2].view(2, 1, 3)
        assert float(cosine_distance(ours, theirs, skip_same=True)) == pytest.approx(1.0)
        found = float(cosine_distance(ours, theirs, skip_same=False))
        assert found == pytest.approx(1 - 2 / 6)

    def test_koleo(self):
        excess, method = self.excess(koleo_weight=2.0)
        of_student, _ = self.parts(method)
        values = []
        for vectors, _, _ in of_student[:2]:
            unit = vectors / vectors.norm(dim=1, keepdim=True)
            nearest = [
                min(float((unit[i] - unit[j]).norm()) for j in range(5) if j != i) for i in range(5)
            ]
            values.append(-sum(math.log(d) for d in nearest) / 5)
        assert excess == pytest.approx(2 * sum(values) / 2, rel=1e-3)

    def test_variance_and_covariance(self):
        """VICReg's equations 1 to 4, on two crops behind the linear layer; the mean of both."""
        excess, method = self.excess(variance_weight=4.0, covariance_weight=2.0)
        of_student, _ = self.parts(method)
        assert method.expander is not None
        variance, covariance = [], []
        for _, hidden, _ in of_student[:2]:
            z = method.expander(hidden).detach().double()
            centred = z - z.mean(0)
            deviation = (centred.square().sum(0) / 4 + 1e-4).sqrt()
            variance.append(float((1 - deviation).clamp(min=0).mean()))
            C = centred.T @ centred / 4
            covariance.append(float((C.square().sum() - C.diagonal().square().sum()) / 20))
        wanted = 4 * sum(variance) / 2 + 2 * sum(covariance)
        assert excess == pytest.approx(wanted, rel=1e-3)

    def test_entropy_of_the_mean(self):
        excess, method = self.excess(mean_entropy_weight=1.5)
        of_student, _ = self.parts(method)
        rows = torch.cat([(s.double() / 0.1).softmax(-1) for _, _, s in of_student])
        mean = rows.mean(0)
        assert excess == pytest.approx(1.5 * float((mean * mean.log()).sum()), rel=1e-4)

    def test_ramps_are_functions_of_the_step(self):
        """The cosine from nothing, variance and covariance from their share at the start."""
        plain = self.found(self.method())
        cosine = self.method(cosine_weight=1.0, ramp_steps=10)
        spread = self.method(variance_weight=1.0, ramp_steps=10, regulariser_start=0.25)
        whole = {id(cosine): None, id(spread): None}
        for step, shares in ((10, (1.0, 1.0)), (0, (0.0, 0.25)), (5, (0.5, 0.625)), (99, (1, 1))):
            for method, share in zip((cosine, spread), shares, strict=True):
                method.at_step(step, 100)
                excess = self.found(method) - plain
                if whole[id(method)] is None:
                    whole[id(method)] = excess
                assert excess == pytest.approx(share * whole[id(method)], rel=1e-3, abs=1e-5)


class TestStep:
    """What happens in an update, called as the trainer calls it."""

    def update(self, method: Dino, optimizer, step: int, steps: int = 10) -> None:
        method.at_step(step, steps)
        method.train()
        optimizer.zero_grad()
        method(*speech_and_keys()).loss.backward()
        method.before_update()
        optimizer.step()
        method.after_update()

    def test_the_teacher_has_no_gradient_and_the_student_has_all(self):
        method = Dino(network(), config(variance_weight=1.0)).train()
        method(*speech_and_keys()).loss.backward()
        assert all(p.grad is None for p in method.teacher.parameters())
        assert all(p.grad is not None and p.grad.any() for p in method.student.parameters())

    def test_the_teacher_follows_at_the_momentum_of_the_step(self):
        method = Dino(network(), config(teacher_momentum=0.7))
        optimizer = torch.optim.SGD(method.student.parameters(), lr=0.5)
        wanted = method.student.head.mlp[0].weight.detach().clone().double()
        for step in range(4):
            self.update(method, optimizer, step)
            m = 1 - 0.3 * (1 + math.cos(math.pi * step / 10)) / 2
            assert cosine_momentum(0.7, step, 10) == pytest.approx(m)
            wanted = m * wanted + (1 - m) * method.student.head.mlp[0].weight.detach()
        found = method.teacher.module.head.mlp[0].weight.double()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)

    def test_the_last_layer_is_frozen_at_first(self):
        method = Dino(network(), config(freeze_last_steps=2))
        # With momentum, which would move it even without a gradient, had it ever had one.
        optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1, momentum=0.9)
        first = method.student.head.codes.detach().clone()
        others = method.student.head.mlp[0].weight.detach().clone()
        for step in range(2):
            self.update(method, optimizer, step)
            assert torch.equal(method.student.head.codes, first)
            assert torch.equal(method.teacher.module.head.codes, first)
        assert not torch.equal(method.student.head.mlp[0].weight, others)
        self.update(method, optimizer, 2)
        assert not torch.equal(method.student.head.codes, first)

    def test_the_temperature_is_that_of_the_update_not_of_the_batch(self, monkeypatch):
        """Batches of one update, whose gradients add up, have one."""
        method = Dino(
            network(), config(teacher_temperature=0.08, temperature_warmup_steps=4)
        ).train()
        met = []
        of_loss = type(method.loss).teacher_temperature
        monkeypatch.setattr(
            type(method.loss), "teacher_temperature",
            lambda self: met.append(float(of_loss(self))) or of_loss(self),
        )  # fmt: skip
        for step in (0, 2, 9):
            method.at_step(step, 10)
            for _ in range(3):
                method(*speech_and_keys())
        assert met == pytest.approx([0.04] * 3 + [0.06] * 3 + [0.08] * 3)

    def test_evaluation_moves_nothing(self):
        method = Dino(network(), config()).eval()
        before = {name: t.clone() for name, t in method.state_dict().items()}
        method(*speech_and_keys())
        assert same(before, dict(method.state_dict()))

    def test_spec_augment_is_for_students_in_training(self, monkeypatch):
        from speechft.models.embedding import FilterbankFrames

        met = []
        forward = FilterbankFrames.forward

        def spy(self, waveforms, lengths=None, keys=None):
            met.append((self is teachers, keys is not None, len(waveforms)))
            if keys is not None:
                assert len(set(keys.tolist())) == len(waveforms) == len(keys)  # one a crop
            return forward(self, waveforms, lengths, keys)

        settings = config(spec_augment=True)
        method = Dino(Dino.load("xvector-8", settings, seed=0), settings)
        teachers = method.teacher.module.model.frames
        monkeypatch.setattr(FilterbankFrames, "forward", spy)
        method.train()(*speech_and_keys())
        assert met == [(True, False, 10), (False, True, 10), (False, True, 20)]
        met.clear()
        method.eval()(*speech_and_keys())
        assert not any(keyed for _, keyed, _ in met)

    def test_bfloat16(self):
        """Autocast: the loss stays within its rounding, and all gradients are there."""
        losses = []
        for enabled in (False, True):
            method = Dino(
                network(),
                config(cosine_weight=1, koleo_weight=0.1, variance_weight=1, covariance_weight=1),
            ).train()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = method(*speech_and_keys()).loss
            loss.backward()
            assert all(p.grad.isfinite().all() for p in method.student.parameters())
            assert {p.dtype for p in method.teacher.parameters()} == {torch.float32}
            assert loss.dtype == torch.float32
            losses.append(float(loss))
        assert losses[1] == pytest.approx(losses[0], rel=0.02)


class TestCrops:
    @pytest.mark.parametrize("augment", ["chain", "student"])
    def test_batch_mates_and_padding_change_none(self, tmp_path, augment):
        """Babble is made of batch-mates; but for it, an utterance's crops are its own."""
        if augment == "chain":
            (tmp_path / "chain.yaml").write_text("- Reverb\n- AddNoise: {snr: [5, 10]}\n- Gain\n")
            augment = str(tmp_path / "chain.yaml")
        method = Dino(network(), config(augment_long="teacher", augment_short=augment))
        waveforms, lengths, keys = speech_and_keys()
        garbage = torch_functional.pad(waveforms, (0, 3_000), value=7.0)
        for row, length in zip(garbage, lengths.tolist(), strict=True):
            row[length:] = 7.0
        order = torch.tensor([3, 0, 4, 2, 1])
        whole, padded, shuffled, alone = (
            [w for w, _ in method.crops(*batch)]
            for batch in (
                (waveforms, lengths, keys),
                (garbage, lengths, keys),
                (waveforms[order], lengths[order], keys[order]),
                (waveforms[1:2, :12_000], lengths[1:2], keys[1:2]),
            )
        )
        for one, two, three, four in zip(whole, padded, shuffled, alone, strict=True):
            torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
            torch.testing.assert_close(three, one[order], rtol=0, atol=1e-5)
            if augment.endswith("yaml") and one.shape[1] == 3_200:
                torch.testing.assert_close(four, one[1:2], rtol=0, atol=1e-5)

    def test_sizes_and_places(self):
        """An utterance that counts its samples says where each crop was cut."""
        ramp = (torch.arange(16_000, dtype=torch.float32) / 16_000).repeat(40, 1)
        lengths, keys = torch.full((40,), 16_000), make_keys(0, 0, torch.arange(40))
        for regions in ("shared", "disjoint"):
            method = Dino(network(), config(regions=regions))
            crops = method.crops(ramp, lengths, keys)
            assert [w.shape[1] for w, _ in crops] == [6_400] * 2 + [3_200] * 4
            spans = [
                [
                    (round(float(w[b, 0]) * 16_000), round(float(w[b, -1]) * 16_000))
                    for w, _ in crops
                ]
                for b in range(40)
            ]
            apart = [
                max(a for _, a in one[:2]) < min(a for a, _ in one[2:])
                or max(a for _, a in one[2:]) < min(a for a, _ in one[:2])
                for one in spans
            ]
            assert all(apart) is (regions == "disjoint")
            assert len({one[0] for one in spans}) > 30

    def test_a_segment_is_cut_first(self):
        """All crops of an utterance then lie within so many seconds."""
        ramp = (torch.arange(48_000, dtype=torch.float32) / 48_000).repeat(20, 1)
        method = Dino(network(), config(segment_seconds=(0.7, 0.8)))
        long, short = method.views(
            ramp, torch.full((20,), 48_000), make_keys(0, 0, torch.arange(20))
        )
        assert short is not None
        samples = torch.cat([long[0].unflatten(0, (2, 20)).amax((0, 2))[:, None],
                             short[0].unflatten(0, (4, 20)).amax((0, 2))[:, None]], 1)  # fmt: skip
        least = torch.cat([long[0].unflatten(0, (2, 20)).amin((0, 2))[:, None],
                           short[0].unflatten(0, (4, 20)).amin((0, 2))[:, None]], 1)  # fmt: skip
        span = (samples.amax(1) - least.amin(1)) * 3
        assert float(span.max()) <= 0.8
        assert float(span.min()) > 0.4

    @pytest.mark.parametrize("regions", ["shared", "disjoint"])
    def test_lengths_are_left_out_only_where_no_crop_is_short(self, speech, tmp_path, regions):
        """Told beforehand that crops are full, they have to be; the encoder is then not masked."""
        for seconds, full in ((0.3, True), (0.5, regions == "shared"), (0.7, False)):
            dataset = SpeechDataset(speech)
            changes = {"long_seconds": seconds, "short_seconds": 0.25, "regions": regions}
            method = Dino(network(), config(**changes))
            method.training_data(dataset, TrainingSettings(**SETTINGS), tmp_path)
            batch = [dataset[i] for i in range(8)]
            waveforms = torch.nn.utils.rnn.pad_sequence(
                [s["waveform"] for s in batch], batch_first=True
            )
            keys = make_keys(0, 0, torch.arange(8))
            crops = method.crops(waveforms, dataset.lengths, keys)
            whole = all(bool((n == round(seconds * 16_000)).all()) for _, n in crops[:2])
            assert method._full[0] is full, seconds
            assert whole or not method._full[0]


class TestPresets:
    """Published figures, from the papers and recipes that the presets name."""

    @pytest.mark.parametrize("name", Dino.presets)
    def test_each_is_a_setting_and_makes_a_method(self, name):
        of_method, of_training = Dino.preset(name)
        settings, training = DinoConfig(**of_method), TrainingSettings(**of_training)
        # The head is made small; the rest is as it is.
        small = {"codes": 16, "hidden_size": 8, "bottleneck": 4, "expanded_size": 4}
        method = Dino(network(), DinoConfig(**{**of_method, **small}))
        assert method.crops.long == settings.long
        assert training.warmup < training.steps
        assert training.final_learning_rate < training.learning_rate

    @pytest.mark.parametrize(
        ("name", "of_method", "of_training"),
        [
            # Cho et al., JSTSP 2022, section III: 2 crops of 4 s, 4 of 2 s; 65,536 codes;
            # temperatures 0.1 and 0.04; Adam, 0.0025, 70 epochs.
            ("cho",
             {"long": 2, "short": 4, "long_seconds": 4.0, "short_seconds": 2.0, "codes": 65_536,
              "hidden_size": 2048, "hidden_layers": 2, "bottleneck": 256, "teacher_momentum": 0.996,
              "student_temperature": 0.1, "teacher_temperature": 0.04, "center_momentum": 0.9},
             {"optimizer": "adam", "learning_rate": 0.0025, "steps": 70 * 8532}),
            # hyperion's v1.2: 120 epochs of 256; its cosine of v1.2.2.
            ("hyperion", {"regions": "disjoint", "cosine_weight": 0.0, "batch_norm": True},
             {"learning_rate": 0.005, "schedule": "exponential", "steps": 120 * 4266}),
            ("hyperion-cosine", {"regions": "disjoint", "cosine_weight": 0.1},
             {"learning_rate": 0.005, "steps": 120 * 4266}),
            # Chen et al., ICASSP 2023, and 3D-Speaker's recipe: 208 a batch, 100 epochs, SGD 0.4.
            ("rdino", {"size": 512, "teacher_temperature": 0.07, "covariance_weight": 0.2},
             {"optimizer": "sgd", "learning_rate": 0.4, "batch_size": 208}),
            # Chen et al., ICASSP 2025: 1,024 prototypes, KoLeo 0.1, 150 epochs.
            ("sdpn", {"codes": 1024, "koleo_weight": 0.1, "centering": "sinkhorn"},
             {"optimizer": "sgd", "steps": 150 * 2844}),
            # wespeaker's voxceleb/v3/dino: long crops of 3 s, temperature to 0.07, 150 epochs.
            ("wespeaker", {"long_seconds": 3.0, "teacher_temperature": 0.07},
             {"optimizer": "sgd", "learning_rate": 0.2, "steps": 150 * 8532}),
        ],
    )  # fmt: skip
    def test_numbers(self, name, of_method, of_training):
        settings, training = Dino.preset(name)
        chosen = DinoConfig(**settings)
        assert {key: getattr(chosen, key) for key in of_method} == of_method
        assert {key: training[key] for key in of_training} == of_training

    def test_the_defaults_are_chos(self):
        assert DinoConfig(**Dino.preset("cho")[0]) == DinoConfig()
        assert dict(Dino.training_defaults) == Dino.preset("cho")[1]

    def test_an_unknown_one_is_named_with_the_nearest(self, tmp_path):
        with pytest.raises(ConfigError, match=r"no 'hyperon', and no such file.*'hyperion'"):
            Dino.preset("hyperon")
        path = tmp_path / "mine.yaml"
        path.write_text("short: 2\nlearning_rate: 0.5\n")
        of_method, of_training = Dino.preset(str(path))
        assert of_method == {"short": 2}
        assert of_training == {**Dino.training_defaults, "learning_rate": 0.5}
        path.write_text("shrot: 2\n")
        with pytest.raises(ConfigError, match="no setting 'shrot'; did you mean 'short'"):
            Dino.preset(str(path))
        path.write_text("- 1\n")
        with pytest.raises(ConfigError, match="wants keys and values, got a list"):
            Dino.preset(str(path))

    def test_no_setting_is_of_both_kinds(self):
        """Or a preset's key would be ambiguous, and the command line could not make its flags."""
        ours, theirs = ({f.name for f in fields(kind)} for kind in (DinoConfig, TrainingSettings))
        assert not ours & theirs


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"codes": 1}, "codes: wants at least 2"),
        ({"teacher_temperature": 0.0}, "teacher_temperature"),
        ({"teacher_momentum": 1.5}, "teacher_momentum: wants 0 to 1"),
        ({"short_seconds": 5.0}, "short_seconds: 5 is longer"),
        ({"student_views": "short", "short": 0}, "student_views: there are no short crops"),
        ({"long": 1, "short": 0}, "long: one crop makes no pair"),
        ({"segment_seconds": (3.0, 1.0)}, "segment_seconds: wants from and to"),
        ({"long": 1, "short": 1, "student_views": "short", "variance_weight": 1.0}, "two crops"),
        ({"tuned_layers": -1}, "tuned_layers: wants at least 0"),
        ({"augment_long": "loud"}, "augment_long: 'loud' is no file, and none of none, student"),
        ({"augment_short": "loud"}, "augment_short: 'loud' is no file, and none of none, stud"),
    ],
)
def test_settings_that_contradict_each_other(bad, words):
    with pytest.raises(ConfigError, match=words):
        config(**bad)


def test_settings_that_contradict_the_model_or_the_ranks(monkeypatch):
    with pytest.raises(ConfigError, match="tuned_layers: 'xvector-8' has none"):
        Dino(network(), config(tuned_layers=1))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="codes: 64 cannot be shared among 3 ranks"):
        Dino(network(), config())


class TestMonitors:
    def test_information_by_its_definition(self):
        logits = 2 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
        shares = logits.double().softmax(-1).numpy()
        mean = shares.mean(0)

        def entropy(p):
            return -(p * np.log(p)).sum()

        wanted = entropy(mean) - np.mean([entropy(p) for p in shares])
        found = told(logits)
        assert float(found["information"]) == pytest.approx(wanted, rel=1e-5)
        assert int(found["codes"]) == len(set(shares.argmax(1)))

    @pytest.mark.parametrize(
        ("logits", "wanted"),
        [
            (100 * torch.eye(6), math.log(6)),  # each has a code of its own
            (torch.zeros(6, 1000), 0.0),  # all codes alike
            (100 * torch.eye(6)[:1].expand(6, -1), 0.0),  # one code for all
            (torch.randn(1, 65_536).expand(6, -1), 0.0),  # the same of all
            (100 * torch.eye(2).repeat(3, 1), math.log(2)),
        ],
    )
    def test_information_at_the_ends(self, logits, wanted):
        assert float(told(logits)["information"]) == pytest.approx(wanted, abs=1e-5)

    @pytest.mark.parametrize("centering", ["mean", "sinkhorn", "none"])
    def test_they_are_of_what_the_student_is_told(self, centering):
        method = Dino(network(), config(centering=centering)).eval()
        method.loss.center.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
        waveforms, lengths, keys = speech_and_keys()
        method(waveforms, lengths, keys)
        found = method.monitors()
        (crop, counts), _ = method.views(waveforms, lengths, keys)
        assert counts is not None
        with torch.no_grad():
            vectors = method.teacher.module.model(crop[:5], counts[:5])
            logits = method.teacher.module.head(vectors)
        unit = (vectors / vectors.norm(dim=1, keepdim=True)).double().numpy()
        centred = unit - unit.mean(0)
        assert float(found["deviation"]) == pytest.approx(
            math.sqrt((centred**2).sum() / 5), rel=1e-4
        )
        s = np.linalg.svd(centred, compute_uv=False)
        p = s[s > 1e-9] / s.sum()
        rank = math.exp(-(p * np.log(p)).sum()) / 4
        assert float(found["rank"]) == pytest.approx(rank, rel=1e-3)
        if centering == "sinkhorn":
            assert float(found["information"]) > 0
            return
        center = method.loss.center if centering == "mean" else 0.0
        wanted = told((logits - center) / 0.04)
        assert float(found["information"]) == pytest.approx(
            float(wanted["information"]), rel=1e-3, abs=1e-6
        )
        shares = ((logits - center) / 0.04).softmax(-1)
        assert 0 < float(found["teacher_entropy"]) < 1
        assert shares.shape == (5, 64)

    def test_weights_that_are_not_finite_are_no_error_here(self):
        """The trainer says that a run has diverged, and at which step."""
        method = Dino(network(), config()).eval()
        method(*speech_and_keys())
        method._seen = tuple(torch.full_like(t, math.nan) for t in method._seen)
        found = method.monitors()
        assert math.isnan(found["deviation"])
        assert not any(
            b.hold(float(found[n])) for n, b in method.bounds().items() if n == "deviation"
        )

    def test_one_utterance_says_nothing_of_collapse(self):
        method = Dino(network(), config()).eval()
        waveforms, lengths, keys = speech_and_keys(1)
        method(waveforms, lengths, keys)
        assert method.monitors().keys().isdisjoint({"information", "codes", "deviation", "rank"})
