"""Numbers in eight languages by the same voices: what is told apart is the language.

Every voice is an espeak-ng variant, a vocal tract, which speaks all eight languages; every text is
a number, the same in all of them. So neither who speaks nor what is meant says which language it
is. Voices to train, to validate, to choose settings on and to test on are different ones;
hubert-mini has heard none of the test's.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from recipes.interventional.speech import variants
from speechft.data import Manifest, Utterance, read_manifest, write_manifest
from speechft.grid import GridSpec, engine, make_grid

# Near each other in two families, so that it takes more than a single sound to tell them apart.
LANGUAGES = ("es", "pt", "it", "ro", "de", "nl", "sv", "da")
TEXTS = {"train": 3, "validation": 1, "choose": 2, "test": 2}


def voices() -> dict[str, list[str]]:
    """Variants of each part."""
    known = variants()
    return {
        "train": known["train"][:16],
        "validation": known["choose"][:8],
        "choose": known["choose"][8:],
        "test": known["test"],
    }


def numbers(count: int, seed: int) -> list[str]:
    """Numbers from 121 to 999, all different."""
    return [str(number) for number in random.Random(seed).sample(range(121, 1000), count)]


def prepare(work: Path) -> dict[str, Manifest]:
    """The parts, made where they are not there yet."""
    texts = numbers(sum(TEXTS.values()), 0)
    made, first = {}, 0
    for part, names in voices().items():
        path = work / f"{part}.jsonl"
        said = texts[first : first + TEXTS[part]]
        first += TEXTS[part]
        if not path.exists():
            spoken = [f"{language}+{name}" for name in names for language in LANGUAGES]
            account = make_grid(GridSpec(said, spoken), engine("espeak-ng"), work / part)
            assert not account.failed, account.failed
            rows = [labelled(row, part) for row in read_manifest(work / part / "manifest.jsonl")]
            write_manifest(Manifest(rows), path)
        made[part] = read_manifest(path)
    return made


def labelled(row: Utterance, part: str) -> Utterance:
    """With its voice as the speaker, and its language."""
    language, _, voice = str(row.speaker).partition("+")
    return replace(row, id=f"{part}/{row.id}", speaker=voice, language=language, factors={})
