"""Something of every utterance: batches of similar lengths, a shard at a time, kept, resumed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from speechft.data import SpeechDataset
from speechft.data.shards import batches, shards


def extract(
    dataset: SpeechDataset,
    of_batch: Callable[[list[int]], list[Tensor]],
    *,
    folder: Path | None,
    shard_seconds: int,
    batch_seconds: float,
    title: str,
    progress: bool,
) -> list[Tensor]:
    """What ``of_batch`` gives of each utterance, in the order of the data.

    Args:
        dataset: the utterances.
        of_batch: a tensor of each of these utterances, on the CPU.
        folder: where shards are kept; what was stopped goes on from there. None keeps nothing.
        shard_seconds: of speech in a file of the folder: what an interruption can cost.
        batch_seconds: of padded speech in a batch, at most (a longer utterance is alone in one).
        title: of the bar.
        progress: show it.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, Tensor] = {}
    bar = _Bar(len(dataset), progress, title)
    rate = dataset.sample_rate
    for number, shard in enumerate(shards(dataset.lengths, shard_seconds * rate)):
        file = None if folder is None else folder / f"{number:05d}.safetensors"
        values = None if file is None else _read(file, len(shard))
        if values is None:
            values = []
            for batch in batches(dataset.lengths, shard, batch_seconds * rate):
                values += of_batch(batch)
                bar.update(len(batch))
            if file is not None:
                _write(file, values)
        else:
            bar.update(len(shard))
        found.update(zip(shard, values, strict=True))
    bar.close()
    return [found[index] for index in range(len(dataset))]


def _read(file: Path, count: int) -> list[Tensor] | None:
    """The tensors of a shard; None if it is not there or not whole."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            expected = (opened.metadata() or {}).get("sha256")
    except (FileNotFoundError, SafetensorError):
        return None
    if len(tensors) != count:
        return None
    values = [tensors[str(row)] for row in range(count)]
    return values if _digest(values) == expected else None


def _write(file: Path, values: list[Tensor]) -> None:
    """Whole or not at all."""
    from safetensors.torch import save_file

    tensors = {str(row): value.contiguous() for row, value in enumerate(values)}
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="writing-") as folder:
        part = Path(folder) / file.name
        save_file(tensors, part, metadata={"sha256": _digest(values)})
        part.replace(file)


def _digest(values: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Bar:
    def __init__(self, total: int, show: bool, title: str) -> None:
        self._bar: Any = None
        if show:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit="utterance", leave=False)

    def update(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
