"""HuBERT's masked prediction on a stream of speech, resumable at any step.

Hsu et al., *HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden
Units*, TASLP 2021. Of each crop, spans of frames are replaced by a learnt vector before the
transformer, and a linear head predicts every frame's cluster: cross-entropy over masked frames plus
a weight × over the others. The weight falls from 1 to 0.1 in the first stage: frames that are seen
teach the convolutions what a spectrum is, several times as fast as masked ones do (a phone probe
after 300 steps of 8 crops: .50 with 1, .38 with 0.1), and masked ones then teach the rest.

A stage can ask more of a frame: what is clustered is then a frame with its neighbours
(``Stage.context``), and from each frame the clusters of others are predicted as well
(``Stage.offsets``), masked or not. A frame that only has to name its own cluster keeps little of
what is around it, where much of the phone is heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from recipes.hubert_mini.loop import Learnt, made_by_first, optimise, rank_and_world, read, write
from recipes.hubert_mini.stream import Stream
from recipes.hubert_mini.targets import HOP, WINDOW, assign, cluster, mfcc, stack
from speechft.models import Encoder, tiny

NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0
)
SAMPLED_FRAMES = 200_000  # for k-means
# Loudness, the first coefficient, says less of the phone than its variance would have it. Clusters
# know 46 % of the phone's entropy (PNMI, on festvox-ru) with this, 43 % without, 40 % of raw MFCC.
LOUDNESS = torch.ones(39)
LOUDNESS[[0, 13, 26]] = 0.3


@dataclass
class Stage:
    """One round of targets and training."""

    name: str
    layer: int | None  # whose frames are clustered; None: MFCC
    clusters: int
    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    batch: int = 8
    frames: int = 149  # of a crop: 3 s
    spans: int = 8
    span: int = 10
    seen_weight: tuple[float, float] = (0.1, 0.1)  # at the first step and at the last
    seed: int = 0
    save_every: int = 100
    context: int = 0  # frames on either side that are clustered with a frame
    offsets: tuple[int, ...] = (0,)  # of the frames whose clusters a frame predicts
    bfloat16: bool = False  # products, under autocast

    def seen_weight_at(self, step: int) -> float:
        """Of the frames that are not masked, in the loss of a step."""
        first, last = self.seen_weight
        return first + (last - first) * step / self.steps


class Masked(nn.Module):
    """Encoder and head: crops and mask in, logits out."""

    def __init__(self, encoder: Encoder, clusters: int, offsets: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.offsets = offsets
        encoder.hf_model.masked_spec_embed.requires_grad_(True)
        self.head = nn.Linear(encoder.hidden_size, offsets * clusters)

    def forward(self, waveforms: Tensor, mask: Tensor) -> Tensor:
        """(B, n), (B, T) bool -> (B, T, O, clusters) float32. No crop is padded, so no length."""
        model = self.encoder.hf_model
        frames = model.feature_projection(model.feature_extractor(waveforms).transpose(1, 2))
        frames = torch.where(mask[..., None], model.masked_spec_embed, frames)
        logits: Tensor = self.head(model.encoder(frames).last_hidden_state)
        return logits.float().view(*mask.shape, self.offsets, -1)


def new_encoder(seed: int = 0) -> Encoder:
    """The architecture, untrained: 4.6 million parameters."""
    return tiny("hubert", seed=seed, size="demo", config=NO_DROPOUT)


def make_targets(
    stream: Stream, stage: Stage, encoder: Encoder, folder: Path
) -> tuple[Tensor, Tensor]:
    """Targets (F,) int16 of the stream, -100 where a frame has none, and the centres."""
    path = folder / f"targets-{stage.name}.pt"
    if path.exists():
        saved = read(path, stage)
        return saved["targets"], saved["centres"]
    features = list(_features(stream, stage, encoder))
    total = sum(map(len, features))
    rng = np.random.default_rng(stage.seed)
    sampled = torch.zeros(total, dtype=torch.bool)
    sampled[rng.choice(total, min(SAMPLED_FRAMES, total), replace=False)] = True
    # Neighbours are stacked an utterance at a time: of all frames they would take gigabytes.
    parts = zip(features, torch.split(sampled, [len(feature) for feature in features]), strict=True)
    sample = torch.cat([stack(feature, stage.context)[chosen] for feature, chosen in parts])
    means, inertia = cluster(sample.numpy(), stage.clusters, seed=stage.seed)
    centres = torch.from_numpy(means)
    targets = torch.full((stream.total_frames,), -100, dtype=torch.int16)
    for start, feature in zip(stream.starts, features, strict=True):
        targets[start : start + len(feature)] = assign(stack(feature, stage.context), centres)
    write({"targets": targets, "centres": centres}, path, stage)
    used = len(set(targets[targets >= 0].tolist()))
    print(f"{stage.name}: {used} clusters of {total} frames, inertia {inertia:.3f}")
    return targets, centres


def _features(stream: Stream, stage: Stage, encoder: Encoder) -> Iterator[Tensor]:
    """What is clustered, an utterance at a time: MFCC less each speaker's mean, or a layer."""
    rows = range(len(stream.starts))
    if stage.layer is None:
        features = [mfcc(stream.waveform(row)) for row in rows]
        means = {}
        for speaker in set(stream.speakers):
            mine = [features[row] for row in rows if stream.speakers[row] == speaker]
            means[speaker] = torch.cat(mine).mean(0)
        for row in rows:
            yield (features[row] - means[stream.speakers[row]]) * LOUDNESS
        return
    encoder.eval()
    for row in tqdm(rows, "layer"):
        waveform = stream.waveform(row)[None]
        with torch.no_grad():
            output = encoder(waveform, torch.tensor([waveform.shape[1]]))
        yield output.hidden_states[stage.layer][0]


def crops(
    stream: Stream, targets: Tensor, stage: Stage, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Waveforms (B, n), targets (B, T, O), one an offset, and mask (B, T) of a step."""
    rng = np.random.default_rng([stage.seed, step])
    T, n = stage.frames, (stage.frames - 1) * HOP + WINDOW
    first, last = min(0, *stage.offsets), max(0, *stage.offsets)
    starts = rng.integers(-first, stream.total_frames - T - 2 - last, stage.batch)
    waveforms = torch.stack([stream.samples[s * HOP : s * HOP + n] for s in starts.tolist()])
    labels = torch.stack([
        torch.stack([targets[s + offset : s + offset + T] for offset in stage.offsets], -1)
        for s in starts.tolist()
    ])  # fmt: skip
    mask = draw_mask(rng, stage.batch, T, stage.spans, stage.span)
    return waveforms.float() / 32768, labels.long(), mask


def draw_mask(rng: np.random.Generator, batch: int, T: int, spans: int, span: int) -> Tensor:
    """(B, T) bool: spans of frames, which may overlap."""
    mask = torch.zeros(batch, T, dtype=torch.bool)
    for row, places in enumerate(rng.integers(0, T - span, (batch, spans))):
        for place in places.tolist():
            mask[row, place : place + span] = True
    return mask


def losses(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy summed over masked frames, over the others, and how many masked ones it hit.

    Of logits (B, T, O, clusters), labels (B, T, O), -100 where there is none, and mask (B, T).
    """
    hidden, seen = labels.where(mask[..., None], -100), labels.where(~mask[..., None], -100)
    flat = logits.flatten(0, 2)
    right = ((logits.detach().argmax(-1) == hidden) & (hidden >= 0)).sum()
    masked = cross_entropy(flat, hidden.flatten(), reduction="sum")
    return torch.stack([masked, cross_entropy(flat, seen.flatten(), reduction="sum"), right])


def counts(labels: Tensor, mask: Tensor) -> Tensor:
    """What the sums of `losses` are divided by: targets of masked frames, others, masked ones."""
    known = labels >= 0
    masked, seen = (known & mask[..., None]).sum(), (known & ~mask[..., None]).sum()
    return torch.stack([masked, seen, masked])


def train(
    stream: Stream, stage: Stage, encoder: Encoder, folder: Path, *, device: str = "cpu"
) -> Encoder:
    """Train the encoder in place through a stage, from its newest checkpoint if it has one."""
    rank, world = rank_and_world()
    targets, _ = made_by_first(lambda: make_targets(stream, stage, encoder, folder))
    torch.manual_seed(stage.seed)
    model = Masked(encoder, stage.clusters, len(stage.offsets)).to(device).train()

    def learn(step: int) -> Learnt:
        batch = crops(stream, targets, stage, step)
        counted = counts(*batch[1:]).to(device)
        waveforms, labels, mask = (tensor[rank::world].to(device) for tensor in batch)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=stage.bfloat16):
            logits = model(waveforms, mask)
        sums = losses(logits, labels, mask)
        masked, seen, _ = sums / counted
        return Learnt(masked + stage.seen_weight_at(step) * seen, sums.detach(), counted)

    optimise(model, stage, folder, learn, ("masked", "seen", "accuracy"))
    return encoder.cpu().eval()
