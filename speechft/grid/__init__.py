"""Grids of speech, where every voice says every text: what interventional refinement learns from.

An engine says a text in a voice (:mod:`speechft.grid.engines`); :func:`make_grid` has it say all of
them, and writes the audio, a manifest with the factors of each cell, and an account of what was
made, skipped and failed.
"""

from __future__ import annotations

from speechft.grid.engines import ENGINES, Engine, EngineError, Spoken, engine
from speechft.grid.make import Account, Cell, GridSpec, make_grid

__all__ = [
    "ENGINES",
    "Account",
    "Cell",
    "Engine",
    "EngineError",
    "GridSpec",
    "Spoken",
    "engine",
    "make_grid",
]
