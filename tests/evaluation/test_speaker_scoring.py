"""The speaker task with PLDA and AS-norm: what they are made of, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from speechft.data import Manifest, write_manifest
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation import EvaluationData, evaluate, metrics
from speechft.evaluation.calibration import cross_calibrated
from speechft.evaluation.embeddings import Embeddings
from speechft.evaluation.layouts import TrialList
from speechft.evaluation.normalisation import adaptive_s_norm
from speechft.evaluation.plda import PLDA
from speechft.evaluation.tasks import Speaker
from tests.evaluation.levels import LEVELS, Loudness, corpus

SETTINGS = [
    {"backend": "plda"},
    {"norm": "as-norm", "cohort": 4},
    {"backend": "plda", "norm": "as-norm", "cohort": 4},
]


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Manifest:
    return corpus(tmp_path_factory.mktemp("trials"), utterances=9, length=5)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Manifest:
    """Six speakers of other names, two of each frequency, in 24 utterances."""
    read = corpus(tmp_path_factory.mktemp("others"), utterances=24, seed=7, length=4)
    rows = [replace(r, id=f"b-{r.id}", speaker=f"o{n % 6}") for n, r in enumerate(read)]
    return Manifest(rows, source=read.source)


@pytest.fixture(scope="module")
def background(others, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("background") / "others.jsonl"
    write_manifest(others, path)
    return str(path)


def run(task, data, model=None):
    if isinstance(data, Manifest):
        data = EvaluationData("levels", {"all": data})
    model = model or Loudness(hears_speakers=True)
    return evaluate(model=model, tasks=task, data=data, seeds=2, progress=False)["speaker"]


def defined(trials, others, layer, *, backend="cosine", norm="none", cohort=300):
    """All with all of the trials, from the pieces by themselves."""
    embeddings = Embeddings(Loudness(hears_speakers=True))
    mine = embeddings.pooled(trials)[:, layer]
    theirs = embeddings.pooled(others)[:, layer].double()
    names = [row.speaker for row in others]
    means = torch.stack(
        [
            torch.stack([v for v, n in zip(theirs, names, strict=True) if n == name]).mean(0)
            for name in sorted(set(names))
        ]
    )
    if backend == "plda":
        score = PLDA.fit(theirs, names).score_matrix
    else:

        def score(a, b):
            return (normalize(a.double(), dim=1) @ normalize(b.double(), dim=1).T).numpy()

    scores = score(mine, mine)
    if norm == "as-norm":
        own = score(mine, means)
        scores = adaptive_s_norm(scores, own, own, top=cohort)
    return scores


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_figures_are_those_of_the_pieces(trials, others, background, settings):
    result = run(Speaker(**settings, background=background), trials)
    names = np.array([row.speaker for row in trials])
    left, right = np.triu_indices(len(names), 1)
    for layer in (0, 1):
        scores = defined(trials, others, layer, **settings)[left, right]
        same = names[left] == names[right]
        assert result.figure("EER", layer=layer).mean == metrics.eer(scores, same)
        found = result.figure("minDCF(0.05)", layer=layer).mean
        assert found == metrics.min_dcf(scores, same, p_target=0.05)
        ratios = [cross_calibrated(scores, same, seed).cllr() for seed in (0, 1)]
        found = result.figure("Cllr", layer=layer).values
        assert found == pytest.approx(ratios, rel=1e-3, abs=1e-5)
    assert result.counts["background utterances"] == 24
    assert result.counts["background speakers"] == 6
    assert result.notes == []
    # The same trials, as a list.
    listed = TrialList(left.astype(np.int32), right.astype(np.int32), names[left] == names[right])
    data = EvaluationData("listed", {"all": trials}, trials=listed)
    again = run(Speaker(**settings, background=background), data)
    assert again.figures[0].values == result.figures[0].values


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_part_train_is_the_background_of_test(trials, others, background, settings):
    parts = {"train": others, "validation": corpus_of(others), "test": trials}
    result = run(Speaker(**settings), EvaluationData("parts", parts))
    given = run(Speaker(**settings, background=background), trials)
    assert [f.values for f in result.figures] == [f.values for f in given.figures]
    assert result.counts["utterances"] == 9
    assert result.notes == []
    assert " train" in result.protocol
    assert "others.jsonl" in given.protocol


def corpus_of(others: Manifest) -> Manifest:
    """Rows that nothing is to look at."""
    return Manifest([replace(row, id=f"v-{row.id}", speaker=None) for row in others][:3])


def test_a_trial_list_takes_its_background_from_train(trials, others, background):
    listed = TrialList(np.array([0, 0], np.int32), np.array([3, 1], np.int32), np.array([1, 0]) > 0)
    data = EvaluationData("listed", {"train": others, "all": trials}, trials=listed)
    result = run(Speaker(backend="plda"), data)
    assert result.counts["trials"] == 2
    assert result.figure("EER", layer=1).mean == 0


def test_the_protocol_says_what_scored(trials, background):
    said = run(Speaker(backend="plda", norm="as-norm", background=background), trials)
    assert said.protocol.startswith("two-covariance PLDA of mean vectors, fitted on ")
    assert "AS-norm by the top 6 speakers of " in said.protocol
    assert said.settings["backend"] == "plda"
    assert said.notes == ["the cohort has 6: all of them count"]
    plain = run(Speaker(), trials)
    assert plain.protocol == "cosine of mean vectors; actDCF and Cllr cross-calibrated"
    assert list(plain.counts) == ["utterances", "trials", "targets"]


def test_speakers_in_both_are_noted(trials, others, tmp_path):
    write_manifest([replace(row, speaker="low") if row.speaker == "o1" else row for row in others],
                   tmp_path / "m.jsonl")  # fmt: skip
    result = run(Speaker(backend="plda", background=str(tmp_path / "m.jsonl")), trials)
    assert len(result.notes) == 1
    assert result.notes[0].startswith("1 of the background's speakers are in the trials (low)")


def test_a_cohort_without_labels_is_of_utterances(trials, others, tmp_path):
    path = tmp_path / "m.jsonl"
    write_manifest([replace(row, speaker=None) for row in others], path)
    result = run(Speaker(norm="as-norm", cohort=10, background=str(path)), trials)
    assert "top 10 utterances" in result.protocol
    assert "background speakers" not in result.counts
    with pytest.raises(ManifestError, match=r"m\.jsonl, line 1: .*no 'speaker'"):
        run(Speaker(backend="plda", background=str(path)), trials)


class Split(Loudness):
    """What is heard, as two subspaces."""

    num_layers = 0
    spaces = {"level": (0, len(LEVELS)), "voice": (len(LEVELS), 9)}  # noqa: RUF012

    def forward(self, waveforms, lengths):
        output = super().forward(waveforms, lengths)
        return output._replace(hidden_states=(output.last_hidden_state,))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_subspaces_have_a_plda_and_a_cohort_each(trials, others, background, settings):
    result = run(Speaker(**settings, background=background), trials, Split(hears_speakers=True))
    assert {(f.of, f.layer) for f in result.figures} == {("level", None), ("voice", None)}
    assert result.figure("EER", of="voice").mean < 0.05
    assert result.figure("EER", of="level").mean > 0.2
    assert set(result.curves["det"]) == {"level", "voice"}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_without_a_background_it_says_what_to_do(trials, settings):
    with pytest.raises(ArgumentError, match=r"^background: is missing: .*path of a manifest"):
        run(Speaker(**settings), trials)


def test_train_without_test_is_named(others):
    with pytest.raises(ArgumentError, match=r"^background: .*no part 'test'"):
        run(Speaker(backend="plda"), EvaluationData("half", {"train": others}))


def test_a_background_that_does_not_do_is_named(trials, others, tmp_path):
    path = tmp_path / "m.jsonl"
    write_manifest([replace(row, speaker="one") for row in others], path)
    with pytest.raises(ManifestError, match=r"m\.jsonl: PLDA of layer 0 .*labels: are of 1 class"):
        run(Speaker(backend="plda", background=str(path)), trials)
    with pytest.raises(ManifestError, match=r"m\.jsonl: is of one speaker; AS-norm"):
        run(Speaker(norm="as-norm", background=str(path)), trials)
    with pytest.raises(ManifestError, match="nowhere"):
        run(Speaker(backend="plda", background="nowhere.jsonl"), trials)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "svm"}, r"^backend: wants one of cosine, plda; got 'svm'"),
        ({"norm": "z"}, r"^norm: wants one of none, as-norm"),
        ({"norm": "as-norm", "cohort": 1}, r"^cohort: wants 2"),
        ({"background": "x.jsonl"}, r"^background: is for backend='plda' or norm='as-norm'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, words):
    with pytest.raises(ArgumentError, match=words):
        Speaker(**settings)
