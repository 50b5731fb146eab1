"""Features of a frozen encoder, computed once: files that are mapped into memory, and resumed."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speechft.data import SpeechDataset, collate
from speechft.errors import ConfigError, NonFiniteError
from speechft.evaluation.embeddings import data_key, model_key
from speechft.models import SubspaceModel

_FORMAT = 1
_COMMIT_SECONDS = 600  # of speech between two commits: what an interruption can cost


class FeatureStore:
    """The pooled layers of every utterance and, if asked for, the frames of one layer.

    Lies in a folder named after the weights of the encoder, the data and the layers: another of
    these is another folder, the same is not computed again, and a stopped computation goes on.

    Args:
        model: says which layers, and has the encoder, frozen and in eval mode.
        dataset: the utterances.
        folder: the folder of all stores.
        frames: keep the frames of the layer as well, in float16.
        batch_seconds: of padded speech in a batch.
        progress: show a bar; None: on a terminal.

    Attributes:
        pooled: (N, K, C) float32, the mean over valid frames of each layer.
        starts: (N + 1,) where the frames of each utterance begin.
        frames: (F, C) float16, the frames of all, or None.

    Raises:
        ConfigError: frames of several layers.
        NonFiniteError: the encoder gives NaN or infinity, or frames beyond float16.
    """

    def __init__(
        self,
        model: SubspaceModel,
        dataset: SpeechDataset,
        folder: Path,
        *,
        frames: bool = False,
        batch_seconds: float = 64.0,
        progress: bool | None = None,
    ) -> None:
        if frames and len(model.layers) > 1:
            raise ConfigError("segment_frames: wants one layer, as frames of all are too many")
        encoder = model.encoder
        counts = encoder.frame_lengths(dataset.lengths)
        self.starts = np.concatenate([[0], counts.cumsum(0).numpy()])
        known = [_FORMAT, model_key(encoder), data_key(dataset.manifest), model.layers, frames]
        name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        size = encoder.hidden_size
        self.pooled = self._file("pooled", (len(dataset), len(model.layers), size), np.float32)
        self.frames = None
        if frames:
            self.frames = self._file("frames", (int(self.starts[-1]), size), np.float16)
        self._done = self._file("done", (len(dataset),), np.bool_)
        self._compute(model, dataset, batch_seconds, progress)

    def _file(self, name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        path = self.folder / f"{name}.npy"
        mode: Any = "r+" if path.exists() else "w+"
        return np.lib.format.open_memmap(
            path, mode=mode, dtype=None if mode == "r+" else dtype,
            shape=None if mode == "r+" else shape,
        )  # fmt: skip

    def _compute(
        self, model: SubspaceModel, dataset: SpeechDataset, batch_seconds: float, progress: Any
    ) -> None:
        left = np.flatnonzero(~self._done)
        if not len(left):
            return
        from tqdm import tqdm

        order = left[np.argsort(-dataset.lengths.numpy()[left], kind="stable")].tolist()
        show = sys.stderr.isatty() if progress is None else progress
        bar = tqdm(total=len(dataset), initial=len(dataset) - len(left), desc="features",
                   unit="utterance", disable=not show)  # fmt: skip
        batch: list[int] = []
        waiting: list[int] = []
        seconds = 0.0
        most = batch_seconds * dataset.sample_rate
        for position, index in enumerate(order):
            batch.append(index)
            longest = int(dataset.lengths[batch[0]])
            last = position + 1 == len(order)
            if not last and longest * (len(batch) + 1) <= most:
                continue
            self._batch(model, dataset, batch)
            bar.update(len(batch))
            waiting += batch
            seconds += float(dataset.lengths[batch].sum()) / dataset.sample_rate
            batch = []
            if last or seconds >= _COMMIT_SECONDS:
                self._commit(waiting)
                waiting, seconds = [], 0.0
        bar.close()

    @torch.no_grad()
    def _batch(self, model: SubspaceModel, dataset: SpeechDataset, indices: list[int]) -> None:
        encoder = model.encoder
        training = encoder.training
        encoder.eval()
        device = next(encoder.parameters()).device
        samples = collate([dataset[index] for index in indices])
        waveforms, lengths = samples["waveforms"].to(device), samples["lengths"].to(device)
        output = model._encode(waveforms, lengths)
        chosen = model._chosen(output)
        pooled = torch.stack([f.float().sum(1) / output.lengths[:, None] for f in chosen], 1).cpu()
        finite = pooled.flatten(1).isfinite().all(1).tolist()
        if not all(finite):
            bad = dataset.manifest[indices[finite.index(False)]]
            raise NonFiniteError("model", f"gives NaN or infinity for utterance {bad.id!r}")
        self.pooled[indices] = pooled.numpy()
        if self.frames is not None:
            counts = output.lengths.tolist()
            for row, (index, count) in enumerate(zip(indices, counts, strict=True)):
                half = chosen[0][row, :count].half().cpu()
                if not half.isfinite().all():
                    name = dataset.manifest[index].id
                    raise NonFiniteError("model", f"has frames beyond float16 in {name!r}")
                self.frames[self.starts[index] : self.starts[index + 1]] = half.numpy()
        encoder.train(training)

    def _commit(self, indices: list[int]) -> None:
        """First what was computed, then that it was."""
        for array in (self.pooled, self.frames):
            if isinstance(array, np.memmap):
                array.flush()
        self._done[indices] = True
        if isinstance(self._done, np.memmap):
            self._done.flush()
