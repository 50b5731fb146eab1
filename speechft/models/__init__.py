"""Encoders that are right about padding: wav2vec 2.0, HuBERT and WavLM from transformers.

    encoder = speechft.models.load("microsoft/wavlm-base-plus")
    hidden_states, last_hidden_state, lengths = encoder(waveforms, lengths)

:func:`load` and :func:`wrap` give an :class:`Encoder`, whose features of an utterance depend on
that utterance alone, whatever it is batched with. transformers itself is imported by the calls
that need it.
"""

from __future__ import annotations

from speechft.models.backbones import load_backbone
from speechft.models.dino_head import DINOHead
from speechft.models.embedding import (
    EmbeddingModel,
    EmbeddingSpec,
    load_embedding,
    make_embedding,
)
from speechft.models.encoder import SUPPORTED, Encoder, EncoderOutput
from speechft.models.loading import load, wrap
from speechft.models.subspaces import FoldedEncoder, SubspaceModel, load_subspaces
from speechft.models.tiny import tiny
from speechft.models.units import UnitHead, UnitModel, Units
from speechft.models.units_saving import load_units

__all__ = [
    "SUPPORTED",
    "DINOHead",
    "EmbeddingModel",
    "EmbeddingSpec",
    "Encoder",
    "EncoderOutput",
    "FoldedEncoder",
    "SubspaceModel",
    "UnitHead",
    "UnitModel",
    "Units",
    "load",
    "load_backbone",
    "load_embedding",
    "load_subspaces",
    "load_units",
    "make_embedding",
    "tiny",
    "wrap",
]
