"""Numbers in eight languages, said by voices that speak all of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from speechft.data import Manifest, Utterance, read_manifest, write_manifest
from speechft.grid import GridSpec, engine, make_grid

# Near each other in two families, so that it takes more than a single sound to tell them apart.
LANGUAGES = ("es", "pt", "it", "ro", "de", "nl", "sv", "da")


def numbers(counts: Mapping[str, int], seed: int) -> dict[str, list[str]]:
    """So many numbers for each part, from 121 to 999, all different."""
    drawn = iter(random.Random(seed).sample(range(121, 1000), sum(counts.values())))
    return {part: [str(next(drawn)) for _ in range(count)] for part, count in counts.items()}


def speak(work: Path, part: str, voices: Sequence[str], texts: Sequence[str]) -> Manifest:
    """Each text by each voice (an espeak-ng variant) in each language; made where it is not yet."""
    path = work / f"{part}.jsonl"
    if not path.exists():
        spoken = [f"{language}+{name}" for name in voices for language in LANGUAGES]
        account = make_grid(GridSpec(list(texts), spoken), engine("espeak-ng"), work / part)
        assert not account.failed, account.failed
        rows = [labelled(row, part) for row in read_manifest(work / part / "manifest.jsonl")]
        write_manifest(Manifest(rows), path)
    return read_manifest(path)


def labelled(row: Utterance, part: str) -> Utterance:
    """With its voice as the speaker, and its language."""
    language, _, voice = str(row.speaker).partition("+")
    return replace(row, id=f"{part}/{row.id}", speaker=voice, language=language, factors={})
