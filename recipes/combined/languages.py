"""Which language it is that a voice says a number in: few labels, on voices that none is of.

Every voice is an espeak-ng variant, a vocal tract, which speaks all eight languages; every text is
a number, the same in all of them. So neither who speaks nor what is meant says which language it
is. Voices to train, to validate, to choose settings on and to test on are different ones;
hubert-mini has heard none of the test's. Both steps learn from the same labelled utterances.
"""

from __future__ import annotations

from pathlib import Path

from recipes.combined.spoken import numbers, speak
from recipes.interventional.speech import variants
from speechft.data import Manifest
from speechft.evaluation import EvaluationData
from speechft.methods.two_step_config import TwoStepConfig

# Chosen with --choose: dropout of both sides, mining, the learning rate, the layer by its probe.
CONFIG = TwoStepConfig(
    label="language", layer=2, tuned_layers=2, mining="hard", dropout=0.1, end_to_end_dropout=0.5,
    steps=100, adapter_steps=50, learning_rates=(1e-3,), adapter_learning_rate=3e-3,
)  # fmt: skip
LABELLED = (8,)
TEXTS = {"train": 3, "validation": 1, "choose": 2, "test": 2}


def prepare(work: Path, part: str) -> tuple[EvaluationData, Manifest | None]:
    """What is learnt from and judged on: voices to choose by, or those of the test."""
    known = variants()
    voices = {
        "train": known["train"][:16],
        "validation": known["choose"][:8],
        "choose": known["choose"][8:],
        "test": known["test"],
    }
    made = {name: speak(work, name, voices[name], said) for name, said in numbers(TEXTS, 0).items()}
    parts = {"train": made["train"], "validation": made["validation"], "test": made[part]}
    return EvaluationData(f"numbers ({part})", parts), None
