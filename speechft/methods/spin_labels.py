"""Pseudo-labels of frames, from an earlier run of Spin: its units, or acoustic pieces of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from speechft.data import SpeechDataset
from speechft.errors import ArgumentError, ConfigError
from speechft.evaluation.embeddings import data_key, model_key
from speechft.evaluation.units import extract_units
from speechft.methods.pieces import MOST_CODES, Pieces, train_pieces
from speechft.methods.spin_config import SpinConfig
from speechft.methods.spin_parts import hop_of
from speechft.models import Encoder, load_units
from speechft.models.units import UnitFrames
from speechft.models.units_saving import read_unit_config

_FORMAT = 1  # of what is kept; raised when the same model and data would give something else


def number_of_labels(config: SpinConfig) -> int:
    """How many classes there are to predict.

    Raises:
        ConfigError: a folder without units, or more units than pieces.
    """
    assert config.pseudo_labels is not None
    try:
        codes = read_unit_config(config.pseudo_labels, "pseudo_labels")["codes"]
    except ArgumentError as error:
        raise ConfigError(str(error)) from error
    if config.pieces is None:
        return codes
    if not codes <= config.pieces or codes > MOST_CODES:
        raise ConfigError(
            f"pieces: wants at least the {codes} units that {config.pseudo_labels} has, and those "
            f"at most {MOST_CODES}; got {config.pieces}"
        )
    return config.pieces


def pseudo_labels(
    config: SpinConfig,
    encoder: Encoder,
    dataset: SpeechDataset,
    folder: Path,
    *,
    device: torch.device,
) -> list[Tensor]:
    """The label of every frame of every utterance, whole and unperturbed.

    They are made once and kept in a folder whose name says of what (the model's weights, the data,
    what is done to short utterances), so a resumed run reads them; one that was stopped while they
    were made goes on with what was missing.

    Args:
        config: of the method.
        encoder: that is to learn them.
        dataset: the utterances.
        folder: to keep them in.
        device: to compute on.

    Returns:
        (F,) int32 of each utterance.

    Raises:
        ConfigError: the model has other frames than the encoder.
    """
    assert config.pseudo_labels is not None
    model = load_units(config.pseudo_labels, device=device)
    frames = [
        (each.sample_rate, each.minimum_samples, hop_of(each)) for each in (model.encoder, encoder)
    ]
    if frames[0] != frames[1]:
        rate, window, hop = frames[0]
        raise ConfigError(
            f"pseudo_labels: the frames of {config.pseudo_labels} are of {window} samples every "
            f"{hop} at {rate} Hz, and the encoder's of {frames[1][1]} every {frames[1][2]} at "
            f"{frames[1][0]} Hz; frames have to be the same"
        )
    what = [
        _FORMAT, model_key(UnitFrames(model)), data_key(dataset.manifest),
        hashlib.sha256(dataset.lengths.numpy().tobytes()).hexdigest(),
    ]  # fmt: skip
    place = folder / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    units = extract_units(model, dataset, cache=place)
    if config.pieces is None:
        return units
    file = place / f"pieces-{config.pieces}.json"
    if file.is_file():
        pieces = Pieces.load(file)
    else:
        pieces = train_pieces(units, config.pieces)
        part = file.with_suffix(".part")
        pieces.save(part)
        part.replace(file)
    labels = [pieces.labels(row) for row in units]
    # Processes that decode audio are forked from this one, and use no tokenizer.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return labels
