"""Every layout in small: the folders and files of the publisher, with a tenth of a second each."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from speechft.errors import ManifestError
from speechft.evaluation.layouts.speech_commands import KEYWORDS


def audio(path, *, seconds=0.1, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = round(seconds * rate)
    kind = {".flac": "FLAC", ".wav": "WAV"}[path.suffix]
    soundfile.write(path, np.zeros(frames, np.float32), rate, subtype="PCM_16", format=kind)
    return path


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def voxceleb1(root, *, folder="wav", trials="veri_test2.txt"):
    for name in ("id10270/x/00001", "id10270/y/00002", "id10300/z/00001", "id10999/z/00001"):
        audio(root / folder / f"{name}.wav")
    text(
        root / trials,
        "1 id10270/x/00001.wav id10270/y/00002.wav",
        "0 id10270/x/00001.wav id10300/z/00001.wav",
    )
    return root


def speech_commands(root, words, *, version="v0.01", test_set=True, noise_seconds=11.5):
    """One file a speaker a word: by SHA-1 the speakers are of training, validation, testing."""
    base = root / f"speech_commands_{version}"
    for word in words:
        for speaker in SPEAKERS:
            audio(base / word / f"{speaker}_nohash_0.wav", seconds=0.01)
    audio(base / "_background_noise_" / "pink_noise.wav", seconds=noise_seconds)
    text(base / "validation_list.txt", *(f"{word}/{SPEAKERS[1]}_nohash_0.wav" for word in words))
    text(base / "testing_list.txt", *(f"{word}/{SPEAKERS[2]}_nohash_0.wav" for word in words))
    if test_set:
        for name in (*KEYWORDS, "_unknown_", "_silence_"):
            stem = "0a1b2c3d_nohash_0" if name != "_silence_" else "0"
            audio(root / f"speech_commands_test_set_{version}" / name / f"{stem}.wav")
    return root


# By the rule of the README (SHA-1 of the name) at 51.0 %, 9.6 % and 16.4 %.
SPEAKERS = ("00000001", "00000000", "00000002")


def librispeech(root, *, folders=("train-clean-100", "dev-clean", "test-clean")):
    for number, folder in enumerate(folders):
        speaker = str(100 + number)
        chapter = root / folder / speaker / "7"
        for index in range(2):
            audio(chapter / f"{speaker}-7-000{index}.flac")
        text(
            chapter / f"{speaker}-7.trans.txt", *(f"{speaker}-7-000{i} SOME WORDS" for i in (0, 1))
        )
    return root


def quesst14(root):
    database = root / "quesst14Database"
    documents = ("quesst14_00001", "quesst14_00002", "quesst14_00003")
    languages = ("nnenglish", "nnenglish", "czech")
    for name in documents:
        audio(database / "Audio" / f"{name}.wav", rate=8000)
    text(
        database / "scoring" / "language_key_utterances.lst",
        *(f"quesst14Database/Audio/{n}.wav {x}" for n, x in zip(documents, languages, strict=True)),
    )
    for kind in ("dev", "eval"):
        names = [f"quesst14_{kind}_000{number}" for number in (1, 2, 3)]
        for name in names:
            audio(database / f"{kind}_queries" / f"{name}.wav", rate=8000)
        text(
            database / "scoring" / f"language_key_{kind}.lst",
            *(
                f"quesst14Database/{kind}_queries/{name}.wav {language}"
                for name, language in zip(names, languages, strict=True)
            ),
        )
        truth = database / "scoring" / f"groundtruth_quesst14_{kind}"
        text(
            truth / f"quesst14_{kind}.rttm",
            "SPKR-INFO quesst14_00001 1 <NA> <NA> <NA> unknown x <NA>",
            f"LEXEME quesst14_00001 1 0.0 2.5 {names[0]} lex x 0.5",
            f"LEXEME quesst14_00002 1 0.0 2.5 {names[0]} lex x 0.5",
            f"LEXEME quesst14_00002 1 1.0 2.5 {names[1]} lex x 0.5",
            f"LEXEME quesst14_00003 1 0.0 2.5 {names[2]} lex x 0.5",
            "LEXEME quesst14_00003 1 0.0 2.5 NO_KEYWORD lex x 0.5",
        )
        for type_name, terms in (("T1", names[:1]), ("T2", names[:2])):
            text(
                truth.with_name(f"{truth.name}_{type_name}") / f"quesst14_{kind}.tlist.xml",
                "<termlist>",
                *(f'<term termid="{x}"><termtext>{x}</termtext></term>' for x in terms),
                "</termlist>",
            )
    return root


def iemocap(root):
    base = root / "IEMOCAP_full_release"
    for number in range(1, 6):
        dialog = f"Ses0{number}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for index, (voice, label) in enumerate(
            (("F", "neu"), ("M", "exc"), ("F", "hap"), ("M", "ang"), ("F", "sad"), ("M", "fru"))
        ):
            turn = f"{dialog}_{voice}00{index}"
            lines += [
                f"[6.29 - 8.23]\t{turn}\t{label}\t[2.5000, 2.5000, 2.5000]",
                "C-E2:\tNeutral;",
            ]
            if label != "fru":
                audio(base / f"Session{number}/sentences/wav/{dialog}/{turn}.wav")
        text(base / f"Session{number}/dialog/EmoEvaluation/{dialog}.txt", *lines)
    return root


def crema_d(root):
    for name in ("1001_DFA_ANG_XX", "1001_IEO_SAD_HI", "1002_TSI_HAP_LO", "1040_ITH_SAD_X"):
        audio(root / "AudioWAV" / f"{name}.wav")
    return root


MSP_HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"


def msp_podcast(root):
    rows = [
        ("N", "30", "Train"),
        ("A", "30", "Train"),
        ("H", "Unknown", "Development"),
        ("C", "32", "Test1"),
        ("S", "33", "Test1"),
        ("X", "34", "Train"),
        ("O", "34", "Test1"),
        ("N", "35", "Test2"),
    ]
    lines = []
    for number, (letter, speaker, partition) in enumerate(rows):
        name = f"MSP-PODCAST_0001_{number:04}.wav"
        audio(root / "Audios" / name)
        lines.append(f"{name},{letter},2.2,4.0,2.6,{speaker},Male,{partition}")
    text(root / "Labels" / "labels_consensus.csv", MSP_HEADER, *lines)
    return root


def adresso(root, *, labels=True):
    base = root / "ADReSSo21" / "diagnosis"
    for folder, name in (("ad", "adrso024"), ("ad", "adrso025"), ("cn", "adrso002")):
        audio(base / "train" / "audio" / folder / f"{name}.wav")
    for name in ("adrsdt1", "adrsdt2"):
        audio(base / "test-dist" / "audio" / f"{name}.wav")
    if labels:
        text(root / "label_test_task1.csv", "ID,Dx", "adrsdt2,ProbableAD", "adrsdt1,Control")
    return root


def ids(manifest):
    return [utterance.id for utterance in manifest]


def labels(data, part):
    return [utterance.label(data.label) for utterance in data.parts[part]]


def fails(path, line, words):
    """Expect a ManifestError about this file and line."""
    return _Fails(path, line, words)


class _Fails:
    def __init__(self, path, line, words):
        self.path, self.line = str(path), line
        self.raises = pytest.raises(ManifestError, match=words)

    def __enter__(self):
        self.caught = self.raises.__enter__()

    def __exit__(self, *details):
        done = self.raises.__exit__(*details)
        assert (self.caught.value.path, self.caught.value.line) == (self.path, self.line)
        return done


def replace_line(path, number, line):
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [line] if line is not None else []
    text(path, *lines)
