r"""LASER: learning by aligning self-supervised representations, for content.

As in :mod:`~speechft.methods.score` an utterance and a copy of it at another speed and pitch are
aligned by soft-DTW and pulled together. Here both go through the encoder that is tuned; there is no
frozen target. What keeps all frames from becoming one is a temporal regulariser on each side:

.. math::

    L = \operatorname{sdtw}_\gamma(X, Y) - \tfrac12 \bigl(\operatorname{sdtw}_\gamma(X, X)
        + \operatorname{sdtw}_\gamma(Y, Y)\bigr) + \alpha \bigl(I(X) + I(Y)\bigr)

with :math:`I` of :func:`speechft.functional.temporal_idm`: frames that are far apart in time are
pushed apart, the more the farther, up to a margin. The divergence is not divided by the number of
frames.

Source: Meghanani & Hain, "LASER: Learning by Aligning Self-supervised Representations of Speech for
Improving Content-related Tasks", Interspeech 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from speechft.augment import Compose, Pitch, Speed, fold_in
from speechft.functional import mean_pooling
from speechft.losses import SoftDTWLoss, TemporalIDMLoss
from speechft.methods.base import MethodConfig, MethodOutput, check_numbers
from speechft.methods.content import (
    ContentMethod,
    View,
    make_connector,
    project,
    tune_top,
)
from speechft.models import Encoder, EncoderOutput
from speechft.training.trainable import Bounds


class _Published(NamedTuple):
    margin: float
    alpha: float
    speeds: tuple[float, ...]


_HUBERT = _Published(1.1, 0.4, (0.9, 1.0, 1.1))  # a wav2vec 2.0 gets these too
_PUBLISHED = {"wavlm": _Published(1.0, 0.15, (0.8, 0.85, 0.9, 1.0, 1.1, 1.15, 1.2))}

# Untrained and healthy runs had 0.3 to 0.5 (hubert-mini on real speech, a tiny HuBERT on tones);
# without the regulariser it fell below 0.02 in 30 steps, and to 0.0005 and less.
_BOUNDS = {"frame_step": Bounds(0.01, None)}


@dataclass(frozen=True)
class LaserConfig(MethodConfig):
    """Settings of LASER; the defaults are the published ones.

    Args:
        gamma: smoothing of the soft-DTW, on squared distances of unit vectors.
        bandwidth: frames that the alignment may leave the diagonal by, 1 or more as speeds
            differ; None: any number.
        alpha: weight of the regulariser; None: as published for the kind of encoder, 0.4 for
            HuBERT and 0.15 for WavLM. With 0 the frames collapse, and the run stops.
        margin: distance from which frames push each other no more; None: likewise, 1.1 and 1.0.
        sigma: frames this near in time are pulled together instead; with 0 none are.
        tuned_layers: transformer layers tuned, counted from the top.
        speeds: speed factors to draw from; None: as published for the kind of encoder.
        semitones: pitch shifts to draw from.
        connector_size: outputs of the linear connector, which is thrown away afterwards.

    Raises:
        ConfigError: a value out of range.
    """

    gamma: float = 0.1
    bandwidth: int | None = None
    alpha: float | None = None
    margin: float | None = None
    sigma: float = 0.0
    tuned_layers: int = 2
    speeds: tuple[float, ...] | None = None
    semitones: tuple[float, ...] = (-2.0, 2.0)
    connector_size: int = 256

    def __post_init__(self) -> None:
        lowest = {"tuned_layers": 1, "connector_size": 1, "bandwidth": 1, "alpha": 0, "sigma": 0}
        check_numbers(self, at_least=lowest, above_0=("gamma", "margin"))


class Laser(ContentMethod):
    """LASER on an encoder, which is tuned in place.

    Args:
        encoder: from :func:`speechft.models.load`.
        config: its settings.
        seed: of the connector's weights.

    Raises:
        ConfigError: more layers to tune than there are.
    """

    name = "laser"
    source = "Meghanani & Hain, LASER, Interspeech 2024"
    Config = LaserConfig
    remedy = "raise alpha, or lower the learning rate"
    encoded = ("plain", "perturbed")

    def __init__(
        self, encoder: Encoder, config: LaserConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings = config = config or LaserConfig()
        published = _PUBLISHED.get(encoder.config.model_type, _HUBERT)
        self.encoder = encoder
        tune_top(encoder, config.tuned_layers)
        self.connector = make_connector(
            encoder.hidden_size, config.connector_size, mlp=False, seed=seed
        )
        speeds = published.speeds if config.speeds is None else config.speeds
        self.perturb = Compose([Speed(factors=speeds), Pitch(semitones=config.semitones)])
        self.alignment = SoftDTWLoss(config.gamma, bandwidth=config.bandwidth, divergence=True)
        self.alpha = published.alpha if config.alpha is None else config.alpha
        self.regulariser = TemporalIDMLoss(
            config.sigma, published.margin if config.margin is None else config.margin
        )
        self._seen: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None

    def views(self, batch: Mapping[str, Tensor]) -> dict[str, View]:
        """The utterances as they are, and at another speed and pitch."""
        waveforms, lengths = batch["waveforms"], batch["lengths"]
        return {
            "plain": (waveforms, lengths),
            "perturbed": self.perturb(waveforms, lengths, fold_in(batch["keys"], 0)),
        }

    def objective(
        self,
        batch: Mapping[str, Tensor],
        views: Mapping[str, View],
        frames: Mapping[str, EncoderOutput],
    ) -> MethodOutput:
        """See :class:`~speechft.methods.content.ContentMethod`."""
        plain, perturbed = frames["plain"], frames["perturbed"]
        with self.stopwatch("loss"):
            x = project(self.connector, plain.last_hidden_state)
            y = project(self.connector, perturbed.last_hidden_state)
            alignment = self.alignment(x, y, plain.lengths, perturbed.lengths)
            loss = alignment
            parts = {"alignment": alignment.detach()}
            if self.alpha:
                apart = self.regulariser(x, plain.lengths) + self.regulariser(y, perturbed.lengths)
                loss = alignment + self.alpha * apart
                parts["regulariser"] = apart.detach()
        self._seen = x.detach(), plain.lengths, parts
        return MethodOutput(loss, {}, mean_pooling(x, plain.lengths))

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Of the last batch: the two parts of the loss, and ``frame_step``.

        That is the mean of 1 - cosine of a projected frame and the next: 0 where all are one.
        """
        if self._seen is None:
            return {}
        x, lengths, parts = self._seen
        steps = 1 - (x[:, 1:] * x[:, :-1]).sum(-1)
        valid = torch.arange(1, x.shape[1], device=x.device) < lengths[:, None]
        step = torch.where(valid, steps, 0.0).sum() / valid.sum().clamp(min=1)
        return {**parts, "frame_step": step}

    def bounds(self) -> Mapping[str, Bounds]:
        """See :class:`~speechft.training.trainable.Trainable`."""
        return _BOUNDS
