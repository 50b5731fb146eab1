r"""The last stage: a wider encoder of fewer layers learns what the one before knows.

The teacher hears each utterance at several speeds, and the frames of one of its layers are brought
back to one clock and averaged: what changes with the speaker's size, pitch and pace averages out.
Each frame is put between its neighbours, :math:`x_t = (\bar h_{t-c}, \dots, \bar h_{t+c})`, every
dimension brought to mean 0 and variance 1, and projected on the K first principal components
:math:`v_k` with variances :math:`\lambda_k`. The targets are

.. math:: y_{tk} = \lambda_k^{(a - 1) / 2} \, v_k^\top x_t, \qquad
          L = \frac{\sum_t \lVert \hat y_t - y_t \rVert^2}{\sum_t \sum_k \lambda_k^a}

with :math:`a < 1` so that what varies little counts more than its variance. The student has the
teacher's convolutions, which stay as they are, so what they say is computed once; some spans are
masked, and a linear head on its last layer predicts every frame's targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from tqdm import tqdm

from recipes.hubert_mini.loop import Learnt, made_by_first, optimise, rank_and_world, read, write
from recipes.hubert_mini.pretrain import NO_DROPOUT, SAMPLED_FRAMES, draw_mask
from recipes.hubert_mini.stream import Stream
from recipes.hubert_mini.targets import HOP, WINDOW
from speechft.augment.resample import ZERO_CROSSINGS, resample
from speechft.models import Encoder, tiny

STUDENT = {
    "hidden_size": 384, "num_hidden_layers": 4, "intermediate_size": 512,
    "num_attention_heads": 6, "num_conv_pos_embedding_groups": 32,
}  # fmt: skip
"""4.7 million parameters with the convolutions: as many as the teacher's, whose layers are 256."""


@dataclass
class Distillation:
    """What the teacher is asked, and how the student is trained."""

    name: str
    layer: int  # of the teacher
    steps: int
    speeds: tuple[int, ...] = (85, 92, 100, 108, 117)  # in hundredths
    context: int = 2  # frames on either side
    components: int = 512
    power: float = 0.5  # of the components' variances
    learning_rate: float = 1e-3
    warmup: int = 100
    batch: int = 16
    frames: int = 149  # of a crop: 3 s
    spans: int = 2
    span: int = 10
    seed: int = 0
    save_every: int = 100
    bfloat16: bool = False  # products, under autocast


class Heard(NamedTuple):
    """Of the stream's F frames: ``convolved`` (F, C') and ``taught`` (F, C), float16.

    ``first`` and ``last`` (F,) are the ends of the utterance that a frame is of, and -1 in the
    gaps between them, where there is none.
    """

    convolved: Tensor
    taught: Tensor
    first: Tensor
    last: Tensor

    def stacked(self, places: Tensor, context: int) -> Tensor:
        """Taught frames between their neighbours, an utterance's ends repeated.

        (...) -> (..., (2 context + 1) C).
        """
        ends = self.first[places], self.last[places]
        around = [
            self.taught[(places + offset).clamp(*ends).clamp(min=0)].float()
            for offset in range(-context, context + 1)
        ]
        return torch.cat(around, -1)


class Projection(NamedTuple):
    """From stacked frames to targets; ``total`` is the sum of the targets' variances."""

    mean: Tensor
    components: Tensor
    total: Tensor

    def __call__(self, stacked: Tensor) -> Tensor:
        return (stacked - self.mean) @ self.components


class Student(nn.Module):
    """Transformer and head: convolved frames and mask in, targets out."""

    def __init__(self, encoder: Encoder, components: int) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.requires_grad_(True)
        encoder.hf_model.feature_extractor.requires_grad_(False)
        self.head = nn.Linear(encoder.hidden_size, components)

    def forward(self, convolved: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C'), (B, T) bool -> (B, T, K) float32."""
        model = self.encoder.hf_model
        frames = model.feature_projection(convolved)
        frames = torch.where(mask[..., None], model.masked_spec_embed.to(frames.dtype), frames)
        predicted: Tensor = self.head(model.encoder(frames).last_hidden_state)
        return predicted.float()


def new_student(teacher: Encoder, seed: int = 0) -> Encoder:
    """Wider and shallower, untrained but for the teacher's convolutions."""
    student = tiny("hubert", seed=seed, size="demo", config={**NO_DROPOUT, **STUDENT})
    convolutions = teacher.hf_model.feature_extractor.state_dict()
    student.hf_model.feature_extractor.load_state_dict(convolutions)
    return student


def average_over_speeds(encoder: Encoder, waveform: Tensor, stage: Distillation) -> Tensor:
    """The layer's frames of a waveform (n,), each the mean of what it is at the speeds: (T, C)."""
    frames = int(encoder.frame_lengths(torch.tensor(len(waveform))))
    centres = torch.arange(frames, dtype=torch.float64) * HOP + WINDOW / 2
    total = torch.zeros(frames, encoder.hidden_size)
    for hundredths in stage.speeds:
        speed = Fraction(hundredths, 100)
        played = resample(waveform[None], speed, zero_crossings=ZERO_CROSSINGS)
        # The shortest utterances, played faster, may have no frame left.
        played = pad(played, (0, max(0, WINDOW - played.shape[1])))
        # Resampled outside autocast, which would do that in bfloat16 as well.
        with torch.autocast("cpu", torch.bfloat16, enabled=stage.bfloat16):
            said = encoder(played, torch.tensor([played.shape[1]]), up_to_layer=stage.layer)
        output = said.hidden_states[stage.layer][0].float()
        place = ((centres / float(speed) - WINDOW / 2) / HOP).clamp(0, len(output) - 1)
        before = place.long()
        after = (before + 1).clamp(max=len(output) - 1)
        total += output[before].lerp(output[after], (place - before).float()[:, None])
    return total / len(stage.speeds)


def hear(stream: Stream, stage: Distillation, teacher: Encoder, folder: Path) -> Heard:
    """What the teacher and its convolutions say of the stream, computed once."""
    path = folder / f"heard-{stage.name}.pt"
    if path.exists():
        saved = read(path, stage)
        return Heard(*(saved[name] for name in Heard._fields))
    teacher.eval()
    F = stream.total_frames
    channels = teacher.config.conv_dim[-1]
    heard = Heard(
        torch.zeros(F, channels, dtype=torch.float16),
        torch.zeros(F, teacher.hidden_size, dtype=torch.float16),
        torch.full((F,), -1), torch.full((F,), -1),
    )  # fmt: skip
    for row in tqdm(range(len(stream.starts)), "teacher"):
        start, waveform = stream.starts[row], stream.waveform(row)
        mine = slice(start, start + stream.frames[row])
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=stage.bfloat16):
                convolved = teacher.hf_model.feature_extractor(waveform[None])[0].T
            heard.convolved[mine] = convolved.half()
            heard.taught[mine] = average_over_speeds(teacher, waveform, stage).half()
        heard.first[mine], heard.last[mine] = start, mine.stop - 1
    write(heard._asdict(), path, stage)
    return heard


def principal(heard: Heard, stage: Distillation) -> Projection:
    """The projection, by the frames of a sample."""
    known = (heard.first >= 0).nonzero()[:, 0]
    rng = np.random.default_rng(stage.seed)
    chosen = rng.choice(len(known), min(SAMPLED_FRAMES // 2, len(known)), replace=False)
    sample = heard.stacked(known[torch.from_numpy(np.sort(chosen))], stage.context)
    mean, deviation = sample.mean(0), sample.std(0, correction=0).clamp_min(1e-6)
    standard = (sample - mean) / deviation
    variances, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
    variances = variances.flip(0)[: stage.components].clamp_min(1e-5)
    scaled = vectors.flip(1)[:, : stage.components] * variances ** ((stage.power - 1) / 2)
    total = (variances**stage.power).sum()
    return Projection(mean, scaled / deviation[:, None], total)


def batch_of(heard: Heard, stage: Distillation, step: int) -> tuple[Tensor, Tensor]:
    """Places in the stream (B, T) and mask (B, T) of a step."""
    rng = np.random.default_rng([stage.seed, step])
    starts = rng.integers(0, len(heard.first) - stage.frames + 1, stage.batch)
    places = torch.from_numpy(starts)[:, None] + torch.arange(stage.frames)
    return places, draw_mask(rng, stage.batch, stage.frames, stage.spans, stage.span)


def errors(predicted: Tensor, targets: Tensor, counted: Tensor, total: Tensor) -> Tensor:
    """Squared errors as a share of the targets' variance, summed over the frames that count.

    (B, T, K), (B, T, K), (B, T) bool, () -> ().
    """
    square = (predicted - targets).square().sum(-1) / total
    return square.where(counted, 0.0).sum()


def distil(
    stream: Stream, stage: Distillation, teacher: Encoder, folder: Path, *, device: str = "cpu"
) -> Encoder:
    """A student, trained, from its newest checkpoint if it has one."""
    rank, world = rank_and_world()
    heard = made_by_first(lambda: hear(stream, stage, teacher, folder))
    projection = principal(heard, stage)
    torch.manual_seed(stage.seed)
    student = new_student(teacher, stage.seed)
    model = Student(student, stage.components).to(device).train()

    def learn(step: int) -> Learnt:
        places, mask = batch_of(heard, stage, step)
        known = heard.first[places] >= 0
        counts = torch.stack([(known & mask).sum(), (known & ~mask).sum()]).to(device)
        places, mask, known = (part[rank::world] for part in (places, mask, known))
        targets = projection(heard.stacked(places, stage.context)).to(device)
        convolved = heard.convolved[places].float().to(device)
        mask, known, total = mask.to(device), known.to(device), projection.total.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=stage.bfloat16):
            predicted = model(convolved, mask)
        sums = torch.stack([
            errors(predicted, targets, known & mask, total),
            errors(predicted, targets, known & ~mask, total),
        ])  # fmt: skip
        return Learnt(sums.sum() / counts.sum(), sums.detach(), counts)

    optimise(model, stage, folder, learn, ("masked", "seen"))
    return student.cpu().eval()
