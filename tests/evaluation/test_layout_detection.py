"""Manifests by part, and one call for every layout."""

from __future__ import annotations

import json

import layout_miniatures as make
import pytest
from layout_miniatures import audio, text

from speechft.data import Manifest, embedded_corpus, read_manifest
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.layouts import LAYOUTS, manifest, read_evaluation_data
from speechft.evaluation.layouts.speech_commands import WORDS


def write(path, *rows):
    """A manifest of rows (id, factors)."""
    for name, _ in rows:
        audio(path.parent / f"{name}.wav")
    return text(
        path,
        *(json.dumps({"id": x, "audio": f"{x}.wav", "factors": factors}) for x, factors in rows),
    )


def ids(data):
    return {part: [utterance.id for utterance in rows] for part, rows in data.parts.items()}


def test_a_manifest_without_parts_is_all(tmp_path):
    path = write(tmp_path / "m.jsonl", ("a", {"mood": "x"}), ("b", {"mood": "y"}))
    data = manifest(path, label="mood")
    assert (data.name, data.label, data.groups) == ("manifest", "mood", None)
    assert data.parts["all"] == read_manifest(path)


def test_a_manifest_is_split_by_its_parts(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        ("a", {"part": "test"}),
        ("b", {"part": "train"}),
        ("c", {"part": "test"}),
    )
    data = manifest(path)
    assert list(data.parts) == ["train", "test"]
    assert ids(data) == {"train": ["b"], "test": ["a", "c"]}


def test_queries_match_the_documents_that_share_a_factor(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        ("q1", {"part": "queries", "word": "x"}),
        ("q2", {"part": "queries"}),
        ("d1", {"part": "documents", "word": "x"}),
        ("d2", {"part": "documents", "word": "y"}),
        ("d3", {"part": "documents"}),
    )
    assert manifest(path, relevance="word").relevance == {("q1", "d1")}
    assert manifest(path).relevance is None
    with pytest.raises(ArgumentError, match="no query matches"):
        manifest(path, relevance="nothing")


def test_a_manifest_with_trials(tmp_path):
    path = write(tmp_path / "m.jsonl", ("a", {}), ("b", {}))
    trials = text(tmp_path / "t.txt", "1 a b.wav")
    assert manifest(path, trials=trials).trials.right.tolist() == [1]
    text(trials, "1 a b", "0 a c")
    with pytest.raises(ManifestError, match="'c' is no utterance") as caught:
        manifest(path, trials=trials)
    assert (caught.value.path, caught.value.line) == (str(trials), 2)


@pytest.mark.parametrize(
    ("rows", "options", "line", "words"),
    [
        ([("a", {"part": "train"}), ("b", {})], {}, 2, "'b': has no factor part"),
        ([("a", {"part": "train"}), ("b", {"part": "fit"})], {}, 2, "part 'fit'; wants train"),
        ([("a", {"x": 1}), ("b", {})], {"label": "x"}, 2, "'b' has no factor 'x'"),
        ([("a", {"x": 1}), ("b", {})], {"groups": "x"}, 2, "'b' has no factor 'x'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, rows, options, line, words):
    path = write(tmp_path / "m.jsonl", *rows)
    with pytest.raises(ManifestError, match=words) as caught:
        manifest(path, **options)
    assert (caught.value.path, caught.value.line) == (str(path), line)


def test_a_column_called_part_is_not_passed_over(tmp_path):
    audio(tmp_path / "a.wav")
    path = text(tmp_path / "m.csv", "audio,part", "a.wav,train")
    with pytest.raises(ManifestError, match=r"factors\.part") as caught:
        manifest(path)
    assert caught.value.line == 2
    text(path, "audio,factors.part", "a.wav,train")
    assert list(manifest(path).parts) == ["train"]


@pytest.mark.parametrize(
    ("parts", "options", "words"),
    [
        (("train", "queries"), {}, "together and alone"),
        (("queries", "queries"), {}, "together and alone"),
        (("train", "test"), {"trials": "t.txt"}, "split into train, test"),
        (("train", "test"), {"relevance": "word"}, "queries and documents"),
        (("train", "test"), {"groups": "speaker_of"}, "which its groups forbid"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, parts, options, words):
    rows = [(x, {"part": part, "speaker_of": "s"}) for x, part in zip("ab", parts, strict=True)]
    with pytest.raises(ArgumentError, match=words):
        manifest(write(tmp_path / "m.jsonl", *rows), **options)


def test_duplicate_ids_and_empty_manifests(tmp_path):
    with pytest.raises(ManifestError, match="also that of line 1"):
        manifest(write(tmp_path / "m.jsonl", ("a", {}), ("a", {})))
    with pytest.raises(ArgumentError, match="the manifest is empty"):
        manifest(Manifest([]))


MINIATURES = {
    "voxceleb1": (make.voxceleb1, ["all"]),
    "speech_commands": (
        lambda root: make.speech_commands(root, WORDS["v0.01"]),
        ["train", "validation", "test"],
    ),
    "librispeech": (make.librispeech, ["train", "validation", "test"]),
    "quesst14": (make.quesst14, ["queries", "documents"]),
    "iemocap": (make.iemocap, ["all"]),
    "crema_d": (make.crema_d, ["all"]),
    "msp_podcast": (make.msp_podcast, ["train", "validation", "test"]),
    "adresso": (make.adresso, ["train", "test"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_known_by_its_folder(tmp_path, name):
    build, parts = MINIATURES[name]
    root = build(tmp_path / "data")
    data = read_evaluation_data(root)
    assert list(data.parts) == parts
    assert data.name.startswith(name)
    assert read_evaluation_data(str(root), layout=name).name == data.name
    assert [each for each in LAYOUTS if LAYOUTS[each].find(root)] == [name]
    for other in LAYOUTS:
        if other != name:
            with pytest.raises(ManifestError, match="is not laid out as"):
                read_evaluation_data(root, layout=other)


def test_manifests_of_every_kind(tmp_path):
    corpus = read_evaluation_data("embedded", label="language")
    assert (corpus.name, corpus.label) == ("embedded", "language")
    assert corpus.parts["all"] == embedded_corpus()
    assert read_evaluation_data(embedded_corpus()).name == "manifest"
    path = write(tmp_path / "m.jsonl", ("a", {}), ("b", {}))
    assert ids(read_evaluation_data(path)) == {"all": ["a", "b"]}
    assert ids(read_evaluation_data(tmp_path, layout="manifest")) == {"all": ["a", "b"]}
    with pytest.raises(ArgumentError, match="source is a manifest"):
        read_evaluation_data("embedded", layout="iemocap")


def test_a_folder_that_fits_no_layout_lists_what_was_looked_for(tmp_path):
    audio(tmp_path / "a.wav")
    with pytest.raises(ManifestError, match="fits no layout") as caught:
        read_evaluation_data(tmp_path)
    for layout in LAYOUTS.values():
        assert f"{layout.name}: {layout.looked_for}" in str(caught.value)
    with pytest.raises(ManifestError, match="no such file or folder"):
        read_evaluation_data(tmp_path / "none")


def test_a_folder_that_fits_two(tmp_path):
    make.crema_d(make.librispeech(tmp_path))
    with pytest.raises(ArgumentError, match="fits librispeech and crema_d: say which"):
        read_evaluation_data(tmp_path)
    assert read_evaluation_data(tmp_path, layout="crema_d").label == "emotion"


def test_misspelt_layouts_and_arguments_of_others(tmp_path):
    make.crema_d(tmp_path)
    with pytest.raises(ArgumentError, match=r"no 'cremad'; did you mean crema_d\?"):
        read_evaluation_data(tmp_path, layout="cremad")
    with pytest.raises(ArgumentError, match=r"no 'zzz'; there are auto, manifest, voxceleb1"):
        read_evaluation_data(tmp_path, layout="zzz")
    with pytest.raises(
        ArgumentError, match="layout crema_d has no such argument: it takes no"
    ) as e:
        read_evaluation_data(tmp_path, split="superb")
    assert e.value.argument == "split"
    with pytest.raises(ArgumentError, match="it takes test, classes"):
        read_evaluation_data(make.msp_podcast(tmp_path / "msp"), trials="t.txt")


def test_arguments_reach_their_reader(tmp_path):
    read = read_evaluation_data
    commands = make.speech_commands(tmp_path / "c", WORDS["v0.01"], test_set=False)
    assert "torchaudio" in read(commands, split="torchaudio", version="v0.01").name
    assert (
        "dev queries, czech"
        in read(make.quesst14(tmp_path / "q"), queries="dev", language="czech").name
    )
    msp = make.msp_podcast(tmp_path / "m")
    four = ("angry", "sad", "happy", "neutral")
    assert "Test2, 4 classes" in read(msp, test="Test2", classes=four).name
    libri = make.librispeech(tmp_path / "l", folders=("dev-other", "test-other", "train-clean-360"))
    data = read(libri, train="train-clean-360", validation="dev-other", test="test-other")
    assert "train: train-clean-360" in data.name
    labels = text(tmp_path / "labels.csv", "ID,Dx", "adrsdt2,ProbableAD", "adrsdt1,Control")
    assert (
        "official test" in read(make.adresso(tmp_path / "a", labels=False), test_labels=labels).name
    )
    vox = make.voxceleb1(tmp_path / "v")
    assert (
        "mine"
        in read(vox, trials=text(tmp_path / "mine", "1 id10270/x/00001 id10300/z/00001")).name
    )
