r"""Spin: speaker-invariant clustering, for content.

An utterance and a copy of it in another voice, as long as it was, say the same frame by frame. Both
go through the encoder; a linear layer projects their frames to unit vectors :math:`z, \tilde z`,
whose cosines to the K rows of a codebook are a distribution over codes. Each view is to predict
what the other was assigned to,

.. math::

    p(\cdot \mid z) = \mathrm{softmax}(W z / \tau), \qquad
    L = - \frac 1 2 \Bigl\langle \sum_k q(k \mid \tilde z) \log p(k \mid z)
        + \sum_k q(k \mid z) \log p(k \mid \tilde z) \Bigr\rangle

with the mean over all frames of the batch, and assignments q that Sinkhorn's iterations make over
all frames of a view, so that each code gets its share. Frames of an utterance therefore know of
their batch; padding has no part.

With pseudo-labels it is R-Spin: both views also predict, by a linear layer, the units or acoustic
pieces y that an earlier Spin gives the unperturbed utterance,

.. math::

    L - \frac \lambda 2 \bigl\langle \log p(y \mid h) + \log p(y \mid \tilde h) \bigr\rangle,

which holds the features in place, so that all layers may be tuned.

The codebook and the projection come out beside the encoder: see :mod:`speechft.models.units`.

Sources: Chang, Liu & Glass, "Self-supervised Fine-tuning for Improved Content Representations by
Speaker-invariant Clustering", Interspeech 2023; Chang & Glass, "R-Spin: Efficient Speaker and
Noise-invariant Representation Learning with Acoustic Pieces", NAACL 2024.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from speechft.augment import RandomCrop, fold_in
from speechft.data import SpeechDataset
from speechft.functional import code_perplexity, mean_pooling
from speechft.losses import SwappedPredictionLoss
from speechft.methods.base import MethodOutput
from speechft.methods.content import ContentMethod, View, make_connector, project, tune_top
from speechft.methods.spin_config import SpinConfig
from speechft.methods.spin_parts import LABELS, SpeakerPerturbation, hop_of, labels_of_crops, noise
from speechft.models import Encoder, EncoderOutput
from speechft.models.units import UnitHead
from speechft.models.units_saving import save_units
from speechft.training.loader import TrainingData
from speechft.training.settings import TrainingSettings
from speechft.training.trainable import Bounds

# The lowest code perplexity that was found of models as they begin (hubert-mini and hubert-mini-
# untrained, three seeds of the new weights, 6,300 frames of the embedded corpus): 8.7 of 16 codes,
# 23 of 64, 58 of 256, 174 of 1,024, which is above K^0.74. Updates raise it: to 170 and more of 256
# in 10 steps, at learning rates of 1e-3 and 1e-2. At 0.1 and 1, with all layers tuned, it was 1 to
# 4.7 of 256 from the 10th step to the last, the 40th, and the loss log K: frames that are all the
# same have one code. Between the two lies K^(1/3).
_LEAST = 1 / 3
_KEY_CROP, _KEY_VOICE, _KEY_PLAIN_NOISE, _KEY_VOICED_NOISE = 0, 1, 2, 3


class Spin(ContentMethod):
    """Spin on an encoder, which is tuned in place.

    Args:
        encoder: from :func:`speechft.models.load`.
        config: its settings.
        seed: of the projection and the codebook.

    Raises:
        ConfigError: more layers to tune than there are, an augmentation that is none or changes
            timing, a folder of pseudo-labels without units.
    """

    name = "spin"
    source = "Chang et al., Spin, Interspeech 2023"
    Config = SpinConfig
    encoded = ("plain", "voiced")
    remedy = "lower the learning rate, tune fewer layers, or add pseudo_labels"
    # As published, but for the ends of the schedule: there it goes from 1e-6 and back, here from 0.
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 5000, "warmup_steps": 2500, "learning_rate": 1e-4, "optimizer": "adam",
        "weight_decay": 1e-6, "max_grad_norm": 10.0, "batch_size": 256, "max_batch_seconds": 256.0,
    }  # fmt: skip

    def __init__(
        self, encoder: Encoder, config: SpinConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings = config = config or SpinConfig()
        self.encoder = encoder
        layers = encoder.num_layers if config.tuned_layers is None else config.tuned_layers
        tune_top(encoder, layers)
        self.crop: RandomCrop | None = None
        if config.crop_seconds is not None:
            self.crop = RandomCrop(
                config.crop_seconds, grid=hop_of(encoder), sample_rate=encoder.sample_rate
            )
        self.perturb = SpeakerPerturbation(
            config.formant, config.pitch, config.decibels, sample_rate=encoder.sample_rate
        )
        self.noise = noise(config.augmentation, encoder.sample_rate)
        self.connector = make_connector(encoder.hidden_size, config.size, mlp=False, seed=seed)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed + 1)
            self.loss = SwappedPredictionLoss(
                config.size, config.codes, temperature=config.temperature, epsilon=config.epsilon,
                iterations=config.sinkhorn_iterations,
                gather=int(os.environ.get("WORLD_SIZE", "1")) > 1,
            )  # fmt: skip
        self.predictor: nn.Sequential | None = None
        if config.pseudo_labels is not None:
            from speechft.methods.spin_labels import number_of_labels

            classes = number_of_labels(config)
            self.predictor = make_connector(encoder.hidden_size, classes, mlp=False, seed=seed + 2)
            self.inputs = (*self.inputs, LABELS)
        self._seen: tuple[Tensor, Tensor] | None = None  # plain frames, projected
        self._parts: dict[str, Tensor] = {}

    @classmethod
    def shortest(cls, config: Any) -> tuple[float, Literal["fail", "drop", "repeat"]]:
        """See :class:`~speechft.methods.Method`."""
        return config.min_seconds, config.on_short

    def views(self, batch: Mapping[str, Tensor]) -> dict[str, View]:
        """``"plain"``, which is the very batch where nothing is cut or added, and ``"voiced"``."""
        waveforms, lengths, keys = batch["waveforms"], batch["lengths"], batch["keys"]
        if self.crop is not None:
            waveforms, lengths = self.crop(waveforms, lengths, fold_in(keys, _KEY_CROP))
        voiced = self.perturb(waveforms, lengths, fold_in(keys, _KEY_VOICE))
        if self.noise is not None:
            voiced, _ = self.noise(voiced, lengths, fold_in(keys, _KEY_VOICED_NOISE))
            waveforms, _ = self.noise(waveforms, lengths, fold_in(keys, _KEY_PLAIN_NOISE))
        short = waveforms.shape[1] - voiced.shape[1]  # of padding that all of the batch has
        voiced = torch_functional.pad(voiced, (0, short)) if short else voiced
        return {"plain": (waveforms, lengths), "voiced": (voiced, lengths)}

    def objective(
        self,
        batch: Mapping[str, Tensor],
        views: Mapping[str, View],
        frames: Mapping[str, EncoderOutput],
    ) -> MethodOutput:
        """See :class:`~speechft.methods.content.ContentMethod`; the mean is over frames."""
        plain, voiced = frames["plain"], frames["voiced"]
        with self.stopwatch("loss"):
            x = project(self.connector, plain.last_hidden_state)
            y = project(self.connector, voiced.last_hidden_state)
            loss: Tensor = self.loss(x, y, lengths=plain.lengths)
            if self.predictor is not None:
                auxiliary = self._auxiliary(batch, plain, voiced)
                self._parts = {"spin": loss.detach(), "auxiliary": auxiliary.detach()}
                loss = loss + self.settings.auxiliary_weight * auxiliary
        self._seen = x.detach(), plain.lengths
        return MethodOutput(loss, {}, mean_pooling(x, plain.lengths))

    def _auxiliary(
        self, batch: Mapping[str, Tensor], plain: EncoderOutput, voiced: EncoderOutput
    ) -> Tensor:
        """Cross-entropy of the pseudo-labels, a mean over the frames of both views."""
        assert self.predictor is not None
        starts = torch.zeros_like(batch["lengths"])
        if self.crop is not None:
            drawn = self.crop.parameters_for(fold_in(batch["keys"], _KEY_CROP))
            starts, _ = self.crop.place(batch["lengths"], drawn.to(starts.device))
        steps = plain.last_hidden_state.shape[1]
        labels = labels_of_crops(
            batch[LABELS], starts // hop_of(self.encoder), plain.lengths, steps
        )
        dtype = next(self.predictor.parameters()).dtype
        terms = [
            torch_functional.cross_entropy(
                self.predictor(view.last_hidden_state.to(dtype)).float().flatten(0, 1),
                labels.flatten(),
                ignore_index=-1,
            )
            for view in (plain, voiced)
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def after_update(self) -> None:
        """Bring the rows of the codebook back to unit length."""
        rows = self.loss.codebook
        rows.copy_(torch_functional.normalize(rows, dim=1))

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Of the plain view of the last batch: how many codes are in use, from 1 to K.

        ``code_perplexity`` of the nearest codes of frames, ``soft_perplexity`` of the predictions;
        with pseudo-labels also the two parts of the loss.
        """
        if self._seen is None:
            return {}
        frames, lengths = self._seen
        cosines = self.loss.similarities(frames)
        temperature = self.settings.temperature
        return {
            **self._parts,
            "code_perplexity": code_perplexity(cosines, lengths=lengths),
            "soft_perplexity": code_perplexity(cosines, temperature=temperature, lengths=lengths),
        }

    def bounds(self) -> Mapping[str, Bounds]:
        """See :class:`~speechft.training.trainable.Trainable`."""
        return {"code_perplexity": Bounds(self.settings.codes**_LEAST, None)}

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """Waveforms in batches of similar lengths, with pseudo-labels where they are asked for.

        Raises:
            ConfigError: more codes than a batch has frames; pseudo-labels of another kind of
                encoder.
        """
        from speechft.methods.spin_data import spin_data

        if self.crop is not None and int(dataset.lengths.max()) <= self.crop.seconds[1] * (
            dataset.sample_rate
        ):
            self.crop = None  # nothing is cut, so views may be shared
        return spin_data(self.encoder, self.settings, dataset, settings, output)

    @property
    def head(self) -> UnitHead:
        """What gives the units: a copy of the projection and the codebook."""
        linear = self.connector[0]
        assert isinstance(linear, nn.Linear)
        codes, size = self.loss.codebook.shape
        head = UnitHead(self.encoder.hidden_size, size, codes)
        head.load_state_dict(
            {
                "projection.weight": linear.weight, "projection.bias": linear.bias,
                "codebook": self.loss.codebook,
            }
        )  # fmt: skip
        return head

    def save(self, output: Path) -> None:
        """Write the encoder, and the unit head into its folder."""
        super().save(output)
        save_units(self.head, output)
