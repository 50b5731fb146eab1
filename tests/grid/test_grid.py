"""Grids of speech: what is said, what is kept, and that nothing is lost without a word."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechft.cli import main
from speechft.data import check, read_manifest
from speechft.errors import ArgumentError
from speechft.grid import Account, Engine, EngineError, GridSpec, Spoken, engine, make_grid
from speechft.grid.engines import Command

TEXTS = ["one two three", "the cat sat", "good morning"]
VOICES = ["anna", "ben"]


class Tones(Engine):
    """Says a text as a tone of its own, in a voice of its own."""

    name = "tones"
    controls = ("pitch",)

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.number = "1"

    def version(self) -> str:
        return self.number

    def voices(self) -> list[str]:
        return ["anna", "ben", "mute", "broken"]

    def speak(self, text: str, voice: str, seed: int, controls: Any) -> Spoken:
        with self.lock:
            self.said.append((text, voice))
        if voice == "broken" and "cat" in text:
            raise EngineError("no cats today")
        time = np.arange(8000 + 100 * len(text)) / 8000
        level = 0.0 if voice == "mute" else 0.5
        tone = level * np.sin(2 * np.pi * (200 + 50 * controls.get("pitch", 0)) * time)
        return Spoken(tone.astype(np.float32), 8000)


def grid(tmp_path: Path, tones: Tones | None = None, **changes: Any) -> Account:
    spec = {"texts": TEXTS, "voices": VOICES, "controls": {"pitch": [0, 2]}, **changes}
    return make_grid(GridSpec(**spec), tones or Tones(), tmp_path, workers=3, progress=False)


def test_every_voice_says_every_text(tmp_path: Path) -> None:
    account = grid(tmp_path)
    assert len(account.made) == 12
    manifest = read_manifest(tmp_path / "manifest.jsonl")
    assert check(manifest).ok
    seen = set()
    for row in manifest:
        factors = row.factors
        assert row.speaker == VOICES[factors["voice_id"]]
        assert row.text == TEXTS[factors["text_id"]]
        seen.add(tuple(factors.values()))
        samples, rate = soundfile.read(row.audio)
        assert rate == 16000
        assert len(samples) == 16000 + 200 * len(row.text)
        peak = int(np.abs(np.fft.rfft(samples)).argmax()) * 16000 / len(samples)
        assert peak == pytest.approx(200 + 100 * factors["pitch_id"], abs=1)
    assert seen == {(v, t, p) for v in range(2) for t in range(3) for p in range(2)}
    assert [row.id for row in manifest][:3] == [
        "voice0-text0-pitch0", "voice0-text0-pitch1", "voice0-text1-pitch0",
    ]  # fmt: skip


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    grid(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    text = (tmp_path / "manifest.jsonl").read_text()
    tones = Tones()
    again = grid(tmp_path, tones)
    assert not tones.said
    assert len(again.kept) == 12
    assert (tmp_path / "manifest.jsonl").read_text() == text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")} == files
    # One more voice costs that voice; a cell that was lost is said again, and alone.
    more = grid(tmp_path, tones, voices=["anna", "ben", "broken"], texts=TEXTS[:1])
    assert (len(more.made), len(more.kept)) == (2, 4)
    next(iter(files)).unlink()
    assert len(grid(tmp_path).made) == 1
    newer = Tones()
    newer.number = "2"
    assert len(grid(tmp_path, newer).made) == 12
    assert len(grid(tmp_path, seed=1).made) == 12


def test_holes_are_named(tmp_path: Path) -> None:
    account = grid(tmp_path, voices=["anna", "broken", "mute"], controls={})
    assert account.failed["voice1-text1"] == "no cats today"
    assert "silence" in account.failed["voice2-text0"]
    assert len(account.failed) == 4
    assert len(read_manifest(tmp_path / "manifest.jsonl")) == 5
    written = json.loads((tmp_path / "account.json").read_text())
    assert written["failed"] == account.failed
    assert written["cells"] == 9
    assert "failed 4" in str(account)
    assert "voice1-text1: no cats today" in str(account)


def test_the_same_twice_is_said_once_and_named(tmp_path: Path) -> None:
    tones = Tones()
    account = grid(tmp_path, tones, texts=[*TEXTS, TEXTS[1]], controls={})
    assert len(tones.said) == 6
    assert account.skipped == {
        "voice0-text3": "the same as voice0-text1",
        "voice1-text3": "the same as voice1-text1",
    }
    assert account.factors == {"voice": 2, "text": 3}


def test_one_value_of_a_factor_is_noted(tmp_path: Path) -> None:
    account = grid(tmp_path, voices=["ben"], controls={"pitch": [3]})
    assert account.to_dict()["single_valued"] == ["voice", "pitch"]
    assert "voice has one value, and can be no factor" in str(account)


def test_what_cannot_be_made_is_an_error_before_any_work(tmp_path: Path) -> None:
    tones = Tones()
    for changes, match in (
        ({"texts": []}, "texts: wants a list of at least one"),
        ({"texts": "one text"}, "texts: wants a list"),
        ({"texts": ["good", "..."]}, r"texts: text 1 has nothing to say: '\.\.\.'"),
        ({"voices": []}, "voices: wants a list"),
        ({"controls": {"pitch": []}}, "controls: pitch wants a list of at least one value"),
        ({"controls": {"speed": [1]}}, "controls: tones has no 'speed'; it has pitch"),
    ):
        with pytest.raises(ArgumentError, match=match):
            grid(tmp_path, tones, **changes)
    with pytest.raises(EngineError, match="tones has no voice 'carl'; it has anna, ben"):
        grid(tmp_path, tones, voices=["anna", "carl"])
    assert not tones.said
    with pytest.raises(EngineError, match="tones failed on every cell; the first: silence"):
        grid(tmp_path, tones, voices=["mute"])


SAY = """
import sys, wave
text, voice, out = sys.stdin.read(), sys.argv[1], sys.argv[2]
if voice == "none": sys.exit("there is no such voice")
if voice == "lazy": sys.exit(0)
with wave.open(out, "wb") as file:
    file.setnchannels(1); file.setsampwidth(2); file.setframerate(16000)
    file.writeframes((b"\\x00\\x10\\x00\\xf0" * 40) * len(text))
"""


def test_any_command_is_an_engine(tmp_path: Path) -> None:
    program = tmp_path / "say.py"
    program.write_text(SAY)
    command = engine(f"{sys.executable} {program} {{voice}} {{out}}")
    assert isinstance(command, Command)
    spec = GridSpec(
        ["a longer text; $(with) 'marks'", "short text for a voice"], ["x", "none", "lazy"]
    )
    account = make_grid(spec, command, tmp_path / "grid", progress=False)
    assert account.made == ["voice0-text0", "voice0-text1"]
    assert "ended with code 1: there is no such voice" in account.failed["voice1-text0"]
    assert "wrote no audio" in account.failed["voice2-text1"]
    rows = read_manifest(tmp_path / "grid" / "manifest.jsonl")
    assert soundfile.info(rows[0].audio).frames == 80 * len(spec.texts[0])
    with pytest.raises(ArgumentError, match=r"wants \{out\}, the file to write"):
        Command("say {text}")
    with pytest.raises(ArgumentError, match="engine: wants one of espeak-ng"):
        engine("espeek")
    with pytest.raises(EngineError, match="there is no program 'no-such-program'"):
        make_grid(spec, Command("no-such-program {out}"), tmp_path / "other", progress=False)
    assert Command("say {text} --speed {speed} -o {out}").controls == ("speed",)


def test_espeak_says_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    spec = GridSpec(
        ["The quick brown fox.", "Jumps over the lazy dog."],
        ["en-us+m1", "en-us+m3", "fr", "en-us+nobody"],
        {"pitch": [20, 80], "rate": [120, 260]},
    )
    first = make_grid(spec, engine("espeak-ng"), tmp_path / "a", workers=2, progress=False)
    backwards = GridSpec(spec.texts[::-1], spec.voices[::-1], spec.controls)
    make_grid(backwards, engine("espeak-ng"), tmp_path / "b", workers=1, progress=False)
    names = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.wav")}
    assert len(names) == len(first.made) == 24
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len({(tmp_path / "a" / name).read_bytes() for name in names}) == 24
    assert len(first.failed) == 8
    assert all("no variant 'nobody'" in reason for reason in first.failed.values())
    rows = {row.id: row for row in read_manifest(tmp_path / "a" / "manifest.jsonl")}
    slow, fast = (rows[f"voice0-text0-pitch0-rate{k}"].duration for k in (0, 1))
    assert slow is not None
    assert fast is not None
    assert slow > 1.5 * fast
    voices = engine("espeak-ng").voices()
    assert {"en-us+m1", "en-us+f5", "en-us+Annie"} <= set(voices)
    with pytest.raises(
        EngineError, match="failed on every cell; the first: espeak-ng has no voice"
    ):
        make_grid(
            GridSpec(["hello"], ["xx-yy"]), engine("espeak-ng"), tmp_path / "c", progress=False
        )


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("espeakng_loader")
    texts = tmp_path / "texts.txt"
    texts.write_text("# greetings\nGood morning.\n\nGood night.\n")
    arguments = ["grid", "--texts", str(texts), "--voices", "en-us+m1", "en-us+f2"]
    output = ["--output", str(tmp_path / "out")]
    assert main([*arguments, *output, "--control", "pitch=20,80"]) == 0
    said = capsys.readouterr().out
    assert "grid of 2 of voice × 2 of text × 2 of pitch" in said
    assert "made 8, kept 0" in said
    assert main([*arguments, *output, "--control", "pitch=20,80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 8
    for wrong, message in (
        (arguments, "--output is missing"),
        ([*arguments, *output, "--control", "pitch"], "--control: wants NAME=VALUE"),
        ([*arguments, *output, "--control", "pich=1,2"], "controls: espeak-ng has no 'pich'"),
        (["grid", "--texts", "nowhere.txt", "--voices", "en", *output], "cannot be read"),
        ([*arguments, *output, "--engine", "espeek"], "engine: wants one of"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    assert main(["grid", "--list_voices"]) == 0
    assert "en-us+f2" in capsys.readouterr().out.splitlines()
