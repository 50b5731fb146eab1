"""Manifests: every accepted form is read, every malformed one names its line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechft.data import Manifest, Utterance, read_manifest, read_phones, utterance_key
from speechft.data import write_manifest as write
from speechft.errors import ArgumentError, ManifestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav", "sub/c.flac"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.zeros(8_000), 8_000)
    return tmp_path


def lines(folder: Path, *rows: object, name: str = "m.jsonl") -> Path:
    path = folder / name
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return path


def test_jsonl_with_every_field(folder: Path) -> None:
    (folder / "a.phones").write_text("1.0 a\n")
    path = lines(
        folder,
        {
            "id": "one",
            "audio": "a.wav",
            "start": 0.25,
            "end": 0.75,
            "speaker": 7,
            "text": "Ciao",
            "language": "it",
            "phones": "a.phones",
            "factors": {"emotion": "calm", "room": 3, "noise": None},
            "snr": 12.5,
        },
        "\n",
        {"audio": "sub/c.flac"},
    )
    one, two = read_manifest(path)
    assert one == Utterance(
        id="one",
        audio=folder / "a.wav",
        start=0.25,
        end=0.75,
        speaker="7",
        text="Ciao",
        language="it",
        phones=folder / "a.phones",
        factors={"emotion": "calm", "room": 3},
        extra={"snr": 12.5},
    )
    assert (two.id, two.audio, two.line) == ("sub/c", folder / "sub/c.flac", 3)


def test_nemo_names(folder: Path) -> None:
    path = lines(
        folder,
        {"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.25, "text": "x", "label": "y"},
        {"audio_filepath": "b.wav", "duration": 1.0},
        name="m.json",
    )
    segment, whole = read_manifest(path)
    assert (segment.start, segment.end, segment.duration) == (0.5, 0.75, None)
    assert (whole.start, whole.end, whole.duration) == (0.0, None, 1.0)
    assert segment.extra == {"label": "y"}
    assert segment.id == "a#0.5-0.75"


def test_speechbrain_csv_counts_start_and_stop_in_samples(folder: Path) -> None:
    path = folder / "m.csv"
    path.write_text("ID,duration,wav,start,stop,spk_id\nu1,1.0,a.wav,2000,6000,s1\n")
    (utterance,) = read_manifest(path)
    assert (utterance.id, utterance.speaker) == ("u1", "s1")
    assert (utterance.start, utterance.end) == (0.25, 0.75)  # the file has 8 kHz


def test_csv_with_byte_order_mark_crlf_quotes_and_empty_cells(folder: Path) -> None:
    path = folder / "m.csv"
    text = 'id,audio,text,factors.mood,note\r\nx,a.wav,"one, ""two""\r\nthree",glad,\r\n'
    text += "y,b.wav,,,n\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    x, y = read_manifest(path)
    assert (x.text, x.factors, x.extra) == ('one, "two"\r\nthree', {"mood": "glad"}, {})
    assert (y.text, y.factors, y.extra, y.line) == (None, {}, {"note": "n"}, 4)


def test_jsonl_with_byte_order_mark_and_crlf(folder: Path) -> None:
    path = folder / "m.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"audio": "a.wav"}\r\n{"audio": "b.wav"}\r\n')
    assert [utterance.id for utterance in read_manifest(path)] == ["a", "b"]


def test_a_folder_is_searched_in_order(folder: Path) -> None:
    (folder / "._a.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("no audio")
    (folder / "B.WAV").write_bytes((folder / "a.wav").read_bytes())
    assert [utterance.id for utterance in read_manifest(folder)] == ["B", "a", "b", "sub/c"]


BAD_JSONL: dict[str, tuple[list[object], int, str]] = {
    "not JSON": ([{"audio": "a.wav"}, "{'audio': 1}\n"], 2, "is not JSON"),
    "cut line": ([{"audio": "a.wav"}, '{"audio": "b.w'], 2, "is not JSON"),
    "deep": (["[" * 100_000 + "\n"], 1, "is not JSON"),
    "array": (['[{"audio": "a.wav"}]\n'], 1, "one JSON object a line, got list"),
    "NaN": (['{"audio": "a.wav", "start": NaN}\n'], 1, "NaN is not a JSON number"),
    "key twice": (['{"audio": "a.wav", "audio": "b.wav"}\n'], 1, "a key appears twice"),
    "two names": ([{"audio": "a.wav", "wav": "b.wav"}], 1, "'audio' twice"),
    "no audio": ([{"audio": "a.wav"}, {"id": "x"}], 2, "has no audio"),
    "audio null": ([{"audio": None}], 1, "has no audio"),
    "audio number": ([{"audio": 3}], 1, "audio: wants a string"),
    "audio empty": ([{"audio": ""}], 1, "audio: is an empty string"),
    "NUL": ([{"audio": "a\0.wav"}], 1, "NUL"),
    "surrogate": ([{"audio": "a.wav", "text": "\ud800"}], 1, "surrogate"),
    "missing file": ([{"audio": "a.wav"}, {"audio": "z.wav"}], 2, "there is no file .*z.wav"),
    "missing phones": ([{"audio": "a.wav", "phones": "z"}], 1, "there is no file"),
    "duplicate id": (
        [{"audio": "a.wav", "id": "x"}, {"audio": "b.wav", "id": "x"}],
        2,
        "the id 'x' is also that of line 1",
    ),
    "same file twice": ([{"audio": "a.wav"}, {"audio": "a.wav"}], 2, "also that of line 1"),
    "negative start": ([{"audio": "a.wav", "start": -0.1}], 1, "start: wants .* at least 0"),
    "end before start": ([{"audio": "a.wav", "start": 2, "end": 1}], 1, "end 1 s is not after"),
    "end at start": ([{"audio": "a.wav", "start": 1, "end": 1}], 1, "is not after"),
    "end 0": ([{"audio": "a.wav", "end": 0}], 1, "is not after"),
    "duration 0": ([{"audio": "a.wav", "duration": 0}], 1, "duration: wants .* more than 0"),
    "contradiction": (
        [{"audio": "a.wav", "start": 0, "end": 1, "duration": 0.5}],
        1,
        "duration 0.5 s contradicts",
    ),
    "huge": (['{"audio": "a.wav", "start": 1e999}\n'], 1, "start: wants a finite number"),
    "start text": ([{"audio": "a.wav", "start": "soon"}], 1, "start: wants a number, got 'soon'"),
    "start true": ([{"audio": "a.wav", "start": True}], 1, "start: wants a number"),
    "text number": ([{"audio": "a.wav", "text": 5}], 1, "text: wants a string"),
    "factors list": ([{"audio": "a.wav", "factors": [1]}], 1, "factors: wants an object"),
    "factor float": ([{"audio": "a.wav", "factors": {"x": 0.5}}], 1, "factor 'x'"),
    "end and stop": ([{"audio": "a.wav", "end": 1, "stop": 8000}], 1, "both end"),
}


@pytest.mark.parametrize("name", BAD_JSONL)
def test_a_bad_line_is_named(folder: Path, name: str) -> None:
    rows, line, reason = BAD_JSONL[name]
    path = lines(folder, *rows)
    with pytest.raises(ManifestError, match=reason) as caught:
        read_manifest(path)
    assert (caught.value.path, caught.value.line) == (str(path), line)
    assert str(caught.value).startswith(f"{path}, line {line}: ")


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("m.csv", b"id,audio\nx,a.wav\ny\n", 3, "has 1 cells; the header has 2"),
        ("m.csv", b"id,file\nx,a.wav\n", 1, "no column for audio"),
        ("m.csv", b"audio,audio\nx,a.wav\n", 1, "names a column twice"),
        ("m.csv", b'audio,text\na.wav,"x\n', 2, "is not CSV"),
        ("m.csv", b'audio,text\na.wav,"x"y\n', 2, "is not CSV"),
        ("m.csv", b"audio,start\na.wav,-1\n", 2, "start: wants"),
        ("m.csv", b'audio,text\na.wav,"x\ny"\nb.wav,1,2\n', 4, "has 3 cells"),
        ("m.csv", b'audio,text,start\na.wav,"x\ny",-1\n', 2, "start: wants"),
        ("m.csv", b"audio\na.wav\n\xff.wav\n", 3, "is not UTF-8"),
        ("m.csv", b"audio,text\n", None, "is empty"),
        ("m.jsonl", b'{"audio": "a.wav"}\n{"text": "caf\xe9"}\n', 2, "not UTF-8 .byte 14"),
        ("m.jsonl", '{"audio": "a.wav"}'.encode("utf-16"), 1, "is not UTF-8"),
        ("m.jsonl", b"", None, "is empty"),
        ("m.jsonl", b"\n \n", None, "is empty"),
        ("m.txt", b"a.wav\n", None, "unknown type '.txt'"),
    ],
)
def test_a_bad_file_is_named(
    folder: Path, name: str, content: bytes, line: int | None, reason: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ManifestError, match=reason) as caught:
        read_manifest(folder / name)
    assert caught.value.line == line


def test_what_is_not_there_and_what_is_empty(folder: Path) -> None:
    with pytest.raises(ManifestError, match="there is no such file or folder"):
        read_manifest(folder / "none.jsonl")
    (folder / "empty").mkdir()
    with pytest.raises(ManifestError, match="holds no audio"):
        read_manifest(folder / "empty")
    (folder / "a.mp3").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"a\.mp3 and a\.wav have the same id 'a'"):
        read_manifest(folder)


# As JSON and a file system hold them: no halves of surrogate pairs, no NUL.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
seconds = st.floats(0, 1e6, allow_nan=False)


@st.composite
def utterances(draw: st.DrawFn) -> Utterance:
    start = draw(st.just(0.0) | seconds)
    end = draw(st.none() | st.floats(start, 2e6, exclude_min=True))
    return Utterance(
        id=draw(words),
        audio=Path("/audio") / draw(words.filter(lambda w: "/" not in w and w not in (".", ".."))),
        start=start,
        end=end,
        duration=None if end is not None else draw(st.none() | st.floats(1e-6, 1e6)),
        speaker=draw(st.none() | words),
        text=draw(st.none() | words),
        language=draw(st.none() | words),
        factors=draw(st.dictionaries(words, words | st.integers(), max_size=2)),
        extra=draw(st.dictionaries(words.map("x_".__add__), words | st.integers(), max_size=2)),
    )


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(utterances(), min_size=1, max_size=4, unique_by=lambda utterance: utterance.id))
def test_written_manifests_are_read_back(tmp_path: Path, rows: list[Utterance]) -> None:
    write(rows, tmp_path / "m.jsonl")
    assert list(read_manifest(tmp_path / "m.jsonl", check_files=False)) == rows


def test_written_paths_are_relative_where_they_can_be(folder: Path) -> None:
    write(read_manifest(folder), folder / "m.jsonl")
    moved = folder.rename(folder.with_name("moved"))
    assert [u.id for u in read_manifest(moved / "m.jsonl")] == ["a", "b", "sub/c"]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".csv"]))
def test_any_bytes_are_a_manifest_or_a_manifest_error(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes((b"audio,text\n" if suffix == ".csv" else b'{"audio": "a"}\n') + content)
    with suppress(ManifestError):
        read_manifest(path, check_files=False)


def test_ids_are_unique_in_a_manifest() -> None:
    with pytest.raises(ArgumentError, match="two have the id 'a'"):
        Manifest([Utterance("a", Path("x")), Utterance("a", Path("y"))])


def test_factor_ids_do_not_depend_on_the_order_of_rows() -> None:
    rows = [
        Utterance("a", Path("x"), speaker="zoe", factors={"take": 2}),
        Utterance("b", Path("x"), speaker="ada", factors={"take": 1}),
        Utterance("c", Path("x"), factors={"take": 10}),
        Utterance("d", Path("x"), speaker="zoe"),
    ]
    ids = Manifest(rows).factor_ids(["speaker", "take"])
    assert ids.tolist() == [[1, 1], [0, 0], [-1, 2], [1, -1]]
    assert Manifest(rows[::-1]).factor_ids(["speaker", "take"]).tolist() == ids.tolist()[::-1]
    with pytest.raises(ArgumentError, match="no utterance has a label 'mood'"):
        Manifest(rows).factor_ids(["mood"])


def test_utterance_keys_are_what_they_were() -> None:
    # Published values: to change them is to change every augmentation of every run.
    assert utterance_key("") == 3797230976420062948
    assert utterance_key("it/agent-user") == 262644332597570768
    assert utterance_key("été") == 6350163855206863292


@given(st.text())
def test_utterance_keys_fit_int64(id: str) -> None:
    assert 0 <= utterance_key(id) < 2**63


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("0.5 a\n0.5 b\n", 2, "ends at 0.5 s, not after 0.5 s"),
        ("0.5 a b\n", 1, "wants END PHONE"),
        ("a\n", 1, "wants END PHONE"),
        ("nan a\n", 1, "not after"),
        ("", None, "holds no phones"),
    ],
)
def test_bad_phone_labels_are_named(
    tmp_path: Path, content: str, line: int | None, reason: str
) -> None:
    (tmp_path / "a.phones").write_text(content)
    with pytest.raises(ManifestError, match=reason) as caught:
        read_phones(tmp_path / "a.phones")
    assert caught.value.line == line
