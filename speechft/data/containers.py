"""Whether a WAV, Ogg or FLAC file holds all that its own headers promise.

libsndfile reads a truncated WAV, or an Ogg file with pages missing, to where the bytes end and
reports that as its length. So the container is read here first, header by header and without
decoding, and every promise in it is compared with the bytes that are there.

* WAV: Microsoft and IBM, *Multimedia Programming Interface and Data Specifications 1.0* (1991),
  with the 64-bit sizes of EBU Tech 3306 (RF64, BW64).
* Ogg: RFC 3533, whose section 6 gives the page header and its checksum.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_UNKNOWN = 0xFFFFFFFF
_LINEAR = {1: "PCM", 3: "IEEE float", 6: "A-law", 7: "mu-law"}
_EXTENSIBLE = 0xFFFE


class ContainerError(Exception):
    """What is wrong with a container, in one phrase; :mod:`speechft.data.audio` adds the file."""


@dataclass(frozen=True)
class WavHeader:
    """What a WAV header promises. ``frames`` is None for compressed codecs inside WAV."""

    sample_rate: int
    channels: int
    frames: int | None


def check_container(file: BinaryIO) -> int | None:
    """Number of sample frames that the headers promise, or None where only a decoder knows.

    Raises:
        ContainerError: the headers contradict each other or the length of the file.
    """
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise ContainerError("the file is empty (0 bytes)")
    magic = file.read(12)
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return read_wav_header(file, size).frames
    if magic[:4] == b"OggS":
        _check_ogg(file)
    return None


def read_wav_header(file: BinaryIO, size: int) -> WavHeader:
    """Read every chunk header of a WAV file of ``size`` bytes and check it against that size.

    Raises:
        ContainerError: truncated, no ``fmt`` or ``data`` chunk, a rate or channel count of zero,
            a length that is unknown (0xFFFFFFFF, or zero with samples after it), not a whole
            number of frames, or followed by bytes that belong to no chunk.
    """
    file.seek(0)
    magic = file.read(12)
    if len(magic) < 12 or magic[8:] != b"WAVE":
        raise ContainerError(f"the WAV header is incomplete: the file has {size} bytes")
    order = ">" if magic[:4] == b"RIFX" else "<"
    wide = magic[:4] in (b"RF64", b"BW64")
    wide_data: int | None = None
    header: WavHeader | None = None
    block = 0
    at = 12
    while at < size:
        file.seek(at)
        head = file.read(8)
        name, length = head[:4], 0
        if len(head) == 8:
            (length,) = struct.unpack(order + "I", head[4:])
        if not _is_chunk_name(name) or len(head) < 8:
            if header is not None and header.frames != -1:
                raise ContainerError(
                    f"the last {size - at} bytes belong to no chunk: the length in the data "
                    "header is too short, or something was appended"
                )
            raise ContainerError(f"the WAV header is damaged at byte {at}")
        body = at + 8
        if name == b"ds64" and wide:
            sizes = file.read(16)
            if len(sizes) < 16:
                raise ContainerError("the WAV header is incomplete: its ds64 chunk is cut")
            (wide_data,) = struct.unpack(order + "Q", sizes[8:])
        elif name == b"fmt ":
            header, block = _read_format(file.read(min(length, 40)), length, order)
        elif name == b"data":
            if header is None:
                raise ContainerError("the WAV data comes before its fmt chunk, or there is none")
            if header.frames != -1:
                raise ContainerError("the WAV file has more than one data chunk")
            if wide and length == _UNKNOWN and wide_data is not None:
                length = wide_data
            header = _with_data(header, block, length, size - body, wide)
        elif length > size - body and (header is None or header.frames == -1):
            raise ContainerError(
                f"the WAV header is damaged: its {name!r} chunk ends past the file"
            )
        at = body + length
        if length % 2 and not _is_chunk_name(_peek(file, at)):
            at += 1  # chunks are padded to even length; some writers forget it
    if header is None:
        raise ContainerError("the WAV file has no fmt chunk: the header is damaged or cut")
    if header.frames == -1:
        raise ContainerError("the WAV file has no data chunk: it holds a header and no samples")
    return header


def _read_format(body: bytes, length: int, order: str) -> tuple[WavHeader, int]:
    """The fmt chunk, with ``frames`` = -1 until the data chunk is met, and bytes a frame or 0."""
    if len(body) < 16:
        raise ContainerError(f"the WAV fmt chunk has {length} bytes; it needs 16")
    code, channels, rate, _, block, bits = struct.unpack(order + "HHIIHH", body[:16])
    if code == _EXTENSIBLE and len(body) >= 26:
        (code,) = struct.unpack(order + "H", body[24:26])
    if rate == 0:
        raise ContainerError("the WAV header gives a sample rate of 0")
    if channels == 0:
        raise ContainerError("the WAV header gives 0 channels")
    if code not in _LINEAR:
        return WavHeader(rate, channels, -1), 0
    if bits == 0 or block == 0 or block % channels or block // channels * 8 < bits:
        raise ContainerError(
            f"the WAV header contradicts itself: {block} bytes for {channels} samples of "
            f"{bits} bits ({_LINEAR[code]})"
        )
    return WavHeader(rate, channels, -1), block


def _with_data(header: WavHeader, block: int, length: int, present: int, wide: bool) -> WavHeader:
    if length == _UNKNOWN or (wide and length == 2**64 - 1):
        raise ContainerError(
            "the WAV header does not state its length (0xFFFFFFFF, as programs write into a "
            f"pipe), so the {present} bytes of samples cannot be told from a truncated file: "
            "rewrite the header, for instance with sox"
        )
    if length > present:
        raise ContainerError(
            f"truncated: the WAV header promises {length} bytes of samples and {present} are there"
        )
    if length == 0 and present > 0 and block:
        raise ContainerError(
            f"the WAV header promises 0 bytes of samples, but {present} bytes follow"
        )
    if block and length % block:
        raise ContainerError(
            f"the WAV data of {length} bytes is not a whole number of frames of {block} bytes"
        )
    return WavHeader(header.sample_rate, header.channels, length // block if block else None)


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _peek(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    return file.read(4)


class FlacSignature:
    """MD5 of all samples of a FLAC file, to compare with the one in its header (RFC 9639, 8.2).

    libFLAC checks each frame; frames left out because the header states too few samples are only
    seen here.
    """

    def __init__(self, bits: int, expected: bytes) -> None:
        self._bytes, self._expected, self._md5 = (
            bits // 8,
            expected,
            hashlib.md5(usedforsecurity=False),
        )

    @classmethod
    def of(cls, path: Path) -> FlacSignature | None:
        """From the header of a file; None if it is not FLAC, or has no signature to compare."""
        with open(path, "rb") as file:
            head = file.read(42)
        if len(head) < 42 or head[:4] != b"fLaC":
            return None
        bits = ((head[20] & 1) << 4 | head[21] >> 4) + 1
        return cls(bits, head[26:]) if bits in (8, 16, 24) and any(head[26:]) else None

    def update(self, block: npt.NDArray[np.int32]) -> None:
        """Add samples (n, channels), left-justified in 32 bits as libsndfile gives them."""
        octets = block.astype("<i4").view(np.uint8).reshape(-1, 4)
        self._md5.update(np.ascontiguousarray(octets[:, 4 - self._bytes :]).tobytes())

    def check(self) -> None:
        """Raise :class:`ContainerError` if the samples are not those that were encoded."""
        if self._md5.digest() != self._expected:
            raise ContainerError("damaged: the samples do not have the MD5 in the FLAC header")


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page: polynomial 0x04C11DB7, most significant bit first, from zero.

    zlib's CRC has the same polynomial with bits in the other order and starts from all ones, so
    it gives Ogg's on bytes with their bits reversed, some hundred times faster than a loop here.
    """
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def _check_ogg(file: BinaryIO) -> None:
    """Every page whole, in sequence, with the right checksum, and each stream closed."""
    file.seek(0)
    next_page: dict[int, int] = {}
    open_streams: set[int] = set()
    at = 0
    while head := file.read(27):
        if len(head) < 27:
            raise ContainerError(f"truncated: the Ogg page at byte {at} is cut")
        if head[:4] != b"OggS":
            raise ContainerError(f"damaged: no Ogg page at byte {at}, where one should start")
        flags, serial, sequence, checksum, count = struct.unpack("<B8xIIIB", head[5:])
        table = file.read(count)
        body = file.read(sum(table))
        if len(table) < count or len(body) < sum(table):
            raise ContainerError(f"truncated: the Ogg page at byte {at} is cut")
        if ogg_checksum(head[:22] + bytes(4) + head[26:] + table + body) != checksum:
            raise ContainerError(f"damaged: the Ogg page at byte {at} has a wrong checksum")
        if sequence != next_page.get(serial, 0):
            raise ContainerError(f"damaged: Ogg pages are missing before byte {at}")
        next_page[serial] = sequence + 1
        (open_streams.discard if flags & 4 else open_streams.add)(serial)
        at += 27 + count + len(body)
    if open_streams:
        raise ContainerError("truncated: the Ogg stream ends without its last page")
