"""Layouts of emotion and of diagnosis, each in small: what is read, what a damaged one says."""

from __future__ import annotations

import layout_miniatures as make
import pytest
from layout_miniatures import MSP_HEADER, audio, fails, ids, labels, replace_line, text

from speechft.errors import ArgumentError
from speechft.evaluation.layouts import adresso, crema_d, iemocap, msp_podcast

# IEMOCAP


def test_iemocap(tmp_path):
    data = iemocap(make.iemocap(tmp_path))
    assert data.name == "iemocap (4 classes, excited is happy)"
    assert (data.label, data.groups) == ("emotion", "session")
    everything = data.parts["all"]
    assert labels(data, "all") == ["neutral", "happy", "happy", "angry", "sad"] * 5
    assert [u.label("label") for u in everything[:3]] == ["neu", "exc", "hap"]
    assert {u.label("session") for u in everything} == {f"Session{n}" for n in range(1, 6)}
    assert [u.speaker for u in everything[:2]] == ["Ses01_F", "Ses01_M"]
    assert everything[0].line == 3
    assert data.left_out == {"label fru": 5}
    assert iemocap(tmp_path / "IEMOCAP_full_release") == data


def test_iemocap_errors(tmp_path):
    base = make.iemocap(tmp_path) / "IEMOCAP_full_release"
    folder = base / "Session2" / "dialog" / "EmoEvaluation"
    path = folder / "Ses02F_impro01.txt"
    kept = path.read_text()
    for turn, label, words in (
        ("Ses02F_impro01_F000", "happy", "'happy' is no label"),
        ("Ses02F_impro01_F009", "neu", "there is no file"),
        ("Ses02_F000", "neu", "wants .START"),
        ("Ses02F_impro01_M001", "neu", "also in Ses02F_impro01.txt, line 3"),
    ):
        number = 5 if "also" in words else 3
        replace_line(path, 3, f"[6.29 - 8.23]\t{turn}\t{label}\t[2.5000, 2.5000, 2.5000]")
        with fails(path, number, words):
            iemocap(tmp_path)
    replace_line(path, 3, "[6.29 - 8.23] Ses02F_impro01_F000 neu")
    with fails(path, 3, "wants .START"):
        iemocap(tmp_path)
    path.write_text(kept)
    (base / "Session4").rename(base / "Session9")
    with fails(base / "Session4" / "dialog" / "EmoEvaluation", None, "cannot be read"):
        iemocap(tmp_path)


# CREMA-D


def test_crema_d(tmp_path):
    data = crema_d(make.crema_d(tmp_path))
    assert (data.label, data.groups) == ("emotion", "speaker")
    rows = [
        (u.speaker, u.label("emotion"), u.label("level"), u.label("sentence"))
        for u in data.parts["all"]
    ]
    assert rows == [
        ("1001", "angry", "unspecified", "DFA"),
        ("1001", "sad", "high", "IEO"),
        ("1002", "happy", "low", "TSI"),
        ("1040", "sad", "unspecified", "ITH"),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1001_DFA_ANG", "wants a name"),
        ("1001_XYZ_ANG_XX", "XYZ is no sentence"),
        ("1001_DFA_JOY_XX", "JOY is no emotion"),
        ("1001_DFA_ANG_YY", "YY is no level"),
    ],
)
def test_crema_d_errors(tmp_path, name, words):
    path = audio(make.crema_d(tmp_path) / "AudioWAV" / f"{name}.wav")
    with fails(path, None, words):
        crema_d(tmp_path)


def test_crema_d_without_files(tmp_path):
    (tmp_path / "AudioWAV").mkdir()
    with fails(tmp_path / "AudioWAV", None, "holds no .wav"):
        crema_d(tmp_path)


# MSP-Podcast


def test_msp_podcast(tmp_path):
    data = msp_podcast(make.msp_podcast(tmp_path))
    assert data.name == "msp_podcast (Test1, 8 classes)"
    assert labels(data, "train") == ["neutral", "angry"]
    assert labels(data, "validation") == ["happy"]
    assert labels(data, "test") == ["contempt", "sad"]
    assert [u.speaker for u in data.parts["train"]] == ["30", "30"]
    assert data.parts["validation"][0].speaker is None
    assert data.left_out == {"Test2": 1, "no agreement": 1, "other": 1}


def test_msp_podcast_by_other_classes_and_tests(tmp_path):
    make.msp_podcast(tmp_path)
    four = ("angry", "sad", "happy", "neutral")
    data = msp_podcast(tmp_path, classes=four)
    assert data.name == "msp_podcast (Test1, 4 classes)"
    assert labels(data, "test") == ["sad"]
    assert data.left_out["contempt"] == 1
    assert labels(msp_podcast(tmp_path, test="Test2"), "test") == ["neutral"]
    path = tmp_path / "Labels" / "labels_consensus.csv"
    with fails(path, None, "no row of Test3"):
        msp_podcast(tmp_path, test="Test3")
    for options, words in (
        ({"test": "Test9"}, "Test1, Test2, Test3"),
        ({"classes": ("angry", "cross")}, "wants two or more of"),
        ({"classes": ("angry",)}, "wants two or more of"),
        ({"classes": "angry"}, "wants two or more of"),
    ):
        with pytest.raises(ArgumentError, match=words):
            msp_podcast(tmp_path, **options)


def test_a_table_may_start_with_a_byte_order_mark(tmp_path):
    path = make.msp_podcast(tmp_path) / "Labels" / "labels_consensus.csv"
    before = msp_podcast(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert msp_podcast(tmp_path) == before


def test_msp_podcast_errors(tmp_path):
    path = make.msp_podcast(tmp_path) / "Labels" / "labels_consensus.csv"
    kept = path.read_text()
    for number, line, words in (
        (1, MSP_HEADER.replace("EmoClass", "Emotion"), "no column EmoClass"),
        (3, "MSP-PODCAST_0001_0001.wav,A,1", "has 3 cells; the header has 8"),
        (3, "MSP-PODCAST_0001_0001.wav,Z,1,1,1,3,Male,Train", "'Z' is no class"),
        (3, "MSP-PODCAST_0001_0001.wav,A,1,1,1,3,Male,Trian", "'Trian' is no partition"),
        (3, "MSP-PODCAST_0001_0000.wav,A,1,1,1,3,Male,Train", "also line 2"),
        (3, "MSP-PODCAST_0001_0099.wav,A,1,1,1,3,Male,Train", "there is no file"),
        (3, 'x"y,"A', "is not CSV"),
    ):
        replace_line(path, number, line)
        if "CSV" in words:
            text(path, MSP_HEADER, '"open,A')
            number = 2
        with fails(path, number, words):
            msp_podcast(tmp_path)
        path.write_text(kept)
    text(path, MSP_HEADER)
    with fails(path, None, "no row of Train"):
        msp_podcast(tmp_path)


# ADReSSo


def test_adresso(tmp_path):
    data = adresso(make.adresso(tmp_path))
    assert data.name == "adresso (official test)"
    assert (data.label, data.groups) == ("diagnosis", "speaker")
    assert labels(data, "train") == ["ad", "ad", "cn"]
    assert dict(zip(ids(data.parts["test"]), labels(data, "test"), strict=True)) == {
        "adrsdt1": "cn",
        "adrsdt2": "ad",
    }
    assert [u.speaker for u in data.parts["train"]] == ["adrso024", "adrso025", "adrso002"]


def test_adresso_without_labels_of_the_test(tmp_path):
    make.adresso(tmp_path, labels=False)
    data = adresso(tmp_path / "ADReSSo21")
    assert data.name == "adresso (training recordings)"
    assert labels(data, "all") == ["ad", "ad", "cn"]
    assert data.left_out == {"test recordings without labels": 2}
    path = text(tmp_path / "mine.csv", "adressfname,label", "adrsdt1.wav,0", "adrsdt2.wav,1")
    assert labels(adresso(tmp_path, test_labels=path), "test") == ["cn", "ad"]


def test_adresso_in_the_folders_of_its_archives(tmp_path):
    make.adresso(tmp_path)
    for part, name in (("train", "train"), ("test", "test-dist")):
        target = tmp_path / f"ADReSSo21-diagnosis-{part}" / "ADReSSo21" / "diagnosis"
        target.mkdir(parents=True)
        (tmp_path / "ADReSSo21" / "diagnosis" / name).rename(target / name)
    assert labels(adresso(tmp_path), "test") == ["ad", "cn"]


def test_adresso_errors(tmp_path):
    make.adresso(tmp_path)
    path = tmp_path / "label_test_task1.csv"
    for lines, number, words in (
        (["ID,Dx", "adrsdt1,Control", "adrsdt1,Control"], 3, "also line 2"),
        (["ID,Dx", "adrsdt1,Healthy"], 2, "'Healthy' is no diagnosis"),
        (["ID,Dx", "adrsdt7,Control"], 2, "no recording adrsdt7.wav"),
        (["ID,Dx", "adrsdt2,Control"], None, "no label of adrsdt1"),
        (["ID,Diagnosis", "adrsdt2,Control"], 1, "no column Dx or label"),
        ([], None, "is empty"),
    ):
        text(path, *lines)
        with fails(path, number, words):
            adresso(tmp_path)
    train = tmp_path / "ADReSSo21" / "diagnosis" / "train" / "audio"
    twice = audio(train / "cn" / "adrso024.wav")
    with fails(twice, None, "is also"):
        adresso(tmp_path)
    for file in (train / "cn").iterdir():
        file.unlink()
    with fails(train / "cn", None, "holds no .wav"):
        adresso(tmp_path)
