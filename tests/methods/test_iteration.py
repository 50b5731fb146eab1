"""Iterated pseudo-labels in small: speakers that can be told apart, whose names nobody is told."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_corpus import toys

from speechft.cli import main
from speechft.data import Manifest, read_manifest
from speechft.errors import ConfigError, InterruptedRun
from speechft.evaluation.embeddings import model_key
from speechft.evaluation.metrics import normalized_mutual_information, purity
from speechft.methods import iteration as module
from speechft.methods.iteration import IterationConfig, embed, iterate, with_labels
from speechft.methods.pseudo_labels import pseudo_labels
from speechft.methods.stages import STAGES, Stage
from speechft.methods.transfer import train_stages
from speechft.models import EmbeddingSpec, load_embedding, make_embedding
from speechft.models.classifier import load_classifier
from speechft.models.utterances import UtteranceEncoder
from speechft.training import trainer

TWO_STAGES = """
- {train: affine, epochs: 3, learning_rate: 0.03, chunk_seconds: 0.25, batch_size: 6, dropout: 0.1}
- {train: all, epochs: 8, learning_rate: 0.003, chunk_seconds: 0.25, batch_size: 6}
"""
CLUSTERS = {"least": 2, "most": 5, "confidence": 0.5, "per_cluster": 2.0, "clusters": 4}


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Every run ends in a collection of garbage, which need not go through all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "stages.yaml"
    path.write_text(TWO_STAGES)
    return str(path)


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Four, of whom two moods each."""
    return toys(tmp_path_factory.mktemp("people"), 4, 6, seconds=(0.25, 0.35))


@pytest.fixture(scope="session")
def start(tmp_path_factory, people):
    """Trained a little, by the right names: what DINO would have brought."""
    folder = tmp_path_factory.mktemp("start")
    make_embedding(EmbeddingSpec("xvector-8", size=16)).save_pretrained(folder / "new")
    base = module.ClassificationConfig(label="speaker", scale=10.0)
    stage = Stage(train="all", epochs=15, learning_rate=0.01, chunk_seconds=0.25, batch_size=8)
    return train_stages(folder / "new", people, base, [stage], folder, seed=0, device="cpu")


def run(model, data, output, stages, **changes):
    loss = {"scale": 10.0, "sub_centers": 1, "margin": 0.5}
    config = IterationConfig(**{**CLUSTERS, **loss, "stages": stages, **changes})
    return iterate(
        model=model, data=data, output=output, config=config, device="cpu", progress=False
    )


@pytest.fixture(scope="session")
def done(tmp_path_factory, start, people, stages):
    output = tmp_path_factory.mktemp("done")
    return output, run(start, people, output, stages, truth="speaker")


def labels_in(path, manifest):
    known = {row.id: row.factors["pseudo"] for row in read_manifest(path)}
    return torch.tensor([known.get(row.id, -1) for row in manifest])


def test_each_round_clusters_what_the_one_before_made(done, start, people):
    output, report = done
    model = start
    assert len(report.rounds) == 2
    for number, found in enumerate(report.rounds, 1):
        place = output / f"round-{number}"
        vectors = embed(model, people, None, device="cpu", progress=False)
        wanted = pseudo_labels(vectors, **CLUSTERS)
        (kept,) = (place / "embeddings").iterdir()
        assert kept.name == model_key(UtteranceEncoder(load_embedding(model)))
        labels = labels_in(place / "manifest.jsonl", people)
        assert torch.equal(labels, wanted.labels)
        assert found.counts == {
            "utterances": 24, "clusters": wanted.clusters, "unsure": wanted.unsure,
            "in small clusters": wanted.small, "surplus": wanted.surplus,
        }  # fmt: skip
        assert found.counts["surplus"] > 0  # at most 5 of the 6
        truth = torch.tensor([int(row.speaker[1:]) for row in people])
        assert found.agreement == {
            "purity": purity(labels, truth),
            "NMI": normalized_mutual_information(labels, truth),
            "kept": float((labels >= 0).double().mean()),
        }
        assert found.model == str(place / "stage-2")
        assert load_classifier(place / "stage-2").classes == tuple(range(wanted.clusters))
        assert load_classifier(place / "stage-2").label == "pseudo"
        model = place / "stage-2"


def test_embedding_is_that_of_whole_utterances(start, people):
    from speechft.data.audio import load_audio

    vectors = embed(start, people, None, device="cpu", progress=False)
    assert vectors.shape == (24, 16)
    model = load_embedding(start)
    for row, vector in list(zip(people, vectors, strict=True))[::7]:
        wave = torch.from_numpy(load_audio(row, sample_rate=16_000))
        with torch.no_grad():
            torch.testing.assert_close(vector, model(wave[None])[0], atol=1e-5, rtol=1e-5)


def test_rounds_agree_with_who_speaks(done):
    assert all(found.agreement["purity"] >= 0.85 for found in done[1].rounds)


def test_training_goes_on_from_the_model_that_was_embedded(done, start):
    output, _ = done
    models = []
    for number in (1, 2):
        for stage in (1, 2):
            told = json.loads((output / f"round-{number}/stage-{stage}/report.json").read_text())
            models.append(told["model"])
            assert told["settings"]["label"] == "pseudo"
            assert told["settings"]["loss"] == "aam"
            assert told["settings"]["sub_centers"] == 1
            assert told["settings"]["margin"] == 0.5
            # The classes are new in every round, so the head is, too.
            assert (told["settings"]["start_head"] is None) == (stage == 1)
    assert models == [str(start), *(str(output / f"round-{n}/stage-{s}")
                                    for n, s in ((1, 1), (1, 2), (2, 1)))]  # fmt: skip


def test_the_report(done, start):
    output, report = done
    told = json.loads((output / "iteration.json").read_text())
    assert told["model"] == str(start)
    assert [found["counts"] for found in told["rounds"]] == [f.counts for f in report.rounds]
    assert [found["agreement"] for found in told["rounds"]] == [f.agreement for f in report.rounds]
    said = str(report)
    assert said.startswith("round 1: 24 utterances, ")
    assert "purity" in said
    assert said.endswith(f"the model: {output / 'round-2' / 'stage-2'}")


def test_nobody_is_told_who_speaks(tmp_path, done, start, people, stages):
    """With all labels of the manifest in other places, or in no place: the same to the bit."""
    rows = list(people)
    moved = [replace(row, speaker=other.speaker, factors=other.factors)
             for row, other in zip(rows, rows[7:] + rows[:7], strict=True)]  # fmt: skip
    silent = [replace(row, speaker=None, factors={}) for row in rows]
    mixed = [*moved[:12], *silent[12:]]
    report = run(start, Manifest(mixed), tmp_path, stages, rounds=1)
    assert report.rounds[0].agreement == {}
    for file in ("model.safetensors", "head.safetensors"):
        ours = load_file(tmp_path / "round-1" / "stage-2" / file)
        theirs = load_file(done[0] / "round-1" / "stage-2" / file)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_one_that_was_stopped_goes_on(tmp_path, done, start, people, stages, monkeypatch):
    """In the second stage of the second round; nothing before it is trained again."""

    class Stops(trainer.RefinementTrainer):
        def training_step(self, *args, **keywords):
            loss = super().training_step(*args, **keywords)
            second = "round-2/stage-2" in str(self.args.output_dir)
            if second and self.state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss

    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "round-2" / "stage-2")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "RefinementTrainer", Stops)
        with pytest.raises(InterruptedRun):
            run(start, people, tmp_path, stages, truth="speaker")
    assert len(json.loads((tmp_path / "iteration.json").read_text())["rounds"]) == 1
    from speechft.methods import transfer

    trained = []
    known = transfer.refine
    monkeypatch.setattr(transfer, "refine", lambda **k: trained.append(k) or known(**k))
    report = run(start, people, tmp_path, stages, truth="speaker")
    assert [(k["output"], k["resume"]) for k in trained] == [
        (tmp_path / "round-2" / "stage-2", True)
    ]
    for ours, theirs in zip(report.rounds, done[1].rounds, strict=True):
        assert (ours.counts, ours.agreement) == (theirs.counts, theirs.agreement)
    place = "round-2/stage-2/model.safetensors"
    ours, theirs = load_file(tmp_path / place), load_file(done[0] / place)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_other_clusters_in_the_folder_of_a_run_are_refused(done, start, people, stages):
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        run(start, people, done[0], stages, clusters=3)


def test_a_truth_that_is_missing_is_met_before_training(tmp_path, start, people, stages):
    rows = list(people)
    rows[3] = replace(rows[3], speaker=None)
    with pytest.raises(ConfigError, match="truth: some utterances have no 'speaker'"):
        run(start, Manifest(rows), tmp_path, stages, truth="speaker")
    assert not list(tmp_path.rglob("stage-*"))
    with pytest.raises(ConfigError, match="rounds: wants at least 1, got 0"):
        IterationConfig(rounds=0)


class TestGate:
    def stages(self, **changes):
        return module._stages(IterationConfig(**changes))

    def test_is_shut_for_no_head_that_is_new(self):
        first, second = self.stages(loss_gate="fixed", loss_gate_threshold=3.0, margin=0.1)
        assert (first.loss_gate, second.loss_gate) == ("none", "fixed")
        assert second.loss_gate_threshold == 3.0
        assert (first.margin, second.margin) == (0.1, 0.1)
        assert (
            replace(second, loss_gate="none", loss_gate_threshold=1.0, margin=0.2)
            == STAGES["hyperion"][1]
        )

    def test_of_a_single_stage_is_there(self):
        (only,) = self.stages(stages="all-at-once", loss_gate="dynamic")
        assert only.loss_gate == "dynamic"

    def test_of_the_stages_themselves_is_left_alone(self, tmp_path):
        path = tmp_path / "stages.yaml"
        path.write_text("- {loss_gate: fixed, loss_gate_threshold: 2.0}\n- {loss_gate: dynamic}")
        stages = self.stages(stages=str(path))
        assert [(s.loss_gate, s.loss_gate_threshold) for s in stages] == [
            ("fixed", 2.0), ("dynamic", 1.0),
        ]  # fmt: skip

    def test_trains(self, tmp_path, start, people, stages):
        """Fixed at what a new head never falls below."""
        run(start, people, tmp_path, stages, rounds=1, loss_gate="fixed", loss_gate_threshold=4.0)
        told = [json.loads((tmp_path / f"round-1/stage-{n}/report.json").read_text())
                for n in (1, 2)]  # fmt: skip
        assert [t["settings"]["loss_gate"] for t in told] == ["none", "fixed"]
        lines = (tmp_path / "round-1/stage-2/metrics.jsonl").read_text().splitlines()
        kept = [json.loads(line)["kept"] for line in lines]
        assert all(0 <= share <= 1 for share in kept)
        assert any(share > 0 for share in kept)


def test_labels_are_given_to_those_that_have_one(people):
    few = Manifest(list(people)[:4])
    labelled = with_labels(few, torch.tensor([3, -1, 0, 3]))
    assert [row.id for row in labelled] == [few[0].id, few[2].id, few[3].id]
    assert [row.factors["pseudo"] for row in labelled] == [3, 0, 3]
    assert labelled[0].factors["mood"] == few[0].factors["mood"]
    assert "pseudo" not in few[0].factors


def test_the_command(tmp_path, start, people, capsys):
    stages = str(tmp_path / "one.yaml")
    Path(stages).write_text("- {train: affine, epochs: 1, batch_size: 8}")
    given = ["iterate", "--model", str(start), "--data", str(people.source), "--device", "cpu"]
    given += ["--output", str(tmp_path / "out"), "--stages", stages, "--rounds", "1"]
    for key, value in CLUSTERS.items():
        given += [f"--{key}", str(value)]
    assert main([*given, "--truth", "age"]) == 2
    assert "truth: some utterances have no 'age'" in capsys.readouterr().err
    assert main([*given, "--truth", "speaker"]) == 0
    said = capsys.readouterr().out
    assert "round 1: 24 utterances" in said
    assert f"written to {tmp_path / 'out'}: iteration.json" in said
    assert main([*given, "--least", "100", "--most", "100"]) == 2
    assert "two clusters of at least 100 need 200 utterances" in capsys.readouterr().err
    assert main([*given, "--stages", "hyperon"]) == 2
    assert "did you mean 'hyperion'" in capsys.readouterr().err
