"""Perturbations of waveforms, batched, a value a sample, drawn from keys.

Every class is a module with one face, ``module(waveforms, lengths, keys) -> (waveforms, lengths)``:
see :class:`Augmentation`. Every key is a pure function of (seed, epoch, utterance): see
:func:`make_keys`.
"""

from __future__ import annotations

from speechft.augment.base import Augmentation
from speechft.augment.compose import Compose
from speechft.augment.keys import fold_in, make_keys, randint, uniform
from speechft.augment.pitch import Pitch
from speechft.augment.speed import Speed

__all__ = [
    "Augmentation",
    "Compose",
    "Pitch",
    "Speed",
    "fold_in",
    "make_keys",
    "randint",
    "uniform",
]
