"""Units of a data set: by batches of similar lengths, kept and resumed, and as lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechft.data import Manifest, SpeechDataset, collate
from speechft.errors import ArgumentError
from speechft.evaluation.extraction import extract
from speechft.models import UnitModel

_SHARD_SECONDS = 3600  # of speech in a file of the cache: what an interruption can cost


def extract_units(
    model: UnitModel,
    dataset: SpeechDataset,
    *,
    cache: str | Path | None = None,
    batch_seconds: float = 64.0,
    progress: bool | None = None,
) -> list[Tensor]:
    """The unit of every frame of every utterance.

    Args:
        model: from :func:`speechft.models.load_units`, on its device.
        dataset: the utterances.
        cache: a folder, for this model and data alone, in which units are kept; what was stopped
            goes on from there. None keeps nothing.
        batch_seconds: of padded speech in a batch, at most (a longer utterance is alone in one).
        progress: show a bar; None shows it on a terminal.

    Returns:
        (T,) int32 of each utterance, on the CPU, in the order of the data.

    Raises:
        ArgumentError: ``batch_seconds`` is not above 0.
        AudioError: an utterance cannot be used.
    """
    if not batch_seconds > 0:
        raise ArgumentError("batch_seconds", f"wants more than 0, got {batch_seconds}")
    return extract(
        dataset,
        lambda indices: _of_batch(model, dataset, indices),
        folder=None if cache is None else Path(cache),
        shard_seconds=_SHARD_SECONDS, batch_seconds=batch_seconds, title="units",
        progress=sys.stderr.isatty() if progress is None else progress,
    )  # fmt: skip


def _of_batch(model: UnitModel, dataset: SpeechDataset, indices: list[int]) -> list[Tensor]:
    samples = collate([dataset[index] for index in indices])
    device = model.head.codebook.device
    units, lengths = model(samples["waveforms"].to(device), samples["lengths"].to(device))
    rows = units.to(torch.int32).cpu()
    return [row[:n].clone() for row, n in zip(rows, lengths.tolist(), strict=True)]


def merge_units(units: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of the same unit as one: the units, and how many frames each lasts.

    Args:
        units: (T,) integers.

    >>> import torch
    >>> merge_units(torch.tensor([7, 7, 3, 7]))
    (tensor([7, 3, 7]), tensor([2, 1, 1]))
    """
    merged, durations = torch.unique_consecutive(units, return_counts=True)
    return merged, durations


def unit_lines(
    manifest: Manifest, units: Iterable[Tensor], *, merge: bool = False
) -> Iterator[dict[str, Any]]:
    """For each utterance ``id`` and ``units``; merged also ``durations``, in frames."""
    for row, found in zip(manifest, units, strict=True):
        if merge:
            merged, durations = merge_units(found)
            yield {"id": row.id, "units": merged.tolist(), "durations": durations.tolist()}
        else:
            yield {"id": row.id, "units": found.tolist()}


def write_units(path: str | Path, lines: Iterable[dict[str, Any]]) -> None:
    """A line of JSON an utterance; the file is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="writing-") as folder:
        part = Path(folder) / path.name
        with part.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        os.replace(part, path)
