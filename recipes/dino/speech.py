"""Who is heard, who is labelled, who is judged."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from recipes.interventional.speech import prepare
from speechft.data import Manifest, Utterance, embedded_corpus, read_manifest


def parts(work: Path) -> dict[str, Manifest]:
    """Voices to learn from, to choose on and to judge by, made where they are not there yet."""
    made = prepare(work)
    found = {}
    for name in ("train", "choose", "test"):
        rows = read_manifest(made[name])
        # Ids are of a grid each: two may have the same.
        found[name] = Manifest(replace(row, id=f"{name}/{row.id}") for row in rows)
    return found


def heard(train: Manifest) -> Manifest:
    """What DINO hears: the synthesized voices and the speech that ships with speechft."""
    return Manifest([*train, *embedded_corpus()])


def few(manifest: Manifest, voices: int, each: int, seed: int) -> Manifest:
    """Some utterances of some voices, drawn by a seed."""
    of: dict[str, list[Utterance]] = defaultdict(list)
    for row in manifest:
        of[str(row.speaker)].append(row)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(of), min(voices, len(of)))
    rows = [row for name in chosen for row in rng.sample(of[name], min(each, len(of[name])))]
    return Manifest(rows, source=manifest.source)
