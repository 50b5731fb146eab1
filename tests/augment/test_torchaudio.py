"""Parity with torchaudio where it means the same; it is an oracle, and no dependency."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed"
)
def test_agrees_with_torchaudio() -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("torchaudio_oracle.py"))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Their window is Hann's, 6 zero crossings long: the difference is the ripple of its pass band.
    for name in ("speed 0.9", "speed 1.1"):
        assert found[f"{name} length"] <= 1
        assert found[name] < -50
    assert found["resample"] < -100
    assert found["add_noise"] < 1e-6
    assert found["fftconvolve"] < 1e-6
    # Decibels of the furthest of ten partials from where it belongs. Theirs loses up to 12 upwards.
    for semitones in (-2, 2):
        assert found[f"pitch {semitones} ours"] < 1.5
    assert found["pitch -2 theirs"] < 1.5
