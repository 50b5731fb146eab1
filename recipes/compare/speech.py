"""What all methods learn from, and what they are judged on.

They learn from recordings of 20 people (Debian packages; see :mod:`recipes.interventional.people`),
28 utterances each of 1.5 to 6 seconds. Interventional refinement wants a grid, and gets one that
espeak-ng says. All are judged on the speech that ships with speechft, of five people of whom none
is in either; ``speechft/hubert-mini`` has not heard them in pre-training.
"""

from __future__ import annotations

import random
from pathlib import Path

from recipes.interventional.people import people
from recipes.interventional.speech import SIDE, train, variants
from recipes.interventional.texts import sentences
from speechft.data import Manifest, embedded_corpus, read_manifest, write_manifest
from speechft.evaluation import EvaluationData

PEOPLE, EACH = 20, 28
SECONDS = (1.5, 6.0)
BLOCKS = 3  # of the grid, each of 32 voices by 32 texts


def recordings(work: Path) -> Path:
    """Fetch and decode what is not there yet; the manifest."""
    chosen = work / "learn.jsonl"
    if chosen.exists():
        return chosen
    by_speaker: dict[str, list[int]] = {}
    rows = read_manifest(people(work))
    for number, row in enumerate(rows):
        if row.duration is not None and SECONDS[0] <= row.duration <= SECONDS[1]:
            by_speaker.setdefault(str(row.speaker), []).append(number)
    draw = random.Random(0)
    most = sorted(by_speaker, key=lambda name: (-len(by_speaker[name]), name))[:PEOPLE]
    taken = [n for name in most for n in draw.sample(by_speaker[name], EACH)]
    write_manifest(Manifest(rows[number] for number in sorted(taken)), chosen)
    return chosen


def grid(work: Path) -> Path:
    """Have espeak-ng say what is not there yet; the manifest."""
    manifest = work / "grid.jsonl"
    if not manifest.exists():
        texts = sentences(BLOCKS * SIDE)
        train(work / "grid", texts, variants()["train"], manifest, blocks=BLOCKS)
    return manifest


def judged() -> tuple[EvaluationData, EvaluationData]:
    """Sentences with phones, of one person; and clips of all five."""
    corpus = embedded_corpus()
    spoken = Manifest(row for row in corpus if row.phones is not None)
    return (
        EvaluationData("held-out sentences of festvox-ru", {"all": spoken}),
        EvaluationData("held-out clips of five people", {"all": corpus}),
    )
