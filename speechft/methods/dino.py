r"""DINO for utterances: a student is to say of any crop what its teacher says of another one.

Every utterance is cut into V crops, long ones and short ones. With :math:`s_v` the student's logits
of crop v and :math:`t_u` the teacher's of long crop u,

.. math::

    L = \frac 1 {|\mathcal P|} \sum_{(u, v) \in \mathcal P} H\bigl(
        \mathrm{softmax}((t_u - c) / \tau_t),\ \mathrm{softmax}(s_v / \tau_s)\bigr)
        + \sum_j w_j R_j

over the pairs of different crops. The teacher is an average of the student's past; the centre c (or
Sinkhorn's assignment) and the teacher's sharpness hold each other in balance, so there is no need
of negatives. What speakers, emotions and rooms do to all crops of an utterance alike is what can be
learnt. The regularisers R are off unless a preset or a weight says otherwise.

What comes out is the teacher's model up to the vector before the head.

Source: Cho et al., "Non-contrastive self-supervised learning for utterance-level information
extraction from speech", IEEE JSTSP 16(6), 2022.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speechft.augment import MultiCrop, RandomCrop, SpecAugment, fold_in
from speechft.data import SpeechDataset
from speechft.errors import ConfigError
from speechft.functional import koleo, sinkhorn_center, vicreg
from speechft.losses import DINOLoss, linear_warmup
from speechft.methods.base import Method, MethodOutput
from speechft.methods.crop_augmentation import crop_augmentation
from speechft.methods.dino_config import DinoConfig
from speechft.methods.dino_parts import (
    Branch,
    by_crop,
    cosine_distance,
    freeze,
    spread,
    stack,
    told,
)
from speechft.methods.dino_presets import PRESETS
from speechft.methods.teacher import Teacher, cosine_momentum
from speechft.models import DINOHead, EmbeddingModel, load_backbone
from speechft.training.loader import NoneAlone, TrainingData, speech_data
from speechft.training.settings import TrainingSettings
from speechft.training.trainable import Bounds

_KEY_CROPS, _KEY_SEGMENT, _KEY_MASKS = 0, 1, 2
# Of untrained models, as a long warm-up leaves them (x-vectors of 512 and 128 channels, ECAPA 512,
# ResNet34, hubert-mini; the embedded corpus; 2,048 and 65,536 codes; centre at rest), the lowest
# that was found with statistics of the batch | with averaged ones:
#   information 0.056 | 0.0078 nats, deviation 0.23 | 0.09, rank 0.61 | 0.30;
# the highest teacher's entropy was 0.993 | 0.998. Constant vectors give an information of 1e-6.
# It is what tells: where a head maps everything to one place, the vectors before it keep their
# deviation (0.1 to 0.5) and rank for hundreds of steps, and the entropy goes to 1 last of all, or,
# where all have one code, to 0. Runs that went below 1e-4 for 80 steps did not come back.
# The number of codes has no bound: an untrained hubert-mini, uncentred, has one for all. Nor has
# the centre's norm. ``rank`` is at least 1 / (B - 1), so its bound is for batches of 52 and more.
_BOUNDS = {
    "teacher_entropy": Bounds(None, 0.99999),
    "information": Bounds(1e-4, None),
    "deviation": Bounds(0.002, None),
    "rank": Bounds(0.02, None),
}


class Dino(Method):
    """DINO on an embedding model, which becomes the student; what comes out is its teacher.

    Args:
        model: from :func:`speechft.models.make_embedding` or
            :func:`~speechft.models.load_backbone`.
        config: its settings.
        seed: of the head's weights.

    Raises:
        ConfigError: settings that contradict the model or the number of ranks.
    """

    name = "dino"
    source = "Cho et al., DINO for utterances, IEEE JSTSP 2022"
    Config = DinoConfig
    presets = PRESETS
    remedy = "lower the learning rate or the teacher's temperature, or raise the teacher's momentum"
    training_defaults: ClassVar[Mapping[str, Any]] = PRESETS["cho"]["training"]

    def __init__(
        self, model: EmbeddingModel, config: DinoConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings = config = config or DinoConfig()
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if config.codes % ranks:
            raise ConfigError(
                f"codes: {config.codes} cannot be shared among {ranks} ranks; choose a multiple"
            )
        freeze(model, config.tuned_layers)
        head = DINOHead(
            model.size, config.codes, hidden_size=config.hidden_size,
            hidden_layers=config.hidden_layers, bottleneck=config.bottleneck,
            batch_norm=config.batch_norm, seed=seed,
        )  # fmt: skip
        self.student = Branch(model, head)
        self.teacher = Teacher(self.student, batch_statistics=config.teacher_statistics == "batch")
        self.expander: nn.Linear | None = None
        if config.variance_weight or config.covariance_weight:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self.expander = nn.Linear(config.bottleneck, config.expanded_size)
        rate = model.sample_rate
        self.segment: RandomCrop | None = None
        if config.segment_seconds is not None:
            self.segment = RandomCrop(config.segment_seconds, sample_rate=rate)
        self.crops = MultiCrop(
            config.long, config.short, config.long_seconds, config.short_seconds,
            regions=config.regions, spread=config.spread, sample_rate=rate,
            augment_long=crop_augmentation(config.augment_long, config.noise, config.rooms, rate),
            augment_short=crop_augmentation(config.augment_short, config.noise, config.rooms, rate),
        )  # fmt: skip
        last = config.teacher_temperature
        temperature: float | list[float] = last
        if config.temperature_warmup_steps:
            temperature = linear_warmup(
                config.teacher_temperature_start, last, config.temperature_warmup_steps
            )
        self.loss = DINOLoss(
            config.codes,
            student_temperature=config.student_temperature,
            teacher_temperature=temperature,
            centering=config.centering,
            center_momentum=config.center_momentum,
            sinkhorn_iterations=config.sinkhorn_iterations,
            skip_same=config.student_views == "all",
            gather=ranks > 1,
        )
        self._full = (False, False)  # of long and of short crops: none is shorter than asked
        self._step, self._steps = 0, 1
        self._seen: tuple[Tensor, Tensor] | None = None  # of the teacher's first crops
        self.train(self.training)

    @property
    def encoder(self) -> EmbeddingModel:  # type: ignore[override]
        """The teacher's model, which is what comes out."""
        branch = self.teacher.module
        assert isinstance(branch, Branch)
        return branch.model

    @classmethod
    def load(cls, name: str | Path, config: Any, *, seed: int) -> EmbeddingModel:
        """See :class:`Method`: an embedding model, new or trained."""
        masks = None
        if config.spec_augment:
            masks = SpecAugment(1, (0, 5), 1, (0, 8))
        return load_backbone(
            name, size=config.size, pooling=config.pooling, layer=config.layer, spec_augment=masks,
            seed=seed,
        )  # fmt: skip

    @classmethod
    def shortest(cls, config: Any) -> tuple[float, Any]:
        """See :class:`Method`: a short crop."""
        return config.short_seconds if config.short else config.long_seconds, config.on_short

    def train(self, mode: bool = True) -> Dino:
        """Training mode; the teacher, and an encoder that is frozen, stay in eval mode."""
        super().train(mode)
        encoder = self.student.model.encoder
        if encoder is not None and self.settings.tuned_layers == 0:
            encoder.eval()
        return self

    def forward(self, waveforms: Tensor, lengths: Tensor, keys: Tensor) -> MethodOutput:
        """The loss of a batch of utterances; see :class:`~speechft.methods.Method`."""
        config, batch = self.settings, len(keys)
        with self.stopwatch("augmentation"):
            long, short = self.views(waveforms, lengths, keys)
        with torch.no_grad():
            of_teacher, hidden_of_teacher = self.teacher(*long)
            targets = by_crop(self._head(hidden_of_teacher), batch)
        of_teacher = by_crop(of_teacher, batch)
        shown = [long] * (config.student_views == "all") + [short] * (short is not None)
        parts = [
            self.student(*crops, self._mask_keys(len(crops[0]), keys, number))
            for number, crops in enumerate(shown)
            if crops is not None
        ]
        vectors = by_crop(torch.cat([part for part, _ in parts]), batch)
        hidden = torch.cat([part for _, part in parts])
        logits = by_crop(self.student.head.logits(hidden), batch)
        if self.training:  # once an update, though it may have several batches
            self.loss.step.fill_(self._step)
        with self.stopwatch("loss"):
            loss: Tensor = self.loss(logits, targets)
        loss = loss + self.regularisers(vectors, by_crop(hidden, batch), logits, of_teacher)
        self._seen = of_teacher[0], hidden_of_teacher[:batch]
        return MethodOutput(loss, {}, vectors[0])

    def views(
        self, waveforms: Tensor, lengths: Tensor, keys: Tensor
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None] | None]:
        """Long crops one below the other, (V B, T) and their lengths; and short ones likewise."""
        if self.segment is not None:
            waveforms, lengths = self.segment(waveforms, lengths, fold_in(keys, _KEY_SEGMENT))
        crops = self.crops(waveforms, lengths, fold_in(keys, _KEY_CROPS))
        long, short = crops[: self.settings.long], crops[self.settings.long :]
        return (
            stack(long, full=self._full[0]),
            stack(short, full=self._full[1]) if short else None,
        )

    def regularisers(
        self, vectors: Tensor, hidden: Tensor, logits: Tensor, of_teacher: Tensor
    ) -> Tensor:
        """The weighted sum of those that are on.

        Args:
            vectors: (V, B, D) of the student.
            hidden: (V, B, bottleneck).
            logits: (V, B, K).
            of_teacher: (U, B, D).
        """
        config, total = self.settings, vectors.new_zeros(())
        ramp = min(1.0, self._step / config.ramp_steps) if config.ramp_steps else 1.0
        if config.cosine_weight:
            same = config.student_views == "all"
            distance = cosine_distance(vectors, of_teacher, skip_same=same)
            total = total + ramp * config.cosine_weight * distance
        alone = vectors.shape[1] < 2  # the last of an epoch: it has no neighbour, and no variance
        if config.koleo_weight and not alone:
            first = vectors[: config.long]
            total = total + config.koleo_weight * torch.stack([koleo(v) for v in first]).mean()
        if self.expander is not None:
            share = config.regulariser_start + ramp * (1 - config.regulariser_start)
            one, other = (self.expander(view) for view in hidden[:2])
            total = total + (0.0 * one.sum() if alone else share * vicreg(
                one, other, sim_weight=0.0, var_weight=config.variance_weight,
                cov_weight=config.covariance_weight,
            ))  # fmt: skip
        if config.mean_entropy_weight:
            mean = (logits / config.student_temperature).softmax(-1).mean((0, 1))
            total = total - config.mean_entropy_weight * torch.special.entr(mean).sum()
        return total

    def at_step(self, step: int, steps: int) -> None:
        """See :class:`~speechft.training.trainable.Trainable`."""
        self._step, self._steps = step, steps

    def before_update(self) -> None:
        """Hold the head's last layer still in the first steps."""
        if self._step < self.settings.freeze_last_steps:
            self.student.head.codes.grad = None

    def after_update(self) -> None:
        """Let the teacher follow."""
        momentum = cosine_momentum(self.settings.teacher_momentum, self._step, self._steps)
        self.teacher.follow(self.student, momentum)

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Of the last batch, on the device: of :meth:`DINOLoss.monitors`, and of the vectors.

        The teacher's entropy is divided by log K. Of the teacher's vectors of one crop,
        ``deviation`` and ``rank`` are those of :func:`speechft.methods.dino_parts.spread`, and
        ``information`` and ``codes`` those of :func:`~speechft.methods.dino_parts.told` for what
        its head makes of them. A single utterance has none of these.
        """
        found = self.loss.monitors()
        found["teacher_entropy"] = found["teacher_entropy"] / math.log(self.settings.codes)
        if self._seen is None or len(self._seen[0]) < 2:
            return found
        vectors, hidden = self._seen
        logits, temperature = self._head(hidden), found["teacher_temperature"]
        if self.settings.centering == "sinkhorn":
            logits = logits - sinkhorn_center(
                logits[None], epsilon=temperature, iterations=self.settings.sinkhorn_iterations
            ).view(1, -1)
        elif self.settings.centering == "mean":
            logits = logits - self.loss.center
        return {**found, **told(logits / temperature), **spread(vectors)}

    def bounds(self) -> Mapping[str, Bounds]:
        """See :class:`~speechft.training.trainable.Trainable`."""
        return _BOUNDS

    def training_data(
        self, dataset: SpeechDataset, settings: TrainingSettings, output: Path
    ) -> TrainingData:
        """Waveforms in batches drawn from all utterances, of whatever length.

        Raises:
            ConfigError: a crop of the shortest utterance makes no frame of the model.
        """
        config, rate = self.settings, dataset.sample_rate
        shortest = int(dataset.lengths.min()) / rate
        if config.segment_seconds is not None:
            shortest = min(shortest, config.segment_seconds[0])
        wanted = (config.long_seconds, config.short_seconds)
        least = min(shortest, config.short_seconds if config.short else config.long_seconds)
        if config.regions == "disjoint":
            wanted = (sum(wanted),) * 2
            least *= min(1.0, shortest / wanted[0])  # it is parted in the proportion of the crops
        frame = self.student.model.minimum_samples / rate
        if least < frame:
            name = "short_seconds" if config.short else "long_seconds"
            raise ConfigError(f"{name}: the least crop is {least:g} s, and a frame wants {frame:g}")
        augmentations = (self.crops.augment_long, self.crops.augment_short)
        long, short = (
            shortest >= seconds and (augment is None or "timing" not in augment.changes)
            for seconds, augment in zip(wanted, augmentations, strict=True)
        )
        self._full = (long, short)
        data = speech_data(dataset, settings, num_buckets=1)
        return replace(data, batches=NoneAlone(data.batches))

    def save(self, output: Path) -> None:
        """Write the teacher's embedding model, and its encoder unless that is as it was loaded."""
        if any(name.startswith("frames.encoder.") for name in self.tuned()):
            self.encoder.encoder_name = None
        elif self.encoder_name is not None:
            self.encoder.encoder_name = self.encoder_name
        self.encoder.eval().save_pretrained(output)

    def tuned(self) -> list[str]:
        """Names of the embedding model's tensors that train."""
        return [name for name, p in self.student.model.named_parameters() if p.requires_grad]

    def _head(self, hidden: Tensor) -> Tensor:
        """The teacher's logits."""
        branch = self.teacher.module
        assert isinstance(branch, Branch)
        return branch.head.logits(hidden)

    def _mask_keys(self, rows: int, keys: Tensor, number: int) -> Tensor | None:
        """One a crop, for SpecAugment; None where there is to be none."""
        if not (self.training and self.settings.spec_augment):
            return None
        base = _KEY_MASKS + 64 * number
        return torch.cat([fold_in(keys, base + view) for view in range(rows // len(keys))])
