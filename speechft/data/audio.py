"""From a file to 16 kHz mono float32, or a typed error that names the file and the reason.

Nothing is repaired and nothing is shortened: what comes back has exactly the length that the
file's headers, or the manifest, promise, and every sample of it is finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from speechft.data.containers import ContainerError, FlacSignature, check_container
from speechft.data.manifest import Utterance
from speechft.errors import ArgumentError, AudioError

SAMPLE_RATE = 16_000
"""Hz; what every encoder of speechft takes."""

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""File name endings that a folder is searched for."""

MAX_AMPLITUDE = 100.0
"""Full scale is 1. Mixing may exceed it; 40 dB over it is 16-bit integers stored as floats."""

SEGMENT_TOLERANCE = 2
"""Samples by which a segment may end past the end of its file, for seconds were rounded."""

DURATION_TOLERANCE = 0.01
"""Seconds by which a declared duration may be wrong: manifests often round to two decimals."""

_FORMATS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"}
_MIN_RATE, _MAX_RATE = 1_000, 768_000
_CLIPPED = 32767 / 32768
_BLOCK = 1 << 18
_LENGTH_UNKNOWN = 1 << 62

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decoded:
    """An utterance as its file holds it, before resampling.

    Attributes:
        samples: float32 of shape (n,), the mean of the channels.
        sample_rate: Hz.
        channels: before the down-mix.
        peak: largest absolute sample of any channel; 1 is full scale.
        clipped: samples at or beyond 16-bit full scale, over all channels.
        constant: all samples are equal (silence or a direct current).
    """

    samples: Waveform
    sample_rate: int
    channels: int
    peak: float
    clipped: int
    constant: bool


def load_audio(
    source: Utterance | str | Path, *, sample_rate: int = SAMPLE_RATE, min_samples: int = 1
) -> Waveform:
    """Decode an utterance or a file to mono float32 at ``sample_rate``.

    Channels are averaged; full scale is 1. A file of n samples at rate r gives
    ``floor(n * sample_rate / r + 1/2)`` samples (soxr, "HQ" quality; unchanged samples where the
    rates are equal). Silence and constant signals are fine.

    Args:
        source: an utterance of a manifest, of which the segment is read, or a path, of which all
            is read. WAV (also RF64), FLAC, Ogg (Vorbis, Opus) and MP3.
        sample_rate: Hz of the result.
        min_samples: the least number of samples of the result.

    Returns:
        float32 of shape (n,), all finite, at most 100 times full scale before resampling.

    Raises:
        AudioError: the file is missing, empty, not audio, truncated or damaged, does not state its
            length, holds no samples or fewer than ``min_samples``, holds NaN, Inf or absurd
            amplitudes; a segment ends past the end of the file by more than 2 samples; the length
            differs from the duration in the manifest by more than 10 ms. Two things
            cannot be seen: damage inside an MP3, which has no checksums, that keeps its length,
            and a sample rate in a header that is wrong but possible.
        ImportError: soundfile or soxr is not installed.
    """
    utterance = _as_utterance(source)
    decoded = decode(utterance)
    return to_rate(decoded, utterance, sample_rate=sample_rate, min_samples=min_samples)


def to_rate(
    decoded: Decoded, utterance: Utterance, *, sample_rate: int, min_samples: int
) -> Waveform:
    """Resample what was decoded. Errors as :func:`load_audio`."""
    if sample_rate < 1:
        raise ArgumentError("sample_rate", f"wants a positive rate in Hz, got {sample_rate}")
    length = resampled_length(len(decoded.samples), decoded.sample_rate, sample_rate)
    if length < max(min_samples, 1):
        raise AudioError(
            utterance.audio,
            f"too short: {length} samples at {sample_rate} Hz, and {max(min_samples, 1)} are "
            "needed",
            utterance=_name(utterance),
        )
    if decoded.sample_rate == sample_rate:
        return decoded.samples
    samples = _soxr().resample(decoded.samples, decoded.sample_rate, sample_rate)
    if len(samples) != length:
        raise AudioError(
            utterance.audio,
            f"soxr made {len(samples)} samples where {length} were due",
            utterance=_name(utterance),
        )
    return np.ascontiguousarray(samples, dtype=np.float32)


def resampled_length(length: int, from_rate: int, to_rate: int) -> int:
    """``floor(length * to_rate / from_rate + 1/2)``, in integers."""
    return (2 * length * to_rate + from_rate) // (2 * from_rate)


def decode(utterance: Utterance) -> Decoded:
    """Read and validate an utterance at the rate of its file. Errors as :func:`load_audio`."""
    with _open(utterance) as (file, promised):
        rate, channels = int(file.samplerate), int(file.channels)
        total = int(file.frames) if promised is None else promised
        first, last = _bounds(utterance, rate, total)
        # Ogg and MP3 decoders give slightly other samples after a seek: read from the start.
        seeks = file.format in ("WAV", "WAVEX", "RF64", "FLAC")
        if seeks and first:
            file.seek(first)
        blocks, peak, clipped = [], 0.0, 0
        at = first if seeks else 0
        stop = last if seeks else total
        whole = (first, last) == (0, total)
        signature = FlacSignature.of(utterance.audio) if whole else None
        dtype = "float32" if signature is None else "int32"
        while at < stop:
            block = file.read(min(_BLOCK, stop - at), dtype=dtype, always_2d=True)
            if signature is not None:
                signature.update(block)
                block = block.astype(np.float32) * np.float32(2**-31)  # exact up to 24 bits
            if len(block) == 0:
                raise ContainerError(
                    f"truncated: {stop} samples were promised and {at} could be decoded"
                )
            low, high = max(first - at, 0), min(last - at, len(block))
            at += len(block)
            block = block[low : max(low, high)]
            if len(block) == 0:
                continue
            magnitude = np.abs(block)
            block_peak = float(magnitude.max())
            if not block_peak <= MAX_AMPLITUDE:
                _refuse_samples(block, at - len(block), rate)
            if block_peak >= _CLIPPED:
                clipped += int(np.count_nonzero(magnitude >= _CLIPPED))
            peak = max(peak, block_peak)
            blocks.append(block[:, 0] if channels == 1 else block.mean(axis=1, dtype=np.float32))
        if signature is not None:
            signature.check()
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    _check_duration(utterance, len(samples) / rate)
    constant = bool(len(samples) == 0 or (samples == samples[0]).all())
    return Decoded(samples, rate, channels, peak, clipped, constant)


def file_rate(path: Path) -> int:
    """Sample rate in the header of a file, Hz. Errors as :func:`load_audio`."""
    with _open(Utterance(id=path.stem, audio=path)) as (file, _):
        return int(file.samplerate)


@contextmanager
def _open(utterance: Utterance) -> Iterator[tuple[Any, int | None]]:
    """A checked ``soundfile.SoundFile``; whatever goes wrong inside leaves as an AudioError."""
    soundfile = _soundfile()
    try:
        with open(utterance.audio, "rb") as raw:
            promised = check_container(raw)
            raw.seek(0)
            with _sound_file(soundfile, raw) as file:
                _check_header(file, promised)
                yield file, promised
    except (FileNotFoundError, IsADirectoryError):
        reason = "there is no such file"
    except ContainerError as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except (RuntimeError, ValueError, TypeError, EOFError, MemoryError) as error:
        if isinstance(error, AudioError):
            raise
        reason = f"damaged, or not audio that libsndfile reads: {_last_phrase(error)}"
    else:
        return
    raise AudioError(utterance.audio, reason, utterance=_name(utterance)) from None


def _sound_file(soundfile: ModuleType, raw: BinaryIO) -> Any:
    # By name, not by object: libsndfile then reads the file itself, without calls back to Python.
    if Path(raw.name).suffix.lower() == ".raw":
        raise ContainerError("headerless samples (.raw): convert the file to WAV or FLAC")
    return soundfile.SoundFile(raw.name)


def _check_header(file: Any, promised: int | None) -> None:
    if file.format not in _FORMATS:
        raise ContainerError(
            f"{file.format} files are not read, because their truncation goes unseen: convert the "
            "file to WAV or FLAC"
        )
    if not _MIN_RATE <= file.samplerate <= _MAX_RATE:
        raise ContainerError(
            f"a sample rate of {file.samplerate} Hz is outside {_MIN_RATE} to {_MAX_RATE} Hz"
        )
    if promised is not None and file.frames != promised:
        raise ContainerError(
            f"the WAV header promises {promised} samples and libsndfile finds {file.frames}"
        )
    if file.frames >= _LENGTH_UNKNOWN:
        raise ContainerError(
            "the header does not state the length, so the file cannot be told from a truncated "
            "one: encode it again"
        )
    if file.frames <= 0:
        raise ContainerError("the file holds a header and no samples")


def _bounds(utterance: Utterance, rate: int, total: int) -> tuple[int, int]:
    """First and last (exclusive) sample of the segment, in samples of the file."""
    first = round(utterance.start * rate)
    last = total if utterance.end is None else round(utterance.end * rate)
    if last > total + SEGMENT_TOLERANCE or first >= total:
        end = "the end" if utterance.end is None else f"{utterance.end:g} s"
        raise ContainerError(
            f"the segment {utterance.start:g} s to {end} reaches past the end of the file, which "
            f"lasts {total / rate:.6g} s"
        )
    last = min(last, total)
    if last <= first:
        raise ContainerError(
            f"the segment {utterance.start:g} s to {utterance.end:g} s holds no samples"
        )
    return first, last


def _refuse_samples(block: Waveform, offset: int, rate: int) -> None:
    for name, wrong in (("NaN", np.isnan(block)), ("Inf", np.isinf(block))):
        if wrong.any():
            where = int(wrong.any(axis=1).argmax())
            seconds = (offset + where) / rate
            raise ContainerError(
                f"{int(wrong.sum())} samples are {name}, the first at {seconds:.3f} s"
            )
    raise ContainerError(
        f"amplitudes up to {float(np.abs(block).max()):.3g}, where full scale is 1: float samples "
        "belong in [-1, 1] (divide 16-bit integers by 32768)"
    )


def _check_duration(utterance: Utterance, seconds: float) -> None:
    if utterance.duration is None or utterance.end is not None:
        return
    if abs(utterance.duration - seconds) > DURATION_TOLERANCE + 1e-9:
        raise AudioError(
            utterance.audio,
            f"lasts {seconds:.6g} s, but the manifest says {utterance.duration:.6g} s: the "
            "file or the manifest has changed (give start and end to read a part of it)",
            utterance=_name(utterance),
        )


def _as_utterance(source: Utterance | str | Path) -> Utterance:
    return (
        source if isinstance(source, Utterance) else Utterance(id=str(source), audio=Path(source))
    )


def _name(utterance: Utterance) -> str | None:
    return None if utterance.id == str(utterance.audio) else utterance.id


def _last_phrase(error: Exception) -> str:
    """The words of libsndfile, without the path and without "Error :"."""
    text = str(error).strip().rsplit("Error : ", 1)[-1].rsplit("': ", 1)[-1]
    return text.rstrip(".") or type(error).__name__


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ImportError("reading audio needs soundfile: pip install 'speechft[audio]'") from error
    return soundfile  # type: ignore[no-any-return]


def _soxr() -> ModuleType:
    try:
        import soxr
    except ImportError as error:
        raise ImportError("resampling needs soxr: pip install 'speechft[audio]'") from error
    return soxr  # type: ignore[no-any-return]
