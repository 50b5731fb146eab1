"""Each task finds what is there, and does not find what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechft.data import Manifest
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation import EvaluationData, evaluate
from speechft.evaluation.layouts import TrialList
from speechft.evaluation.tasks import (
    ABX,
    Keyword,
    Label,
    Leakage,
    Phones,
    Query,
    Retrieval,
    Speaker,
    Spread,
    Transcription,
)
from speechft.evaluation.tasks.alignment import frame_labels
from speechft.evaluation.tasks.speaker import cross_calibrated
from tests.evaluation.levels import LEVELS, Loudness, corpus

CHANGED = ("speed 0.8", "pitch +3")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return corpus(tmp_path_factory.mktemp("levels"))


def run(task, data, *, encoder=None, seeds=2):
    if isinstance(data, Manifest):
        data = EvaluationData("levels", {"all": data})
    report = evaluate(
        model=encoder or Loudness(), tasks=[task], data=data, seeds=seeds, progress=False
    )
    return report[task.name]


def test_phones_are_found_where_they_are_under_every_condition(manifest):
    """Played at 0.8 of its speed, a frame's phone is found only if the clocks agree."""
    result = run(Phones(conditions=("unchanged", *CHANGED)), manifest)
    for condition in ("unchanged", *CHANGED):
        assert result.figure("accuracy", layer=1, condition=condition).mean > 0.9
        assert result.figure("accuracy", layer=0, condition=condition).mean < 0.4
    assert result.counts == {"utterances": 12, "phones": len(LEVELS), "frames": 1462}
    assert len(result.figure("accuracy").values) == 2


def test_phones_of_parts_are_fitted_and_tested_on_these_parts(manifest):
    rows = list(manifest)
    parts = {"train": rows[:6], "validation": rows[6:8], "test": rows[8:]}
    data = EvaluationData("parts", {name: Manifest(part) for name, part in parts.items()})
    result = run(Phones(), data)
    first, second = result.figure("accuracy", layer=1).values
    assert first == second > 0.9


def test_a_frame_has_the_phone_at_its_middle():
    from speechft.data import Phone

    phones = [Phone(0.0, 0.1, "a"), Phone(0.1, 0.2, "b")]
    times = torch.tensor([0.0, 0.0999, 0.1, 0.15, 0.2, 0.3], dtype=torch.float64)
    assert frame_labels(phones, times, {"a": 5, "b": 7}).tolist() == [5, 5, 7, 7, -1, -1]


def test_phones_want_phones(manifest):
    from dataclasses import replace

    bare = Manifest([replace(row, phones=None) for row in manifest], source=manifest.source)
    with pytest.raises(ManifestError, match=r"manifest\.jsonl: no utterance has phones"):
        run(Phones(), bare)


def test_retrieval_finds_the_same_phones_in_another_voice(manifest):
    result = run(Retrieval(conditions=CHANGED, phones=4), manifest)
    for condition in CHANGED:
        assert result.figure("MAP", layer=1, condition=condition).mean > 0.8
        assert result.figure("MAP", layer=0, condition=condition).mean < 0.2
    assert result.figure("top-1", layer=1, condition="pitch +3").mean > 0.7


def test_retrieval_of_parallel_utterances_uses_the_speakers(tmp_path):
    """The same texts by three speakers: content is found, by an encoder deaf to the speaker."""
    manifests = []
    for speaker in range(3):
        folder = tmp_path / str(speaker)
        folder.mkdir()
        manifests.append(corpus(folder, utterances=6, seed=1))
    from dataclasses import replace

    rows = [
        replace(row, id=f"{number}-{row.id}", speaker=f"s{number}")
        for number, part in enumerate(manifests)
        for row in part
    ]
    result = run(Retrieval(), Manifest(rows))
    assert result.counts == {"utterances": 18, "queries": 18}
    assert result.figure("MAP", layer=1).mean == pytest.approx(1.0)
    assert result.figure("MAP", layer=1).spread is None


def test_abx_knows_phones_across_conditions_and_speakers(manifest):
    one = Manifest([row for row in manifest if row.speaker == "low"])
    across_conditions = run(ABX(conditions=CHANGED, max_items=6), one)
    for condition in CHANGED:
        assert across_conditions.figure("error", layer=1, condition=condition).mean < 0.1
        assert 0.35 < across_conditions.figure("error", layer=0, condition=condition).mean < 0.65
    across_speakers = run(ABX(max_items=6), manifest)
    assert across_speakers.figure("error", layer=1).mean < 0.1


def test_query_finds_the_known_item(manifest):
    result = run(Query(conditions=CHANGED, phones=5, layers=(0, 1)), manifest)
    for condition in CHANGED:
        assert result.figure("top-1", layer=1, condition=condition).mean > 0.9
        assert result.figure("MTWV", layer=1, condition=condition).mean > 0.6
        assert result.figure("top-1", layer=0, condition=condition).mean < 0.4
        cnxe = [result.figure("min Cnxe", layer=n, condition=condition).mean for n in (1, 0)]
        assert cnxe[0] < 0.5 < cnxe[1]


def test_query_leaves_its_own_document_out_where_it_is_unchanged(manifest):
    """A stretch that occurs nowhere else is no query then."""
    with pytest.raises(ManifestError, match="fewer than two stretches of 12 phones"):
        run(Query(conditions=("unchanged",), phones=12), manifest)
    result = run(Query(conditions=("unchanged",), phones=3), manifest)
    assert result.figure("top-1").mean > 0.8


def test_query_takes_queries_and_documents_as_given(manifest):
    rows = list(manifest)
    data = EvaluationData(
        "given",
        {"queries": Manifest(rows[:3]), "documents": Manifest(rows[2:])},
        relevance=frozenset({(rows[2].id, rows[2].id)}),
    )
    result = run(Query(), data)
    assert result.counts == {"queries": 3, "documents": 10}
    assert result.figure("MTWV").mean == pytest.approx(1.0)


def test_speakers_are_told_apart_only_by_who_hears_them(manifest):
    hears = run(Speaker(), manifest, encoder=Loudness(hears_speakers=True))
    assert hears.figure("EER", layer=1).mean == 0
    assert hears.figure("minDCF(0.05)", layer=1).mean == 0
    assert hears.figure("Cllr", layer=1).mean < 0.1
    assert hears.counts == {"utterances": 12, "trials": 66, "targets": 18}
    deaf = run(Speaker(), manifest)
    assert deaf.figure("EER", layer=1).mean > 0.3


def test_speaker_scores_the_trial_list(manifest):
    trials = TrialList(
        np.array([0, 0, 1], np.int32), np.array([3, 1, 2], np.int32), np.array([True, False, False])
    )
    data = EvaluationData("trials", {"all": manifest}, trials=trials)
    result = run(Speaker(), data, encoder=Loudness(hears_speakers=True))
    assert result.counts == {"utterances": 12, "trials": 3, "targets": 1}
    assert result.figure("EER", layer=1).mean == 0


def test_one_speaker_is_an_error_that_names_the_file(manifest):
    one = Manifest([row for row in manifest if row.speaker == "low"], source=manifest.source)
    with pytest.raises(ManifestError, match=r"manifest\.jsonl: every utterance has speaker 'low'"):
        run(Speaker(), one)


def test_calibration_makes_likelihood_ratios_of_shifted_and_scaled_ones():
    """Scores that are log-likelihood ratios times 10 plus 3 come back: Cllr near its minimum."""
    rng = np.random.default_rng(0)
    targets = rng.random(20_000) < 0.3
    ratios = np.where(targets, rng.normal(2, 2, 20_000), rng.normal(-2, 2, 20_000))
    trials = cross_calibrated(10 * ratios + 3, targets, seed=0)
    from speechft.evaluation.metrics import cllr

    assert trials.cllr() == pytest.approx(cllr(ratios, targets), abs=0.003)
    assert trials.cllr() < cllr(10 * ratios + 3, targets) - 0.3


def test_label_is_read_off(tmp_path):
    manifest = corpus(tmp_path, utterances=36, length=4)
    heard = run(Label("speaker"), manifest, encoder=Loudness(hears_speakers=True))
    for name in ("accuracy", "UAR", "micro-F1", "macro-F1", "1-shot"):
        assert heard.figure(name, layer=1).mean > 0.9
        assert heard.figure(name, layer=0).mean < 0.8
    assert heard.counts == {"utterances": 36, "classes": 3, "folds": 1}


def test_label_leaves_one_group_out_at_a_time(manifest):
    result = run(Label("mood", groups="speaker"), manifest)
    assert result.counts["folds"] == 3
    # Moods are not in the sound: whoever leaves speakers out cannot know them.
    assert result.figure("accuracy", layer=1).mean < 0.85


def test_a_label_in_the_test_part_only_names_its_line(manifest):
    rows = list(manifest)
    by = {name: [row for row in rows if row.speaker == name] for name in ("low", "middle", "high")}
    parts = {
        "train": Manifest([*by["low"][:2], *by["middle"][:2]], source=manifest.source),
        "validation": Manifest(by["low"][2:3]),
        "test": Manifest([by["low"][3], by["high"][0]], source=manifest.source),
    }
    with pytest.raises(ManifestError, match=r"line 3: utterance 'u2': speaker 'high' is in the te"):
        run(Label("speaker"), EvaluationData("parts", parts))


def test_a_missing_label_names_line_and_lists_labels(manifest):
    with pytest.raises(
        ManifestError, match=r"line 1: .*no 'keyword'; labels: speaker, text, .*mood"
    ):
        run(Keyword(), manifest)


def test_leakage_is_in_the_subspace_that_hears_it(manifest):
    encoder = Loudness(hears_speakers=True)
    task = Leakage(
        factors=("speaker",), subspaces=(("level", 0, len(LEVELS)), ("voice", len(LEVELS), 9))
    )
    result = run(task, manifest, encoder=encoder)
    assert result.figure("EER", of="speaker from voice").mean == 0
    assert result.figure("EER", of="speaker from level").mean > 0.3
    assert result.figure("probe", of="speaker from voice").mean == 1
    assert result.figure("chance", of="speaker from voice").mean == pytest.approx(1 / 3)
    with pytest.raises(ManifestError, match="no utterance has 'colour'"):
        run(Leakage(factors=("colour",)), manifest)


def test_spread_sees_collapse(manifest):
    class Collapsed(Loudness):
        def forward(self, waveforms, lengths):
            output = super().forward(waveforms, lengths)
            same = output.last_hidden_state * 0 + 1
            return output._replace(
                hidden_states=(output.hidden_states[0], same), last_hidden_state=same
            )

    result = run(Spread(), manifest, encoder=Collapsed())
    assert result.figure("RankMe", layer=0).mean > 5
    assert result.figure("RankMe", layer=1).mean < 1.1
    assert result.figure("frame step", layer=1).mean == pytest.approx(0, abs=1e-6)
    assert result.figure("frame step", layer=0).mean > 0.8


def test_transcription_learns_phones_and_is_the_same_twice(manifest):
    task = Transcription(steps=250, learning_rate=1e-2, hidden=32, layers=(1,))
    result = run(task, manifest, seeds=1)
    assert result.figure("PER").mean < 0.35
    few = Transcription(steps=10, learning_rate=1e-2, hidden=32, layers=(1,))
    once, again = (run(few, manifest, seeds=1).figure("PER").values for _ in range(2))
    assert once == again != result.figure("PER").values
    deaf = Transcription(steps=50, hidden=32, layers=(0,))
    assert run(deaf, manifest, seeds=1).figure("PER").mean > 0.8


def test_transcription_of_characters_counts_words_too(manifest):
    result = run(Transcription(units="characters", steps=2, hidden=8), manifest, seeds=1)
    assert {figure.name for figure in result.figures} == {"CER", "WER"}


@pytest.mark.parametrize("task", [Phones, Retrieval, ABX, Query, Speaker, Label, Spread])
def test_a_layer_that_does_not_exist_is_an_error(manifest, task):
    with pytest.raises(ArgumentError, match="layers: wants some of 0 to 1"):
        run(task(layers=(2,)), manifest)


def test_retrieval_leaves_out_what_has_no_text(tmp_path):
    from dataclasses import replace

    rows = list(corpus(tmp_path, utterances=8))
    texts = ["same", "same", *[None] * 6]
    rows = [replace(row, text=text) for row, text in zip(rows, texts, strict=True)]
    result = run(Retrieval(), Manifest(rows))
    assert result.counts == {"utterances": 2, "queries": 2}
    assert "6 utterances have no text or no speaker" in result.notes[0]


def test_trials_are_about_the_part_all_wherever_it_stands(manifest):
    rows = list(manifest)
    trials = TrialList(
        np.array([0, 0, 1], np.int32), np.array([3, 1, 2], np.int32), np.array([True, False, False])
    )
    parts = {"other": Manifest(rows[8:]), "all": Manifest(rows[:8])}
    data = EvaluationData("two", parts, trials=trials)
    result = run(Speaker(), data, encoder=Loudness(hears_speakers=True))
    assert result.figure("EER", layer=1).mean == 0


def test_shots_are_of_classes_that_are_fitted(manifest):
    """A class that only validates has no prototype, and takes nothing from the others."""
    rows = list(manifest)
    low, middle, high = (
        [row for row in rows if row.speaker == s] for s in ("low", "middle", "high")
    )
    parts = {
        "train": Manifest([*low[:2], *middle[:2]]),
        "validation": Manifest([low[2], middle[2], high[0]]),
        "test": Manifest([low[3], middle[3]]),
    }
    data = EvaluationData("parts", parts)
    result = run(Label("speaker"), data, encoder=Loudness(hears_speakers=True))
    assert result.figure("1-shot", layer=1).mean == 1.0


def test_a_group_with_a_label_of_its_own_is_named(manifest):
    from dataclasses import replace

    rows = [replace(row, factors={"tongue": row.speaker}) for row in manifest]
    with pytest.raises(ManifestError, match=r"tongue '.*' is in speaker '.*' only"):
        run(Label("tongue", groups="speaker"), Manifest(rows))


def test_a_query_without_a_relevant_document_does_not_count(manifest):
    rows = list(manifest)
    data = EvaluationData(
        "given",
        {"queries": Manifest(rows[:4]), "documents": Manifest(rows[2:])},
        relevance=frozenset({(row.id, row.id) for row in rows[2:4]}),
    )
    result = run(Query(), data)
    assert result.figure("top-1").mean == 1.0
    assert result.notes == ["2 queries have no relevant document and do not count"]


def test_a_text_without_letters_is_left_out(tmp_path):
    from dataclasses import replace

    rows = list(corpus(tmp_path, utterances=9))
    rows[0] = replace(rows[0], text="... !")
    task = Transcription(units="characters", steps=2, hidden=8)
    result = run(task, Manifest(rows), seeds=1)
    assert result.counts["utterances"] == 8
    assert result.notes == ["1 utterances have no characters and are left out"]


def test_parts_are_never_mixed(manifest):
    rows = list(manifest)
    parts = {"validation": Manifest(rows[:6]), "test": Manifest(rows[6:])}
    for task in (Phones(), Label("speaker"), Transcription()):
        with pytest.raises(ManifestError, match="no utterance of 'train'"):
            run(task, EvaluationData("halves", parts))


def test_a_line_is_that_of_the_part_s_own_file(tmp_path):
    from dataclasses import replace

    manifests = []
    for number in range(2):
        folder = tmp_path / f"part{number}"
        folder.mkdir()
        manifests.append(corpus(folder, utterances=6, seed=number))
    test = [replace(row, id=f"test-{row.id}") for row in manifests[1]]
    test[4] = replace(test[4], factors={})
    parts = {
        "train": manifests[0],
        "test": Manifest(test, source=manifests[1].source),
    }
    with pytest.raises(ManifestError, match=r"part1.*manifest\.jsonl, line 5: utterance 'test-u4'"):
        run(Label("mood"), EvaluationData("two files", parts))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Phones(conditions=()),
        lambda: Phones(conditions=("speed 1.1", "speed 1.10")),
        lambda: Phones(conditions="unchanged"),
        lambda: Phones(penalties=()),
        lambda: Phones(test=0.9),
        lambda: Query(phones=0),
        lambda: Transcription(steps=1),
        lambda: Label(condition="louder"),
    ],
)
def test_settings_out_of_range_are_typed_errors(make):
    with pytest.raises(ArgumentError):
        make()


@pytest.mark.parametrize(
    ("subspaces", "message"),
    [
        ((("gone", 500, 600),), "there are 6"),
        ((("empty", 3, 3),), "dimensions 3 to 3"),
        ((("a/b", 0, 3),), "cannot name a picture"),
        ((("a", 0, 3), ("a", 3, 6)), "two have one name"),
    ],
)
def test_subspaces_that_are_not_there_are_errors(manifest, subspaces, message):
    with pytest.raises(ArgumentError, match=message):
        run(Leakage(subspaces=subspaces), manifest)


def test_leakage_needs_no_language(manifest):
    assert run(Leakage(), manifest).figure("EER", of="speaker from whole").values


def test_a_task_that_knows_no_parts_says_that_it_takes_all(manifest):
    rows = list(manifest)
    data = EvaluationData("two", {"train": Manifest(rows[:6]), "test": Manifest(rows[6:])})
    assert run(Spread(), data).notes == ["all parts together: train, test"]
    assert not run(Phones(), data).notes


def test_a_factor_that_cannot_be_held_apart_is_noted(manifest):
    from dataclasses import replace

    rows = [replace(row, language="one" if row.speaker == "low" else "two") for row in manifest]
    (note,) = run(Leakage(factors=("speaker", "language")), Manifest(rows)).notes
    assert note == "speaker from whole: language never varies while speaker stays: not held apart"
