"""``speechft.evaluate`` and ``speechft evaluate``: files, cache, errors, pictures."""

from __future__ import annotations

import json

import pytest
import torch

import speechft
import speechft.errors
from speechft.cli import main
from speechft.errors import ArgumentError, ConfigError
from speechft.evaluation import TASKS, EvaluationData, Figure, TaskResult
from speechft.evaluation.tasks import Label, Phones, Speaker
from tests.evaluation.levels import Loudness, corpus, write_corpus


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("levels"))


def test_json_has_every_value_and_pictures_are_there(manifest, tmp_path):
    report = speechft.evaluate(
        model=Loudness(hears_speakers=True), tasks=["phones", "speaker"], data=manifest,
        seeds=2, output=tmp_path, progress=False,
    )  # fmt: skip
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert [task["task"] for task in found["tasks"]] == ["phones", "speaker"]
    figure = next(f for f in found["tasks"][0]["figures"] if f["layer"] == 1)
    assert figure["seeds"] == 2
    assert figure["values"] == list(report["phones"].figure("accuracy").values)
    assert figure["mean"] == pytest.approx(sum(figure["values"]) / 2)
    pictures = {plot for task in found["tasks"] for plot in task["plots"]}
    assert pictures == {"phones-layers.png", "speaker-layers.png", "speaker-det.png"}
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert "0.0000" in str(report["speaker"])


def test_a_second_run_encodes_nothing(manifest, tmp_path):
    encoder, calls = Loudness(), []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    arguments = dict(model=encoder, tasks=["label"], data=manifest, output=tmp_path, seeds=1)
    first = speechft.evaluate(**arguments, plots=False)
    assert calls
    calls.clear()
    second = speechft.evaluate(**arguments, plots=False)
    assert len(calls) == 1  # a second of sound, to know the model
    assert first["label"].to_dict() == second["label"].to_dict()


def test_settings_of_a_task_count(manifest):
    report = speechft.evaluate(
        model=Loudness(), tasks=[Phones(layers=(1,)), Label("mood")], data=manifest, seeds=1
    )
    assert {figure.layer for figure in report["phones"].figures} == {1}
    assert "'mood'" in report["label"].protocol


def test_seeds_are_numbers_or_a_list(manifest):
    both = speechft.evaluate(model=Loudness(), tasks=["label"], data=manifest, seeds=[4, 9])
    one = speechft.evaluate(model=Loudness(), tasks=["label"], data=manifest, seeds=[9])
    figure = both["label"].figure("accuracy")
    assert figure.values[1] == one["label"].figure("accuracy").values[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tasks": []}, ConfigError, "there are none"),
        ({"tasks": ["phonse"]}, ConfigError, "did you mean 'phones'"),
        ({"tasks": ["label", Label("mood")]}, ConfigError, "'label' is there twice"),
        ({"tasks": ["label"], "seeds": 0}, ArgumentError, "seeds: wants one or more"),
        ({"tasks": ["label"], "seeds": [0, 0]}, ArgumentError, "different"),
        ({"tasks": ["label"], "seeds": [-1]}, ArgumentError, "from 0 on"),
        ({"tasks": ["label"], "batch_seconds": 0}, ArgumentError, "batch_seconds"),
    ],
)
def test_wrong_arguments_are_typed_errors(manifest, arguments, error, message):
    with pytest.raises(error, match=message):
        speechft.evaluate(**{"model": Loudness(), "data": manifest, **arguments})


def test_training_mode_and_weights_are_left_alone(manifest):
    encoder = speechft.models.tiny()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    speechft.evaluate(model=encoder, tasks=["spread"], data=manifest, seeds=1)
    after = encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.grad is not None for parameter in encoder.parameters())


def test_command_line_prints_the_table_and_writes(tmp_path, capsys):
    path = write_corpus(tmp_path, utterances=9)
    output = tmp_path / "found"
    code = main(
        ["evaluate", "--model", "log-mel", "--tasks", "phones", "label", "--data", str(path),
         "--label.label", "speaker", "--seeds", "2", "--output", str(output)]
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr().out
    assert "phones on" in printed
    assert "UAR" in printed
    assert (output / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tasks", "phones"], 2, "model"),
        (["--model", "log-mel", "--tasks", "fones"], 2, "did you mean 'phones'"),
        (["--model", "log-mel", "--tasks", "phones", "--phones.layer", "1"], 2, "phones.layers"),
        (["--model", "log-mel", "--tasks", "speaker", "--data", "nowhere.jsonl"], 3, "nowhere"),
        (["--model", "speechft/hubert-maxi", "--tasks", "phones"], 2, "speechft/hubert-mini"),
    ],
)
def test_command_line_says_what_is_wrong(arguments, code, message, capsys):
    assert main(["evaluate", *arguments]) == code
    assert message in capsys.readouterr().err


def test_yaml_has_a_group_a_task(tmp_path, capsys):
    path = write_corpus(tmp_path, utterances=9)
    config = tmp_path / "run.yaml"
    config.write_text("label:\n  label: mood\n  shots: 2\nseeds: 1\n")
    arguments = ["evaluate", "--model", "log-mel", "--tasks", "label", "--data", str(path)]
    assert main([*arguments, "--config", str(config)]) == 0
    assert "2-shot" in capsys.readouterr().out
    config.write_text("label:\n  lable: mood\n")
    assert main([*arguments, "--config", str(config)]) == 2
    assert "label.lable" in capsys.readouterr().err


def test_every_task_says_its_protocol():
    for task in TASKS.values():
        assert len(task.__doc__.split()) > 30


def test_a_figure_knows_its_spread():
    figure = Figure("accuracy", (0.5, 0.7, 0.9), layer=3)
    assert figure.mean == pytest.approx(0.7)
    assert figure.spread == pytest.approx(0.2)
    assert str(figure) == "0.7000 ± 0.2000"
    assert Figure("EER", (0.1,)).spread is None
    result = TaskResult("t", "p", "d", [figure, Figure("accuracy", (0.4,), layer=1)])
    assert result.figure("accuracy") is figure
    with pytest.raises(ArgumentError, match="t has no 'recall'"):
        result.figure("recall")


def test_a_report_of_the_embedded_corpus_runs_by_default():
    report = speechft.evaluate(model="log-mel", tasks=[Speaker()], progress=False, seeds=2)
    assert report["speaker"].data == "embedded"
    assert 0.0 < report["speaker"].figure("EER").mean < 0.5


def test_data_that_was_read_is_taken_as_it_is(manifest):
    data = EvaluationData("mine", {"all": manifest})
    report = speechft.evaluate(model=Loudness(), tasks=["label"], data=data, seeds=1)
    assert report["label"].data == "mine"


def test_the_det_picture_meets_its_diagonal_at_the_eer(tmp_path, monkeypatch):
    from matplotlib import pyplot

    from speechft.evaluation.metrics import det_curve, eer
    from speechft.evaluation.plots import _deviate, det

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4000, generator=generator)
    labels = torch.arange(4000) % 2
    scores += 2 * labels
    drawn = []
    monkeypatch.setattr(pyplot, "close", lambda figure: drawn.append(figure))
    det({"": det_curve(scores, labels)}, tmp_path / "det.png")
    line = drawn[0].axes[0].lines[0]
    alarms, misses = line.get_xdata(), line.get_ydata()
    nearest = abs(alarms - misses).argmin()
    assert alarms[nearest] == pytest.approx(float(_deviate(eer(scores, labels))[0]), abs=0.02)
    assert misses[alarms.argmax()] < misses[alarms.argmin()]


def test_what_is_done_is_kept_when_a_later_task_fails(manifest, tmp_path):
    with pytest.raises(speechft.errors.ManifestError):
        speechft.evaluate(
            model=Loudness(), tasks=["spread", "keyword"], data=manifest, output=tmp_path
        )
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert [task["task"] for task in found["tasks"]] == ["spread"]


def test_the_json_says_seeds_and_settings_and_is_json(manifest, tmp_path):
    from speechft.evaluation import EvaluationReport

    speechft.evaluate(
        model=Loudness(), tasks=[Label("mood", shots=2)], data=manifest, seeds=[7, 8],
        output=tmp_path, plots=False,
    )  # fmt: skip
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["seeds"] == [7, 8]
    assert found["tasks"][0]["settings"]["shots"] == 2
    result = TaskResult("t", "p", "d", [Figure("x", (float("nan"),))])
    EvaluationReport("m", {"t": result}, 0.0).write(tmp_path)
    assert "NaN" not in (tmp_path / "evaluation.json").read_text()


def test_an_encoder_in_training_is_given_back_in_training(manifest):
    encoder = speechft.models.tiny().train()
    encoder.hf_model.feature_extractor.eval()
    speechft.evaluate(model=encoder, tasks=["spread"], data=manifest, seeds=1)
    assert encoder.training
    assert not encoder.hf_model.feature_extractor.training


def test_one_task_needs_no_list(manifest):
    report = speechft.evaluate(model=Loudness(), tasks=Label("mood"), data=manifest, seeds=1)
    assert list(report.results) == ["label"]
