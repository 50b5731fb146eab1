"""Layouts of verification, keywords, recognition and query by example, each in small."""

from __future__ import annotations

import layout_miniatures as make
import pytest
from layout_miniatures import SPEAKERS, audio, fails, ids, labels, replace_line, text

from speechft.data import load_audio
from speechft.errors import ArgumentError, AudioError
from speechft.evaluation.layouts import librispeech, quesst14, speech_commands, voxceleb1
from speechft.evaluation.layouts.speech_commands import KEYWORDS, WORDS, part_by_hash

# VoxCeleb1


@pytest.mark.parametrize("folder", ["wav", "", "test/wav", "vox1_test_wav/wav"])
def test_voxceleb1_reads_what_the_trials_name(tmp_path, folder):
    data = voxceleb1(make.voxceleb1(tmp_path, folder=folder))
    everything = data.parts["all"]
    assert data.name == "voxceleb1 (veri_test2.txt)"
    assert ids(everything) == ["id10270/x/00001", "id10270/y/00002", "id10300/z/00001"]
    assert [utterance.speaker for utterance in everything] == ["id10270", "id10270", "id10300"]
    assert data.trials.left.tolist() == [0, 0]
    assert data.trials.right.tolist() == [1, 2]
    assert data.trials.target.tolist() == [True, False]
    assert len(load_audio(everything[2])) == 1600


def test_voxceleb1_prefers_the_cleaned_list_and_says_so(tmp_path):
    root = make.voxceleb1(tmp_path, trials="veri_test.txt")
    assert voxceleb1(root).name == "voxceleb1 (veri_test.txt)"
    text(root / "veri_test2.txt", "0 id10270/x/00001.wav id10999/z/00001.wav")
    assert ids(voxceleb1(root).parts["all"]) == ["id10270/x/00001", "id10999/z/00001"]
    assert voxceleb1(root, trials="veri_test.txt").name == "voxceleb1 (veri_test.txt)"
    elsewhere = text(tmp_path / "lists" / "mine.txt", "1 id10270/x/00001.wav id10270/y/00002.wav")
    assert len(voxceleb1(root, trials=elsewhere).parts["all"]) == 2


def test_voxceleb1_finds_development_and_test_side_by_side(tmp_path):
    root = make.voxceleb1(tmp_path, folder="test/wav", trials="list_test_hard2.txt")
    audio(root / "dev" / "wav" / "id10001" / "v" / "00003.wav")
    text(root / "list_test_hard2.txt", "0 id10270/x/00001.wav id10001/v/00003.wav")
    data = voxceleb1(root)
    assert [u.audio.relative_to(root).parts[0] for u in data.parts["all"]] == ["test", "dev"]


def test_voxceleb1_errors(tmp_path):
    root = make.voxceleb1(tmp_path / "v")
    path = root / "veri_test2.txt"
    replace_line(path, 2, "0 id10270/x/00001.wav id10300/z/00009.wav")
    with fails(path, 2, "no file id10300/z/00009.wav"):
        voxceleb1(root)
    replace_line(path, 2, "0 id10270/x/00001.wav alone.wav")
    with fails(path, 2, "'alone' is not SPEAKER/VIDEO/FILE"):
        voxceleb1(root)
    replace_line(path, 2, "yes id10270/x/00001.wav id10300/z/00001.wav")
    with fails(path, 2, "'yes' is no label"):
        voxceleb1(root)
    text(path)
    with fails(path, None, "holds no trials"):
        voxceleb1(root)
    path.unlink()
    with fails(root, None, "holds no trial list .veri_test2.txt"):
        voxceleb1(root)
    with fails("mine.txt", None, "cannot be read"):
        voxceleb1(root, trials="mine.txt")
    with fails(tmp_path, None, "is not laid out as VoxCeleb1"):
        voxceleb1(tmp_path)
    with fails(tmp_path / "none", None, "there is no such folder to read as VoxCeleb1"):
        voxceleb1(tmp_path / "none")


# Speech Commands


@pytest.fixture
def commands(tmp_path):
    return make.speech_commands(tmp_path, WORDS["v0.01"])


def test_speech_commands_superb(commands):
    data = speech_commands(commands)
    assert data.name == "speech_commands v0.01 (SUPERB: official test set, 12 classes)"
    assert data.label == "keyword"
    train, validation, test = (labels(data, part) for part in ("train", "validation", "test"))
    classes = {*KEYWORDS, "_unknown_", "_silence_"}
    assert set(train) == set(validation) == set(test) == classes
    assert len(train) == 30 + 9  # of 11 seconds of noise, 0 and 10 are validation
    assert train.count("_unknown_") == validation.count("_unknown_") == 20
    assert train.count("yes") == 1
    assert len(validation) == 30 + 2
    assert len(test) == 12
    assert data.left_out == {"speakers of testing in the training archive": 30}
    assert {u.speaker for u in data.parts["train"]} == {SPEAKERS[0], None}
    assert {u.speaker for u in data.parts["validation"]} == {SPEAKERS[1], None}
    unknown = next(u for u in data.parts["train"] if u.label("keyword") == "_unknown_")
    assert unknown.label("word") in WORDS["v0.01"] - set(KEYWORDS)


def test_the_hash_puts_the_speakers_of_the_official_testing_list_into_testing():
    """The first speakers of ``testing_list.txt`` of both versions."""
    listed = [
        "bb05582b",
        "97f4c236",
        "f2e59fea",
        "fdb5155e",
        "dc75148d",
        "3f170018",
        "18f8afd5",
        "e1469561",
        "5c8af87a",
        "aa48c94a",
        "837a0f64",
        "e49428d9",
        "2aa787cf",
        "ffa76c4a",
        "24ad3ebe",
        "d7467392",
        "5828dfa2",
        "91223b83",
        "f0ae7203",
        "95ba4996",
        "94de6a6a",
    ]
    assert {part_by_hash(speaker) for speaker in listed} == {"testing"}
    drawn = [part_by_hash(f"{number:08x}") for number in range(20_000)]
    assert drawn.count("validation") == pytest.approx(2000, abs=200)
    assert drawn.count("testing") == pytest.approx(2000, abs=200)


def test_silence_is_every_second_of_noise_once(commands):
    data = speech_commands(commands)
    silence = {
        part: [(u.start, u.end) for u in data.parts[part] if u.label("keyword") == "_silence_"]
        for part in ("train", "validation")
    }
    assert silence["validation"] == [(0, 1), (10, 11)]
    assert silence["train"] == [(second, second + 1) for second in range(1, 10)]
    last = next(u for u in data.parts["validation"] if u.start == 10)
    assert len(load_audio(last)) == 16_000
    assert data == speech_commands(commands)


def test_speech_commands_by_the_lists(commands):
    data = speech_commands(commands, split="torchaudio")
    assert data.name == "speech_commands v0.01 (torchaudio: official lists, 30 words)"
    for part, speaker in zip(("train", "validation", "test"), SPEAKERS, strict=True):
        assert set(labels(data, part)) == WORDS["v0.01"]
        assert [u.speaker for u in data.parts[part]] == [speaker] * 30


def test_speech_commands_v2_has_35_words(tmp_path):
    root = make.speech_commands(tmp_path, WORDS["v0.02"], version="v0.02")
    data = speech_commands(root, split="torchaudio")
    assert "v0.02 (torchaudio: official lists, 35 words)" in data.name
    assert len(data.parts["test"]) == 35
    assert "v0.02 (SUPERB" in speech_commands(root / "speech_commands_v0.02").name
    make.speech_commands(tmp_path, WORDS["v0.01"])
    with pytest.raises(ArgumentError, match="choose one"):
        speech_commands(root)
    assert "v0.01" in speech_commands(root, version="v0.01").name
    with pytest.raises(ArgumentError, match=r"has the words of v0\.02"):
        speech_commands(root / "speech_commands_v0.02", version="v0.01")


def test_the_test_set_may_lie_elsewhere(commands, tmp_path):
    (commands / "speech_commands_test_set_v0.01").rename(tmp_path / "tests")
    with fails(commands / "speech_commands_test_set_v0.01", None, "test_root"):
        speech_commands(commands)
    assert len(speech_commands(commands, test_root=tmp_path / "tests").parts["test"]) == 12
    (tmp_path / "tests" / "yep").mkdir()
    with fails(tmp_path / "tests" / "yep", None, "none of the 12 classes"):
        speech_commands(commands, test_root=tmp_path / "tests")


def test_speech_commands_errors(commands):
    base = commands / "speech_commands_v0.01"
    with pytest.raises(ArgumentError, match="'superb' or 'torchaudio'"):
        speech_commands(commands, split="official")
    with pytest.raises(ArgumentError, match=r"v0.01 or v0.02"):
        speech_commands(commands, version="v0.03")
    validation = base / "validation_list.txt"
    kept = validation.read_text()
    text(validation, "yes/00000000_nohash_0.wav", "yes/GONE_nohash_0.wav")
    with fails(validation, 2, "no file"):
        speech_commands(commands, split="torchaudio")
    validation.write_text(kept)
    line = next(i for i, x in enumerate(kept.splitlines(), 1) if x.startswith("yes/"))
    testing = base / "testing_list.txt"
    replace_line(testing, 3, "yes/00000000_nohash_0.wav")
    with fails(testing, 3, f"also line {line} of validation_list.txt"):
        speech_commands(commands, split="torchaudio")
    text(testing)
    with fails(testing, None, "is empty"):
        speech_commands(commands, split="torchaudio")
    odd = audio(base / "yes" / "odd.wav")
    with fails(odd, None, "_nohash_"):
        speech_commands(commands)
    odd.unlink()
    (base / "yes").rename(base / "yep")
    with fails(base / "yep", None, "is not a word"):
        speech_commands(commands)
    (base / "yep").rename(base.parent / "yep")
    with fails(base, None, "no folder for yes"):
        speech_commands(commands)
    (base / "yes").mkdir()
    with fails(base / "yes", None, "holds no .wav"):
        speech_commands(commands)


def test_noise_that_gives_no_silence(commands):
    noise = commands / "speech_commands_v0.01" / "_background_noise_"
    short = audio(noise / "short.wav", seconds=0.9)
    with fails(short, None, "shorter than the second"):
        speech_commands(commands)
    short.write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"short\.wav"):
        speech_commands(commands)
    short.unlink()
    audio(noise / "pink_noise.wav", seconds=1.5)
    with fails(noise, None, "too short"):
        speech_commands(commands)


# LibriSpeech


@pytest.mark.parametrize("above", ["", "LibriSpeech"])
def test_librispeech(tmp_path, above):
    make.librispeech(tmp_path / above)
    data = librispeech(tmp_path)
    assert data.name == (
        "librispeech (train: train-clean-100, validation: dev-clean, test: test-clean)"
    )
    assert list(data.parts) == ["train", "validation", "test"]
    assert ids(data.parts["test"]) == ["102-7-0000", "102-7-0001"]
    utterance = data.parts["train"][1]
    assert (utterance.text, utterance.speaker, utterance.line) == ("SOME WORDS", "100", 2)
    assert utterance.label("chapter") == "7"
    assert len(load_audio(utterance)) == 1600


def test_librispeech_by_other_folders(tmp_path):
    make.librispeech(tmp_path, folders=("dev-other", "test-other"))
    data = librispeech(tmp_path, train=None, validation="dev-other", test="test-other")
    assert list(data.parts) == ["validation", "test"]
    with fails(tmp_path / "train-clean-100", None, "unpack train-clean-100"):
        librispeech(tmp_path, validation="dev-other", test="test-other")
    with pytest.raises(ArgumentError, match="the same folder"):
        librispeech(tmp_path, train="dev-other", validation="dev-other")
    with pytest.raises(ArgumentError, match="no part"):
        librispeech(tmp_path, train=None, validation=None, test=None)


def test_librispeech_errors(tmp_path):
    make.librispeech(tmp_path)
    chapter = tmp_path / "dev-clean" / "101" / "7"
    path = chapter / "101-7.trans.txt"
    kept = path.read_text()
    for line, words in (
        ("101-7-0001", "wants 101-7-NNNN TEXT"),
        ("102-7-0001 SOME WORDS", "wants 101-7-NNNN TEXT"),
        ("101-7-0000 SOME WORDS", "no file 101-7-0000.flac, or two"),
        ("101-7-0009 SOME WORDS", "no file 101-7-0009.flac"),
    ):
        replace_line(path, 2, line)
        with fails(path, 2, words):
            librispeech(tmp_path)
    replace_line(path, 2, None)
    with fails(path, None, "no line for 101-7-0001"):
        librispeech(tmp_path)
    path.write_bytes(b"101-7-0000 SOME\n101-7-0001 W\xff\n")
    with fails(path, 2, "is not UTF-8"):
        librispeech(tmp_path)
    path.unlink()
    with fails(path, None, "cannot be read"):
        librispeech(tmp_path)
    path.write_text(kept)
    (tmp_path / "dev-clean" / "101").rename(tmp_path / "101")
    with fails(tmp_path / "dev-clean", None, "holds no SPEAKER/CHAPTER"):
        librispeech(tmp_path)


# QUESST 2014


def test_quesst14_in_the_language_of_superb(tmp_path):
    data = quesst14(make.quesst14(tmp_path))
    assert data.name == "quesst14 (eval queries, nnenglish)"
    assert ids(data.parts["queries"]) == ["quesst14_eval_0001", "quesst14_eval_0002"]
    assert ids(data.parts["documents"]) == ["quesst14_00001", "quesst14_00002"]
    assert data.relevance == {
        ("quesst14_eval_0001", "quesst14_00001"),
        ("quesst14_eval_0001", "quesst14_00002"),
        ("quesst14_eval_0002", "quesst14_00002"),
    }
    assert data.left_out == {
        "queries of other languages": 1,
        "documents of other languages": 1,
        "matches of other languages": 1,
    }
    kinds = [query.label("query_type") for query in data.parts["queries"]]
    assert kinds == ["T1+T2", "T2"]


def test_quesst14_in_all_languages(tmp_path):
    data = quesst14(make.quesst14(tmp_path) / "quesst14Database", queries="dev", language="all")
    assert data.name == "quesst14 (dev queries, all)"
    assert len(data.parts["queries"]) == len(data.parts["documents"]) == 3
    assert ("quesst14_dev_0003", "quesst14_00003") in data.relevance
    assert data.parts["queries"][2].label("query_type") is None
    assert data.parts["queries"][2].language == "czech"
    assert len(data.relevance) == 4
    assert set(data.left_out.values()) == {0}


def test_quesst14_errors(tmp_path):
    base = make.quesst14(tmp_path) / "quesst14Database"
    with pytest.raises(ArgumentError, match="'dev' or 'eval'"):
        quesst14(tmp_path, queries="test")
    with pytest.raises(ArgumentError, match="czech, nnenglish or all: 'english'"):
        quesst14(tmp_path, language="english")
    scoring = base / "scoring"
    for path, number, line, words in (
        ("language_key_utterances.lst", 2, "quesst14Database/Audio/quesst14_00002.wav", "LANGUAGE"),
        ("language_key_utterances.lst", 2, "d/Audio/quesst14_00009.wav czech", "no file"),
        ("language_key_eval.lst", 3, "d/eval_queries/quesst14_eval_0001.wav czech", "also line 1"),
        ("groundtruth_quesst14_eval/quesst14_eval.rttm", 3, "LEXEME quesst14_00002 1", "wants LEX"),
        ("groundtruth_quesst14_eval/quesst14_eval.rttm", 3, "TERM a 1 0 1 b", "wants LEXEME"),
        (
            "groundtruth_quesst14_eval/quesst14_eval.rttm",
            4,
            "LEXEME quesst14_00002 1 0 1 quesst14_dev_0001",
            "no list has the query 'quesst14_dev_0001'",
        ),
        (
            "groundtruth_quesst14_eval/quesst14_eval.rttm",
            4,
            "LEXEME quesst14_00012 1 0 1 quesst14_eval_0001",
            "no list has the document 'quesst14_00012'",
        ),
        (
            "groundtruth_quesst14_eval_T1/quesst14_eval.tlist.xml",
            2,
            '<term termid="other">',
            "no list has the query 'other'",
        ),
    ):
        path = scoring / path
        kept = path.read_text()
        replace_line(path, number, line)
        with fails(path, number, words):
            quesst14(tmp_path)
        path.write_text(kept)
    truth = scoring / "groundtruth_quesst14_eval" / "quesst14_eval.rttm"
    text(truth, ";; nothing matches")
    with pytest.raises(ArgumentError, match="no query matches"):
        quesst14(tmp_path)
    truth.unlink()
    with fails(truth, None, "cannot be read"):
        quesst14(tmp_path)
