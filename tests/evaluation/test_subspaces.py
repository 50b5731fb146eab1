"""A subspace model is judged space by space, beside the features that it starts from."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from speechft import models
from speechft.data import embedded_corpus, load_audio
from speechft.errors import ArgumentError
from speechft.evaluation import metrics
from speechft.evaluation.run import evaluate
from speechft.evaluation.tasks.label import Label
from speechft.evaluation.tasks.leakage import Leakage
from speechft.evaluation.tasks.speaker import Speaker


@pytest.fixture(scope="module")
def speech():
    return embedded_corpus().filter(language="en")


@pytest.fixture(scope="module")
def model():
    encoder = models.tiny("hubert")
    return models.SubspaceModel(encoder, {"speaker": 6, "content": 10}, layer=1).eval()


@pytest.fixture(scope="module")
def judged(model, speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    tasks = [Speaker(), Label(label="speaker", shots=0), Leakage(factors=("speaker",))]
    return evaluate(model=model, tasks=tasks, data=speech, seeds=2, output=folder), folder


def test_verification_is_of_each_space(judged, model, speech):
    report, _ = judged
    with torch.inference_mode():
        vectors = []
        for row in speech:
            waveform = torch.from_numpy(load_audio(row))[None]
            pooled = model.pool(waveform)
            vectors.append({"pooled": pooled, **model(waveform)})
    speakers = [row.speaker for row in speech]
    pairs = list(itertools.combinations(range(len(speech)), 2))
    same = [speakers[i] == speakers[j] for i, j in pairs]
    for space in ("pooled", "speaker", "content"):
        unit = normalize(torch.cat([v[space] for v in vectors]).double(), dim=1)
        scores = [float(unit[i] @ unit[j]) for i, j in pairs]
        found = report["speaker"].figure("EER", of=space)
        assert found.layer is None
        assert found.mean == pytest.approx(metrics.eer(scores, same), abs=1e-6)
    assert {figure.of for figure in report["speaker"].figures} == {"pooled", "speaker", "content"}


def test_probes_and_leakage_are_of_each_space(judged):
    report, _ = judged
    assert {f.of for f in report["label"].figures} == {"pooled", "speaker", "content"}
    wanted = {f"speaker from {space}" for space in ("pooled", "speaker", "content")}
    assert {f.of for f in report["leakage"].figures} == wanted
    rows = str(report["speaker"]).splitlines()
    assert [row.split()[0] for row in rows[2:5]] == ["pooled", "speaker", "content"]


def test_pictures_are_there(judged):
    report, folder = judged
    names = {path.name for result in report.results.values() for path in result.plots}
    assert {"speaker-det.png", "leakage-matrix.png"} <= names
    assert all((folder / name).stat().st_size > 5_000 for name in names)


def test_a_saved_model_is_judged_like_the_one_in_memory(judged, model, speech, tmp_path):
    model.save_pretrained(tmp_path / "split")
    saved = evaluate(model=tmp_path / "split", tasks="speaker", data=speech, seeds=1)
    for space in ("pooled", "speaker", "content"):
        in_memory = judged[0]["speaker"].figure("EER", of=space).mean
        assert saved["speaker"].figure("EER", of=space).mean == pytest.approx(in_memory, abs=1e-9)


def test_tasks_of_frames_say_what_to_do(model, speech):
    with pytest.raises(ArgumentError, match="folded"):
        evaluate(model=model, tasks="spread", data=speech, seeds=1)


def test_a_folded_encoder_is_an_encoder_to_every_task(model, speech):
    report = evaluate(model=model.folded("content"), tasks="spread", data=speech, seeds=1)
    assert report["spread"].figure("RankMe").mean > 0
