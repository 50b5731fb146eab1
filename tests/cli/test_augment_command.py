"""``speechft augment``: what it writes is what the library makes, and it says what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from speechft.augment import Compose, Gain, OneOf, Polarity, Speed, TimeDrop, fold_in, make_keys
from speechft.augment.chain import load_chain, operations
from speechft.cli import main
from speechft.data import load_audio, utterance_key

RATE = 16000
CHAIN = """
- Speed: {factors: [0.9, 1.1]}
- OneOf:
    p: 0.8
    augmentations:
      - Gain: {decibels: [-6, 6]}
      - Polarity: {p: 1}
- TimeDrop: {count: [1, 3]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: half a second of a loud glide, and a chain."""
    time = np.arange(RATE // 2) / RATE
    glide = 0.9 * np.sin(2 * np.pi * (300 * time + 2000 * time**2))
    soundfile.write(tmp_path / "in.flac", glide, RATE)
    (tmp_path / "chain.yaml").write_text(CHAIN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> int:
    return main(["augment", "in.flac", *map(str, arguments), "--chain", "chain.yaml"])


def expected(*, seed: int = 0, epoch: int = 0, view: int | None = None, name: str = "in"):
    chain = Compose(
        [
            Speed((0.9, 1.1)),
            OneOf([Gain((-6, 6)), Polarity(p=1)], p=0.8),
            TimeDrop((1, 3)),
        ]
    )
    keys = make_keys(seed, epoch, torch.tensor([utterance_key(name)]))
    keys = keys if view is None else fold_in(keys, view)
    waveforms, _ = chain(torch.from_numpy(load_audio("in.flac"))[None], None, keys)
    return waveforms[0].numpy(), chain.parameters_for(keys), int(keys)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ([], {}),
        (["--seed", "5", "--epoch", "3"], {"seed": 5, "epoch": 3}),
        (["--view", "0"], {"view": 0}),
        (["--id", "a/in"], {"name": "a/in"}),
    ],
)
def test_the_file_is_what_the_library_makes(flags, key, folder, capsys):
    assert run("out.wav", *flags) == 0
    samples, _, number = expected(**key)
    assert np.array_equal(load_audio("out.wav"), samples)
    assert f"key {number}\n" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_bytes_and_another_others(folder):
    written = []
    for seed in (1, 1, 2):
        assert run("out.wav", "--seed", seed) == 0
        written.append(Path("out.wav").read_bytes())
    assert written[0] == written[1] != written[2]
    assert soundfile.info("out.wav").subtype == "FLOAT"


def test_what_was_drawn_is_printed(folder, capsys):
    for seed in range(4):
        assert run("out.wav", "--seed", seed, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        samples, drawn, key = expected(seed=seed)
        [copy] = found["copies"]
        assert (copy["key"], copy["output"]) == (key, "out.wav")
        speed, one, gain, polarity, drop = copy["steps"]
        assert [step["place"] for step in copy["steps"]] == ["0", "1", "1.0", "1.1", "2"]
        assert speed["values"] == {"factor": float(drawn.members[0]["factor"])}
        applied = [bool(member["applied"]) for member in drawn.members[1].members]
        assert [gain["applied"], polarity["applied"]] == applied
        assert one["applied"] == any(applied)
        assert gain["values"]["decibels"] == float(drawn.members[1].members[0]["decibels"])
        assert drop["values"]["count"] == int(drawn.members[2]["count"])
        assert copy["level"]["seconds"] == len(samples) / RATE
        assert copy["level"]["peak_dbfs"] == pytest.approx(20 * np.log10(np.abs(samples).max()))
        assert found["before"]["rms_dbfs"] == pytest.approx(20 * np.log10(0.9 / 2**0.5), abs=0.02)
        assert run("out.wav", "--seed", seed) == 0
        printed = capsys.readouterr().out
        assert f"Speed       factor={float(drawn.members[0]['factor']):g}\n" in printed
        assert ("not applied" in printed) == (not all(applied))


def test_what_is_in_a_composition_that_is_not_applied_is_not_either(folder, capsys):
    inner = "{OneOf: {augmentations: [Gain]}}"
    none, some = (
        f"OneOf: {{p: 0, augmentations: [{inner}]}}",
        f"SomeOf: {{count: 0, augmentations: [{inner}]}}",
    )
    chain = f"[{none}, {some}]"
    assert main(["augment", "in.flac", "o.wav", "--chain", chain, "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["copies"][0]["steps"]
    assert [(step["name"], step["applied"]) for step in steps] == [
        ("OneOf", False),
        ("OneOf", False),
        ("Gain", False),
        ("SomeOf", True),
        ("OneOf", False),
        ("Gain", False),
    ]


def test_copies_are_epochs(folder, capsys):
    assert run("made/out.wav", "--copies", 3, "--epoch", 4) == 0
    for number in range(3):
        assert np.array_equal(load_audio(f"made/out-{number}.wav"), expected(epoch=4 + number)[0])
    assert capsys.readouterr().out.count("written to") == 3


def test_samples_beyond_full_scale_are_kept_in_floats_and_clipped_in_integers(folder, capsys):
    chain = ["--chain", "[Gain: {decibels: 6}]"]
    loud = load_audio("in.flac") * np.float32(10**0.3)
    beyond = int((np.abs(loud) > 1).sum())
    assert beyond
    assert main(["augment", "in.flac", "out.wav", *chain]) == 0
    printed = capsys.readouterr().out
    assert f"{beyond}\n  samples beyond full scale: kept" in printed
    np.testing.assert_allclose(load_audio("out.wav"), loud, rtol=1e-5)
    assert main(["augment", "in.flac", "out.flac", *chain]) == 0
    assert "clipped in the file" in capsys.readouterr().out
    np.testing.assert_allclose(load_audio("out.flac"), loud.clip(-1, 1), atol=2e-6)
    assert main(["augment", "in.flac", "out.ogg", *chain]) == 0
    assert np.abs(load_audio("out.ogg")).max() < 1.4 < np.abs(loud).max()  # Vorbis is not exact


def test_what_was_skipped_is_said_and_silence_has_no_level(folder, capsys):
    soundfile.write("in.flac", np.zeros(1000), RATE)
    assert main(["augment", "in.flac", "o.wav", "--chain", "[AddNoise, Babble]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["before"]["rms_dbfs"] is None
    assert [step["skipped"] for step in found["copies"][0]["steps"]] == [True, True]
    assert main(["augment", "in.flac", "o.wav", "--chain", "[AddNoise, Babble]"]) == 0
    printed = capsys.readouterr().out
    assert "skipped: 2" in printed
    assert "silence" in printed
    assert "alone in its batch" in printed


def test_the_names_of_clips_are_printed(folder, capsys):
    assert main(["augment", "in.flac", "o.wav", "--chain", "[AddNoise: {voices: 3}]"]) == 0
    line = next(row for row in capsys.readouterr().out.splitlines() if "clips=" in row)
    assert all(word in ("white", "pink", "brown") for word in line.split("[")[1].split()[::2][:3])


def test_the_picture_shows_something(folder):
    pytest.importorskip("matplotlib")
    from PIL import Image

    assert run("out.wav", "--copies", 2, "--plot", "pictures/out.png") == 0
    picture = Image.open("pictures/out.png")
    assert picture.format == "PNG"
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] == 900
    assert pixels.shape[0] > 800  # three panels of 310
    for part in np.array_split(pixels[60:-60, 100:800], 3):
        assert part.std() > 20
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 30


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "IN is missing"),
        (["in.flac"], "OUT is missing"),
        (["in.flac", "out.wav"], "--chain is missing"),
        (["in.flac", "out.wav", "--chian", "x"], "did you mean --chain?"),
        (["in.flac", "out.wav", "--chain", "[Sped]"], "did you mean Speed?"),
        (["in.flac", "out.wav", "--chain", "none.yaml"], "there is no file none.yaml"),
        (["in.flac", "out.mp3", "--chain", "[Speed]"], "ends in .wav, .flac, .ogg"),
        (["in.flac", "in.flac", "--chain", "[Speed]"], "is what is read"),
        (["in.flac", "out.wav", "--chain", "[Speed]", "--copies", "0"], "at least 1"),
        (["in.flac", "out.wav", "--chain", "[Speed]", "--plot", "a.jpg"], ".png"),
        (["in.flac", "out.wav", "--chain", "[Speed]", "--seed", "x"], "--seed"),
        (["in.flac", "chain.yaml/out.wav", "--chain", "[Speed]"], "cannot be written"),
    ],
)
def test_usage_errors_are_code_2(arguments, hint, folder, capsys):
    assert main(["augment", *arguments]) == 2
    assert hint in capsys.readouterr().err
    assert not Path("out.wav").exists()


@pytest.mark.parametrize("content", [None, b"", b"RIFF and no more", b"\0" * 100])
def test_bad_audio_is_code_3_and_writes_nothing(content, folder, capsys):
    Path("in.flac").unlink()
    if content is not None:
        Path("in.flac").write_bytes(content)
    assert run("out.wav") == 3
    assert "in.flac" in capsys.readouterr().err
    assert not Path("out.wav").exists()


def test_list_has_a_line_for_each_augmentation_that_a_chain_can_hold(capsys):
    assert main(["augment", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0][2:] for line in lines] == list(operations())
    for line in lines:
        assert line.partition("#")[2].strip()
        [entry] = yaml.safe_load(line)
        [(name, arguments)] = entry.items()
        if "..." not in arguments.values():
            [made] = load_chain(line + "\n").members
            assert repr(made) == repr(operations()[name]())
    assert main(["augment", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["Speed"]["changes"] == ["speaker", "timing"]
    assert found["Gain"]["arguments"] == {"decibels": [-12.0, 6.0], "p": 1.0}


def test_the_page_has_every_augmentation():
    page = Path(__file__).parents[2] / "docs" / "augment.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in operations() if f"| `{name}`" not in text] == []
