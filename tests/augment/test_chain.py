"""Chains as data: what a file says is what Python would have made, and errors say where."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import speechft.augment as augment
from speechft.augment import (
    AddNoise,
    Augmentation,
    Babble,
    ClipBank,
    Compose,
    Gain,
    MuLaw,
    OneOf,
    Polarity,
    Reverb,
    RoomBank,
    SomeOf,
    Speed,
    make_keys,
    rooms,
)
from speechft.augment.chain import load_chain, operations
from speechft.augment.parameters import Parameters
from speechft.errors import ArgumentError, AudioError, ConfigError

RATE = 16000
REQUIRED = {"augmentations": [{"Gain": {"decibels": -3}}, "Polarity"], "seconds": 0.1}
"""Values for arguments without a default, by name."""

CHAIN = """
# Comments are for people.
- Speed: {factors: [0.9, 1.1]}
- OneOf:
    p: 0.7
    weights: [2, 1, 1]
    augmentations:
      - AddNoise: {bank: ../noise, snr: [0, 18]}
      - AddNoise: {bank: ../noise, snr: 5, voices: [2, 3]}
      - Babble
- SomeOf: {count: [0, 2], augmentations: [Polarity, {Gain: {decibels: [-6, 6]}}]}
- Reverb: {bank: ../rooms, p: 0.45}
- MuLaw:
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Banks, and a folder beside them for the chain."""
    generator = np.random.default_rng(0)
    for name, samples in (("noise/a", 4000), ("noise/deep/b", 900), ("rooms/r", 300)):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        decay = np.exp(-np.arange(samples) / 100) if name == "rooms/r" else 1.0
        soundfile.write(path, 0.1 * decay * generator.standard_normal(samples), RATE)
    (tmp_path / "chains").mkdir()
    return tmp_path


def batch() -> tuple[Tensor, Tensor, Tensor]:
    waveforms = torch.randn(6, 2000, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths = torch.tensor([2000, 1500, 700, 1999, 1, 2000])
    return waveforms, lengths, make_keys(3, 1, torch.arange(6))


def assert_same(one: Augmentation, other: Augmentation) -> None:
    (a, a_lengths), (b, b_lengths) = one(*batch()), other(*batch())
    assert torch.equal(a_lengths, b_lengths)
    assert torch.equal(a, b)


def test_a_file_is_what_python_makes(folder):
    path = folder / "chains" / "chain.yaml"
    path.write_text(CHAIN)
    noise = ClipBank.from_folder(folder / "noise")
    by_hand = Compose(
        [
            Speed((0.9, 1.1)),
            OneOf(
                [AddNoise(noise, (0, 18)), AddNoise(noise, 5, voices=(2, 3)), Babble()],
                weights=(2, 1, 1),
                p=0.7,
            ),
            SomeOf([Polarity(), Gain((-6, 6))], (0, 2)),
            Reverb(RoomBank.from_folder(folder / "rooms"), p=0.45),
            MuLaw(),
        ]
    )
    chain = load_chain(path)
    assert repr(chain) == repr(by_hand)
    assert_same(chain, by_hand)
    # The banks of two entries are one in memory.
    first, second, _ = chain.members[1].members
    assert first.bank is second.bank


def test_a_path_a_text_a_list_and_json_are_the_same(folder, monkeypatch):
    monkeypatch.chdir(folder)
    entries = [{"Speed": {"factors": [0.9]}}, {"AddNoise": {"bank": "noise"}}, "MuLaw"]
    text = "- Speed: {factors: [0.9]}\n- AddNoise: {bank: noise}\n- MuLaw\n"
    (folder / "chain.json").write_text(json.dumps(entries, indent=2))
    expected = Compose([Speed((0.9,)), AddNoise(ClipBank.from_folder("noise")), MuLaw()])
    for source in (text, entries, json.dumps(entries), "chain.json", folder / "chain.json"):
        assert_same(load_chain(source), expected)


def test_a_list_may_hold_modules_and_banks():
    bank = ClipBank([torch.randn(100)])
    chain = load_chain(
        [Gain(3), {"AddNoise": {"bank": bank}}, {"OneOf": {"augmentations": [MuLaw()]}}]
    )
    assert chain.members[1].bank is bank
    assert isinstance(chain.members[2].members[0], MuLaw)


@pytest.mark.parametrize("name", list(operations()))
def test_every_public_augmentation_can_be_named(name):
    kind = operations()[name]
    required = {
        argument: REQUIRED[argument]
        for argument, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
    }
    chain = load_chain([{name: required}])
    assert type(chain.members[0]) is kind
    if "augmentations" in required:
        required["augmentations"] = [Gain(-3), Polarity()]
    assert_same(chain, Compose([kind(**required)]))


def test_names_are_those_of_the_package_and_new_ones_come_by_themselves(monkeypatch):
    assert {"Speed", "AddNoise", "OneOf", "MuLaw"} <= set(operations())
    assert not {"Augmentation", "ClipBank", "RoomBank", "Parameters"} & set(operations())

    class Wrapper(Gain):
        def __init__(self, inner: Augmentation, more: Sequence[Augmentation] | None = None):
            super().__init__(0)
            self.inner, self.more = inner, more

    monkeypatch.setattr(augment, "Wrapper", Wrapper, raising=False)
    monkeypatch.setattr(augment, "__all__", [*augment.__all__, "Wrapper"])
    monkeypatch.setitem(Wrapper.__init__.__globals__, "Augmentation", Augmentation)
    [wrapper] = load_chain("[Wrapper: {inner: MuLaw, more: [Speed, {Gain: {p: 0.5}}]}]").members
    assert isinstance(wrapper.inner, MuLaw)
    assert [type(one) for one in wrapper.more] == [Speed, Gain]
    [wrapper] = load_chain("[Wrapper: {inner: {Gain: {p: 0.5}}}]").members
    assert (wrapper.inner.p, wrapper.more) == (0.5, None)


def test_the_sample_rate_goes_to_all_that_want_to_know():
    chain = load_chain(
        "[{LowPass: {cutoff: 3000}}, {TimeDrop: {sample_rate: 44100}}, AddNoise, Reverb]",
        sample_rate=8000,
    )
    low, drop, noise, reverb = chain.members
    assert (low.sample_rate, drop.sample_rate) == (8000, 44100)
    assert torch.equal(noise.bank.samples, ClipBank.coloured(sample_rate=8000).samples)
    assert torch.equal(reverb.bank.responses, RoomBank.simulated(sample_rate=8000).responses)
    # Frequencies that such waveforms do not have.
    with pytest.raises(ConfigError, match=r"line 1, 0\.LowPass\.cutoff: wants 1 to 4000"):
        load_chain("[{LowPass: {cutoff: 5000}}]", sample_rate=8000)
    with pytest.raises(ArgumentError, match="sample_rate"):
        load_chain("[Speed]", sample_rate=0)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("- Speed\n- speeed", "line 2, 1: ", "no augmentation 'speeed'; did you mean Speed?"),
        ("- Augmentation", "line 1, 0: ", "no augmentation 'Augmentation'"),
        ("- qqq", "line 1, 0: ", "there are AddNoise, Babble"),
        (
            "- OneOf:\n    p: 0.5\n    augmentations:\n      - Gain\n      - AddNois: {p: 1}\n",
            "line 5, 0.OneOf.augmentations.1: ",
            "no augmentation 'AddNois'; did you mean AddNoise?",
        ),
        (
            "- Speed:\n    p: 1\n    factor: [0.9]\n",
            "line 3, 0.Speed: ",
            "no argument 'factor'; did you mean factors?",
        ),
        ("- Speed: {1: 2}", "line 1, 0.Speed: ", "no argument 1; there are"),
        (
            "- MuLaw\n- Speed:\n    p: 1\n    factors: [0.9, 100]\n",
            "line 4, 1.Speed.factors: ",
            "wants speeds from 0.1 to 10, got 100",
        ),
        ("- Gain: {p: yes}", "line 1, 0.Gain.p: ", "wants a probability, 0 to 1, got True"),
        ("- Speed: {zero_crossings: x}", "line 1, 0.Speed: ", "'zero_crossings': 'x'"),
        ("- Speed: 0.9", "line 1, 0.Speed: ", "wants its arguments by name, such as {p: 0.5}"),
        ("- Speed:\n  p: 0.5", "line 1, 0: ", "wants one augmentation an entry, got Speed, p"),
        ("- 3", "line 1, 0: ", "wants the name of an augmentation"),
        ("- [Speed]", "line 1, 0: ", "wants the name of an augmentation"),
        ("- {}", "line 1, 0: ", "wants one augmentation an entry, got nothing"),
        ("- OneOf", "line 1, 0.OneOf: ", "wants the argument 'augmentations'"),
        ("- OneOf: {augmentations: []}", "line 1, 0.OneOf.augmentations: ", "is empty"),
        (
            "- OneOf: {augmentations: Gain}",
            "line 1, 0.OneOf.augmentations: ",
            "wants a list of augmentations",
        ),
        ("- AddNoise: {bank: nowhere}", "line 1, 0.AddNoise.bank: ", "nowhere is no folder"),
        ("- Reverb:\n    bank: [a]", "line 2, 0.Reverb.bank: ", "wants a folder of audio"),
        ("- Speed: {p: 1, p: 0}", "line 1: ", "'p' stands there twice"),
        ("- Speed\n- [", "line 2: ", "is not YAML"),
        ("- Speed\n---\n- Speed\n", "line 2: ", "is not YAML"),
        ("- &a [*a]", "line 1: ", "alias within what it stands for"),
        ("- ? [a]\n  : b\n", "line 1: ", "wants a name before the colon"),
        ("- !!python/name:os.system x", "line 1: ", "is not YAML"),
        ("Speed: {p: 1}\n", "", "wants a list of augmentations"),
        ("", "", "is empty"),
        ("# nothing\n", "", "is empty"),
        ("[]", "", "is empty"),
    ],
)
def test_errors_name_the_file_the_line_and_the_entry(text, place, message, tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text(text)
    where = f"{path}, {place}" if place else f"{path}: "
    with pytest.raises(ConfigError) as error:
        load_chain(path)
    assert str(error.value).startswith(where)
    assert message in str(error.value)
    if text:  # which as a path would be the working directory
        with pytest.raises(ConfigError) as error:
            load_chain(text if "\n" in text else text + "\n")
        assert str(error.value).startswith(f"chain, {place}" if place else "chain: ")


def test_errors_in_a_list_of_python_have_the_entry():
    with pytest.raises(ConfigError, match=r"^chain, 0\.OneOf\.augmentations\.0\.Gain\.p: wants"):
        load_chain([{"OneOf": {"augmentations": [{"Gain": {"p": 2}}]}}])
    with pytest.raises(ConfigError, match="wants a list"):
        load_chain({"Gain": None})


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file missing\.yaml"):
        load_chain("missing.yaml")
    with pytest.raises(ConfigError, match="there is no file"):
        load_chain(tmp_path)
    (tmp_path / "chain.yaml").write_bytes(b"- \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_chain(tmp_path / "chain.yaml")


def test_bad_audio_in_a_bank_is_bad_audio(folder):
    (folder / "noise" / "c.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"c\.wav"):
        load_chain([{"AddNoise": {"bank": str(folder / "noise")}}])


def test_without_yaml_a_list_still_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match="needs PyYAML"):
        load_chain("- MuLaw\n")
    assert isinstance(load_chain(["MuLaw"]).members[0], MuLaw)


def test_parameters_are_counted_as_errors_count():
    chain = load_chain("[MuLaw, {OneOf: {augmentations: [MuLaw, {Gain: {decibels: 3}}]}}]")
    drawn = chain.parameters_for(make_keys(0, 0, torch.arange(2)))
    assert isinstance(drawn, Parameters)
    assert drawn.flat()["1.1.decibels"].tolist() == [3, 3]


def test_simulated_rooms_are_the_same_on_any_number_of_threads():
    """A grid is known by a digest of them."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rooms.simulate_rooms.cache_clear()
            found.append(RoomBank.simulated(2).responses)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
