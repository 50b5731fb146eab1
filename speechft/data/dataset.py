"""A map-style torch dataset of utterances, and how a list of them becomes a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechft.data.audio import SAMPLE_RATE, load_audio
from speechft.data.ledger import Ledger
from speechft.data.manifest import Manifest
from speechft.data.scanning import MIN_SAMPLES, OnBadAudio, OnShort, Scan, scan, without_short
from speechft.errors import ArgumentError, AudioError


class Sample(TypedDict):
    """One utterance: float32 ``waveform`` (n,), ``key`` of its id, ``factors`` (K,) int64."""

    id: str
    index: int
    key: int
    waveform: Tensor
    factors: Tensor


class Batch(TypedDict):
    """Samples padded on the right with zeros.

    ``waveforms`` (B, T) float32; ``lengths``, ``keys`` and ``indices`` (B,) int64; ``factors``
    (B, K) int64, -1 where unknown; ``ids``, B strings.
    """

    waveforms: Tensor
    lengths: Tensor
    keys: Tensor
    indices: Tensor
    factors: Tensor
    ids: list[str]


class SpeechDataset(Dataset[Sample]):
    """Waveforms of a manifest, validated once before the first is used.

    The scan (:func:`speechft.data.scan`) runs here, so an item never fails for a reason that was
    there at the start, and what is skipped is the same for any number of workers.

    Args:
        data: a manifest, which is scanned, or a finished :class:`Scan`.
        on_bad_audio: ``"fail"`` or ``"skip"`` (counted in ``ledger``).
        sample_rate: Hz.
        min_samples: fewer at ``sample_rate`` is bad audio.
        max_duration: more seconds is bad audio; nothing is cut.
        wanted_samples: what a method wants of an utterance at least (a crop of a fixed length).
        on_short: what becomes of one with fewer: ``"drop"`` leaves it out, in the ledger;
            ``"repeat"`` says it over and over until it is as long, counted in ``repeated``;
            ``"fail"`` is an error.
        factors: labels to give as integer ids, see :meth:`Manifest.factor_ids`.
        workers: processes for the scan.
        progress: show a bar during the scan; None shows it on a terminal.

    Attributes:
        manifest: the utterances in use; ``dataset[i]`` is ``manifest[i]``.
        lengths: samples of each, int64 (N,); what :class:`LengthBatchSampler` wants.
        ledger: what became of every row.
        repeated: how many utterances are repeated.

    Raises:
        ArgumentError: a setting that is none.
        AudioError: see :func:`speechft.data.scan`; an utterance shorter than wanted, with
            ``"fail"``, or nothing left, with ``"drop"``; on access, if a file has changed since.
    """

    def __init__(
        self,
        data: Manifest | Scan,
        *,
        on_bad_audio: OnBadAudio = "fail",
        sample_rate: int = SAMPLE_RATE,
        min_samples: int = MIN_SAMPLES,
        max_duration: float | None = None,
        wanted_samples: int = 0,
        on_short: OnShort = "fail",
        factors: Sequence[str] = (),
        workers: int = 0,
        progress: bool | None = None,
    ) -> None:
        if isinstance(data, Scan):
            if data.sample_rate != sample_rate:
                raise ArgumentError(
                    "sample_rate",
                    f"is {sample_rate}, but the data was scanned at {data.sample_rate}",
                )
            scanned = data
        else:
            scanned = scan(
                data,
                on_bad_audio=on_bad_audio,
                sample_rate=sample_rate,
                min_samples=min_samples,
                max_duration=max_duration,
                workers=workers,
                progress=progress,
            )
        if on_short not in get_args(OnShort):
            raise ArgumentError(
                "on_short", f"wants one of {', '.join(get_args(OnShort))}; got {on_short!r}"
            )
        self.repeated = 0
        if min(scanned.lengths) < wanted_samples:
            if on_short == "repeat":
                self.repeated = sum(length < wanted_samples for length in scanned.lengths)
            else:
                scanned = without_short(scanned, wanted_samples, fail=on_short == "fail")
        self.manifest: Manifest = scanned.manifest
        self.ledger: Ledger = scanned.ledger
        self._read_lengths = torch.tensor(scanned.lengths, dtype=torch.int64)
        least = wanted_samples if self.repeated else 0
        self.lengths = self._read_lengths.clamp(min=least)
        self.sample_rate = sample_rate
        self.factor_names = tuple(factors)
        self._factors = self.manifest.factor_ids(self.factor_names)

    @property
    def factors(self) -> Tensor:
        """Integer ids of the labels asked for, (N, K), -1 where unknown."""
        return self._factors

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Sample:
        utterance = self.manifest[index]
        index %= len(self.manifest)
        waveform = load_audio(utterance, sample_rate=self.sample_rate)
        read, wanted = int(self._read_lengths[index]), int(self.lengths[index])
        if len(waveform) != read:
            raise AudioError(
                utterance.audio,
                f"changed while in use: {len(waveform)} samples, {read} when it was scanned",
                utterance=utterance.id,
            )
        if wanted > read:
            waveform = np.resize(waveform, wanted)  # from its beginning again, and again
        return Sample(
            id=utterance.id,
            index=index,
            key=utterance.key,
            waveform=torch.from_numpy(waveform),
            factors=self._factors[index],
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples on the right with zeros to the longest.

    Raises:
        ArgumentError: no samples.
    """
    if not samples:
        raise ArgumentError("samples", "is empty; a batch needs at least one sample")
    waveforms = [sample["waveform"] for sample in samples]
    return Batch(
        waveforms=torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
        lengths=torch.tensor([len(waveform) for waveform in waveforms]),
        keys=torch.tensor([sample["key"] for sample in samples]),
        indices=torch.tensor([sample["index"] for sample in samples]),
        factors=torch.stack([sample["factors"] for sample in samples]),
        ids=[sample["id"] for sample in samples],
    )
