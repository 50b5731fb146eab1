"""Perturbations of waveforms, batched, a value a sample, drawn from keys.

Every class is a module with one face, ``module(waveforms, lengths, keys) -> (waveforms, lengths)``:
see :class:`Augmentation`. Every key is a pure function of (seed, epoch, utterance): see
:func:`make_keys`.
"""

from __future__ import annotations

from speechft.augment.adapters import AugmentingCollate, Stateful
from speechft.augment.bank import ClipBank
from speechft.augment.base import Augmentation
from speechft.augment.chain import load_chain
from speechft.augment.compose import Compose, OneOf, SomeOf
from speechft.augment.crop import MultiCrop, RandomCrop
from speechft.augment.equaliser import Equaliser
from speechft.augment.filters import BandDrop, HighPass, LowPass
from speechft.augment.keys import fold_in, make_keys, randint, uniform
from speechft.augment.noise import AddNoise, Babble
from speechft.augment.parameters import Parameters
from speechft.augment.pitch import Pitch
from speechft.augment.pointwise import Clip, Gain, MuLaw, Polarity, Quantise, TimeDrop
from speechft.augment.reverb import Reverb, RoomBank
from speechft.augment.spec_augment import SpecAugment
from speechft.augment.speed import Speed
from speechft.augment.tempo import Tempo
from speechft.augment.voice import Voice

__all__ = [
    "AddNoise",
    "Augmentation",
    "AugmentingCollate",
    "Babble",
    "BandDrop",
    "Clip",
    "ClipBank",
    "Compose",
    "Equaliser",
    "Gain",
    "HighPass",
    "LowPass",
    "MuLaw",
    "MultiCrop",
    "OneOf",
    "Parameters",
    "Pitch",
    "Polarity",
    "Quantise",
    "RandomCrop",
    "Reverb",
    "RoomBank",
    "SomeOf",
    "SpecAugment",
    "Speed",
    "Stateful",
    "Tempo",
    "TimeDrop",
    "Voice",
    "fold_in",
    "load_chain",
    "make_keys",
    "randint",
    "uniform",
]
