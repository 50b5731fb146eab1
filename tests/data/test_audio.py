"""Decoding: every format gives the length that its header states, and bad audio a typed error."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from speechft.data import Ledger, Manifest, Utterance, load_audio, scan
from speechft.data.audio import resampled_length
from speechft.data.containers import ogg_checksum
from speechft.errors import ArgumentError, AudioError

RATE = 16_000


def sine(seconds: float, rate: int, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """Half of full scale, the same in every channel."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


def write_wav(path: Path, samples: np.ndarray, subtype: str = "PCM_16", rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype, format="WAV")
    return path


def data_at(content: bytes) -> int:
    """Offset of the length field of the data chunk."""
    return content.index(b"data") + 4


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_length_frequency_and_amplitude_survive_resampling(
    tmp_path: Path, rate: int, channels: int
) -> None:
    n = rate + 7
    path = write_wav(tmp_path / "a.wav", sine(n / rate, rate, channels), "FLOAT", rate)
    samples = load_audio(path)
    assert samples.dtype == np.float32
    assert samples.shape == (math.floor(n * RATE / rate + 0.5),)
    time = np.arange(2_000, 14_000) / RATE
    basis = np.stack([np.sin(2 * np.pi * 440 * time), np.cos(2 * np.pi * 440 * time)], axis=1)
    fit, residual, *_ = np.linalg.lstsq(basis, samples[2_000:14_000], rcond=None)
    assert fit[0] == pytest.approx(0.5, abs=1e-3)  # amplitude, and no shift in time
    assert fit[1] == pytest.approx(0.0, abs=1e-3)
    assert math.sqrt(residual[0] / len(time)) < 1e-3


@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-24),
        ("FLOAT", 2**-24),
        ("DOUBLE", 2**-24),
        ("ALAW", 2**-5),
        ("ULAW", 2**-5),
    ],
)
@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64"])
def test_every_sample_format(tmp_path: Path, subtype: str, step: float, format: str) -> None:
    wave = sine(0.1, RATE, 2)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype=subtype, format=format)
    samples = load_audio(tmp_path / "a.wav")
    assert samples.shape == (1600,)
    assert np.abs(samples - wave[:, 0]).max() <= step


@pytest.mark.parametrize(
    ("suffix", "format", "subtype", "tolerance"),
    [
        (".flac", "FLAC", "PCM_16", 2**-15),
        (".ogg", "OGG", "VORBIS", 0.05),
        (".opus", "OGG", "OPUS", 0.05),
        (".mp3", "MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_compressed_formats_and_their_segments(
    tmp_path: Path, suffix: str, format: str, subtype: str, tolerance: float
) -> None:
    wave = sine(2, RATE)
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, wave, RATE, format=format, subtype=subtype)
    whole = load_audio(path)
    assert whole.shape == (32_000,)
    assert np.abs(whole - wave[:, 0])[2_000:-2_000].max() < tolerance
    part = load_audio(Utterance("part", path, start=0.75, end=1.5))
    assert np.array_equal(part, whole[12_000:24_000])


def test_channels_are_averaged(tmp_path: Path) -> None:
    wave = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1)
    assert np.all(load_audio(write_wav(tmp_path / "a.wav", wave, "FLOAT")) == 0.125)


def test_silence_and_direct_current_are_fine(tmp_path: Path) -> None:
    assert not load_audio(write_wav(tmp_path / "silence.wav", np.zeros(800))).any()
    assert np.all(load_audio(write_wav(tmp_path / "dc.wav", np.full(800, 0.25))) == 0.25)


def test_segments_are_exact_and_never_shortened(tmp_path: Path) -> None:
    ramp = np.arange(16_000) / 32_768
    path = write_wav(tmp_path / "a.wav", ramp)
    assert np.array_equal(load_audio(Utterance("u", path, 0.25, 0.5)), ramp[4_000:8_000])
    assert len(load_audio(Utterance("u", path, 0.25))) == 12_000
    assert len(load_audio(Utterance("u", path, 0.25, 1 + 2 / RATE))) == 12_000
    for start, end in ((0.25, 1 + 3 / RATE), (0.25, 5.0), (1.0, None), (2.0, 3.0)):
        with pytest.raises(AudioError, match="past the end of the file, which lasts 1 s"):
            load_audio(Utterance("u", path, start, end))
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio(Utterance("u", path, 0.5, 0.50001))


def test_a_wrong_duration_in_the_manifest_is_an_error(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(1, RATE))
    assert len(load_audio(Utterance("u", path, duration=1.01))) == 16_000
    for duration in (0.98, 1.02):
        with pytest.raises(AudioError, match="lasts 1 s, but the manifest says"):
            load_audio(Utterance("u", path, duration=duration))


def _patched(path: Path, edit: Callable[[bytearray], bytes | bytearray]) -> None:
    path.write_bytes(edit(bytearray(path.read_bytes())))


def _set(content: bytearray, at: int, value: bytes) -> bytearray:
    content[at : at + len(value)] = value
    return content


def _nan(path: Path) -> None:
    wave = sine(1, RATE)
    wave[8_000] = np.nan
    write_wav(path, wave, "FLOAT")


def _infinity(path: Path) -> None:
    wave = sine(1, RATE, 2)
    wave[8_000] = np.inf, -np.inf
    write_wav(path, wave, "DOUBLE")


def _absurd(path: Path) -> None:
    wave = sine(1, RATE, 2) * 2e30
    wave[:, 1] *= -1  # the mean of the channels is zero
    write_wav(path, wave, "FLOAT")


def _wav(path: Path) -> None:
    write_wav(path, sine(1, RATE))


def _after(edit: Callable[[bytearray], bytes | bytearray]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        _wav(path)
        _patched(path, edit)

    return make


def _coded(
    format: str, subtype: str, edit: Callable[[bytearray], bytes | bytearray]
) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        soundfile.write(path, sine(2, RATE), RATE, format=format, subtype=subtype)
        _patched(path, edit)

    return make


def _flip(share: float) -> Callable[[bytearray], bytearray]:
    def edit(content: bytearray) -> bytearray:
        content[int(share * len(content))] ^= 0x10
        return content

    return edit


def _cut(share: float) -> Callable[[bytearray], bytearray]:
    return lambda content: content[: int(share * len(content))]


def _rf64_cut(path: Path) -> None:
    soundfile.write(path, sine(1, RATE), RATE, format="RF64", subtype="PCM_16")
    _patched(path, _cut(0.5))


def _aiff(path: Path) -> None:
    soundfile.write(path, sine(1, RATE), RATE, format="AIFF", subtype="PCM_16")


UNKNOWN = b"\xff\xff\xff\xff"
BAD_AUDIO: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "NaN sample": ("a.wav", _nan, "1 samples are NaN, the first at 0.500 s"),
    "Inf sample": ("a.wav", _infinity, "2 samples are Inf"),
    "amplitude 1e30": ("a.wav", _absurd, "amplitudes up to 1e"),
    "truncated WAV": ("a.wav", _after(_cut(0.5)), "truncated: the WAV header promises 32000 bytes"),
    "one byte short": ("a.wav", _after(lambda c: c[:-1]), "truncated"),
    "truncated RF64": ("a.wav", _rf64_cut, "truncated"),
    "header-only WAV": ("a.wav", lambda p: write_wav(p, np.zeros(0)), "header and no samples"),
    "header without data chunk": ("a.wav", _after(lambda c: c[:36]), "no data chunk"),
    "20-byte header": ("a.wav", _after(lambda c: c[:20]), "fmt chunk"),
    "10-byte header": ("a.wav", _after(lambda c: c[:10]), "header is incomplete"),
    "length 4 GiB - 1": (
        "a.wav",
        _after(lambda c: _set(c, data_at(c), UNKNOWN)),
        "does not state its length",
    ),
    "length 0": (
        "a.wav",
        _after(lambda c: _set(c, data_at(c), bytes(4))),
        "promises 0 bytes of samples, but 32000",
    ),
    "length too short": (
        "a.wav",
        _after(lambda c: _set(c, data_at(c), struct.pack("<I", 16_000))),
        "belong to no chunk",
    ),
    "half a sample": (
        "a.wav",
        _after(lambda c: _set(c, data_at(c), struct.pack("<I", 31_999))),
        "not a whole number of frames",
    ),
    "sample rate 0": ("a.wav", _after(lambda c: _set(c, 24, bytes(4))), "sample rate of 0"),
    "sample rate 4e9": ("a.wav", _after(lambda c: _set(c, 24, b"\0\0\0\xf0")), "damaged|outside"),
    "0 channels": ("a.wav", _after(lambda c: _set(c, 22, bytes(2))), "0 channels"),
    "3 channels in 2 bytes": ("a.wav", _after(lambda c: _set(c, 22, b"\3")), "contradicts itself"),
    "unknown codec": ("a.wav", _after(lambda c: _set(c, 20, b"\x99\x99")), "libsndfile"),
    "text file": ("a.wav", lambda p: p.write_text("this is no audio\n" * 9), "libsndfile"),
    "empty file": ("a.wav", lambda p: p.write_bytes(b""), "empty"),
    "missing file": ("a.wav", lambda p: None, "no such file"),
    "folder": ("a.wav", lambda p: p.mkdir(), "no such file"),
    "399 samples": ("a.wav", lambda p: write_wav(p, np.ones(399) / 2), "399 samples .* 400"),
    "1 sample": ("a.wav", lambda p: write_wav(p, np.ones(1) / 2), "too short: 1 samples"),
    "truncated FLAC": ("a.flac", _coded("FLAC", "PCM_16", _cut(0.5)), "reads: flac decoder"),
    "bit-flipped FLAC": ("a.flac", _coded("FLAC", "PCM_16", _flip(0.5)), "libsndfile"),
    "FLAC length too short": (
        "a.flac",
        _coded("FLAC", "PCM_24", lambda c: _set(c, 24, bytes([c[24] ^ 0x40]))),
        "do not have the MD5",
    ),
    "FLAC of unknown length": (
        "a.flac",
        _coded("FLAC", "PCM_16", lambda c: _set(c, 21, bytes([c[21] & 0xF0, 0, 0, 0, 0]))),
        "does not state|no samples",
    ),
    "truncated Vorbis": ("a.ogg", _coded("OGG", "VORBIS", _cut(0.6)), "truncated: the Ogg page"),
    "truncated Opus": ("a.opus", _coded("OGG", "OPUS", _cut(0.6)), "truncated: the Ogg page"),
    "bit-flipped Vorbis": ("a.ogg", _coded("OGG", "VORBIS", _flip(0.8)), "wrong checksum"),
    "Ogg without its last page": (
        "a.ogg",
        _coded("OGG", "VORBIS", lambda c: c[: c.rindex(b"OggS")]),
        "ends without its last page",
    ),
    "Ogg without a middle page": (
        "a.ogg",
        lambda path: _without_page(path),
        "pages are missing",
    ),
    "truncated MP3": ("a.mp3", _coded("MP3", "MPEG_LAYER_III", _cut(0.5)), "truncated"),
    "AIFF": ("a.aiff", _aiff, "AIFF files are not read"),
    "headerless": ("a.raw", lambda p: p.write_bytes(bytes(32_000)), "headerless"),
}


def _without_page(path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE)
    soundfile.write(path, noise, RATE, format="OGG", subtype="VORBIS")
    content = path.read_bytes()
    second = content.index(b"OggS", content.index(b"OggS", 4) + 4)
    path.write_bytes(content[:second] + content[content.index(b"OggS", second + 4) :])


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_bad_audio_is_a_typed_error_or_a_counted_skip(tmp_path: Path, name: str) -> None:
    file, make, reason = BAD_AUDIO[name]
    bad = tmp_path / file
    make(bad)
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(bad, min_samples=400)
    assert caught.value.path == str(bad)
    assert str(bad) in str(caught.value)
    assert str(bad) not in caught.value.reason

    good = write_wav(tmp_path / "good.wav", sine(1, RATE))
    manifest = Manifest([Utterance("bad", bad), Utterance("good", good)])
    with pytest.raises(AudioError, match=reason):
        scan(manifest)
    scanned = scan(manifest, on_bad_audio="skip")
    assert [utterance.id for utterance in scanned.manifest] == ["good"]
    assert scanned.ledger.seen + len(scanned.ledger.skipped) == scanned.ledger.rows == 2
    assert scanned.ledger.skipped[0].reason == caught.value.reason


def test_chunks_around_the_samples_are_passed_over(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(1, RATE))
    content = path.read_bytes()
    note = b"LIST" + struct.pack("<I", 5) + b"INFOx"
    for padded in (note + b"\0", note, note + note):
        inside = content[:12] + note + b"\0" + content[12:] + padded
        path.write_bytes(inside)
        assert len(load_audio(path)) == 16_000


def test_a_segment_says_which_utterance_it_is(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(1, RATE))
    with pytest.raises(AudioError, match=r"a\.wav \(utterance 'seventh'\)"):
        load_audio(Utterance("seventh", path, end=9.0))


@given(st.integers(0, 10**7), st.integers(1, 10**6), st.integers(1, 10**6))
def test_resampled_length_is_rounded_half_up(n: int, from_rate: int, to_rate: int) -> None:
    length = resampled_length(n, from_rate, to_rate)
    assert (
        2 * from_rate * length - from_rate <= 2 * n * to_rate < 2 * from_rate * length + from_rate
    )


@given(st.binary(max_size=300))
def test_ogg_checksum_against_the_bitwise_definition(page: bytes) -> None:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    assert ogg_checksum(page) == crc


def _templates() -> list[bytes]:
    files = []
    for format, subtype, channels in (
        ("WAV", "PCM_16", 1),
        ("WAVEX", "PCM_24", 2),
        ("RF64", "FLOAT", 2),
        ("WAV", "ULAW", 1),
    ):
        buffer = io.BytesIO()
        wave = sine(0.05, RATE, channels)
        soundfile.write(buffer, wave, RATE, format=format, subtype=subtype)
        files.append(buffer.getvalue())
    return files


TEMPLATES = _templates()


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.sampled_from(TEMPLATES),
    edits=st.lists(st.tuples(st.integers(0, 130), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.none() | st.integers(0, 4000),
)
@example(content=next(t for t in TEMPLATES if t[20] == 7), edits=[(54, 31)], keep=None)
def test_a_damaged_wav_header_is_refused_or_read_to_its_stated_length(
    tmp_path: Path, content: bytes, edits: list[tuple[int, int]], keep: int | None
) -> None:
    damaged = bytearray(content)
    for at, value in edits:
        damaged[at] = value
    path = tmp_path / "a.wav"
    path.write_bytes(damaged[:keep])
    try:
        samples = load_audio(path)
    except AudioError:
        return
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    # What was read must fill the file: all bytes after the header were samples.
    at = damaged.index(b"fmt ")
    order = ">" if damaged[:4] == b"RIFX" else "<"
    _, _, rate, _, block = struct.unpack(order + "HHIIH", damaged[at + 8 : at + 22])
    body = damaged.index(b"data") + 8
    stored = len(damaged[:keep]) - body
    (stated,) = struct.unpack(order + "I", damaged[body - 4 : body])
    if stated % 2 and stored == stated + 1:
        stored = stated  # a chunk of odd length ends with a byte that is no sample
    assert len(samples) == resampled_length(stored // block, rate, RATE)


def test_scan_is_the_same_with_workers_and_knows_every_length(tmp_path: Path) -> None:
    for index in range(6):
        write_wav(tmp_path / f"{index}.wav", sine(0.1 * (index + 1), RATE))
    (tmp_path / "2.wav").write_text("broken")
    manifest = Manifest([Utterance(str(i), tmp_path / f"{i}.wav", line=i + 1) for i in range(6)])
    alone = scan(manifest, on_bad_audio="skip", max_duration=0.55)
    many = scan(manifest, on_bad_audio="skip", max_duration=0.55, workers=2)
    assert alone == many
    assert alone.lengths == (1600, 3200, 6400, 8000)
    assert [u.duration for u in alone.manifest] == [0.1, 0.2, 0.4, 0.5]
    assert [(skip.id, skip.line) for skip in alone.ledger.skipped] == [("2", 3), ("5", 6)]
    assert "too long: 0.60 s, and max_duration is 0.55 s" in alone.ledger.skipped[1].reason
    with pytest.raises(AudioError, match="too long"):
        scan(manifest[3:], max_duration=0.55)


def test_scan_of_nothing_usable_is_an_error(tmp_path: Path) -> None:
    manifest = Manifest([Utterance("a", tmp_path / "a.wav")])
    with pytest.raises(AudioError, match="none of the 1 utterances can be used"):
        scan(manifest, on_bad_audio="skip")
    with pytest.raises(ArgumentError, match="on_bad_audio: wants 'fail' or 'skip'"):
        scan(manifest, on_bad_audio="repair")  # type: ignore[arg-type]


def test_a_ledger_that_does_not_add_up_cannot_be_made() -> None:
    with pytest.raises(ArgumentError, match="2 seen and 0 skipped do not make 3 rows"):
        Ledger(rows=3, seen=2)
