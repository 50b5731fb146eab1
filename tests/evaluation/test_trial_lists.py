"""Trial lists: every form of a line, every way to be wrong, and a million of them."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from layout_miniatures import text

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ArgumentTypeError, ManifestError
from speechft.evaluation.layouts import EvaluationData, TrialList, read_trials


def utterances(*ids, **labels):
    return Manifest(Utterance(id=id, audio=Path(f"{id}.wav"), **labels) for id in ids)


ABC = utterances("a/1", "b/2", "c/3")


def as_tuples(trials):
    return list(
        zip(trials.left.tolist(), trials.right.tolist(), trials.target.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    "lines",
    [
        ["1 a/1.wav b/2.wav", "0 c/3.wav a/1.wav"],
        ["1 a/1 b/2", "", "0 c/3.flac a/1"],
        ["a/1 b/2 target", "c/3 a/1 nontarget"],
        ["a/1\tb/2\t1", "c/3\ta/1\t0"],
        ["1\ta/1\tb/2.WAV", "0\tc/3\ta/1"],
        ["right\tlabel\tleft", "b/2\t1\ta/1", "a/1\tNonTarget\tc/3"],
        ["label left right", "1  a/1   b/2 ", "0 c/3 a/1"],
        ["\ufeff1 a/1 b/2\r", "0 c/3 a/1\r"],
    ],
)
def test_forms_of_a_list(tmp_path, lines):
    trials = read_trials(text(tmp_path / "trials.txt", *lines), ABC)
    assert as_tuples(trials) == [(0, 1, True), (2, 0, False)]
    assert (trials.left.dtype, trials.target.dtype) == (np.int32, np.bool_)
    assert len(trials) == 2


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        (["1 a/1 b/2", "1 a/1 d/4.wav"], 2, "'d/4.wav' is no utterance"),
        (["1 d/4 a/1"], 1, "'d/4' is no utterance"),
        (["1 a/1 b/2", "2 a/1 b/2"], 2, "'2' is no label"),
        (["1 a/1 b/2", "a/1 b/2 1"], 2, "'a/1' is no label"),
        (["1 a/1 b/2", "", "1 a/1"], 3, "has 2 fields"),
        (["1 a/1 b/2 c/3"], 1, "has 4 fields"),
        (["same a/1 b/2"], 1, "has no label"),
        (["left right", "a/1 b/2"], 1, "has 2 fields"),
        ([], None, "holds no trials"),
        (["", ""], None, "holds no trials"),
        (["label left right"], None, "holds no trials"),
    ],
)
def test_a_bad_list_names_its_line(tmp_path, lines, line, words):
    path = text(tmp_path / "trials.txt", *lines)
    with pytest.raises(ManifestError, match=words) as caught:
        read_trials(path, ABC)
    assert (caught.value.path, caught.value.line) == (str(path), line)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read"):
        read_trials(tmp_path / "trials.txt", ABC)


def test_suffixes_that_fit_two_utterances_are_an_error(tmp_path):
    both = utterances("a.wav", "a.flac", "b.wav")
    path = text(tmp_path / "trials.txt", "1 a.wav b", "0 a.flac b.wav")
    assert as_tuples(read_trials(path, both)) == [(0, 2, True), (1, 2, False)]
    path = text(tmp_path / "trials.txt", "1 a.wav b", "0 a b")
    with pytest.raises(ManifestError, match="'a' fits several") as caught:
        read_trials(path, both)
    assert caught.value.line == 2


def test_a_dot_in_an_id_is_no_suffix(tmp_path):
    path = text(tmp_path / "trials.txt", "1 speaker.one speaker.two")
    trials = read_trials(path, utterances("speaker.two", "speaker.one"))
    assert as_tuples(trials) == [(1, 0, True)]
    with pytest.raises(ManifestError, match=r"'speaker\.two' is no utterance"):
        read_trials(path, utterances("speaker.one", "speaker.three"))


def test_utterances_with_names_like_labels(tmp_path):
    path = text(tmp_path / "trials.txt", "0 7 1", "7 0 0")  # no utterance is called 1
    assert as_tuples(read_trials(path, utterances("0", "7"))) == [(0, 1, True), (1, 0, False)]
    path = text(tmp_path / "trials.txt", "1 7 0", "0 0 7")
    assert as_tuples(read_trials(path, utterances("0", "7"))) == [(1, 0, True), (0, 1, False)]


def test_ids_with_spaces_in_a_table_of_tabs(tmp_path):
    path = text(tmp_path / "trials.tsv", "left\tright\tlabel", "a b\tc d\t1")
    assert as_tuples(read_trials(path, utterances("c d", "a b"))) == [(1, 0, True)]


@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_million_trials_are_a_matter_of_seconds(tmp_path, count):
    ids = [f"id{n:05}/video{n % 7}/{n:05}" for n in range(5000)]
    draw = np.random.default_rng(0)
    left, right = draw.integers(0, 5000, (2, count)).tolist()
    path = tmp_path / "trials.txt"
    with open(path, "w") as file:
        file.writelines(
            f"{a % 2} {ids[a]}.wav {ids[b]}.wav\n" for a, b in zip(left, right, strict=True)
        )
    speakers = utterances(*ids)
    start = time.perf_counter()
    trials = read_trials(path, speakers)
    seconds = time.perf_counter() - start
    assert trials.left.tolist() == left
    assert trials.right.tolist() == right
    assert trials.target.tolist() == [bool(a % 2) for a in left]
    assert seconds < 1e-5 * count + 1  # a million take about one second on an idle core
    text(path, *(f"1 {ids[a]} {ids[b]}" for a, b in zip(left[:100_000], right, strict=False)))
    tracemalloc.start()
    trials = read_trials(path, speakers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(trials) == 100_000
    assert peak < 8e6  # 9 bytes a trial and tables of 5000 ids: no line is kept


@pytest.mark.parametrize(
    ("left", "right", "target", "error", "words"),
    [
        ([], [], [], ArgumentError, "no trials"),
        ([0], [0, 1], [True], ArgumentError, "shape"),
        ([-1], [0], [True], ArgumentError, "negative"),
        ([0.5], [0], [True], ArgumentTypeError, "int32"),
        ([0], [0], [1], ArgumentTypeError, "bool"),
    ],
)
def test_a_trial_list_checks_itself(left, right, target, error, words):
    def array(values, dtype):
        whole = all(isinstance(value, type(dtype(0).item())) for value in values)
        return np.array(values, dtype=dtype if whole else None)

    with pytest.raises(error, match=words):
        TrialList(array(left, np.int32), array(right, np.int32), array(target, np.bool_))


def one_trial(row):
    return TrialList(np.array([0], np.int32), np.array([row], np.int32), np.array([True]))


@pytest.mark.parametrize(
    ("parts", "options", "words"),
    [
        ({}, {}, "there are none"),
        ({"all": utterances()}, {}, "'all' of mine holds no utterances"),
        ({"train": ABC, "test": utterances("c/3")}, {}, "'c/3' is in train and in test"),
        (
            {"train": utterances("a", speaker="s"), "test": utterances("b", speaker="s")},
            {"groups": "speaker"},
            "speaker 's' is in train and in test",
        ),
        ({"all": ABC}, {"trials": one_trial(3)}, "utterance 3 of 3"),
        ({"train": ABC}, {"trials": one_trial(1)}, "the part 'all'"),
        ({"all": ABC}, {"relevance": frozenset({("a", "b")})}, "'a' is not among the queries"),
        (
            {"queries": utterances("q"), "documents": ABC},
            {"relevance": frozenset({("q", "d")})},
            "'d' is not among the documents",
        ),
        (
            {"queries": utterances("q"), "documents": ABC},
            {"relevance": frozenset()},
            "no query matches",
        ),
    ],
)
def test_evaluation_data_checks_itself(parts, options, words):
    with pytest.raises(ArgumentError, match=words):
        EvaluationData(name="mine", parts=parts, **options)


def test_one_speaker_may_be_in_two_parts_where_groups_do_not_forbid_it():
    parts = {"train": utterances("a", speaker="s"), "test": utterances("b", speaker="s")}
    assert EvaluationData(name="mine", parts=parts).left_out == {}
    assert EvaluationData("mine", {"all": ABC}, trials=one_trial(2)).trials is not None
