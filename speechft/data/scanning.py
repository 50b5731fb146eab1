"""One pass over a data set before training: decode everything once, and know what is there.

Bad audio is met here and nowhere else, in the order of the manifest. So what is skipped does not
depend on the number of workers, on ranks or on restarts, and every length is known before the
first batch is made.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from speechft.data.audio import SAMPLE_RATE, load_audio
from speechft.data.ledger import Ledger, Skip
from speechft.data.manifest import Manifest, Utterance
from speechft.errors import ArgumentError, AudioError

MIN_SAMPLES = 400
"""Samples at 16 kHz of which wav2vec 2.0, HuBERT and WavLM make one frame."""

OnBadAudio = Literal["fail", "skip"]
OnShort = Literal["fail", "drop", "repeat"]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Scan:
    """A data set of which every utterance is known to decode.

    Attributes:
        manifest: the usable utterances, their ``duration`` measured.
        lengths: samples of each at ``sample_rate``.
        sample_rate: Hz.
        ledger: what became of every row.
    """

    manifest: Manifest
    lengths: tuple[int, ...]
    sample_rate: int
    ledger: Ledger


def scan(
    manifest: Manifest,
    *,
    on_bad_audio: OnBadAudio = "fail",
    sample_rate: int = SAMPLE_RATE,
    min_samples: int = MIN_SAMPLES,
    max_duration: float | None = None,
    workers: int = 0,
    progress: bool | None = None,
) -> Scan:
    """Decode and validate every utterance once.

    Args:
        manifest: what to scan.
        on_bad_audio: ``"fail"`` raises at the first bad utterance of the manifest, ``"skip"``
            leaves it out and enters it in the ledger.
        sample_rate: Hz at which lengths are counted.
        min_samples: utterances with fewer samples at ``sample_rate`` are bad.
        max_duration: utterances of more seconds are bad; nothing is ever cut to fit.
        workers: processes to decode with; 0 decodes in this one. The result is the same.
        progress: show a progress bar; None shows it on a terminal.

    Raises:
        AudioError: with ``"fail"``, at the first bad utterance; with ``"skip"``, if none is left.
        ArgumentError: a setting is out of range.
    """
    check_policy(on_bad_audio)
    if max_duration is not None and not max_duration > 0:
        raise ArgumentError("max_duration", f"wants more than 0 seconds, got {max_duration}")
    probe = partial(
        _probe, sample_rate=sample_rate, min_samples=min_samples, max_duration=max_duration
    )
    kept: list[Utterance] = []
    lengths: list[int] = []
    skipped: list[Skip] = []
    with map_utterances(probe, manifest, workers=workers, progress=progress) as results:
        for utterance, found in zip(manifest, results, strict=True):
            if isinstance(found, int):
                kept.append(replace(utterance, duration=_duration(utterance, found, sample_rate)))
                lengths.append(found)
            elif on_bad_audio == "fail":
                raise AudioError(utterance.audio, found, utterance=_named(utterance))
            else:
                skipped.append(Skip(utterance.id, str(utterance.audio), utterance.line, found))
    source = None if manifest.source is None else str(manifest.source)
    if not kept:
        reason = f"; the first: {skipped[0].audio}: {skipped[0].reason}" if skipped else ""
        raise AudioError(
            source or "manifest", f"none of the {len(manifest)} utterances can be used{reason}"
        )
    ledger = Ledger(
        rows=len(manifest),
        seen=len(kept),
        skipped=tuple(skipped),
        source=source,
        seconds=sum(lengths) / sample_rate,
    )
    return Scan(Manifest(kept, source=manifest.source), tuple(lengths), sample_rate, ledger)


def without_short(scanned: Scan, samples: int, *, fail: bool) -> Scan:
    """Only the utterances of at least so many samples; the others are in the ledger.

    Raises:
        AudioError: with ``fail``, at the first that is shorter; if none is left.
    """
    rate, kept, lengths, skipped = scanned.sample_rate, [], [], []
    for utterance, length in zip(scanned.manifest, scanned.lengths, strict=True):
        if length >= samples:
            kept.append(utterance)
            lengths.append(length)
            continue
        reason = f"shorter than a crop: {length / rate:.2f} s, and {samples / rate:g} s are wanted"
        if fail:
            raise AudioError(utterance.audio, reason, utterance=_named(utterance))
        skipped.append(Skip(utterance.id, str(utterance.audio), utterance.line, reason))
    if not kept:
        raise AudioError(
            str(scanned.manifest.source or "manifest"),
            f"all {len(scanned.lengths)} utterances are shorter than the {samples / rate:g} s of a "
            "crop; take shorter crops, or repeat what is short",
        )
    known = scanned.ledger
    # In the order of the manifest, as far as lines say it.
    everything = sorted((*known.skipped, *skipped), key=lambda skip: skip.line or 0)
    ledger = Ledger(
        rows=known.rows,
        seen=len(kept),
        skipped=tuple(everything),
        source=known.source,
        seconds=sum(lengths) / rate,
    )
    manifest = Manifest(kept, source=scanned.manifest.source)
    return Scan(manifest, tuple(lengths), rate, ledger)


def check_policy(on_bad_audio: str) -> None:
    """Raise :class:`ArgumentError` unless it is ``"fail"`` or ``"skip"``."""
    if on_bad_audio not in ("fail", "skip"):
        raise ArgumentError("on_bad_audio", f"wants 'fail' or 'skip', got {on_bad_audio!r}")


@contextmanager
def map_utterances(
    function: Callable[[Utterance], _Result],
    manifest: Manifest,
    *,
    workers: int,
    progress: bool | None,
) -> Iterator[Iterable[_Result]]:
    """Results of ``function`` in the order of the manifest, from processes where asked for."""
    if workers < 0:
        raise ArgumentError("workers", f"wants 0 or more processes, got {workers}")
    if workers == 0:
        yield _bar(map(function, manifest), len(manifest), progress)
        return
    # Not forked: a fork of a process that runs torch's threads may hang.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield _bar(pool.imap(function, manifest, chunksize=16), len(manifest), progress)


def _probe(
    utterance: Utterance, *, sample_rate: int, min_samples: int, max_duration: float | None
) -> int | str:
    """Samples of an utterance, or why it cannot be used."""
    try:
        length = len(load_audio(utterance, sample_rate=sample_rate, min_samples=min_samples))
    except AudioError as error:
        return error.reason
    if max_duration is not None and length > max_duration * sample_rate:
        return (
            f"too long: {length / sample_rate:.2f} s, and max_duration is {max_duration:g} s "
            "(nothing is cut: give start and end for the parts to use)"
        )
    return length


def _duration(utterance: Utterance, length: int, sample_rate: int) -> float | None:
    return None if utterance.end is not None else length / sample_rate


def _named(utterance: Utterance) -> str | None:
    return None if utterance.id == str(utterance.audio) else utterance.id


def _bar(results: Iterable[_Result], total: int, progress: bool | None) -> Iterable[_Result]:
    if progress is None:
        progress = sys.stderr.isatty()
    if not progress:
        return results
    try:
        from tqdm import tqdm
    except ImportError:
        return results
    bar: Any = tqdm(results, total=total, desc="reading audio", unit="utt", leave=False)
    return bar  # type: ignore[no-any-return]
