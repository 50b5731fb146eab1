"""Every official layout goes through the task that it is for."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

import speechft
from speechft.errors import ManifestError
from speechft.evaluation.layouts import read_evaluation_data
from speechft.evaluation.layouts.speech_commands import WORDS
from speechft.evaluation.tasks import Keyword, Label, Query, Speaker, Transcription
from tests.evaluation import layout_miniatures


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Layouts with noise instead of silence, long enough for a frame."""
    rng = np.random.default_rng(0)

    def audio(path, *, seconds=0.1, rate=16_000):
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = round(max(seconds, 0.4) * rate)
        soundfile.write(path, 0.1 * rng.standard_normal(frames), rate, subtype="PCM_16")
        return path

    monkeypatch.setattr(layout_miniatures, "audio", audio)

    def make(name, *arguments, **settings):
        return read_evaluation_data(
            getattr(layout_miniatures, name)(tmp_path, *arguments), **settings
        )

    return make


def run(task, data):
    report = speechft.evaluate(model="log-mel", tasks=[task], data=data, seeds=2, progress=False)
    return report[task.name]


def test_voxceleb1(miniature):
    result = run(Speaker(), miniature("voxceleb1"))
    assert result.counts == {"utterances": 3, "trials": 2, "targets": 1}


@pytest.mark.parametrize(("split", "classes"), [("superb", 12), ("torchaudio", 30)])
def test_speech_commands_says_its_split(miniature, split, classes):
    data = miniature("speech_commands", WORDS["v0.01"], split=split)
    result = run(Keyword(), data)
    assert result.counts["classes"] == classes
    assert split in result.data.lower()
    assert len(result.figure("accuracy").values) == 2


def test_librispeech(miniature):
    result = run(Transcription(steps=3, hidden=8), miniature("librispeech"))
    assert {figure.name for figure in result.figures} == {"CER", "WER"}


def test_quesst14(miniature):
    result = run(Query(), miniature("quesst14"))
    assert result.counts == {"queries": 2, "documents": 2}
    assert result.figure("MTWV").spread is None


def test_iemocap_leaves_one_session_out_at_a_time(miniature):
    result = run(Label(), miniature("iemocap"))
    assert result.counts == {"utterances": 25, "classes": 4, "folds": 5}
    assert "'emotion'" in result.protocol


def test_adresso_holds_some_of_train_out_to_validate(miniature):
    data = miniature("adresso")
    result = run(Label(), data)
    assert sorted(data.parts) == ["test", "train"]
    assert result.counts == {"utterances": 5, "classes": 2, "folds": 1}


def test_a_class_in_the_test_part_only_is_an_error_that_names_the_row(miniature):
    with pytest.raises(ManifestError, match=r"emotion '.*' is in the test part only"):
        run(Label(), miniature("msp_podcast"))
