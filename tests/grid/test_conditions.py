"""Conditions as factors: what is drawn when, what is said once, and what a file is named after."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechft.augment import AddNoise, Augmentation, ClipBank, Compose, Gain, RoomBank, Speed
from speechft.cli import main
from speechft.data import check, read_manifest
from speechft.errors import ArgumentError, ConfigError
from speechft.grid import Account, Engine, EngineError, GridSpec, Spoken, engine, make_grid
from speechft.grid.conditions import content_digest, load_conditions

NOISY = AddNoise(ClipBank.coloured(seconds=2), snr=10)


class Tones(Engine):
    """A tone that is quieter for a longer text, and another each time if it is asked to be."""

    name = "tones"
    controls = ("pitch",)

    def __init__(self, *, moody: bool = False) -> None:
        self.said: list[tuple[str, str, Any]] = []
        self.lock = threading.Lock()
        self.moody = moody

    def version(self) -> str:
        return "1"

    def speak(self, text: str, voice: str, seed: int, controls: Any) -> Spoken:
        with self.lock:
            self.said.append((voice, text, controls.get("pitch")))
            number = len(self.said) if self.moody else 0
        if voice == "broken":
            raise EngineError("no voice today")
        frequency = 200 + 50 * controls.get("pitch", 0) + 10 * number
        time = np.arange(8000 + 160 * len(text)) / 16000
        return Spoken((0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32), 16000)


class Silence(Augmentation):
    """Nothing is left."""

    def draw(self, keys: Any) -> Any:
        return {}

    def perturb(self, waveforms: Any, lengths: Any, parameters: Any) -> Any:
        return waveforms * 0, lengths


def grid(output: Path, tones: Engine | None = None, **changes: Any) -> Account:
    spec = {"texts": ["one", "two"], "voices": ["anna", "ben"], **changes}
    return make_grid(GridSpec(**spec), tones or Tones(), output, workers=3, progress=False)


def sounds(output: Path) -> dict[str, np.ndarray]:
    rows = read_manifest(output / "manifest.jsonl")
    return {row.id: soundfile.read(row.audio, dtype="float32")[0] for row in rows}


def test_a_condition_is_a_factor(tmp_path: Path) -> None:
    tones = Tones()
    conditions = {
        "noise": {"clean": None, "street": NOISY},
        "tract": {"own": None, "fast": [{"Speed": {"factors": [2.0]}}]},
    }
    account = grid(tmp_path, tones, controls={"pitch": [0, 4]}, conditions=conditions)
    assert len(account.made) == 32
    assert len(tones.said) == len(set(tones.said)) == 8  # once each
    assert account.factors == {"voice": 2, "text": 2, "pitch": 2, "noise": 2, "tract": 2}
    rows = read_manifest(tmp_path / "manifest.jsonl")
    assert check(rows).ok
    assert [row.id for row in rows][:5] == [
        "voice0-text0-pitch0-noise0-tract0", "voice0-text0-pitch0-noise0-tract1",
        "voice0-text0-pitch0-noise1-tract0", "voice0-text0-pitch0-noise1-tract1",
        "voice0-text0-pitch1-noise0-tract0",
    ]  # fmt: skip
    assert rows[2].factors == {
        "voice_id": 0, "text_id": 0, "pitch_id": 0, "noise_id": 1, "tract_id": 0,
    }  # fmt: skip
    assert rows[2].extra["conditions"] == {"noise": "street", "tract": "own"}
    heard = sounds(tmp_path)
    base = heard["voice0-text0-pitch0-noise0-tract0"]
    noise = heard["voice0-text0-pitch0-noise1-tract0"] - base
    snr = 10 * np.log10(np.square(base).sum() / np.square(noise).sum())
    assert snr == pytest.approx(10, abs=0.1)
    assert len(heard["voice0-text0-pitch0-noise0-tract1"]) == len(base) // 2
    # Where nothing is done, the file is that of a grid without conditions.
    plain = grid(tmp_path, tones, controls={"pitch": [0, 4]})
    assert len(plain.kept) == 8


def test_drawn_once_or_in_each_cell(tmp_path: Path) -> None:
    """The noise of a cell is what is there beyond the same cell without any."""

    def noises(folder: str, **changes: Any) -> dict[str, np.ndarray]:
        texts = ["one", "two"]
        conditions = {"noise": {"clean": None, "street": NOISY, "hall": NOISY}}
        grid(tmp_path / folder, **{"texts": texts, "conditions": conditions, **changes})
        heard = sounds(tmp_path / folder)
        return {
            id: (samples - heard[id[:-1] + "0"])[:8000]
            for id, samples in heard.items()
            if not id.endswith("noise0")
        }

    once, each = noises("once"), noises("each", draw_each=["noise"])
    first = once["voice0-text0-noise1"]
    step = 1.5 / 32768  # of 16 bits, twice rounded
    for id, noise in once.items():
        same = np.abs(noise - first).max() <= step
        assert same == id.endswith("noise1"), id
    kinds = list(each.values())
    for at, noise in enumerate(kinds):
        assert all(np.abs(noise - other).max() > 0.01 for other in kinds[:at])
    # Neither the order nor the other cells have a part in it; the seed and the name have.
    alone = noises("alone", draw_each=["noise"], texts=["two"], voices=["ben"])
    assert np.array_equal(alone["voice0-text0-noise1"], each["voice1-text1-noise1"])
    seeded = noises("seeded", seed=1)
    assert np.abs(seeded["voice0-text0-noise1"] - first).max() > 0.01


def test_what_is_missing_is_made_and_nothing_else(tmp_path: Path) -> None:
    conditions: dict[str, Any] = {"noise": {"street": NOISY}}
    grid(tmp_path, conditions=conditions)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    assert len(files) == 4  # what was said is in no cell, and is not kept
    tones = Tones()
    assert len(grid(tmp_path, tones, conditions=conditions).kept) == 4
    assert not tones.said
    # A missing cell has its text said again, alone, and is the same bytes.
    lost = sorted(files)[0]
    before = lost.read_bytes()
    lost.unlink()
    again = grid(tmp_path, tones, conditions=conditions)
    assert (len(again.made), len(again.kept), len(tones.said)) == (1, 3, 1)
    assert lost.read_bytes() == before
    # A changed chain is another file; so is another way to draw it.
    conditions["noise"]["street"] = AddNoise(NOISY.bank, snr=11)
    assert len(grid(tmp_path, conditions=conditions).made) == 4
    assert len(grid(tmp_path, conditions=conditions, draw_each=["noise"]).made) == 4


def test_a_clean_cell_is_what_conditions_start_from(tmp_path: Path) -> None:
    """An engine that does not say the same twice says it once, for all conditions."""
    tones = Tones(moody=True)
    grid(tmp_path, tones, conditions={"level": {"clean": None}})
    quiet = {"clean": None, "quiet": Gain(decibels=-6)}
    account = grid(tmp_path, tones, conditions={"level": quiet})
    assert len(tones.said) == len(account.made) == len(account.kept) == 4
    heard = sounds(tmp_path)
    for id in account.made:
        clean = heard[id.replace("level1", "level0")]
        assert np.allclose(heard[id], clean * 10 ** (-6 / 20), atol=1e-4)


def test_failures_are_named_and_cost_no_other_cell(tmp_path: Path) -> None:
    tones = Tones()
    conditions = {
        "level": {"own": None, "off": Silence(), "loud": Gain(decibels=20)},
        "speed": {"own": None, "half": Speed(factors=(0.5,))},
    }
    account = grid(tmp_path, tones, voices=["anna", "broken"], conditions=conditions)
    assert len(tones.said) == 4  # what fails is asked for once as well
    assert account.failed["voice1-text0-level0-speed1"] == "no voice today"
    silent = account.failed["voice0-text0-level1-speed0"]
    assert silent.startswith("level=off, speed=own: leaves silence")
    assert len(account.failed) == 4 + 12
    assert len(account.made) == 8
    # Beyond full scale the whole clip is scaled: 1.0 is the peak, and a sine stays a sine.
    heard = sounds(tmp_path)
    loud, own = heard["voice0-text0-level2-speed0"], heard["voice0-text0-level0-speed0"]
    assert np.abs(loud).max() == pytest.approx(1, abs=1e-4)
    assert np.allclose(loud, own * 2, atol=2e-4)
    written = json.loads((tmp_path / "account.json").read_text())
    assert written["failed"] == account.failed


def test_noise_that_cannot_be_added_is_a_failed_cell(tmp_path: Path) -> None:
    """A cell that is called noisy and is not would be a wrong label."""
    gap = torch.zeros(160_000)
    gap[-1] = 1.0
    bank = ClipBank([gap])
    conditions = {"noise": {"clean": None, "gap": AddNoise(bank, snr=0)}}
    account = grid(tmp_path, conditions=conditions)
    assert len(account.made) == 4
    assert all("noise=gap: could not be done" in why for why in account.failed.values())


def test_nothing_under_two_names_is_made_once(tmp_path: Path) -> None:
    account = grid(tmp_path, conditions={"noise": {"clean": None, "none": None, "street": NOISY}})
    assert account.skipped["voice0-text0-noise1"] == "the same as voice0-text0-noise0"
    assert account.factors["noise"] == 2
    assert (len(account.made), len(account.skipped)) == (8, 4)


def test_the_digest_says_all_that_a_chain_is_made_of() -> None:
    drawn = torch.Generator().manual_seed(0)
    clips = [torch.randn(4000, generator=drawn) for _ in range(2)]
    chains = [
        AddNoise(ClipBank(clips), snr=5),
        AddNoise(ClipBank(clips[::-1]), snr=5),
        AddNoise(ClipBank(clips), snr=6),
        AddNoise(ClipBank(clips), snr=5, p=0.5),
        Compose([AddNoise(ClipBank(clips), snr=5)]),
        Compose([Gain(decibels=3), Speed(factors=(0.9,))]),
        Compose([Speed(factors=(0.9,)), Gain(decibels=3)]),
        Silence(),
    ]
    assert len({content_digest(chain) for chain in chains}) == len(chains)
    # Not the names of files, nor what was done with it before.
    moved = AddNoise(ClipBank(clips, names=["there/a.wav", "there/b.wav"]), snr=5)
    moved.skipped += 3
    assert content_digest(moved) == content_digest(chains[0])
    rooms = [RoomBank([clip], direct=[0]) for clip in clips]
    assert content_digest(rooms[0]) != content_digest(rooms[1])


def test_the_digest_is_the_same_in_every_process() -> None:
    """Or nothing would be kept. Sets of names are in another order in each."""
    program = (
        "from speechft.augment import *\n"
        "from speechft.grid.conditions import content_digest\n"
        "chain = Compose([Speed(), OneOf([Gain(), Reverb(RoomBank.simulated(2))]), TimeDrop()])\n"
        "found = content_digest(chain)"
    )
    here: dict[str, Any] = {}
    exec(program, here)
    assert len(here["chain"].changes) > 1
    other = subprocess.run(
        [sys.executable, "-c", program + "; print(found)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.strip() == here["found"]


def test_wrong_conditions_are_errors_before_any_work(tmp_path: Path) -> None:
    tones = Tones()
    for changes, match in (
        ({"conditions": {"voice": {"a": None}}}, "conditions: voice is a factor of every grid"),
        ({"conditions": {"text": {"a": None}}}, "conditions: text is a factor of every grid"),
        (
            {"conditions": {"pitch": {"a": None}}, "controls": {"pitch": [1]}},
            "conditions: pitch is a control already",
        ),
        ({"conditions": {"a-b": {"a": None}}}, "conditions: wants names of letters"),
        ({"conditions": {"noise": {}}}, "conditions: noise wants at least one value"),
        ({"conditions": {"noise": ["a.yaml"]}}, "conditions: noise wants at least one value"),
        ({"draw_each": ["noise"]}, "draw_each: 'noise' is no condition of this grid: none"),
        ({"conditions": {"n": {"a": None}}, "draw_each": "n"}, "draw_each: wants a list"),
        ({"conditions": {"n": {"a": ["Babble"]}}}, "conditions: n=a has Babble in it"),
    ):
        with pytest.raises(ArgumentError, match=match):
            grid(tmp_path, tones, **changes)
    with pytest.raises(ConfigError, match="no augmentation 'Gian'; did you mean Gain"):
        grid(tmp_path, tones, conditions={"level": {"low": ["Gian"]}})
    assert not tones.said


def test_keys_are_of_names_and_of_what_is_said() -> None:
    def key(factor: str, value: str, each: bool, seed: int = 0, said: Any = ("a", "b")) -> int:
        made = load_conditions({factor: {value: ["Polarity"]}}, [factor] if each else [])
        condition = made[factor][value]
        assert condition is not None
        return condition.key(seed, said)

    assert key("noise", "street", False) == key("noise", "street", False, said=("c", "d"))
    assert key("noise", "street", True) != key("noise", "street", True, said=("a", "d"))
    keys = [
        key("noise", "street", False), key("noise", "hall", False), key("room", "street", False),
        key("noise", "street", False, 1), key("noise", "street", True),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_an_accent_is_a_control_of_espeak(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    espeak = engine("espeak-ng")

    def said(voice: str, **controls: str) -> np.ndarray:
        return espeak.speak("What a lovely morning.", voice, 0, controls).samples

    scottish = said("en-us+m1", accent="en-gb-scotland")
    assert np.array_equal(scottish, said("en-gb-scotland+m1"))
    assert len(scottish) != len(said("en-us+m1"))
    assert np.array_equal(said("en-us", accent="fr"), said("fr"))
    for accent in ("en-gb-nowhere", "fr+m1"):
        with pytest.raises(EngineError, match=re.escape(f"has no accent '{accent}'")):
            said("en-us+m1", accent=accent)
    spec = GridSpec(["hello there"], ["en-us+m1"], {"accent": ["en-us", "en-gb-scotland", "xx"]})
    account = make_grid(spec, espeak, tmp_path, workers=1, progress=False)
    assert len(account.made) == 2
    assert "no accent 'xx'" in account.failed["voice0-text0-accent2"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("espeakng_loader")
    texts, street = tmp_path / "texts.txt", tmp_path / "street.yaml"
    texts.write_text("Good morning.\n")
    street.write_text("- AddNoise: {snr: 10}\n")
    arguments = ["grid", "--texts", str(texts), "--voices", "en-us+m1", "en-us+m3"]
    arguments += ["--output", str(tmp_path / "out"), "--workers", "1"]
    noise = ["--condition", f"noise=clean,{street}", "--draw_each", "noise"]
    assert main([*arguments, *noise]) == 0
    assert "2 of voice × 1 of text × 2 of noise" in capsys.readouterr().out
    rows = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [row.extra["conditions"]["noise"] for row in rows] == ["clean", "street"] * 2
    for wrong, message in (
        (["--condition", "noise"], "--condition: wants NAME=clean,CHAIN.yaml"),
        (["--condition", "noise=a,,b"], "--condition: noise has an empty value"),
        (["--condition", "noise=a/x.yaml,b/x.yaml"], "noise has two values 'x'"),
        (["--condition", "n=clean", "--condition", "n=clean"], "--condition: n is there twice"),
        (["--condition", "noise=nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--condition", "text=clean"], "conditions: text is a factor of every grid"),
        (["--draw_each", "noise"], "draw_each: 'noise' is no condition"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
