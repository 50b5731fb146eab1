"""The CUDA soft-DTW kernels, compiled for the host and called on numpy arrays."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc" / "cuda"

FORWARD, REVERSE, RANDOM = 0, 1, 2  # which fiber runs next
FIXED, FLOAT = 4, 8  # bytes of a stored pair of weights


class _Segment(ctypes.Structure):
    _fields_ = (
        ("cost", ctypes.c_void_p),
        ("alignment", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("x_lengths", ctypes.c_void_p),
        ("y_lengths", ctypes.c_void_p),
        ("N", ctypes.c_int32),
        ("M", ctypes.c_int32),
    )


@dataclass
class Segment:
    """One batch of pairs: `cost` (B, N, M), lengths (B,) or None. A run fills the outputs in."""

    cost: NDArray[np.float32]
    x_lengths: NDArray[np.int64] | None = None
    y_lengths: NDArray[np.int64] | None = None
    value: NDArray[np.float32] = field(init=False)
    alignment: NDArray[np.float32] = field(init=False)


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def build(folder: Path, *flags: str) -> ctypes.CDLL:
    """Compile the kernels behind `cuda_on_host.h` and load them."""
    library = folder / "libsoft_dtw_on_host.so"
    cxx = compiler()
    assert cxx is not None
    command = [cxx, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command += ["-Wno-clobbered", "-ffp-contract=off", "-shared", "-fPIC", f"-I{HERE}"]
    command += [f"-I{SOURCES}", *flags, str(HERE / "soft_dtw_on_host.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings
    loaded = ctypes.CDLL(str(library))
    loaded.workspace_bytes.restype = ctypes.c_int64
    loaded.soft_dtw.restype = ctypes.c_char_p
    loaded.why_not.restype = ctypes.c_char_p
    loaded.set_schedule.argtypes = (ctypes.c_int, ctypes.c_uint64)
    return loaded


def run(
    library: ctypes.CDLL,
    segments: Sequence[Segment],
    *,
    gamma: float,
    bandwidth: int = -1,
    weight_bytes: int = FLOAT,
    with_alignment: bool = True,
    in_place: bool = False,
    order: int = FORWARD,
    seed: int = 1,
    device: int = 0,
    workspace_short_by: int = 0,
) -> NDArray[np.uint8]:
    """Run one launch; outputs and scratch are filled with NaN before it. Returns the scratch."""
    described = (_Segment * len(segments))()
    batch = segments[0].cost.shape[0]
    for segment, raw in zip(segments, described, strict=True):
        assert segment.cost.flags.c_contiguous
        assert segment.cost.dtype == np.float32
        segment.value = np.full(batch, np.nan, np.float32)
        segment.alignment = (
            segment.cost if in_place else np.full(segment.cost.shape, np.nan, np.float32)
        )
        raw.cost = segment.cost.ctypes.data
        raw.alignment = segment.alignment.ctypes.data if with_alignment else None
        raw.value = segment.value.ctypes.data
        raw.x_lengths = None if segment.x_lengths is None else segment.x_lengths.ctypes.data
        raw.y_lengths = None if segment.y_lengths is None else segment.y_lengths.ctypes.data
        raw.N, raw.M = segment.cost.shape[1:]
    size = library.workspace_bytes(
        described, len(segments), batch, int(with_alignment), weight_bytes
    )
    size = max(size - workspace_short_by, 0)
    workspace = np.full(size, 0xFF, np.uint8)  # every float of it is a NaN
    library.set_schedule(order, seed)
    error = library.soft_dtw(
        device,
        described,
        len(segments),
        batch,
        ctypes.c_float(gamma),
        ctypes.c_int64(bandwidth),
        ctypes.c_void_p(workspace.ctypes.data),
        ctypes.c_int64(size),
        weight_bytes,
    )
    if error is not None:
        raise RuntimeError(error.decode())
    return workspace
