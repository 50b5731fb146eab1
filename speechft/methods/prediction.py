"""What a classifier says of utterances: chunk by chunk, and then of the whole or of a speaker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechft.data import Manifest, SpeechDataset, collate
from speechft.errors import ConfigError
from speechft.models.classifier import Classifier


class Prediction(NamedTuple):
    """Log probabilities, means over chunks, and what they are of.

    Attributes:
        log_probabilities: (N, classes).
        truth: (N,) integers of the label, -1 where it has none of the classes.
        names: of utterances, or of what they are put together by.
    """

    log_probabilities: Tensor
    truth: Tensor
    names: list[str]


@torch.no_grad()
def predict(
    classifier: Classifier,
    manifest: Manifest,
    *,
    chunk_seconds: float | None = None,
    aggregate: str | None = None,
    batch_seconds: float = 64.0,
) -> Prediction:
    r"""Classify utterances, in chunks of a length.

    An utterance of n samples has :math:`\lceil n / c \rceil` chunks of c, evenly spaced from its
    first sample to its last, so that none of it is left out; a shorter one is one chunk. Their log
    probabilities are averaged.

    Args:
        classifier: in eval mode.
        manifest: the utterances.
        chunk_seconds: c; None: whole utterances.
        aggregate: a label, of whose values one prediction is made each, over the chunks of all
            their utterances: ``"speaker"``, for a diagnosis.
        batch_seconds: of chunks in a batch.

    Raises:
        ConfigError: utterances to be put together that differ in the label.
        AudioError: the data.
    """
    model = classifier.model
    device = next(classifier.parameters()).device
    dataset = SpeechDataset(
        manifest, min_samples=model.minimum_samples, sample_rate=model.sample_rate, progress=False
    )
    size = None
    if chunk_seconds is not None:
        size = max(round(chunk_seconds * model.sample_rate), model.minimum_samples)
    number = {value: index for index, value in enumerate(classifier.classes)}
    sums = torch.zeros(len(dataset), len(classifier.classes), dtype=torch.float64)
    counts = torch.zeros(len(dataset), dtype=torch.float64)
    most = round(batch_seconds * model.sample_rate)
    for rows, waveforms, lengths in _batches(dataset, size, most):
        logits = classifier(waveforms.to(device), lengths.to(device))
        sums.index_add_(0, rows, logits.double().log_softmax(1).cpu())
        counts.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
    labels = [row.label(classifier.label) for row in manifest]
    truth = torch.tensor([-1 if label is None else number.get(label, -1) for label in labels])
    names = [row.id for row in manifest]
    if aggregate is not None:
        return _together(manifest, aggregate, sums, counts, truth, classifier.label)
    return Prediction(sums / counts[:, None], truth, names)


def _batches(
    dataset: SpeechDataset, size: int | None, most: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of the data set, chunks (B, T), and their lengths: longest first."""
    chunks: list[tuple[int, int, int]] = []
    for row, length in enumerate(dataset.lengths.tolist()):
        width = length if size is None else min(size, length)
        pieces = -(-length // width)
        room = length - width
        for piece in range(pieces):
            start = room * piece // max(1, pieces - 1)
            chunks.append((row, start, width))
    chunks.sort(key=lambda chunk: (-chunk[2], chunk[0], chunk[1]))
    batch: list[tuple[int, int, int]] = []
    for chunk in chunks:
        if batch and (len(batch) + 1) * batch[0][2] > most:
            yield _read(dataset, batch)
            batch = []
        batch.append(chunk)
    if batch:
        yield _read(dataset, batch)


def _read(
    dataset: SpeechDataset, batch: Sequence[tuple[int, int, int]]
) -> tuple[Tensor, Tensor, Tensor]:
    known = {row: dataset[row] for row in {row for row, _, _ in batch}}
    samples = []
    for row, start, width in batch:
        sample = known[row].copy()
        sample["waveform"] = sample["waveform"][start : start + width]
        samples.append(sample)
    made = collate(samples)
    return torch.tensor([row for row, _, _ in batch]), made["waveforms"], made["lengths"]


def _together(
    manifest: Manifest, aggregate: str, sums: Tensor, counts: Tensor, truth: Tensor, label: str
) -> Prediction:
    groups: dict[str, list[int]] = {}
    for row, utterance in enumerate(manifest):
        value = utterance.label(aggregate)
        if value is None:
            raise ConfigError(f"aggregate: utterance {utterance.id!r} has no {aggregate!r}")
        groups.setdefault(str(value), []).append(row)
    for name, rows in groups.items():
        if len(set(truth[rows].tolist())) > 1:
            raise ConfigError(
                f"aggregate: utterances of {aggregate} {name!r} differ in {label!r}, so there is "
                "no one answer for it"
            )
    together = [sums[rows].sum(0) / counts[rows].sum() for rows in groups.values()]
    return Prediction(
        torch.stack(together), truth[[rows[0] for rows in groups.values()]], list(groups)
    )
