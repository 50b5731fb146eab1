"""Embeddings of a model: extracted once, in batches of similar length, kept and resumed.

Layer 0 is the input of the first transformer layer, layer i the output of the i-th, and the last
layer L the encoder's ``last_hidden_state``, after the final layer norm where there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from speechft.data import Manifest, SpeechDataset, collate
from speechft.errors import ArgumentError, AudioError, NonFiniteError
from speechft.evaluation.conditions import UNCHANGED, Condition
from speechft.evaluation.extraction import extract
from speechft.models.encoder import EncoderOutput
from speechft.models.units import UnitHead

_FORMAT = 2  # of the cache; raised when the same model and data would give something else
_SHARD_SECONDS = 600  # of speech in a file of the cache: what an interruption can cost
_MEMORY_BYTES = 2 << 30  # of embeddings that are kept for the next task


class FrameEncoder(Protocol):
    """What is evaluated: a :class:`speechft.models.Encoder`, or what behaves as one."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def minimum_samples(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor: ...

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput: ...


class Frames(NamedTuple):
    """Frames of some utterances.

    Attributes:
        values: (T, K, C) of each utterance, K the layers asked for.
        layers: which.
        hop: seconds of the original speech between two frames.
        centre: seconds of the original speech at the middle of the first frame.
    """

    values: list[Tensor]
    layers: tuple[int, ...]
    hop: float
    centre: float

    def times(self, utterance: int) -> Tensor:
        """Seconds of the original speech at the middle of each frame: (T,) float64."""
        steps = torch.arange(len(self.values[utterance]), dtype=torch.float64)
        return steps * self.hop + self.centre

    def layer(self, layer: int) -> list[Tensor]:
        """(T, C) of each utterance."""
        position = self.layers.index(layer)
        return [value[:, position] for value in self.values]


class Embeddings:
    """The embeddings of one model.

    Args:
        encoder: the model, in eval mode, on its device.
        cache: a folder in which embeddings are kept by what the model and the data are; a run
            that was stopped goes on from there. None keeps nothing.
        batch_seconds: of padded speech in a batch, at most (a longer utterance is alone in one).
        progress: show a bar; None shows it on a terminal.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        *,
        cache: str | Path | None = None,
        batch_seconds: float = 64.0,
        progress: bool | None = None,
    ) -> None:
        if not batch_seconds > 0:
            raise ArgumentError("batch_seconds", f"wants more than 0, got {batch_seconds}")
        self.encoder = encoder
        self.cache = None if cache is None else Path(cache)
        self.batch_seconds = batch_seconds
        self.progress = sys.stderr.isatty() if progress is None else progress
        self.layers = tuple(range(encoder.num_layers + 1))
        self.spaces: dict[str, tuple[int, int]] = dict(getattr(encoder, "spaces", {}))
        self.unit_head: UnitHead | None = getattr(encoder, "unit_head", None)
        self._model_key = model_key(encoder) if self.cache else ""
        self._datasets: dict[str, SpeechDataset] = {}
        self._kept: dict[tuple[Any, ...], list[Tensor]] = {}

    def pooled(self, manifest: Manifest, condition: str = UNCHANGED) -> Tensor:
        """The mean over valid frames of every layer: (N, L + 1, C) float32.

        Raises:
            AudioError: an utterance cannot be used.
        """
        return torch.stack(self._embed(manifest, condition, self.layers, pool=True))

    def frames(
        self,
        manifest: Manifest,
        condition: str = UNCHANGED,
        *,
        layers: Sequence[int] | None = None,
    ) -> Frames:
        """The valid frames of some layers (None: of all).

        Raises:
            AudioError: an utterance cannot be used.
            ArgumentError: a layer that does not exist, or frames that memory does not hold.
        """
        if self.spaces:
            raise ArgumentError(
                "model",
                "gives a vector an utterance and no frames; give this task "
                "load_subspaces(...).folded() instead",
            )
        chosen = self.layers if layers is None else tuple(layers)
        unknown = [layer for layer in chosen if layer not in self.layers]
        if unknown or not chosen:
            raise ArgumentError("layers", f"wants some of 0 to {self.layers[-1]}, got {layers}")
        self._check_memory(manifest, len(chosen))
        values = self._embed(manifest, condition, chosen, pool=False)
        window = self.encoder.minimum_samples
        lengths = torch.tensor([window, window + 32_000])
        one, more = self.encoder.frame_lengths(lengths).tolist()
        hop = 32_000 / (more - one)
        seconds = Condition.parse(condition).speed / self.encoder.sample_rate
        return Frames(values, chosen, hop * seconds, window / 2 * seconds)

    def dataset(self, manifest: Manifest) -> SpeechDataset:
        """The validated waveforms of a manifest; scanned once."""
        key = data_key(manifest)
        if key not in self._datasets:
            self._datasets[key] = SpeechDataset(
                manifest,
                min_samples=self.encoder.minimum_samples,
                sample_rate=self.encoder.sample_rate,
                progress=self.progress,
            )
        return self._datasets[key]

    def _check_memory(self, manifest: Manifest, layers: int) -> None:
        """Say now, not after hours, that so many frames do not fit."""
        frames = int(self.encoder.frame_lengths(self.dataset(manifest).lengths).sum())
        size = 4 * frames * layers * int(getattr(self.encoder, "hidden_size", 0))
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > 0.7 * there:
            raise ArgumentError(
                "layers",
                f"{frames:,} frames of {layers} layers take {size / 2**30:.0f} GiB, and this "
                f"machine has {there / 2**30:.0f}; choose fewer layers or less speech",
            )

    def _embed(
        self, manifest: Manifest, condition: str, layers: tuple[int, ...], *, pool: bool
    ) -> list[Tensor]:
        key = (data_key(manifest), condition, layers, pool)
        if key not in self._kept:
            self._kept[key] = self._through_cache(manifest, condition, layers, pool=pool)
            while len(self._kept) > 1 and self._bytes() > _MEMORY_BYTES:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def _bytes(self) -> int:
        return sum(t.numel() * t.element_size() for kept in self._kept.values() for t in kept)

    def _through_cache(
        self, manifest: Manifest, condition: str, layers: tuple[int, ...], *, pool: bool
    ) -> list[Tensor]:
        """Every shard from the cache, or computed and put there."""
        dataset = self.dataset(manifest)
        folder = None
        if self.cache is not None:
            what = json.dumps([_FORMAT, data_key(manifest), condition, layers, pool])
            folder = self.cache / self._model_key / hashlib.sha256(what.encode()).hexdigest()[:32]
        return extract(
            dataset,
            lambda indices: self._batch(dataset, indices, condition, layers, pool=pool),
            folder=folder, shard_seconds=_SHARD_SECONDS, batch_seconds=self.batch_seconds,
            title="embedding", progress=self.progress,
        )  # fmt: skip

    def _batch(
        self,
        dataset: SpeechDataset,
        indices: list[int],
        condition: str,
        layers: tuple[int, ...],
        *,
        pool: bool,
    ) -> list[Tensor]:
        samples = collate([dataset[index] for index in indices])
        waveforms, lengths = Condition.parse(condition)(samples["waveforms"], samples["lengths"])
        for row, length in enumerate(lengths.tolist()):
            if length < self.encoder.minimum_samples:
                utterance = dataset.manifest[indices[row]]
                raise AudioError(
                    utterance.audio,
                    f"has {length} samples at {condition!r}; the encoder needs "
                    f"{self.encoder.minimum_samples}",
                    utterance=utterance.id,
                )
        device = _device(self.encoder)
        with torch.inference_mode():
            output = self.encoder(waveforms.to(device), lengths.to(device))
            states = [*output.hidden_states[:-1], output.last_hidden_state]
            stacked = torch.stack([states[layer].float() for layer in layers], 2)
            whole = stacked.flatten(1).isfinite().all(1).tolist()
            if not all(whole):
                bad = dataset.manifest[indices[whole.index(False)]]
                raise NonFiniteError(
                    "model", f"gives NaN or infinity for utterance {bad.id!r} at {condition!r}"
                )
            if pool:  # padded frames are zeros
                means = stacked.sum(1) / output.lengths[:, None, None]
                return list(means.cpu().unbind())
            counts = output.lengths.tolist()
            return [row[:n].cpu().clone() for row, n in zip(stacked, counts, strict=True)]


def model_key(encoder: Any) -> str:
    """Of the class, the kind of device, every weight, and what comes out for a fixed second.

    What comes out stands for all that weights do not say: settings, adapters and their scale.
    """
    kind, device = type(encoder), _device(encoder)
    name = f"{kind.__module__}.{kind.__qualname__} {device.type} {encoder.sample_rate}"
    digest = hashlib.sha256(name.encode())
    steps = torch.arange(encoder.sample_rate, dtype=torch.float64)
    second = (0.3 * torch.sin(2e-5 * steps.square()) + 0.05).float()[None].to(device)
    with torch.inference_mode():
        output = encoder(second, torch.tensor([second.shape[1]], device=device))
    for state in (*output.hidden_states, output.last_hidden_state):
        digest.update(state.float().cpu().contiguous().numpy().tobytes())
    for name, tensor in sorted(encoder.state_dict().items()):
        raw = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {raw.dtype} {tuple(raw.shape)}".encode())
        digest.update(raw.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def data_key(manifest: Manifest) -> str:
    """Of ids, segments, and each file's path, size and time of change."""
    digest = hashlib.sha256()
    known: dict[Path, str] = {}
    for utterance in manifest:
        if utterance.audio not in known:
            try:
                state = os.stat(utterance.audio)
            except OSError as error:
                reason = error.strerror or "cannot be read"
                raise AudioError(utterance.audio, reason, utterance=utterance.id) from error
            name = utterance.audio.resolve()
            known[utterance.audio] = f"{name} {state.st_size} {state.st_mtime_ns}"
        segment = (utterance.id, utterance.start, utterance.end)
        digest.update(f"{segment!r} {known[utterance.audio]}\n".encode())
    return digest.hexdigest()


def _device(encoder: Any) -> torch.device:
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        device: torch.device = tensor.device
        return device
    return torch.device("cpu")
