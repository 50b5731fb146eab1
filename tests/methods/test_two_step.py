"""Two-step tuning beside end to end: what is trained on what, and what the test part decides."""

from __future__ import annotations

import gc
import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from toy_corpus import toys

from speechft.cli import main
from speechft.data import Manifest, SpeechDataset, Utterance, write_manifest
from speechft.errors import ConfigError, InterruptedRun, ManifestError
from speechft.evaluation.layouts import EvaluationData
from speechft.evaluation.metrics import accuracy, davies_bouldin, k_shot_accuracy, uar
from speechft.methods import two_step_ways as module
from speechft.methods.prediction import predict
from speechft.methods.transfer_report import Cell
from speechft.methods.two_step import _check_apart, two_step
from speechft.methods.two_step_config import PART, TwoStepConfig
from speechft.methods.two_step_report import TwoStepReport
from speechft.models.classifier import load_classifier
from speechft.training.trainer import RefinementTrainer
from speechft.training.vectors import vectors_of

SMALL = {
    "label": "mood", "size": 8, "each": 2, "batch_size": 8, "steps": 4, "adapter_steps": 3,
    "adapter_size": 4, "tuned_layers": None, "learning_rates": (1e-3,), "shots": (1, 2),
    "seeds": 1,
}  # fmt: skip
WAYS = ["untuned", "end-to-end", "combined + adapter"]


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Every run ends in a collection of garbage, which need not go through all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return toys(tmp_path_factory.mktemp("speech"), 6, 4, seconds=(0.2, 0.3))


def parts(speech) -> EvaluationData:
    of = {"s4": "validation", "s5": "test"}
    rows: dict[str, list] = {"train": [], "validation": [], "test": []}
    for row in speech:
        rows[of.get(row.speaker, "train")].append(row)
    made = {part: Manifest(some, source=speech.source) for part, some in rows.items()}
    return EvaluationData("toys", made, groups="speaker")


def run(data, output, model="xvector-8", **changes):
    config = TwoStepConfig(**{**SMALL, **changes})
    return two_step(model=model, data=data, output=output, config=config, device="cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory, speech):
    output = tmp_path_factory.mktemp("done")
    return output, run(parts(speech), output, learning_rates=(1e-3, 1e-2), seeds=2)


class TestFigures:
    def test_are_those_of_the_chosen_classifier_on_the_test_part(self, done, speech):
        output, report = done
        data = parts(speech)
        assert list(report.ways) == WAYS
        for way, folder in (("end-to-end", ""), ("combined + adapter", "step-2")):
            for seed in (0, 1):
                (chosen,) = report.chosen[way][seed]
                rate = chosen["learning_rate"]
                place = output / f"seed-{seed}" / "fold-0" / way / f"rate-{rate:g}" / folder
                classifier = load_classifier(place)
                found = predict(classifier, data.parts["test"])
                guesses = found.log_probabilities.argmax(1)
                figures = {n: v[seed] for n, v in report.ways[way].figures.items()}
                assert figures["accuracy"] == pytest.approx(accuracy(found.truth, guesses))
                assert figures["UAR"] == pytest.approx(uar(found.truth, guesses))
                z = {
                    part: normalize(
                        vectors_of(classifier.model, SpeechDataset(rows)).double(), dim=1
                    )
                    for part, rows in data.parts.items()
                }
                y = {p: [r.label("mood") for r in rows] for p, rows in data.parts.items()}
                wanted = davies_bouldin(z["test"], y["test"])
                assert figures["Davies-Bouldin"] == pytest.approx(wanted)
                wanted = k_shot_accuracy(
                    z["train"], y["train"], z["test"], y["test"], shots=2, seed=seed
                )
                assert figures["2-shot"] == pytest.approx(wanted)

    def test_both_ways_choose_of_the_same_rates_by_the_validation_part(self, done, speech):
        output, report = done
        for way, folder in (("end-to-end", ""), ("combined + adapter", "step-2")):
            (chosen,) = report.chosen[way][0]
            tried = chosen["validation UAR"]
            assert list(tried) == ["0.001", "0.01"]
            best = max(tried, key=tried.get)
            assert f"{chosen['learning_rate']:g}" == best
            for rate, figure in tried.items():
                place = output / "seed-0" / "fold-0" / way / f"rate-{rate}" / folder
                told = json.loads((place / "selection.json").read_text())
                assert told["best"] == figure
                validated = {row.id for row in parts(speech).parts["validation"]}
                assert set(told["held_out"]) == validated

    def test_updates_are_as_many_on_both_sides(self, done):
        output, _ = done
        place = output / "seed-0" / "fold-0"
        steps = {
            path.parent.relative_to(place).as_posix(): json.loads(path.read_text())["steps"]
            for path in place.rglob("report.json")
        }
        assert steps["end-to-end/rate-0.001"] == 7
        assert steps["combined + adapter/rate-0.001/step-1"] == 4
        assert steps["combined + adapter/rate-0.001/step-2"] == 3

    def test_step_two_leaves_the_space_as_step_one_made_it(self, done):
        output, _ = done
        place = output / "seed-0" / "fold-0" / "combined + adapter" / "rate-0.01"
        one, two = (
            (place / step / "model.safetensors").read_bytes() for step in ("step-1", "step-2")
        )
        assert one == two
        classifier = load_classifier(place / "step-2")
        assert classifier.adapter.hidden == 4
        assert classifier.model.spec.affine == "projector"

    def test_the_baseline_is_a_linear_head_on_what_is_pooled(self, done):
        output, _ = done
        place = output / "seed-0" / "fold-0" / "end-to-end" / "rate-0.01"
        classifier = load_classifier(place)
        assert classifier.adapter is None
        assert (classifier.model.spec.affine, classifier.model.spec.pooling) == ("none", "mean")

    def test_are_written_and_shown(self, done):
        output, report = done
        told = json.loads((output / "two_step.json").read_text())
        assert list(told["ways"]) == WAYS
        assert told["ways"]["untuned"]["figures"] == report.ways["untuned"].figures
        assert list(report.ways["untuned"].figures) == [
            "accuracy", "UAR", "Davies-Bouldin", "to centroid", "between centroids", "1-shot",
            "2-shot",
        ]  # fmt: skip
        shown = str(report)
        assert "mood of toys, from xvector-8" in shown
        assert shown.count("±") == 3 * 7


class TestTestPart:
    def test_decides_nothing(self, done, tmp_path, speech, monkeypatch):
        """With its labels turned round, models and what was chosen are the same to the byte."""
        output, report = done
        data = parts(speech)
        turned = {"bright": "dark", "dark": "bright"}
        test = Manifest(
            replace(row, factors={**row.factors, "mood": turned[str(row.label("mood"))]})
            for row in data.parts["test"]
        )
        again = run(
            replace(data, parts={**data.parts, "test": test}), tmp_path,
            learning_rates=(1e-3, 1e-2),
        )  # fmt: skip
        for path in sorted((output / "seed-0").rglob("*.safetensors")):
            if "checkpoints" not in path.parts:
                assert (tmp_path / path.relative_to(output)).read_bytes() == path.read_bytes()
        for way in WAYS:
            assert again.chosen[way][0] == report.chosen[way][0]
            one, other = (r.ways[way].figures["accuracy"][0] for r in (again, report))
            assert one == pytest.approx(1 - other)

    def test_is_never_given_to_a_method(self, tmp_path, speech, monkeypatch):
        given: set[str] = set()
        refine = module.refine

        def spying(**named):
            given.update(row.id for row in named["data"])
            assert {row.label(PART) for row in named["data"]} == {"train", "validation"}
            return refine(**named)

        monkeypatch.setattr(module, "refine", spying)
        run(parts(speech), tmp_path, steps=1, adapter_steps=1)
        assert given == {row.id for row in speech if row.speaker != "s5"}

    def test_groups_are_left_out_in_turn_without_parts(self, tmp_path, speech):
        data = EvaluationData("mine", {"all": speech})
        report = run(data, tmp_path, groups="speaker", folds=2, steps=1, adapter_steps=1)
        assert {path.name for path in (tmp_path / "seed-0").iterdir()} == {"fold-0", "fold-1"}
        found = [
            json.loads((tmp_path / "seed-0" / fold / "untuned" / "found.json").read_text())
            for fold in ("fold-0", "fold-1")
        ]
        truth = [value for one in found for value in one["truth"]]
        guesses = [value for one in found for value in one["guesses"]]
        assert len(truth) == len(speech)
        right = sum(a == b for a, b in zip(truth, guesses, strict=True)) / len(truth)
        assert report.ways["untuned"].figures["accuracy"] == [pytest.approx(right)]


class TestStepOneWithUtterancesOfItsOwn:
    """Speakers of step one are not those that are told apart afterwards."""

    @pytest.fixture
    def sets(self, speech):
        """s0 to s3 for step one; of s4 and s5 two utterances each to train on, and one and one."""
        of = {"s4": [], "s5": []}
        for row in speech:
            of.get(row.speaker, []).append(row)
        cut = {"train": slice(0, 2), "validation": slice(2, 3), "test": slice(3, 4)}
        made = {
            part: Manifest([*of["s4"][some], *of["s5"][some]], source=speech.source)
            for part, some in cut.items()
        }
        space = Manifest([row for row in speech if row.speaker not in of], source=speech.source)
        return EvaluationData("toys", made), space

    def compare(self, sets, output, **changes):
        config = TwoStepConfig(
            **{**SMALL, "label": "speaker", "shots": (1,), "space_validation": 0.25, **changes}
        )
        data, space = sets
        return two_step(
            model="xvector-8", data=data, space_data=space, output=output, config=config,
            device="cpu",
        )  # fmt: skip

    @pytest.fixture
    def given(self, monkeypatch):
        """What each training was of: its folder, method, speakers and settings."""
        found = {}
        refine = module.refine

        def spying(**named):
            parts = named["output"].parts
            after = parts.index("seed-0") + 1
            where = "/".join(parts[after + (parts[after] == "fold-0") :])
            who = sorted({str(row.speaker) for row in named["data"]})
            assert where not in found  # nothing is trained twice
            found[where] = named["method"], "".join(who), named["training"].steps
            return refine(**named)

        monkeypatch.setattr(module, "refine", spying)
        return found

    def test_has_two_ways_more_that_begin_with_a_classifier_of_them(self, sets, tmp_path, given):
        report = self.compare(sets, tmp_path)
        classified = ["classified + adapter", "classified + end-to-end"]
        assert list(report.ways) == [*WAYS, *classified]
        assert "what is classified first: 16 utterances\n" in str(report)
        assert json.loads((tmp_path / "two_step.json").read_text())["space_utterances"] == 16
        others, few, kind = "s0s1s2s3", "s4s5", "classification"
        assert given == {
            "end-to-end/rate-0.001": (kind, few, 7),
            "step-1/combined/rate-0.001": ("combined", others, 4),
            "combined + adapter/rate-0.001/step-2": (kind, few, 3),
            "step-1/classification/rate-0.001": (kind, others, 4),
            "classified + adapter/rate-0.001": (kind, few, 3),
            "classified + end-to-end/rate-0.001": (kind, few, 3),
        }
        place = tmp_path / "seed-0" / "fold-0"
        first = load_classifier(tmp_path / "seed-0/step-1/classification/rate-0.001")
        adapted, tuned = (load_classifier(place / way / "rate-0.001") for way in classified)
        assert (first.classes, adapted.classes) == (("s0", "s1", "s2", "s3"), ("s4", "s5"))
        assert adapted.adapter is not None
        assert tuned.adapter is None
        weights = [
            torch.cat([p.detach().flatten() for p in one.model.parameters()])
            for one in (first, adapted, tuned)
        ]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        again = self.compare(sets, tmp_path)  # `given` would refuse to see any of them anew
        assert {w: c.figures for w, c in again.ways.items()} == {
            w: c.figures for w, c in report.ways.items()
        }

    @pytest.mark.parametrize("speaker", ["s2", "s3", "s4", "s5"])
    def test_is_not_of_the_test_part_of_any_fold(self, speech, tmp_path, speaker):
        """And it is said before the first fold is trained, whichever it is of."""
        others = Manifest([row for row in speech if row.speaker not in ("s0", "s1")])
        own = Manifest([row for row in speech if row.speaker in ("s0", "s1", speaker)])
        with pytest.raises(ConfigError, match="of the test part; leave it out of step one"):
            self.compare(
                (EvaluationData("toys", {"all": others}), own), tmp_path, label="mood",
                space_label="speaker", groups="speaker", folds=2,
            )  # fmt: skip
        assert not list(tmp_path.rglob("found.json"))

    def test_is_run_once_for_all_folds(self, speech, tmp_path, given):
        own = Manifest([row for row in speech if row.speaker in ("s0", "s1")])
        others = Manifest([row for row in speech if row.speaker not in ("s0", "s1")])
        self.compare(
            (EvaluationData("toys", {"all": others}), own), tmp_path, label="mood",
            space_label="speaker", groups="speaker", folds=2, steps=1, adapter_steps=1,
        )  # fmt: skip
        kinds = [name.split("/")[0] for name in given]
        assert kinds.count("step-1") == 2  # combined, and a classifier
        assert kinds.count("fold-1") == len(kinds) - 2 - kinds.count("fold-1") == 4

    def test_may_have_another_label(self, sets, tmp_path, given):
        self.compare(sets, tmp_path, space_label="mood", steps=1, adapter_steps=1)
        first = load_classifier(tmp_path / "seed-0/step-1/classification/rate-0.001")
        assert (first.label, first.classes) == ("mood", ("bright", "dark"))

    def test_of_views_wants_none(self, sets, tmp_path, given):
        data, space = sets
        bare = Manifest([type(row)(row.id, row.audio, speaker="?") for row in space])
        report = self.compare(
            (data, bare), tmp_path, pairs="views", steps=1, adapter_steps=1, keep_projector=False
        )
        assert list(report.ways) == WAYS
        assert given["step-1/combined/rate-0.001"] == ("combined", "?", 1)

    def test_is_a_part_of_what_a_folder_is_of(self, sets, tmp_path):
        self.compare(sets, tmp_path, steps=1, adapter_steps=1)
        data, space = sets
        fewer = Manifest(list(space)[:-1], source=space.source)
        with pytest.raises(ConfigError, match="utterances of the space was"):
            self.compare((data, fewer), tmp_path, steps=1, adapter_steps=1)

    def test_is_not_of_the_test_part(self, sets, tmp_path):
        data, space = sets
        judged = data.parts["test"][0]
        more = Manifest([*space, replace(judged, id="again", speaker="s0")])
        with pytest.raises(ConfigError, match=f"'again' has samples of '{judged.id}' of the"):
            self.compare((data, more), tmp_path)
        assert not list(tmp_path.rglob("report.json"))

    @pytest.mark.parametrize(
        ("judged", "learnt", "apart"),
        [
            ((0.0, None), (0.0, None), False),
            ((0.0, 1.0), (0.5, None), False),
            ((2.0, 3.0), (0.0, 2.5), False),
            ((0.0, 1.0), (1.0, None), True),
            ((1.0, None), (0.0, 1.0), True),
        ],
    )
    def test_is_not_of_the_test_part_in_part(self, judged, learnt, apart):
        """Seconds of one file, from and to."""
        test, space = (
            Manifest([Utterance(name, "one.wav", start=times[0], end=times[1])])
            for name, times in (("a", judged), ("b", learnt))
        )
        with nullcontext() if apart else pytest.raises(ConfigError, match="'b' has samples of 'a'"):
            _check_apart(space, test)

    def test_of_too_few_is_named_before_anything_is_trained(self, sets, tmp_path):
        data, space = sets
        few = Manifest([row for row in space if row.speaker != "s0" or row.id == space[0].id])
        with pytest.raises(ConfigError, match="speaker 's0' has one utterance"):
            self.compare((data, few), tmp_path)
        assert not list(tmp_path.rglob("report.json"))

    def test_a_label_of_nothing_is_named(self, sets, tmp_path):
        with pytest.raises(ConfigError, match="space_label: is of space_data, and there is none"):
            self.compare((sets[0], None), tmp_path, space_label="mood")


class TestRuns:
    def test_that_stopped_go_on(self, done, tmp_path, speech, monkeypatch):
        output, _ = done
        step = RefinementTrainer.training_step
        count = 0

        def stopping(self, *given, **named):
            nonlocal count
            count += 1
            if count == 19:  # in step one of the second way
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *given, **named)

        rates = {"learning_rates": (1e-3, 1e-2)}
        with monkeypatch.context() as patched:
            patched.setattr(RefinementTrainer, "training_step", stopping)
            with pytest.raises(InterruptedRun):
                run(parts(speech), tmp_path, **rates)
        trained = []
        refine = module.refine

        def spying(**named):
            trained.append(named["output"])
            return refine(**named)

        monkeypatch.setattr(module, "refine", spying)
        report = run(parts(speech), tmp_path, **rates)
        assert not [path for path in trained if "end-to-end" in path.parts]
        kept = json.loads((output / "two_step.json").read_text())["ways"]
        for way in WAYS:
            for name, values in report.ways[way].figures.items():
                assert values == kept[way]["figures"][name][:1], (way, name)

    def test_more_seeds_go_into_the_same_folder_and_other_settings_do_not(self, done, speech):
        output, _ = done
        with pytest.raises(ConfigError, match=r"holds a run with other settings \(steps was 4"):
            run(parts(speech), output, learning_rates=(1e-3, 1e-2), steps=5)
        other = parts(toys_of_one_more(speech))
        with pytest.raises(ConfigError, match="utterances of fit was"):
            run(other, output, learning_rates=(1e-3, 1e-2))

    def test_of_few_labels_draw_them_by_the_seed(self, tmp_path, speech, monkeypatch):
        fits = []
        refine = module.refine

        def spying(**named):
            rows = [row for row in named["data"] if row.label(PART) == "train"]
            fits.append([row.id for row in rows])
            return refine(**named)

        monkeypatch.setattr(module, "refine", spying)
        run(parts(speech), tmp_path, labelled=3, seeds=2, steps=1, adapter_steps=1)
        assert all(len(rows) == 6 for rows in fits)
        assert fits[0] == fits[1] == fits[2] != fits[3]
        moods = {row.id: row.label("mood") for row in speech}
        assert [sorted(moods[row] for row in rows).count("dark") for rows in fits] == [3] * 6


def toys_of_one_more(speech) -> Manifest:
    rows = list(speech)
    return Manifest([*rows, replace(rows[0], id="s0-again")], source=speech.source)


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"losses": ("barlow_twin",)}, "losses: no 'barlow_twin'; did you mean 'barlow_twins'"),
            ({"learning_rates": ()}, "learning_rates: wants different numbers above 0, got"),
            ({"learning_rates": (1e-3, 1e-3)}, "learning_rates: wants different numbers"),
            ({"shots": (0,)}, "shots: wants different numbers above 0"),
            ({"seeds": 0}, "seeds: wants at least 1, got 0"),
            ({"adapter_size": 0}, "adapter_size: wants at least 1, got 0"),
            ({"labelled": 1}, "labelled: wants at least 2, got 1"),
            ({"folds": 1}, "folds: wants at least 2, got 1"),
            ({"mining": "easy"}, "mining: wants one of random, hard"),
        ],
    )
    def test_of_settings(self, changes, words):
        with pytest.raises(ConfigError, match=words):
            TwoStepConfig(**changes)

    def test_a_class_without_validation_is_named_before_anything_is_trained(self, tmp_path, speech):
        data = parts(speech)
        rows = [row for row in data.parts["validation"] if row.label("mood") == "dark"]
        few = replace(data, parts={**data.parts, "validation": Manifest(rows)})
        with pytest.raises(ConfigError, match="no utterance of mood 'bright' is in the validation"):
            run(few, tmp_path)
        assert not list(tmp_path.rglob("report.json"))

    def test_a_class_of_one_utterance_is_named(self, tmp_path, speech):
        data = parts(speech)
        bright = [row for row in data.parts["train"] if row.label("mood") == "bright"]
        dark = [row for row in data.parts["train"] if row.label("mood") == "dark"][:1]
        few = replace(data, parts={**data.parts, "train": Manifest([*bright, *dark])})
        with pytest.raises(ConfigError, match="of mood 'dark' 1 are left to train on"):
            run(few, tmp_path)
        assert not list(tmp_path.rglob("report.json"))

    def test_an_embedding_model_is_no_beginning(self, done, tmp_path, speech):
        output, _ = done
        place = output / "seed-0" / "fold-0" / "combined + adapter" / "rate-0.01" / "step-1"
        with pytest.raises(ConfigError, match="is an embedding model; begin with what it was made"):
            run(parts(speech), tmp_path, model=place)

    def test_of_the_data(self, tmp_path, speech):
        with pytest.raises(ManifestError, match="has no 'age'"):
            run(parts(speech), tmp_path, label="age")


class TestCommand:
    def command(self, speech, output, *more):
        return main(
            ["two-step", "--model", "xvector-8", "--data", str(speech.source), "--output",
             str(output), "--device", "cpu", "--label", "mood", "--size", "8", "--each", "2",
             "--batch-size", "8", "--steps", "1", "--adapter-steps", "1", "--seeds", "1",
             "--tuned-layers", "null", "--learning-rates", "[0.001]", *more]
        )  # fmt: skip

    def test_runs(self, tmp_path, speech, capsys):
        assert self.command(speech, tmp_path) == 0
        said = capsys.readouterr().out
        for word in (*WAYS, "Davies-Bouldin", "5-shot", "two_step.json and the models"):
            assert word in said
        assert (tmp_path / "two_step.json").exists()

    def test_runs_with_utterances_for_step_one(self, tmp_path, speech, capsys):
        of = {name: [row for row in speech if row.speaker in name] for name in ("s0s1", "s2s3s4s5")}
        for name, rows in of.items():
            write_manifest(Manifest(rows), tmp_path / f"{name}.jsonl")
        more = "--data", str(tmp_path / "s2s3s4s5.jsonl"), "--space-label", "speaker"
        few = "--space-data", str(tmp_path / "s0s1.jsonl"), "--batch-size", "4"
        assert self.command(speech, tmp_path / "out", *more, *few) == 0
        assert "classified + end-to-end" in capsys.readouterr().out
        same = "--space-data", str(speech.source)
        assert self.command(speech, tmp_path / "same", *more, *same) == 2
        assert "of the test part; leave it out of" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("more", "code", "words"),
        [
            (["--losses", '["triplett"]'], 2, "did you mean 'triplet'"),
            (["--minig", "hard"], 2, "did you mean --mining"),
            (["--label", "age"], 3, "has no 'age'"),
            (["--data", "/nowhere.jsonl"], 3, "there is no such file or folder"),
            (["--tuned-layers", "2"], 2, "tuned_layers: 'xvector-8' has none"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path, speech, capsys, more, code, words):
        assert self.command(speech, tmp_path, *more) == code
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said


def test_a_report_of_one_seed_has_no_spread(tmp_path):
    report = TwoStepReport("m", "d", TwoStepConfig(label="mood"), tmp_path)
    report.add("untuned", {"UAR": 0.5}, [{}])
    assert isinstance(report.ways["untuned"], Cell)
    assert report.rows() == [["", "UAR"], ["untuned", "0.500"]]
    report.add("untuned", {"UAR": 0.7}, [{}])
    assert report.rows()[1] == ["untuned", f"0.600 ± {torch.tensor([0.5, 0.7]).std():.3f}"]
