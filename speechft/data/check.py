"""What is in a data set, and what is wrong with it: the report of ``speechft check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from speechft.data.audio import SAMPLE_RATE, Decoded, decode, to_rate
from speechft.data.ledger import Ledger, Skip
from speechft.data.manifest import Manifest, Utterance
from speechft.data.readers import read_manifest
from speechft.data.scanning import MIN_SAMPLES, map_utterances
from speechft.errors import AudioError

SILENT_PEAK = 10 ** (-60 / 20)
"""An utterance whose loudest sample is below -60 dB of full scale is called silent."""


@dataclass(frozen=True)
class CheckReport:
    """The findings on a data set. ``str(report)`` is a table for people.

    Attributes:
        ledger: every row, good or bad with its reason.
        seconds: of the good rows: total, and sorted durations in ``durations``.
        sample_rates, channels, languages: good rows by value.
        speakers: distinct speakers among the good rows.
        with_text, with_phones: good rows that have them.
        clipped: share of samples at or over 16-bit full scale.
        clipped_utterances: ids of good rows in which more than 0.1 % of samples are clipped.
        silent: ids of good rows that are constant or never louder than -60 dB.
    """

    ledger: Ledger
    durations: tuple[float, ...]
    sample_rates: Mapping[int, int]
    channels: Mapping[int, int]
    languages: Mapping[str, int]
    speakers: int
    with_text: int
    with_phones: int
    clipped: float
    clipped_utterances: tuple[str, ...]
    silent: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Seconds of usable audio."""
        return self.ledger.seconds

    @property
    def bad(self) -> tuple[Skip, ...]:
        """The rows that cannot be used, each with its reason."""
        return self.ledger.skipped

    @property
    def ok(self) -> bool:
        """Whether every row can be used."""
        return not self.ledger.skipped

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.ledger.to_dict(),
            "sample_rates": {str(rate): count for rate, count in self.sample_rates.items()},
            "channels": {str(number): count for number, count in self.channels.items()},
            "languages": dict(self.languages),
            "speakers": self.speakers,
            "with_text": self.with_text,
            "with_phones": self.with_phones,
            "clipped": self.clipped,
            "clipped_utterances": list(self.clipped_utterances),
            "silent": list(self.silent),
        }

    def __str__(self) -> str:
        good, bad = self.ledger.seen, len(self.bad)
        rows = [
            ("data", self.ledger.source or "-"),
            ("utterances", f"{self.ledger.rows}: {good} good, {bad} bad"),
            ("audio", _hours(self.seconds)),
        ]
        if self.durations:
            low, middle, high = (self.durations[i] for i in (0, good // 2, -1))
            rows.append(("length", f"{low:.2f} to {high:.2f} s, median {middle:.2f} s"))
        rows += [
            ("sample rates", _counts(self.sample_rates, " Hz")),
            ("channels", _counts(self.channels)),
            ("speakers", str(self.speakers) if self.speakers else "not given"),
            ("languages", _counts(self.languages) if self.languages else "not given"),
            ("transcripts", f"{self.with_text} of {good}"),
            ("phone labels", f"{self.with_phones} of {good}"),
            ("clipped", f"{self.clipped:.3%} of samples{_some(self.clipped_utterances)}"),
            ("silent", f"{len(self.silent)}{_some(self.silent)}"),
        ]
        lines = [f"{name:<14}{value}" for name, value in rows]
        for skip in self.bad:
            where = f"line {skip.line}, " if skip.line is not None else ""
            lines.append(f"bad: {where}{skip.audio}: {skip.reason}")
        return "\n".join(lines)


def check(
    data: Manifest | str | Path,
    *,
    sample_rate: int = SAMPLE_RATE,
    min_samples: int = MIN_SAMPLES,
    workers: int = 0,
    progress: bool | None = None,
) -> CheckReport:
    """Decode a whole data set and report on it. Bad audio is listed, never raised.

    Args:
        data: a manifest, or the path of one or of a folder.
        sample_rate: Hz at which ``min_samples`` counts.
        min_samples: fewer is bad audio.
        workers: processes to decode with.
        progress: show a bar; None shows it on a terminal.

    Raises:
        ManifestError: the manifest cannot be read.
    """
    manifest = data if isinstance(data, Manifest) else read_manifest(data)
    inspect = partial(_inspect, sample_rate=sample_rate, min_samples=min_samples)
    good: list[tuple[Utterance, _Finding]] = []
    bad: list[Skip] = []
    with map_utterances(inspect, manifest, workers=workers, progress=progress) as findings:
        for utterance, found in zip(manifest, findings, strict=True):
            if isinstance(found, str):
                bad.append(Skip(utterance.id, str(utterance.audio), utterance.line, found))
            else:
                good.append((utterance, found))
    speakers = {utterance.speaker for utterance, _ in good} - {None}
    languages = Counter(u.language for u, _ in good if u.language is not None)
    samples = sum(found.samples for _, found in good)
    return CheckReport(
        ledger=Ledger(
            rows=len(manifest),
            seen=len(good),
            skipped=tuple(bad),
            source=None if manifest.source is None else str(manifest.source),
            seconds=sum(found.seconds for _, found in good),
        ),
        durations=tuple(sorted(found.seconds for _, found in good)),
        sample_rates=dict(sorted(Counter(found.sample_rate for _, found in good).items())),
        channels=dict(sorted(Counter(found.channels for _, found in good).items())),
        languages=dict(sorted(languages.items())),
        speakers=len(speakers),
        with_text=sum(utterance.text is not None for utterance, _ in good),
        with_phones=sum(utterance.phones is not None for utterance, _ in good),
        clipped=sum(found.clipped for _, found in good) / samples if samples else 0.0,
        clipped_utterances=tuple(u.id for u, f in good if f.clipped > 1e-3 * f.samples),
        silent=tuple(u.id for u, f in good if f.silent),
    )


@dataclass(frozen=True)
class _Finding:
    seconds: float
    sample_rate: int
    channels: int
    samples: int
    clipped: int
    silent: bool


def _inspect(utterance: Utterance, *, sample_rate: int, min_samples: int) -> _Finding | str:
    try:
        decoded: Decoded = decode(utterance)
        to_rate(decoded, utterance, sample_rate=sample_rate, min_samples=min_samples)
    except AudioError as error:
        return error.reason
    return _Finding(
        seconds=len(decoded.samples) / decoded.sample_rate,
        sample_rate=decoded.sample_rate,
        channels=decoded.channels,
        samples=len(decoded.samples) * decoded.channels,
        clipped=decoded.clipped,
        silent=decoded.constant or decoded.peak < SILENT_PEAK,
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _counts(counts: Mapping[Any, int], unit: str = "") -> str:
    return ", ".join(f"{value}{unit} × {count}" for value, count in counts.items()) or "-"


def _some(ids: tuple[str, ...]) -> str:
    if not ids:
        return ""
    return f" ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
