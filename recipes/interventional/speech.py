"""The grids: one to learn from, one to choose sizes on, one to test; no voice is in two of them.

A voice of the first is one of 32 espeak-ng variants with a pitch, a rate, a length of the vocal
tract (speech resampled, its rate and pitch set to make up for it) and an equaliser of its own:
256 voices, in 8 blocks of 32 x 32 texts, 8,192 utterances. Those to choose and to test on are 20
variants each, as they are. hubert-mini has heard none of the test's variants.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.hubert_mini.voices import ESPEAK_VARIANTS
from recipes.interventional.texts import WORDS, sentences
from speechft.augment import Equaliser, make_keys
from speechft.data import Manifest, read_manifest, write_manifest
from speechft.grid import Engine, GridSpec, Spoken, engine, make_grid

BLOCKS, SIDE = 8, 32
TESTED = 20
TEST_TEXTS = 64
RATE = 16_000

# Effects rather than voices (a whisper, a robot, a shout), and copies of other variants.
LEFT_OUT = frozenset(
    (
        "Demonic UniRobot anikaRobot announcer croak fast whisper whisperf Gene2 RicishayMax "
        "RicishayMax2 RicishayMax3 iven2 iven3 iven4 klatt2 klatt3 klatt4 klatt5 klatt6 robosoft "
        "robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 steph2 steph3 "
        "edward2 mike2"
    ).split()
)


class ChangedVoices(Engine):
    """espeak-ng whose voices are JSON: a variant, and what is done to it."""

    name = "changed-espeak-ng"

    def __init__(self) -> None:
        self.espeak = engine("espeak-ng")
        self.equaliser = Equaliser(sample_rate=RATE)

    def version(self) -> str:
        """See :class:`Engine`."""
        return f"{self.espeak.version()} 1"

    def speak(self, text: str, voice: str, seed: int, controls: Any) -> Spoken:
        """See :class:`Engine`."""
        import soxr

        how = json.loads(voice)
        said = self.espeak.speak(
            text, how["variant"], seed, {name: how[name] for name in ("pitch", "rate", "range")}
        )
        samples = soxr.resample(said.samples, said.rate * how["tract"], RATE)
        waveform = torch.from_numpy(np.asarray(samples, np.float32))[None]
        keys = make_keys(seed, 0, torch.tensor([how["number"]]))
        waveform, _ = self.equaliser(waveform, torch.tensor([waveform.shape[1]]), keys)
        equalised = waveform[0].numpy()
        return Spoken(equalised / max(1.0, float(np.abs(equalised).max())), RATE)


def variants() -> dict[str, list[str]]:
    """Of espeak-ng, by what they are for."""
    rng = random.Random(0)
    names = [voice.partition("+")[2] for voice in engine("espeak-ng").voices()]
    usable = [name for name in names if name not in LEFT_OUT]
    unheard = [name for name in usable if name not in ESPEAK_VARIANTS]
    rng.shuffle(unheard)
    test = unheard[:TESTED]
    rest = [name for name in usable if name not in test]
    rng.shuffle(rest)
    return {"test": test, "choose": rest[:TESTED], "train": rest[TESTED:]}


def prepare(work: Path) -> dict[str, Path]:
    """Make what is not there yet; manifests by name: train, choose, choose-words, test, words."""
    found = {name: work / f"{name}.jsonl" for name in
             ("train", "choose", "choose-words", "test", "test-words")}  # fmt: skip
    texts = sentences(BLOCKS * SIDE + 2 * TEST_TEXTS)
    voices = variants()
    train(work, texts[: BLOCKS * SIDE], voices["train"], found["train"])
    for part, first in (("choose", BLOCKS * SIDE), ("test", BLOCKS * SIDE + TEST_TEXTS)):
        said = [f"en-us+{name}" for name in voices[part]]
        spec = GridSpec(texts[first : first + TEST_TEXTS], said)
        make_grid(spec, engine("espeak-ng"), work / part)
        write_manifest(read_manifest(work / part / "manifest.jsonl"), found[part])
        spec = GridSpec(WORDS, said, {"rate": [140, 175, 220]})
        make_grid(spec, engine("espeak-ng"), work / f"{part}-words")
        rows = read_manifest(work / f"{part}-words" / "manifest.jsonl")
        fold = {voice: f"{number % 5}" for number, voice in enumerate(said)}
        write_manifest(
            Manifest(
                replace(
                    row,
                    factors={
                        **row.factors, "keyword": str(row.text), "fold": fold[str(row.speaker)]
                    },
                )
                for row in rows
            ),
            found[f"{part}-words"],
        )  # fmt: skip
    return found


def join(manifest: Path, parts: dict[str, Path]) -> None:
    """Several manifests as one."""
    rows = [
        replace(row, id=f"{name}/{row.id}", factors={})
        for name, path in parts.items()
        for row in read_manifest(path)
    ]
    write_manifest(Manifest(rows), manifest)


def train(
    work: Path, texts: list[str], names: list[str], manifest: Path, *, blocks: int = BLOCKS
) -> None:
    """The blocks, joined."""
    rng = random.Random(1)
    voices = []
    for number in range(blocks * SIDE):
        tract = rng.uniform(0.83, 1.2)
        how = {
            "number": number, "variant": f"en-us+{names[number % len(names)]}", "tract": tract,
            "pitch": rng.randint(10, 90), "rate": int(rng.randint(140, 210) / tract),
            "range": rng.randint(20, 80),
        }  # fmt: skip
        voices.append(json.dumps(how))
    rng.shuffle(voices)
    made = {}
    for block in range(blocks):
        part = slice(block * SIDE, (block + 1) * SIDE)
        folder = work / "train" / str(block)
        make_grid(GridSpec(texts[part], voices[part]), ChangedVoices(), folder)
        made[str(block)] = folder / "manifest.jsonl"
    join(manifest, made)
