r"""SCORE: self-supervised correspondence fine-tuning, for content.

An utterance and a copy of it at another speed and pitch say the same thing. One goes through the
encoder that is tuned, the other through the frozen one it started as; soft-DTW aligns the two
sequences and pulls them together:

.. math::

    L = \frac{\operatorname{sdtw}_\gamma(X, Y) - \frac12 (\operatorname{sdtw}_\gamma(X, X)
        + \operatorname{sdtw}_\gamma(Y, Y))}{n + m}

where :math:`X` and :math:`Y` are the connector's projections of the last layers, each frame of
unit length. The connector is shared, trained through both sides, and thrown away. The frozen
target is what keeps the features from collapsing.

Source: Meghanani & Hain, "SCORE: Self-supervised Correspondence Fine-tuning for Improved Content
Representations", ICASSP 2024.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from speechft.augment import Compose, Pitch, Speed, fold_in, uniform
from speechft.functional import mean_pooling
from speechft.losses import SoftDTWLoss
from speechft.methods.base import MethodConfig, MethodOutput, check_numbers
from speechft.methods.content import (
    ContentMethod,
    View,
    make_connector,
    project,
    same_length,
    tune_top,
)
from speechft.models import Encoder, EncoderOutput

# Speeds as published, by the kind of encoder; a wav2vec 2.0 gets those of HuBERT.
SPEEDS = {"wavlm": (0.85, 0.9, 1.0, 1.1, 1.15)}
HUBERT_SPEEDS = (0.9, 1.0, 1.1)


@dataclass(frozen=True)
class ScoreConfig(MethodConfig):
    """Settings of SCORE; the defaults are the paper's.

    Args:
        gamma: smoothing of the soft-DTW, on squared distances of unit vectors.
        bandwidth: frames that the alignment may leave the diagonal by, 1 or more as speeds
            differ; None: any number.
        tuned_layers: transformer layers tuned, counted from the top.
        speeds: speed factors to draw from; None: the paper's for the kind of encoder.
        semitones: pitch shifts to draw from.
        connector: ``"linear"``, or ``"mlp"`` for Linear-ReLU-Linear; ``"auto"``: as published,
            the MLP for WavLM and linear for others.
        connector_size: size of its output.
        target_dropout: leave the frozen target's dropout on, as the released code does by never
            calling ``eval()``; the paper calls it frozen.
        tune_feature_norm: also tune the layer norm in front of the transformer, which the released
            code does by a match of names; the paper tunes the top two layers.

    Raises:
        ConfigError: a value out of range.
    """

    gamma: float = 0.1
    bandwidth: int | None = None
    tuned_layers: int = 2
    speeds: tuple[float, ...] | None = None
    semitones: tuple[float, ...] = (-2.0, 2.0)
    connector: Literal["auto", "linear", "mlp"] = "auto"
    connector_size: int = 256
    target_dropout: bool = False
    tune_feature_norm: bool = False

    def __post_init__(self) -> None:
        check_numbers(
            self,
            at_least={"tuned_layers": 1, "connector_size": 1, "bandwidth": 1},
            above_0=("gamma",),
        )


class Score(ContentMethod):
    """SCORE on an encoder, which is tuned in place.

    Args:
        encoder: from :func:`speechft.models.load`.
        config: its settings.
        seed: of the connector's weights.

    Raises:
        ConfigError: more layers to tune than there are.
    """

    name = "score"
    source = "Meghanani & Hain, SCORE, ICASSP 2024"
    Config = ScoreConfig
    encoded = ("tuned",)

    def __init__(
        self, encoder: Encoder, config: ScoreConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        config = config or ScoreConfig()
        kind = encoder.config.model_type
        self.settings = config  # not "config": transformers writes to a module's config
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        self.encoder = encoder
        tune_top(encoder, config.tuned_layers)
        if config.tune_feature_norm:
            encoder.hf_model.feature_projection.layer_norm.requires_grad_(True)
        use_mlp = config.connector == "mlp" or (config.connector == "auto" and kind == "wavlm")
        self.connector = make_connector(
            encoder.hidden_size, config.connector_size, mlp=use_mlp, seed=seed
        )
        speeds = SPEEDS.get(kind, HUBERT_SPEEDS) if config.speeds is None else config.speeds
        self.perturb = Compose([Speed(factors=speeds), Pitch(semitones=config.semitones)])
        self.loss = SoftDTWLoss(
            config.gamma, bandwidth=config.bandwidth, divergence=True, length_normalize=True
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> Score:
        """Training mode; the frozen target stays in eval mode unless told otherwise."""
        super().train(mode)
        self.target.train(mode and self.settings.target_dropout)
        return self

    def views(self, batch: Mapping[str, Tensor]) -> dict[str, View]:
        """``"tuned"``, for the tuned encoder, and ``"fixed"``, for the frozen one.

        One of them is perturbed: which, a fair coin decides for each utterance.
        """
        waveforms, lengths, keys = batch["waveforms"], batch["lengths"], batch["keys"]
        other = self.perturb(waveforms, lengths, fold_in(keys, 0))
        (plain, _), (perturbed, perturbed_lengths) = same_length((waveforms, lengths), other)
        swap = uniform(fold_in(keys, 1), 0, 1)[:, 0] < 0.5
        return {
            "tuned": (
                torch.where(swap[:, None], plain, perturbed),
                torch.where(swap, lengths, perturbed_lengths),
            ),
            "fixed": (
                torch.where(swap[:, None], perturbed, plain),
                torch.where(swap, perturbed_lengths, lengths),
            ),
        }

    def objective(
        self,
        batch: Mapping[str, Tensor],
        views: Mapping[str, View],
        frames: Mapping[str, EncoderOutput],
    ) -> MethodOutput:
        """See :class:`~speechft.methods.content.ContentMethod`."""
        student = frames["tuned"]
        with self.stopwatch("encoder"), torch.no_grad():
            target = self.target(*views["fixed"])
        with self.stopwatch("loss"):
            x = project(self.connector, student.last_hidden_state)
            y = project(self.connector, target.last_hidden_state)
            loss = self.loss(x, y, student.lengths, target.lengths)
        return MethodOutput(loss, {}, mean_pooling(x, student.lengths))
