"""Shared by all tests: no network, and the helpers of this folder importable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a thread each: more than there are cores wait in turns
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch  # which reads the above


@pytest.fixture(autouse=True)
def same_number_of_threads():
    """Whoever leaves more threads than there were slows down all tests that follow."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "put the number of threads back"
