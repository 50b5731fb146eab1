"""Interventional refinement: its loss as published, its settings, and a run from end to end."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from miniature_grid import RATE, utterance, write_grid
from safetensors.torch import load_file
from torch import Tensor

from speechft import models
from speechft.data import SpeechDataset, read_manifest
from speechft.errors import ArgumentError, ConfigError, InterruptedRun
from speechft.methods import Interventional, InterventionalConfig, get
from speechft.methods.discriminant import directions
from speechft.methods.grid_data import feature_data
from speechft.methods.interventional import leakage
from speechft.methods.refine import refine
from speechft.models import load_subspaces
from speechft.training import TrainingSettings
from speechft.training.features import FeatureStore
from speechft.training.loader import Position

SIZES = {"speaker": 4, "content": 4}
LINEAR = {"hidden_sizes": (), "sizes": {"speaker": 3, "content": 3}}


def config(**changes) -> InterventionalConfig:
    return InterventionalConfig(**{"sizes": SIZES, "hidden_sizes": (8,), **changes})


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(
        **{
            "steps": 4, "batch_size": 8, "log_every": 1, "learning_rate": 1e-2, "device": "cpu",
            "schedule": "one_cycle", "max_grad_norm": 0.0, "evaluate_utterances": 16, **changes
        }
    )  # fmt: skip


def made(**changes) -> Interventional:
    return Interventional(models.tiny("hubert"), config(**changes))


# The loss


def slow_sup_con(z: Tensor, labels: list[int], temperature: float) -> Tensor:
    """Khosla et al. 2020, equation 2 (the mean outside the logarithm), anchor by anchor."""
    z = z / z.norm(dim=1, keepdim=True)
    anchors = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i and min(labels[a], labels[i]) >= 0]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        total = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        terms = [torch.log(torch.exp(z[i] @ z[p] / temperature) / total) for p in positives]
        anchors.append(-sum(terms) / len(positives))
    return sum(anchors) / len(anchors)


def slow_orthogonality(one: Tensor, two: Tensor, form: str, legacy: bool) -> Tensor:
    one, two = (z / z.norm(dim=1, keepdim=True) for z in (one, two))
    if form == "sample":
        cosines = [(a @ b) ** 2 for a in one for b in two]
        return sum(cosines) / len(cosines)
    entries = [(one[:, j] @ two[:, k]) ** 2 for j in range(one.shape[1])
               for k in range(two.shape[1])]  # fmt: skip
    return sum(entries) / (len(entries) if legacy else len(one) ** 2)


def slow_leakage(z: np.ndarray, labels: np.ndarray, ridge: float) -> float:
    """Ridge regression of orthonormal contrasts of the values on centred unit vectors: its R²."""
    z = z[labels >= 0].astype(np.float64)
    labels = labels[labels >= 0]
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    z = z - z.mean(0)
    hot = (labels[:, None] == np.unique(labels)).astype(np.float64)
    contrasts, size, _ = np.linalg.svd(hot - hot.mean(0), full_matrices=False)
    contrasts = contrasts[:, size > 1e-9]  # of unit length: a share of its own variance each
    covariance = z.T @ z / len(z)
    strength = ridge * np.trace(covariance) / z.shape[1]
    shares = []
    for y in contrasts.T:
        slope = np.linalg.solve(covariance + strength * np.eye(z.shape[1]), z.T @ y / len(z))
        shares.append(y @ (z @ slope))
    return float(np.mean(shares))


def block(rows: int = 4, columns: int = 5, size: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors of a block of the grid, in float32, and its factors."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return torch.randn(len(factors), size, generator=generator), factors


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize(
    ("form", "legacy"), [("feature", True), ("feature", False), ("sample", True)]
)
def test_the_loss_is_the_formula(form, legacy, temperature):
    method = made(orthogonality=form, legacy=legacy, temperature=temperature)
    z, factors = block(size=8)
    found = method.loss(z, factors)
    one, two = z.double().split(4, 1)
    want = slow_sup_con(one, factors[:, 0].tolist(), temperature)
    want = want + slow_sup_con(two, factors[:, 1].tolist(), temperature)
    want = want + slow_orthogonality(one, two, form, legacy)
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-6)


def test_the_paper_is_the_default():
    assert get("interventional") is Interventional
    paper = InterventionalConfig()
    assert (paper.temperature, paper.orthogonality, paper.legacy) == (0.1, "feature", True)
    assert (paper.contrastive_weight, paper.orthogonality_weight) == (1.0, 1.0)
    assert paper.leakage_weight == 0
    assert paper.hidden_sizes == (768, 768)
    assert paper.sizes == {"speaker": 384, "content": 384}
    assert Interventional.labels(paper) == ("speaker", "text")


def test_weights_are_switches():
    z, factors = block(size=8)
    spaces = z.split(4, 1)

    def loss(contrastive: float, orthogonality: float, leaks: float) -> float:
        return float(
            made(
                contrastive_weight=contrastive,
                orthogonality_weight=orthogonality,
                leakage_weight=leaks,
                leakage_ridge=0.5,
            ).loss(z, factors)
        )

    contrast = sum(slow_sup_con(s, factors[:, k].tolist(), 0.1) for k, s in enumerate(spaces))
    apart = slow_orthogonality(*spaces, "feature", True)
    leak = sum(
        slow_leakage(space.numpy(), factors[:, 1 - k].numpy(), 0.5)
        for k, space in enumerate(spaces)
    )
    for weights in itertools.product((0.0, 1.0, 2.5), repeat=3):
        want = weights[0] * contrast + weights[1] * apart + weights[2] * leak
        assert loss(*weights) == pytest.approx(float(want), rel=1e-4, abs=1e-5)


def test_the_order_of_factors_and_sizes_is_free():
    """Spaces are cut in the order of sizes, and labels come in the order of factors."""
    method = made(
        factors={"content": "text", "speaker": "speaker"}, sizes={"speaker": 3, "content": 5}
    )
    z, factors = block(size=8)
    want = slow_sup_con(z[:, :3], factors[:, 0].tolist(), 0.1)
    want = want + slow_sup_con(z[:, 3:], factors[:, 1].tolist(), 0.1)
    want = want + slow_orthogonality(z[:, :3], z[:, 3:], "feature", True)
    found = method.loss(z, factors[:, [1, 0]])
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_a_residual_subspace_is_only_kept_apart():
    z, factors = block(size=10)
    sizes = {"speaker": 4, "content": 4, "rest": 2}
    spaces = z.split([4, 4, 2], 1)
    pairs = [slow_orthogonality(a, b, "feature", True)
             for a, b in itertools.combinations(spaces, 2)]  # fmt: skip
    found = made(sizes=sizes, contrastive_weight=0.0).loss(z, factors)
    torch.testing.assert_close(found, sum(pairs) / 3, rtol=1e-5, atol=1e-6)
    without = {"orthogonality_weight": 0.0, "leakage_weight": 1.0}
    alone = made(**without).loss(z[:, :8], factors)
    assert torch.equal(made(sizes=sizes, **without).loss(z, factors), alone)


def test_three_factors():
    z, factors = block(size=12)
    factors = torch.cat([factors, factors.sum(1, keepdim=True) % 2], 1)
    names = {"speaker": "speaker", "content": "text", "parity": "parity"}
    method = made(
        factors=names, sizes=dict.fromkeys(names, 4), leakage_weight=1.0, leakage_ridge=0.3
    )
    spaces = z.split(4, 1)
    want = sum(float(slow_sup_con(s, factors[:, k].tolist(), 0.1)) for k, s in enumerate(spaces))
    pairs = itertools.combinations(spaces, 2)
    want += np.mean([float(slow_orthogonality(a, b, "feature", True)) for a, b in pairs])
    for (k, space), j in itertools.product(enumerate(spaces), range(3)):
        if j != k:
            want += slow_leakage(space.numpy(), factors[:, j].numpy(), 0.3)
    assert float(method.loss(z, factors)) == pytest.approx(want, rel=1e-5)


def test_the_loss_of_several_views_is_their_mean():
    method = made()
    _, factors = block()
    views = torch.randn(len(factors), 3, 1, 16, generator=torch.Generator().manual_seed(2))
    each = [method(factors=factors, features=views[:, v : v + 1]).loss for v in range(3)]
    together = method(factors=factors, features=views).loss
    torch.testing.assert_close(together, torch.stack(each).mean())


# The leakage


@pytest.mark.parametrize("ridge", [1e-3, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("size", [2, 6, 30])
def test_leakage_is_the_ridge_regression(ridge, size):
    z, factors = block(6, 4, size)
    for column in range(2):
        found = float(leakage(z, factors[:, column], ridge=ridge))
        want = slow_leakage(z.numpy(), factors[:, column].numpy(), ridge)
        assert found == pytest.approx(want, rel=1e-3, abs=1e-5)
        assert 0 <= found <= 1


def test_leakage_of_what_says_nothing_and_of_what_says_all():
    factors = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    generator = torch.Generator().manual_seed(1)
    speaker = torch.randn(5, 8, generator=generator)[factors[:, 0]]
    assert float(leakage(speaker, factors[:, 1])) == pytest.approx(0, abs=1e-6)
    assert float(leakage(speaker, factors[:, 0], ridge=1e-4)) > 0.99
    # Half of each dimension's penalty halves what a space of equal variances tells.
    corners = torch.eye(5)[factors[:, 0]]
    shares = [float(leakage(corners, factors[:, 0], ridge=ridge)) for ridge in (0.1, 1.0, 10.0)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[2] < shares[0] < 1


def test_leakage_does_not_count_what_is_not_known():
    z, factors = block(6, 4)
    labels = factors[:, 0].clone()
    labels[[1, 7, 8, 20]] = -1
    known = labels >= 0
    torch.testing.assert_close(leakage(z, labels), leakage(z[known], labels[known]))
    other = z.clone()
    other[~known] = 100
    torch.testing.assert_close(leakage(other, labels), leakage(z, labels))
    assert float(leakage(z, torch.full_like(labels, -1))) == 0
    assert float(leakage(z, torch.zeros_like(labels))) == pytest.approx(0, abs=1e-6)


def test_the_numbers_of_values_and_the_scale_do_not_matter_to_leakage():
    z, factors = block(6, 4)
    labels = factors[:, 0]
    torch.testing.assert_close(leakage(7 * z, labels), leakage(z, labels))
    torch.testing.assert_close(leakage(z, 5 - 3 * labels + 20), leakage(z, labels))


def test_the_gradient_of_leakage_is_its_difference():
    z, factors = block(6, 4, 5)
    z.requires_grad_(True)
    leakage(z, factors[:, 0], ridge=0.5).backward()
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        step = torch.randn(z.shape, generator=generator).numpy().astype(np.float64)
        ends = [
            slow_leakage(z.detach().numpy() + sign * 1e-4 * step, factors[:, 0].numpy(), 0.5)
            for sign in (1, -1)
        ]
        slope = float((z.grad.double() * torch.from_numpy(step)).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3, abs=1e-5)


def test_leakage_wants_a_label_a_vector():
    with pytest.raises(ArgumentError, match="labels: wants shape"):
        leakage(torch.ones(3, 2), torch.zeros(4, dtype=torch.int64))


# Settings


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"factors": {"speaker": "speaker"}}, "factors: wants two labels or more"),
        ({"factors": {"speaker": "text", "content": "text"}}, "factors: .* all different"),
        ({"sizes": {"speaker": 4}}, "sizes: has none for 'content'"),
        ({"contrastive_weight": -1.0}, "contrastive_weight: wants a number from 0 on"),
        ({"orthogonality_weight": math.inf}, "orthogonality_weight"),
        ({"leakage_weight": math.nan}, "leakage_weight"),
        ({"temperature": 0.0}, "temperature: wants a number above 0"),
        ({"temperature": math.nan}, "temperature"),
        ({"leakage_ridge": 0.0}, "leakage_ridge"),
        ({"segment_frames": -1}, "segment_frames: wants 0 or more"),
        ({"tuned_layers": -1}, "tuned_layers"),
        ({"fit": "discriminant"}, "fit: 'discriminant' is of a linear transform"),
        ({"fit": "both", "hidden_sizes": (), "weighted_layers": True}, "fit: 'both'"),
        ({"recorded_share": 0.2}, "fit: recorded_share and noise_weights are of a closed form"),
        ({"noise_weights": {"speaker": 2.0}}, "fit: recorded_share and noise_weights"),
        ({"noise_weights": {"speaker": 0.0}}, "noise_weights: .* got 0.0 for 'speaker'"),
        ({"noise_weights": {"text": 2.0}}, "noise_weights: .* got 2.0 for 'text'"),
        ({"recorded_share": 1.0}, "recorded_share: wants 0 to below 1, got 1.0"),
        ({"augmentation": "chain.yaml"}, "precompute: augmentation and tuned_layers"),
        ({"tuned_layers": 1}, "precompute"),
        ({"precompute": False, "segment_frames": 2}, "precompute: segment_frames and a closed"),
        ({"precompute": False, "fit": "both", "hidden_sizes": ()}, "precompute"),
    ],
)
def test_bad_settings_are_named(bad, message):
    with pytest.raises(ConfigError, match=message):
        InterventionalConfig(**bad)


def test_more_layers_than_there_are():
    with pytest.raises(ConfigError, match="tuned_layers: the encoder has 3 layers, got 4"):
        made(tuned_layers=4, precompute=False)
    with pytest.raises(ArgumentError, match="layer: wants 0 to 3"):
        made(layer=4)


def test_only_what_is_to_train_trains():
    frozen = made().train()
    assert not frozen.encoder.training
    assert frozen.tuned() == []
    assert all(p.requires_grad for p in frozen.model.transform.parameters())
    tuned = made(tuned_layers=1, precompute=False).train()
    assert tuned.encoder.training
    assert tuned.tuned()
    assert all(name.startswith("encoder.layers.2.") for name in tuned.tuned())
    closed = made(fit="discriminant", **LINEAR)
    assert not any(p.requires_grad for p in closed.parameters())


# Runs


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> str:
    """Features of all runs that are not about them."""
    return str(tmp_path_factory.mktemp("features"))


def run(manifest, output: Path, *, resume: bool = False, training=None, encoder=None, **changes):
    return refine(
        model=encoder or models.tiny("hubert"),
        method="interventional",
        data=manifest,
        output=output,
        config=config(**changes),
        training=settings(**(training or {})),
        resume=resume,
    )


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model.safetensors")


def same(one: Path, two: Path, tolerance: float = 0.0) -> bool:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return all((a[name] - b[name]).abs().max() <= tolerance for name in a)


def lines(output: Path) -> list[dict]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, manifest):
    output = tmp_path_factory.mktemp("runs") / "straight"
    return output, run(manifest, output)


def test_writes_a_subspace_model_and_the_account_of_the_run(finished):
    output, report = finished
    model = load_subspaces(output)
    assert model.subspaces == SIZES
    assert (model.layer, model.hidden_sizes, model.encoder_name) == (3, (8,), None)
    before = models.tiny("hubert").hf_model.state_dict()
    after = model.encoder.hf_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(model.transform[0].weight, made().model.transform[0].weight)
    told = json.loads((output / "report.json").read_text())
    assert told["method"] == "interventional"
    assert told["steps"] == report.steps == 4
    assert told["data"]["used"] == 16
    assert told["tuned"] == []
    assert told["settings"]["sizes"] == SIZES
    assert told["settings"]["schedule"] == "one_cycle"
    assert told["audio_seconds"] > 0
    assert [line["step"] for line in lines(output)] == [1, 2, 3, 4]
    assert not (output / "start.json").exists()
    assert "loss before" in str(report)
    assert (output / "features").is_dir()


def test_the_same_run_twice_gives_the_same_bytes(finished, tmp_path, manifest):
    output, report = finished
    again = run(manifest, tmp_path / "again")
    for file in ("model.safetensors", "config.json", "encoder/model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (output / file).read_bytes()
    assert lines(tmp_path / "again") == lines(output)
    assert (again.loss_before, again.loss_after) == (report.loss_before, report.loss_after)
    run(manifest, tmp_path / "other", training={"seed": 1})
    assert not same(tmp_path / "other", output)


def test_the_loss_goes_down_and_the_spaces_say_what_they_should(tmp_path, manifest, shared):
    report = run(
        manifest, tmp_path / "run", features=shared, training={"steps": 60, "batch_size": 16}
    )
    assert report.loss_after < 0.8 * report.loss_before


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_resumed_gives_the_same_bytes(tmp_path, manifest, shared, accumulate):
    """SIGTERM in the third step; the resumed run ends with the same bits."""
    changes = {"features": shared, "training": {"accumulate": accumulate}}
    run(manifest, tmp_path / "straight", **changes)
    calls = 0
    forward = Interventional.forward

    def stop_at_third(self, **inputs):
        nonlocal calls
        calls += 1
        if calls == 3 * accumulate + 2:  # the first two batches measure the loss before
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, **inputs)

    output = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interventional, "forward", stop_at_third)
        with pytest.raises(InterruptedRun, match="--resume") as stopped:
            run(manifest, output, **changes)
    assert 1 <= stopped.value.step < 4
    torch.manual_seed(999)  # whatever the global state is now
    run(manifest, output, resume=True, **changes)
    for file in ("model.safetensors", "config.json"):
        assert (output / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    assert lines(output) == lines(tmp_path / "straight")


@pytest.mark.parametrize("changes", [{}, {"weighted_layers": True}, {"layer": 1}])
def test_features_of_each_step_are_those_computed_once(tmp_path, manifest, shared, changes):
    training = {"batch_size": 8, "learning_rate": 1e-3}
    reports = [
        run(manifest, tmp_path / str(precompute), precompute=precompute, training=training,
            features=shared if precompute else None, **changes)
        for precompute in (True, False)
    ]  # fmt: skip
    one, two = reports
    assert one.loss_before == pytest.approx(two.loss_before, rel=1e-5)
    assert one.loss_after == pytest.approx(two.loss_after, rel=1e-5)
    assert one.audio_seconds == two.audio_seconds
    assert same(tmp_path / "True", tmp_path / "False", 1e-5)
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("True", "False")]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_segments_run_and_change_the_result(tmp_path, manifest, shared):
    for width in (0, 1, 4, 1000):
        run(manifest, tmp_path / str(width), segment_frames=width, features=shared)
    assert not same(tmp_path / "0", tmp_path / "1")
    assert not same(tmp_path / "1", tmp_path / "4")
    # All are shorter than this, so each is given whole twice.
    assert same(tmp_path / "0", tmp_path / "1000", 1e-5)
    run(manifest, tmp_path / "again", segment_frames=4, features=shared)
    assert same(tmp_path / "4", tmp_path / "again")


@pytest.fixture(scope="module")
def speech(manifest):
    return SpeechDataset(read_manifest(manifest), factors=("speaker", "text"))


@pytest.mark.parametrize("width", [1, 3])
def test_segments_are_means_at_one_place_of_the_text(tmp_path, speech, shared, width):
    method = made(segment_frames=width)
    data, store = feature_data(
        method.model, speech, settings(), method.settings, Path(shared) / "features"
    )
    dataset = data.dataset
    places: dict[int, set[int]] = {}
    for epoch in range(6):
        rows = list(range(len(speech)))
        batch = dataset.__getitems__([Position(epoch, row) for row in rows])
        assert batch["features"].shape == (16, 2, 1, 16)
        assert torch.equal(batch["factors"], speech.factors)
        assert torch.equal(batch["lengths"], speech.lengths)
        torch.testing.assert_close(batch["features"][:, 0], torch.from_numpy(store.pooled[rows]))
        for text in range(4):
            members = [row for row in rows if speech.factors[row, 1] == text]
            paths = {row: dataset.alignment.path(row) for row in members}
            length = len(paths[members[0]])
            fitting = []
            for start in range(length - width + 1):
                means = []
                for row in members:
                    mine = store.frames[store.starts[row] : store.starts[row + 1]]
                    mine = torch.from_numpy(mine.astype(np.float32))
                    ends = [*paths[row].tolist(), len(mine)]
                    means.append(mine[ends[start] : max(ends[start + width], ends[start] + 1)])
                want = torch.stack([mean.mean(0) for mean in means])
                if torch.allclose(batch["features"][members, 1, 0], want, atol=1e-5):
                    fitting.append(start)
            assert fitting, f"text {text}: no place of it fits all voices"
            places.setdefault(text, set()).update(fitting)
            # A draw does not depend on who else is in the batch.
            one = dataset.__getitems__([Position(epoch, members[2])])
            assert torch.equal(one["features"][0], batch["features"][members[2]])
    assert all(len(found) > 1 for found in places.values())


def test_weighted_layers_train_their_weights(tmp_path, manifest, shared):
    run(manifest, tmp_path / "run", weighted_layers=True, features=shared)
    found = weights(tmp_path / "run")["layer_weights"]
    assert found.shape == (4,)
    assert (found != 0).all()
    assert load_subspaces(tmp_path / "run").layer is None


def test_tuned_layers_are_saved_along_and_nothing_below_changes(tmp_path, manifest):
    report = run(manifest, tmp_path / "run", tuned_layers=1, precompute=False)
    assert report.tuned
    before = models.tiny("hubert").hf_model.state_dict()
    after = load_file(tmp_path / "run" / "encoder" / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith("encoder.layers.2.") for name in changed)
    model = load_subspaces(tmp_path / "run")
    assert torch.equal(
        model.encoder.layers[2].final_layer_norm.weight,
        after["encoder.layers.2.final_layer_norm.weight"],
    )
    assert not (tmp_path / "run" / "features").exists()


def test_a_named_encoder_is_kept_by_its_name_unless_it_is_tuned(tmp_path):
    method = made()
    method.encoder_name = "speechft/hubert-mini"
    method.save(tmp_path / "frozen")
    assert not (tmp_path / "frozen" / "encoder").exists()
    tuned = made(tuned_layers=1, precompute=False)
    tuned.encoder_name = "speechft/hubert-mini"
    tuned.save(tmp_path / "tuned")
    assert (tmp_path / "tuned" / "encoder").is_dir()


def test_augmentation_perturbs_every_step(tmp_path, manifest):
    chain = tmp_path / "chain.yaml"
    chain.write_text("- Speed: {factors: [0.8, 1.2]}\n")
    run(manifest, tmp_path / "changed", precompute=False, augmentation=str(chain))
    run(manifest, tmp_path / "again", precompute=False, augmentation=str(chain))
    run(manifest, tmp_path / "plain", precompute=False)
    assert same(tmp_path / "changed", tmp_path / "again")
    assert not same(tmp_path / "changed", tmp_path / "plain")


def test_the_closed_form_takes_no_steps(tmp_path, manifest, shared, speech):
    report = run(manifest, tmp_path / "run", fit="discriminant", features=shared, **LINEAR)
    assert report.steps == 0
    assert report.loss_before == report.loss_after
    assert "loss before" in str(report)
    model = load_subspaces(tmp_path / "run")
    store = FeatureStore(model, speech, Path(shared) / "features")
    features = torch.from_numpy(store.pooled[:, 0])
    both = [directions(features, speech.factors, factor, 3) for factor in (0, 1)]
    assert torch.equal(model.transform[0].weight, torch.cat([weight for weight, _ in both]))
    assert torch.equal(model.transform[0].bias, torch.cat([bias for _, bias in both]))
    again = run(manifest, tmp_path / "again", fit="discriminant", features=shared, **LINEAR)
    assert same(tmp_path / "run", tmp_path / "again")
    # Both: steps from there.
    later = run(manifest, tmp_path / "both", fit="both", features=shared, **LINEAR)
    assert later.loss_before == report.loss_before == again.loss_before
    assert later.steps == 4
    assert not same(tmp_path / "both", tmp_path / "run")
    small = {"training": {"learning_rate": 1e-9, "weight_decay": 0.0}}
    run(manifest, tmp_path / "hardly", fit="both", features=shared, **LINEAR, **small)
    assert same(tmp_path / "hardly", tmp_path / "run", 1e-6)


def test_recordings_join_the_closed_form_of_their_factor(tmp_path, manifest, shared):
    """Rows of a speaker without a text, beside those of the grid."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    recorded = [
        {"id": f"p{person}-{take}", "audio": f"p{person}-{take}.wav", "speaker": f"p{person}"}
        for person in range(3)
        for take in range(4)
    ]
    for row in recorded:
        person, take = map(int, row["id"][1:].split("-"))
        path = manifest.parent / row["audio"]
        soundfile.write(path, utterance(10 + person, 20 + take, take=take), RATE)
    path = manifest.parent / "recorded.jsonl"
    path.write_text("\n".join(map(json.dumps, rows + recorded)) + "\n")
    settings = {"recorded_share": 0.3, "noise_weights": {"speaker": 4.0}, **LINEAR}
    run(path, tmp_path / "run", fit="discriminant", features=shared, **settings)
    model = load_subspaces(tmp_path / "run")
    speech = SpeechDataset(read_manifest(path), factors=("speaker", "text"))
    assert (speech.factors[:, 1] < 0).sum() == len(recorded)
    features = torch.from_numpy(FeatureStore(model, speech, Path(shared) / "features").pooled[:, 0])
    weights, factors = (4.0, 1.0), speech.factors
    for column, (weight, rows_of) in enumerate(
        zip(weights, (slice(0, 3), slice(3, 6)), strict=True)
    ):
        expected = directions(features, factors, column, 3, recorded_share=0.3, noise_weight=weight)
        torch.testing.assert_close(model.transform[0].weight[rows_of], expected[0], rtol=0, atol=0)
        torch.testing.assert_close(model.transform[0].bias[rows_of], expected[1], rtol=0, atol=0)
    run(manifest, tmp_path / "plain", fit="discriminant", features=shared, **LINEAR)
    plain = load_subspaces(tmp_path / "plain").transform[0].weight
    # To about what batches differ in.
    torch.testing.assert_close(model.transform[0].weight[3:], plain[3:], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(model.transform[0].weight[:3], plain[:3], rtol=0.1)


def test_a_closed_form_has_no_residual_and_no_more_directions_than_values(
    tmp_path, manifest, shared
):
    sizes = {"speaker": 3, "content": 3, "rest": 2}
    with pytest.raises(ConfigError, match="sizes: 'rest' has no factor"):
        run(manifest, tmp_path / "a", fit="both", features=shared, hidden_sizes=(), sizes=sizes)
    with pytest.raises(ArgumentError, match="closed form of 4 dimensions"):
        run(manifest, tmp_path / "b", fit="both", features=shared, hidden_sizes=())


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": {"speaker": "speaker", "content": "one"}}, "grid: .*one has one value"),
        ({"factors": {"speaker": "speaker", "content": "mood"}}, "no utterance has a label 'mood'"),
        ({"training": {"batch_size": 1}}, "no batch has two items of one value"),
        ({"rows": 1, "training": {"batch_size": 4}}, "speaker: every batch has one value only"),
    ],
)
def test_factors_that_cannot_be_learnt_stop_before_any_feature(
    tmp_path, manifest, monkeypatch, changes, message, precompute
):
    def never(*_, **__):
        raise AssertionError("features were computed")

    monkeypatch.setattr(FeatureStore, "__init__", never)
    monkeypatch.setattr(Interventional, "forward", never)
    with pytest.raises((ConfigError, ArgumentError), match=message):
        run(manifest, tmp_path / "run", precompute=precompute, **changes)


def test_features_have_no_length_to_bound(tmp_path, manifest):
    with pytest.raises(ConfigError, match="max_batch_seconds: features have no length"):
        run(manifest, tmp_path / "run", training={"max_batch_seconds": 9.0})


def test_features_of_another_run_are_used(tmp_path, manifest, monkeypatch):
    folder = str(tmp_path / "kept")
    run(manifest, tmp_path / "one", features=folder)
    assert not (tmp_path / "one" / "features").exists()
    monkeypatch.setattr(FeatureStore, "_batch", lambda *_: pytest.fail("computed again"))
    run(manifest, tmp_path / "two", features=folder, hidden_sizes=(4,))


# The schedule


@pytest.mark.parametrize(
    ("steps", "warmup", "share"), [(30, None, 0.1), (12, 4, 4 / 12), (5, None, 0.0), (1, None, 0.0)]
)
def test_one_cycle_is_torchs(tmp_path, manifest, shared, steps, warmup, share):
    """A warm-up of one update, the tenth of fewer than twenty, is none."""
    output = tmp_path / "run"
    run(manifest, output, features=shared, training={"steps": steps, "warmup_steps": warmup})
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=steps, pct_start=share, div_factor=25, final_div_factor=1000
    )
    want = []
    for _ in range(steps):
        want.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    found = [line["learning_rate"] for line in lines(output)]
    np.testing.assert_allclose(found, want, rtol=1e-9)
    if steps >= 12:
        assert found[0] == pytest.approx(1e-2 / 25)
        assert found[-1] == pytest.approx(1e-2 / 25 / 1000)
        assert found.index(max(found)) == round(share * steps) - 1
        assert max(found) == 1e-2


def test_a_warm_up_longer_than_the_run_is_named():
    with pytest.raises(ConfigError, match="warmup_steps: wants at most 4"):
        settings(warmup_steps=5)
    assert settings(warmup_steps=4).warmup == 4
    assert TrainingSettings(steps=4, warmup_steps=5).warmup == 5  # of the linear schedule
    assert settings(steps=40).warmup == 4
