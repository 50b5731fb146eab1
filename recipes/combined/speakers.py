"""Who it is that says a number, in any of eight languages: few labels a voice.

Step one has 32 voices, and the voices that are told apart, by a few labelled utterances of each,
are others: 20 to choose settings by, or the 20 of the test, of whom hubert-mini has heard none.
Labelled utterances, those that validate and those that are judged are of different texts. The few
labels of a voice are each in another language, so that 3 in 4 of what is judged, or half, are in a
language that the voice has no label in.
"""

from __future__ import annotations

from pathlib import Path

from recipes.combined.spoken import numbers, speak
from recipes.interventional.speech import variants
from speechft.data import Manifest
from speechft.evaluation import EvaluationData
from speechft.methods.two_step_config import TwoStepConfig

CONFIG = TwoStepConfig(
    label="speaker", layer=2, tuned_layers=2, mining="hard", dropout=0.1, keep_projector=False,
    end_to_end_dropout=0.5, steps=300, adapter_steps=50, learning_rates=(1e-3,),
    adapter_learning_rate=3e-3, shots=(1, 2),
)  # fmt: skip
LABELLED = (2, 4)
TEXTS = {"space": 2, "train": 1, "validation": 1, "test": 2}


def prepare(work: Path, part: str) -> tuple[EvaluationData, Manifest | None]:
    """What is learnt from and judged on, of voices to choose by or of those of the test."""
    known, texts = variants(), numbers(TEXTS, 1)
    space = speak(work, "space", known["train"], texts.pop("space"))
    made = {name: speak(work, f"{part}-{name}", known[part], said) for name, said in texts.items()}
    return EvaluationData(f"voices ({part})", made), space
