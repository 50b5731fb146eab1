"""What interventional refinement trains on: blocks of a grid, as features or as waveforms."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechft.augment import make_keys, uniform
from speechft.data import SpeechDataset, collate
from speechft.errors import ArgumentError, ConfigError
from speechft.grid import GridBlockSampler
from speechft.methods.alignment import Alignment
from speechft.models import SubspaceModel
from speechft.training.features import FeatureStore
from speechft.training.loader import EVALUATION_EPOCH, KeyedDataset, Position, TrainingData
from speechft.training.settings import TrainingSettings


def feature_data(
    model: SubspaceModel,
    dataset: SpeechDataset,
    settings: TrainingSettings,
    config: Any,
    folder: Path,
) -> tuple[TrainingData, FeatureStore]:
    """Blocks of features, computed now where they are not there yet."""
    sampler = _sampler(dataset, settings, config)
    model.encoder.to(_device(settings))
    store = FeatureStore(model, dataset, folder, frames=config.segment_frames > 0)
    alignment = None
    if config.segment_frames:
        alignment = Alignment(store, dataset.factors[:, 1])
    features = FeatureDataset(
        dataset, store, alignment, width=config.segment_frames, seed=settings.seed
    )

    def evaluation() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for block in _first(sampler, settings):
            yield (
                len(block),
                features.__getitems__([Position(EVALUATION_EPOCH, index) for index in block]),
            )

    return TrainingData(features, sampler, _as_is, evaluation, dataset.sample_rate), store


def waveform_data(dataset: SpeechDataset, settings: TrainingSettings, config: Any) -> TrainingData:
    """Blocks of waveforms."""
    sampler = _sampler(dataset, settings, config)
    keyed = KeyedDataset(dataset, settings.seed)

    def evaluation() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for block in _first(sampler, settings):
            samples = [keyed[Position(EVALUATION_EPOCH, index)] for index in block]
            yield len(block), collate(samples)

    return TrainingData(keyed, sampler, collate, evaluation, dataset.sample_rate)


class FeatureDataset(Dataset[Any]):
    """Batches of features: the whole of each utterance, and a segment of each if it is aligned.

    All utterances of a text have their segment at the same place of it, drawn by (seed, epoch,
    text). One that has no text, or is shorter than a segment, is given whole once more.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        store: FeatureStore,
        alignment: Alignment | None,
        *,
        width: int,
        seed: int,
    ) -> None:
        self.lengths, self.factors = dataset.lengths, dataset.factors
        self.store, self.alignment = store, alignment
        self.width, self.seed = width, seed

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, positions: Sequence[Position]) -> dict[str, Tensor]:
        """A batch: ``features`` (B, V, K, C), ``factors`` (B, F), ``lengths`` (B,)."""
        rows = np.array([position.utterance for position in positions])
        whole = torch.from_numpy(self.store.pooled[rows])[:, None]
        views = [whole]
        if self.alignment is not None:
            segments = self._segments(rows, positions[0].epoch, whole[:, 0, 0])
            views.append(segments[:, None, None])
        chosen = torch.from_numpy(rows)
        return {
            "features": torch.cat(views, 1),
            "factors": self.factors[chosen],
            "lengths": self.lengths[chosen],
        }

    def _segments(self, rows: np.ndarray[Any, Any], epoch: int, whole: Tensor) -> Tensor:
        """(B, C): the mean of the frames of each segment."""
        assert self.alignment is not None
        assert self.store.frames is not None
        texts = self.factors[torch.from_numpy(rows), 1]
        draws = uniform(make_keys(self.seed, epoch, texts.clamp(min=0)), 0, 1)[:, 0].tolist()
        segments = whole.clone()
        for row, (index, text, draw) in enumerate(
            zip(rows.tolist(), texts.tolist(), draws, strict=True)
        ):
            path = self.alignment.path(index)
            places = len(path) - self.width + 1
            if text < 0 or places < 1:
                continue
            start = min(int(draw * places), places - 1)
            end = start + self.width
            first = int(path[start])
            past = int(path[end]) if end < len(path) else self.alignment.frames_of(index)
            base = int(self.store.starts[index])
            frames = self.store.frames[base + first : base + max(past, first + 1)]
            segments[row] = torch.from_numpy(frames.astype(np.float32)).mean(0)
        return segments


def _sampler(dataset: SpeechDataset, settings: TrainingSettings, config: Any) -> GridBlockSampler:
    names = list(config.factors.values())
    try:
        sampler = GridBlockSampler(
            dataset.factors, batch_size=settings.batch_size, rows=config.rows, seed=settings.seed
        )
        sampler.check(names)
    except ArgumentError as error:
        raise ConfigError(f"grid: {error}") from error
    print(sampler.report(names), file=sys.stderr)
    return sampler


def _first(sampler: GridBlockSampler, settings: TrainingSettings) -> list[list[int]]:
    """The first blocks of an epoch of their own."""
    count = math.ceil(settings.evaluate_utterances / settings.batch_size)
    return list(itertools.islice(sampler.batches(EVALUATION_EPOCH), count))


def _as_is(batch: Any) -> Any:
    return batch


def _device(settings: TrainingSettings) -> torch.device:
    from speechft.training.trainer import device_of

    return device_of(settings)
