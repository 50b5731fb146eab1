"""Transfer in stages, end to end in small: what is trained on what, and what is told of it."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from evaluation import layout_miniatures as layouts
from toy_corpus import tone, toys

from speechft.cli import main
from speechft.data import Manifest, write_manifest
from speechft.errors import ConfigError, InterruptedRun, ManifestError
from speechft.evaluation.layouts import EvaluationData, TrialList, read_evaluation_data
from speechft.evaluation.metrics import Trials, accuracy, uar
from speechft.evaluation.splits import Split
from speechft.evaluation.tasks import label
from speechft.evaluation.tasks.label import label_splits
from speechft.methods import transfer as module
from speechft.methods.prediction import predict
from speechft.methods.transfer import TransferConfig, parse_grid, transfer
from speechft.methods.transfer_report import Cell, TransferReport
from speechft.models import load_embedding
from speechft.models.classifier import load_classifier
from speechft.training import trainer

STAGES = """
- {train: affine, epochs: 6, learning_rate: 0.03, chunk_seconds: 0.25, batch_size: 6}
- {train: all, epochs: 15, learning_rate: 0.01, chunk_seconds: 0.25, batch_size: 6}
"""
ONE = "- {train: all, epochs: 1, chunk_seconds: 0.2, batch_size: 8}"
VERIFICATION = {"task": "verification", "label": "speaker", "loss": "aam", "scale": 10.0}
FIGURES = [f"{part} {name}" for part in ("validation", "test")
           for name in ("accuracy", "UAR", "micro-F1", "macro-F1")]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Every run ends in a collection of garbage, which need not go through all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "two.yaml"
    path.write_text(STAGES)
    return str(path)


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "one.yaml"
    path.write_text(ONE)
    return str(path)


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    return toys(tmp_path_factory.mktemp("toys"), 4, 5)


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Enough of them to be divided."""
    return toys(tmp_path_factory.mktemp("people"), 8, 3, seconds=(0.25, 0.35))


def run(data, output, stages, *, model="xvector-8", grid=None, **config):
    made = TransferConfig(**{"label": "mood", "size": 16, "stages": stages, **config})
    return transfer(model=model, data=data, output=output, config=made, grid=grid, device="cpu")


@pytest.fixture(scope="session")
def done(tmp_path_factory, speech, stages):
    output = tmp_path_factory.mktemp("done")
    return output, run(speech, output, stages, seeds=2)


def of(name, rows):
    return Manifest([rows[row] for row in name])


class TestClasses:
    def test_figures_are_those_of_the_last_model_on_what_it_never_saw(self, done, speech):
        output, report = done
        data = EvaluationData("toys", {"all": speech})
        (cell,) = report.cells
        assert list(cell.figures) == FIGURES
        for seed in (0, 1):
            (split,) = label_splits(data, "mood", None, seed)
            place = output / "cell-0" / f"seed-{seed}" / "fold-0"
            assert sorted(path.name for path in place.iterdir()) == ["stage-1", "stage-2"]
            classifier = load_classifier(place / "stage-2")
            for part, rows in (("validation", split.validation), ("test", split.test)):
                found = predict(classifier, of(rows, speech), chunk_seconds=0.25)
                guess = found.log_probabilities.argmax(1)
                assert cell.figures[f"{part} accuracy"][seed] == accuracy(found.truth, guess)
                assert cell.figures[f"{part} UAR"][seed] == uar(found.truth, guess)
        assert cell.mean("test UAR") == np.mean(cell.figures["test UAR"])
        assert cell.mean("test UAR") >= 0.75  # bright or dark is not hard

    def test_no_stage_sees_a_tested_utterance(self, tmp_path, speech, one, monkeypatch):
        seen = []
        known = module.refine
        monkeypatch.setattr(module, "refine", lambda **k: seen.append(k["data"]) or known(**k))
        run(speech, tmp_path, one, seeds=2)
        for seed, manifest in enumerate(seen):
            (split,) = label_splits(EvaluationData("toys", {"all": speech}), "mood", None, seed)
            assert [row.id for row in manifest] == [speech[row].id for row in split.fit]
            assert not set(split.fit) & {*split.test, *split.validation}
        assert seen[0] != seen[1]

    def test_a_stage_goes_on_from_the_one_before(self, done):
        """The first moves the affine layer and the head, the second starts from both."""
        output, _ = done
        place = output / "cell-0" / "seed-0" / "fold-0"
        told = [json.loads((place / f"stage-{n}" / "report.json").read_text()) for n in (1, 2)]
        assert {name.split(".")[0] for name in told[0]["tuned"]} == {"affine"}
        assert {name.split(".")[0] for name in told[1]["tuned"]} == {"affine", "frames"}
        assert told[0]["model"] == "xvector-8"
        assert told[1]["model"] == str(place / "stage-1") == told[1]["settings"]["start_head"]
        assert [t["settings"]["learning_rate"] for t in told] == [0.03, 0.01]
        assert [t["steps"] for t in told] == [12, 30]  # 12 utterances to fit on
        # Both losses are of the same utterances, without augmentation or dropout.
        assert told[1]["loss_before"] == pytest.approx(told[0]["loss_after"], rel=0.2)

    def test_transfer_json(self, done, speech, stages):
        output, report = done
        told = json.loads((output / "transfer.json").read_text())
        assert told.keys() == {"model", "data", "config", "seconds", "cells"}
        assert (told["model"], told["data"]) == ("xvector-8", str(speech.source))
        assert told["config"]["label"] == "mood"
        assert (told["config"]["stages"], told["config"]["seeds"]) == (stages, 2)
        (cell,) = told["cells"]
        assert cell["figures"] == report.cells[0].figures
        assert [stage["train"] for stage in cell["stages"]] == ["affine", "all"]
        assert cell["stages"][1]["learning_rate"] == 0.01
        assert cell["settings"] == {}
        assert cell["best_on_validation"] is True
        assert not (output / "transfer-grid.png").exists()
        assert "±" in str(report)
        assert "mood of" in str(report)

    def test_folds_of_groups_are_scored_together(self, tmp_path, speech, one):
        report = run(speech, tmp_path, one, groups="speaker")
        data = EvaluationData("toys", {"all": speech})
        truth, guess, folds = [], [], 0
        for fold, split in enumerate(label_splits(data, "mood", "speaker", 0)):
            assert len({speech[row].speaker for row in split.test}) == 1
            place = tmp_path / "cell-0" / "seed-0" / f"fold-{fold}" / "stage-1"
            classifier = load_classifier(place)
            found = predict(classifier, of(split.test, speech), chunk_seconds=0.2)
            truth.append(found.truth)
            guess.append(found.log_probabilities.argmax(1))
            folds += 1
        assert folds == 4
        assert len(torch.cat(truth)) == len(speech)
        figures = report.cells[0].figures
        assert figures["test accuracy"] == [accuracy(torch.cat(truth), torch.cat(guess))]
        assert figures["test UAR"] == [uar(torch.cat(truth), torch.cat(guess))]

    def test_a_class_that_was_not_trained_is_a_miss_and_not_a_crash(self, tmp_path, speech, one):
        """Numbers of the others are not shifted by it: 'a' comes before all that was trained."""
        rows = list(speech)
        parts = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
        rows = [replace(row, factors={**row.factors, "part": part})
                for row, part in zip(rows, parts, strict=True)]  # fmt: skip
        rows[12] = replace(rows[12], factors={"mood": "a", "part": "validation"})
        data = Manifest(rows)
        report = run(data, tmp_path, one)
        classifier = load_classifier(tmp_path / "cell-0" / "seed-0" / "fold-0" / "stage-1")
        assert classifier.classes == ("bright", "dark")
        for part, start in (("validation", 12), ("test", 16)):
            found = predict(classifier, Manifest(rows[start : start + 4]), chunk_seconds=0.2)
            right = (found.log_probabilities.argmax(1) == found.truth).double().mean()
            assert report.cells[0].figures[f"{part} accuracy"] == [float(right)]
        assert found.truth.min() >= 0

    def test_classes_are_those_of_all_folds(self, tmp_path, speech, one, monkeypatch):
        """Each fold lacks another, so their numbers differ from fold to fold."""
        rows = [replace(row, factors={"mood": "abc"[n % 3]}) for n, row in enumerate(speech)]
        splits = [Split([n for n in range(14) if n % 3 != lacks], [14, 15, 16], [17, 18, 19])
                  for lacks in (0, 2)]  # fmt: skip
        monkeypatch.setattr(label, "label_splits", lambda *_, **__: splits)
        report = run(Manifest(rows), tmp_path, one)
        truth, guess = [], []
        for fold, known in enumerate(("bc", "ab")):
            classifier = load_classifier(tmp_path / f"cell-0/seed-0/fold-{fold}/stage-1")
            assert classifier.classes == tuple(known)
            found = predict(classifier, Manifest(rows[17:]), chunk_seconds=0.2)
            guess += ["abc".index(known[n]) for n in found.log_probabilities.argmax(1)]
            truth += [n % 3 if "abc"[n % 3] in known else 3 for n in (17, 18, 19)]
        assert report.cells[0].figures["test accuracy"] == [accuracy(truth, guess)]
        assert report.cells[0].figures["test UAR"] == [uar(truth, guess)]

    def test_a_manifest_of_parts_is_taken_as_it_is(self, tmp_path, speech, one, monkeypatch):
        """As a file and in memory: the parts are the same."""
        order = ["test", "train", "train", "validation"]
        rows = [replace(row, factors={**row.factors, "part": order[number % 4]})
                for number, row in enumerate(speech)]  # fmt: skip
        write_manifest(rows, tmp_path / "parts.jsonl")
        seen = []
        known = module.refine
        monkeypatch.setattr(module, "refine", lambda **k: seen.append(k["data"]) or known(**k))
        for name, data in (("a", Manifest(rows)), ("b", tmp_path / "parts.jsonl")):
            run(data, tmp_path / name, one)
        wanted = [row.id for row in rows if row.factors["part"] == "train"]
        assert [[row.id for row in manifest] for manifest in seen] == [wanted, wanted]

    def test_by_a_label_of_the_data(self, tmp_path, speech, one):
        data = EvaluationData("toys", {"all": speech}, label="health", groups=None)
        report = run(data, tmp_path, one, label=None)
        assert report.config.label == "health"
        assert load_classifier(tmp_path / "cell-0/seed-0/fold-0/stage-1").classes == ("ill", "well")


class TestGrid:
    def test_all_combinations_a_table_and_a_picture(self, tmp_path, speech, one):
        report = run(
            speech, tmp_path, one,
            grid={"chunk_seconds": [[0.2, 0.3], None], "augmentation": ["none", "teacher"]},
        )  # fmt: skip
        assert [cell.settings for cell in report.cells] == [
            {"chunk_seconds": chunk, "augmentation": augmentation}
            for chunk in ([0.2, 0.3], None) for augmentation in ("none", "teacher")
        ]  # fmt: skip
        stages = [cell.stages[0] for cell in report.cells]
        assert [stage["augmentation"] for stage in stages] == ["none", "teacher"] * 2
        assert [s["chunk_seconds"] for s in stages[::2]] == [(0.2, 0.3), None]
        for number in range(4):
            told = tmp_path / f"cell-{number}" / "seed-0" / "fold-0" / "stage-1" / "report.json"
            settings = json.loads(told.read_text())["settings"]
            assert settings["augmentation"] == ("none", "teacher")[number % 2]
        picture = tmp_path / "transfer-grid.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000
        assert str(report).count("best on validation") == 1
        assert "chunk_seconds None, augmentation teacher" in str(report)
        told = json.loads((tmp_path / "transfer.json").read_text())["cells"]
        assert sum(cell["best_on_validation"] for cell in told) == 1

    @pytest.mark.parametrize(
        ("task", "metric", "values"),
        [("classes", "UAR", [0.5, 0.9, 0.7]), ("verification", "EER", [0.4, 0.1, 0.3])],
    )
    def test_the_best_is_that_of_validation(self, tmp_path, task, metric, values):
        """The test part says otherwise, and is not asked."""
        cells = [
            Cell({"epochs": n}, [], {f"validation {metric}": [v, v], f"test {metric}": [t, t]})
            for n, v, t in zip((1, 2, 3), values, values[1:] + values[:1], strict=True)
        ]
        config = TransferConfig(label="x", task=task)
        report = TransferReport("m", "d", config, cells, 1.0, tmp_path)
        assert report.metric == metric
        assert report.best() is cells[1]
        report.write()
        told = json.loads((tmp_path / "transfer.json").read_text())["cells"]
        assert [cell["best_on_validation"] for cell in told] == [False, True, False]
        for cell in cells:
            del cell.figures[f"validation {metric}"]
        assert report.best() is None
        assert report.draw() is None  # no chunk lengths in it

    def test_means_and_spreads(self):
        cell = Cell({}, [], {"a": [0.1, 0.2, 0.6], "b": [0.5]})
        assert cell.mean("a") == pytest.approx(0.3)
        assert cell.spread("a") == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
        assert cell.spread("b") is None

    def test_the_picture_has_whole_utterances_at_its_end(self, tmp_path, monkeypatch):
        from matplotlib import axes

        cells = [
            Cell({"chunk_seconds": c, "augmentation": a}, [], {"test UAR": [u, u + 0.02]})
            for a, base in (("none", 0.5), ("student", 0.6))
            for c, u in ((4, base), (None, base + 0.2), (1, base + 0.1))
        ]
        drawn, ticks = [], []
        known = axes.Axes.errorbar
        monkeypatch.setattr(
            axes.Axes, "errorbar",
            lambda self, x, y, **k: drawn.append((x, y, k)) or known(self, x, y, **k),
        )  # fmt: skip
        monkeypatch.setattr(axes.Axes, "set_xticks", lambda self, *given: ticks.append(given))
        report = TransferReport("m", "d", TransferConfig(label="x"), cells, 1.0, tmp_path)
        assert report.draw() == tmp_path / "transfer-grid.png"
        assert [x for x, _, _ in drawn] == [[1, 4, 8]] * 2
        assert drawn[1][1] == pytest.approx([71, 61, 81])
        assert drawn[1][2]["yerr"] == pytest.approx([100 * np.std([0, 0.02], ddof=1)] * 3)
        assert [k["label"] for _, _, k in drawn] == ["augmentation none", "augmentation student"]
        assert ticks == [([1, 4, 8], ["1", "4", "whole"])]

    @pytest.mark.parametrize(
        ("grid", "words"),
        [
            ({"chunk_secs": [1]}, "grid: no setting 'chunk_secs'; did you mean 'chunk_seconds'"),
            ({"chunk_seconds": []}, "grid: chunk_seconds has no values"),
            ({"chunk_seconds": [1, -1]}, "grid: chunk_seconds: wants"),
            ({"augmentation": ["none", "studnt"]}, "grid: augmentation: 'studnt' is no file"),
        ],
    )
    def test_a_mistake_is_met_before_anything_is_trained(self, tmp_path, speech, grid, words):
        with pytest.raises(ConfigError, match=words):
            run(speech, tmp_path / "out", "probe", grid=grid)
        assert not (tmp_path / "out").exists()

    def test_of_the_command_line(self):
        assert parse_grid([]) == {}
        assert parse_grid(["chunk_seconds=1,2.5,None", "augmentation=none,my.yaml"]) == {
            "chunk_seconds": [1, 2.5, None], "augmentation": ["none", "my.yaml"],
        }  # fmt: skip
        assert parse_grid(["spec_augment=true,false"]) == {"spec_augment": [True, False]}
        assert parse_grid(["chunk_seconds=null"]) == {"chunk_seconds": [None]}
        for entry in ("chunk_seconds", "chunk_seconds=", "=1", "chunk_seconds=1,,2"):
            with pytest.raises(ConfigError, match="grid: wants SETTING=VALUE,VALUE"):
                parse_grid([entry])
        with pytest.raises(ConfigError, match="grid: 'epochs' is there twice"):
            parse_grid(["epochs=1", "epochs=2"])


class StopAtThree(trainer.RefinementTrainer):
    """Stops the second stage in its third update."""

    def training_step(self, *args, **keywords):
        loss = super().training_step(*args, **keywords)
        if self.settings.steps == 30 and self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss


@pytest.fixture(scope="session")
def stopped(tmp_path_factory, speech, stages):
    output = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "RefinementTrainer", StopAtThree)
        with pytest.raises(InterruptedRun):
            run(speech, output, stages)
    place = output / "cell-0" / "seed-0" / "fold-0"
    assert (place / "stage-1" / "report.json").exists()
    assert not (place / "stage-2" / "report.json").exists()
    return output


class TestGoingOn:
    def test_as_the_same_run(self, stopped, done, speech, stages, monkeypatch):
        trained = []
        known = module.refine
        monkeypatch.setattr(module, "refine", lambda **k: trained.append(k) or known(**k))
        report = run(speech, stopped, stages)
        assert [(k["output"].name, k["resume"]) for k in trained] == [("stage-2", True)]
        for name, values in done[1].cells[0].figures.items():
            assert report.cells[0].figures[name] == values[:1]
        place = "cell-0/seed-0/fold-0/stage-2/model.safetensors"
        assert (stopped / place).read_bytes() == (done[0] / place).read_bytes()
        run(speech, stopped, stages)
        assert len(trained) == 1

    @pytest.mark.parametrize(
        "change",
        [{"label": "health"}, {"loss": "aam"}, {"scale": 9.0, "loss": "aam"}, {"size": 8},
         {"groups": "speaker"}],
    )  # fmt: skip
    def test_not_with_other_settings(self, done, speech, stages, change):
        """Figures of one run are never told as those of another."""
        with pytest.raises(ConfigError, match=r"output: .*stage-1 holds a run with other settings"):
            run(speech, done[0], stages, **change)

    def test_not_with_other_stages_data_or_models(self, done, speech, stages, tmp_path):
        for given in (
            {"grid": {"augmentation": ["student"]}},
            {"model": "xvector-16"},
            {"data": Manifest(list(speech)[1:])},
        ):
            with pytest.raises(ConfigError, match="holds a run with other settings"):
                run(given.pop("data", speech), done[0], stages, **given)


@pytest.fixture(scope="session")
def cosine(tmp_path_factory, people, stages):
    output = tmp_path_factory.mktemp("cosine")
    return output, run(people, output, stages, **VERIFICATION)


class TestVerification:
    def test_strangers_are_told_apart_by_cosine(self, cosine, people):
        output, report = cosine
        place = output / "cell-0" / "seed-0" / "fold-0" / "stage-2"
        trained = set(load_classifier(place).classes)
        parts = module._speaker_parts(EvaluationData("x", {"all": people}), "speaker", 0)
        by_part = {part: {row.speaker for row in rows} for part, rows in parts.items()}
        assert by_part["train"] == trained
        assert [len(by_part[part]) for part in ("train", "validation", "test")] == [4, 2, 2]
        assert len(set().union(*by_part.values())) == 8
        model = load_embedding(place)
        for part in ("validation", "test"):
            vectors = []
            for row in parts[part]:
                wave, _ = soundfile.read(row.audio, dtype="float32")
                with torch.no_grad():
                    vectors.append(model(torch.from_numpy(wave)[None])[0].double())
            x = torch.nn.functional.normalize(torch.stack(vectors), dim=1).numpy()
            one, other = np.triu_indices(len(x), 1)
            names = np.array([row.speaker for row in parts[part]])
            trials = Trials()
            trials.update((x[one] * x[other]).sum(1), names[one] == names[other])
            figures = report.cells[0].figures
            assert figures[f"{part} EER"] == [pytest.approx(trials.eer(), abs=1e-6)]
            wanted = pytest.approx(trials.min_dcf(p_target=0.05), abs=1e-6)
            assert figures[f"{part} minDCF(0.05)"] == [wanted]
        assert list(figures) == ["validation EER", "validation minDCF(0.05)", "test EER",
                                 "test minDCF(0.05)"]  # fmt: skip

    def test_by_plda_and_with_as_norm(self, cosine, people, stages, monkeypatch):
        """The backend is fitted on the training part; the model is the same, and not trained."""
        from speechft.evaluation.tasks import speaker

        fitted = []
        known = speaker.Background
        monkeypatch.setattr(
            speaker, "Background",
            lambda context, others, *a, **k: fitted.append(others)
            or known(context, others, *a, **k),
        )  # fmt: skip
        monkeypatch.setattr(module, "refine", None)
        output, before = cosine
        after = run(people, output, stages, **VERIFICATION, backend="plda", norm="as-norm")
        parts = module._speaker_parts(EvaluationData("x", {"all": people}), "speaker", 0)
        assert [[row.id for row in rows] for rows in fitted] == [
            [row.id for row in parts["train"]]
        ] * 2
        figures = after.cells[0].figures
        assert figures.keys() == before.cells[0].figures.keys()
        assert all(0 <= value <= 1 for values in figures.values() for value in values)

    def test_on_parts_of_the_data(self, tmp_path, people, one):
        split = {"train": people[:15], "test": people[15:]}
        report = run(EvaluationData("x", split), tmp_path, one, **VERIFICATION)
        assert list(report.cells[0].figures) == ["test EER", "test minDCF(0.05)"]
        told = json.loads((tmp_path / "cell-0/seed-0/fold-0/stage-1/report.json").read_text())
        assert told["data"]["rows"] == 15
        assert report.best() is None

    def test_on_a_list_of_trials(self, tmp_path, people, one, monkeypatch):
        """Trials of VoxCeleb1 are about the part all, which stands beside what is trained on."""
        trials = TrialList(
            np.array([0, 0, 3], np.int32), np.array([1, 3, 4], np.int32),
            np.array([True, False, True]),
        )  # fmt: skip
        data = EvaluationData("x", {"all": people[15:], "train": people[:15]}, trials=trials)
        report = run(data, tmp_path, one, **VERIFICATION)
        figures = report.cells[0].figures
        assert list(figures) == ["test EER", "test minDCF(0.05)"]
        model = load_embedding(tmp_path / "cell-0/seed-0/fold-0/stage-1")
        waves = [soundfile.read(people[15 + n].audio, dtype="float32")[0] for n in range(5)]
        with torch.no_grad():
            vectors = [model(torch.from_numpy(wave)[None])[0] for wave in waves]
        found = Trials()
        scores = [float(torch.cosine_similarity(vectors[a], vectors[b], dim=0))
                  for a, b in ((0, 1), (0, 3), (3, 4))]  # fmt: skip
        found.update(np.array(scores), trials.target)
        assert figures["test EER"] == [pytest.approx(found.eer())]

    def test_wants_people_to_train_on(self, tmp_path, people, speech, one):
        root = layouts.voxceleb1(tmp_path / "vox")
        with pytest.raises(ConfigError, match=r"data: voxceleb1.* has trials and no part 'train'"):
            run(root, tmp_path / "a", one, **VERIFICATION)
        with pytest.raises(ConfigError, match=r"6 values of 'speaker' or more.* has 4"):
            run(speech, tmp_path / "b", one, **VERIFICATION)
        once = Manifest([row for row in people if row.id.endswith("-0")])
        with pytest.raises(ConfigError, match="label: every speaker has one utterance"):
            run(once, tmp_path / "c", one, **VERIFICATION)
        with pytest.raises(ConfigError, match="aggregate: is of classes"):
            TransferConfig(task="verification", aggregate="speaker")


class TestLayouts:
    def test_iemocap_has_a_fold_a_session(self, tmp_path, one, monkeypatch):
        root = layouts.iemocap(tmp_path / "data")
        moods = {"neu": "dark", "exc": "bright", "hap": "bright", "ang": "bright", "sad": "dark"}
        for number, path in enumerate(sorted(root.rglob("*.wav"))):
            emotion = ("neu", "exc", "hap", "ang", "sad")[int(path.stem[-1])]
            soundfile.write(path, tone(100 + number, moods[emotion], 0.25, number), 16_000)
        trained, asked = [], []
        refine, ask = module.refine, module.predict
        monkeypatch.setattr(module, "refine", lambda **k: trained.append(k["data"]) or refine(**k))
        monkeypatch.setattr(
            module, "predict", lambda c, rows, **k: asked.append(rows) or ask(c, rows, **k)
        )
        report = run(root, tmp_path / "out", one, label=None)
        assert report.config.label == "emotion"
        tested = asked[1::2]
        assert len(trained) == len(tested) == 5
        for fit, validation, test in zip(trained, asked[::2], tested, strict=True):
            sessions = [{row.label("session") for row in part} for part in (fit, validation, test)]
            assert [len(found) for found in sessions] == [3, 1, 1]
            assert len(set().union(*sessions)) == 5
        assert Counter(row.id for part in tested for row in part) == Counter(
            row.id for row in read_evaluation_data(root).parts["all"]
        )
        assert list(report.cells[0].figures) == FIGURES
        assert load_classifier(tmp_path / "out/cell-0/seed-0/fold-0/stage-1").classes == (
            "angry", "happy", "neutral", "sad",
        )  # fmt: skip

    def test_adresso_has_one_answer_a_person(self, tmp_path, stages, monkeypatch):
        root = layouts.adresso(tmp_path / "data")
        train = root / "ADReSSo21" / "diagnosis" / "train" / "audio"
        for folder, numbers in (("ad", range(30, 32)), ("cn", range(3, 6))):
            for number in numbers:
                layouts.audio(train / folder / f"adrso{number:03}.wav")
        ill = {"ad": "bright", "cn": "dark", "audio": None}
        for number, path in enumerate(sorted(root.rglob("*.wav"))):
            mood = ill[path.parent.name] or {"adrsdt2": "bright", "adrsdt1": "dark"}[path.stem]
            soundfile.write(path, tone(110 + 7 * number, mood, 0.6, number), 16_000)
        asked = []
        known = module.predict
        monkeypatch.setattr(
            module, "predict", lambda c, rows, **k: asked.append(k) or known(c, rows, **k)
        )
        report = run(root, tmp_path / "out", stages, label=None, aggregate="speaker")
        assert report.config.label == "diagnosis"
        assert all(k == {"chunk_seconds": 0.25, "aggregate": "speaker"} for k in asked)
        assert set(report.cells[0].figures["test accuracy"]) <= {0.0, 0.5, 1.0}  # of two people
        told = json.loads((tmp_path / "out" / "transfer.json").read_text())
        assert told["data"] == "adresso (official test)"
        assert told["config"]["aggregate"] == "speaker"


class TestMistakes:
    def test_labels_that_say_nothing(self, tmp_path, speech, one):
        with pytest.raises(ManifestError, match="every utterance has one 'same'"):
            run(speech, tmp_path, one, label="one")
        with pytest.raises(ManifestError, match="has 1 utterances; a split needs 3"):
            run(speech, tmp_path, one, label="own")
        with pytest.raises(ManifestError, match="has no 'age'; labels: speaker, text, language"):
            run(speech, tmp_path, one, label="age")
        with pytest.raises(ConfigError, match="seeds: wants at least 1, got 0"):
            TransferConfig(seeds=0)

    def test_a_speaker_in_two_moods_has_no_one_answer(self, tmp_path, speech, one):
        with pytest.raises(ConfigError, match=r"aggregate: utterances of speaker .* differ in"):
            run(speech, tmp_path, one, aggregate="speaker")


class TestCommand:
    def command(self, speech, output, *more):
        return main(
            ["transfer", "--model", "xvector-8", "--data", str(speech.source), "--output",
             str(output), "--device", "cpu", "--label", "mood", "--size", "16", *more]
        )  # fmt: skip

    def test_runs_a_grid(self, tmp_path, speech, one, capsys):
        code = self.command(
            speech, tmp_path, "--stages", one, "--grid", "chunk_seconds=0.2,None",
            "augmentation=none",
        )  # fmt: skip
        assert code == 0
        said = capsys.readouterr().out
        assert "chunk_seconds 0.2, augmentation none" in said
        assert f"written to {tmp_path}: transfer.json and the models" in said
        assert (tmp_path / "transfer-grid.png").exists()
        told = json.loads((tmp_path / "transfer.json").read_text())
        assert [cell["settings"]["chunk_seconds"] for cell in told["cells"]] == [0.2, None]
        assert told["config"]["size"] == 16

    @pytest.mark.parametrize(
        ("more", "code", "words"),
        [
            (["--stages", "two-stag"], 2, "did you mean 'two-stage'"),
            (["--grid", "chunk_second=1"], 2, "did you mean 'chunk_seconds'"),
            (["--grid", "chunk_seconds"], 2, "grid: wants SETTING=VALUE"),
            (["--stage", "probe"], 2, "no flag --stage; did you mean --stages?"),
            (["--loss", "amm"], 2, "amm"),
            (["--label", "age"], 3, "has no 'age'"),
            (["--label", "one"], 3, "every utterance has one 'same'"),
            (["--data", "/nowhere.jsonl"], 3, "there is no such file or folder"),
            (["--task", "verification", "--label", "speaker"], 2, "6 values of 'speaker'"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path, speech, capsys, more, code, words):
        assert self.command(speech, tmp_path, *more) == code
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said

    def test_helps(self, capsys):
        assert main(["transfer", "--help"]) == 0
        said = capsys.readouterr().out
        for word in ("--stages", "two-stage, all-at-once, probe, lora, hyperion", "--aggregate",
                     "--backend", "--grid"):  # fmt: skip
            assert word in said


class TestStrangers:
    def test_a_speaker_on_both_sides_of_a_verification_is_refused(self, tmp_path, speech, one):
        rows = list(speech)
        same = str(rows[0].speaker)
        train = [row for row in rows if row.speaker == same][:1] + [
            row for row in rows if row.speaker != same
        ]
        test = [row for row in rows if row.speaker == same][1:]
        data = EvaluationData("mine", {"train": Manifest(train), "test": Manifest(test)})
        with pytest.raises(ConfigError, match=f"speaker '{same}' is in train and in test of mine"):
            run(data, tmp_path, one, label="speaker", task="verification")

    @pytest.mark.parametrize(("folds", "many"), [(2, 2), (3, 3), (99, None)])
    def test_groups_are_left_out_in_parts(self, speech, folds, many):
        data = EvaluationData("mine", {"all": Manifest(list(speech))})
        splits = list(label.label_splits(data, "mood", "speaker", 0, folds=folds))
        speakers = [str(row.speaker) for row in speech]
        assert len(splits) == (many or len(set(speakers)))
        tested = sorted(row for split in splits for row in split.test)
        assert tested == list(range(len(speech)))
        for split in splits:
            known = {speakers[row] for row in (*split.fit, *split.validation)}
            assert not known & {speakers[row] for row in split.test}

    def test_one_answer_a_speaker_keeps_speakers_whole(self, tmp_path, speech, one, monkeypatch):
        asked = []

        def splits(data, label_name, groups, seed, *, folds=None):
            asked.append(groups)
            raise ConfigError("enough")

        monkeypatch.setattr(label, "label_splits", splits)
        with pytest.raises(ConfigError, match="enough"):
            run(speech, tmp_path, one, aggregate="speaker")
        assert asked == ["speaker"]
