"""What Spin trains on: batches by what is used of an utterance, with pseudo-labels or without."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechft.data import LengthBatchSampler, Sample, SpeechDataset, collate
from speechft.errors import ConfigError
from speechft.methods.spin_config import SpinConfig
from speechft.methods.spin_parts import LABELS
from speechft.models import Encoder
from speechft.training.loader import TrainingData, speech_data
from speechft.training.settings import TrainingSettings


def spin_data(
    encoder: Encoder,
    config: SpinConfig,
    dataset: SpeechDataset,
    settings: TrainingSettings,
    output: Path,
) -> TrainingData:
    """See :meth:`speechft.methods.Spin.training_data`."""
    rate = dataset.sample_rate
    used = dataset.lengths
    if config.crop_seconds is not None:
        used = used.clamp(max=round(config.crop_seconds * rate))
    limit = settings.max_batch_seconds
    batches = LengthBatchSampler(
        used,
        batch_size=settings.batch_size,
        max_samples=None if limit is None else int(limit * rate),
        seed=settings.seed,
    )
    check_codes(config.codes, encoder.frame_lengths(used), batches.batches(0))
    # Its own batches, which count whole utterances, are not used.
    data = replace(speech_data(dataset, replace(settings, max_batch_seconds=None)), batches=batches)
    if config.pseudo_labels is None:
        return data
    from speechft.methods.spin_labels import pseudo_labels

    device = next(encoder.parameters()).device
    labels = pseudo_labels(config, encoder, dataset, output / "pseudo_labels", device=device)
    labelled = LabelledCollate(labels)

    def evaluation() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for count, batch in data.evaluation():
            yield count, {**batch, LABELS: labelled.labels_of(batch["indices"].tolist())}

    return replace(data, collate=labelled, evaluation=evaluation)


def check_codes(codes: int, frames: Tensor, batches: list[list[int]]) -> None:
    """Each code is to get its share of the frames of a batch.

    The smallest batch of an epoch, which is what was left over, may have fewer; and ranks put
    theirs together.

    Raises:
        ConfigError: more codes than frames.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    sizes = sorted(int(frames[batch].sum()) * ranks for batch in batches)
    least = sizes[min(1, len(sizes) - 1)]
    if codes > least:
        raise ConfigError(
            f"codes: {codes} are to share the {least} frames of a batch; choose {least} or fewer, "
            "or raise batch_size or max_batch_seconds"
        )


class LabelledCollate:
    """Batches of samples with the labels of their frames.

    Args:
        labels: (F,) of each utterance.
    """

    def __init__(self, labels: Sequence[Tensor]) -> None:
        self.labels = labels

    def labels_of(self, indices: Sequence[int]) -> Tensor:
        """(B, F) int64, -1 beyond each utterance."""
        rows = [self.labels[index].to(torch.int64) for index in indices]
        return pad_sequence(rows, batch_first=True, padding_value=-1)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch = collate(samples)
        return {**batch, LABELS: self.labels_of([sample["index"] for sample in samples])}
