"""Grids of speech, where every voice says every text: what interventional refinement learns from.

An engine says a text in a voice (:mod:`speechft.grid.engines`); :func:`make_grid` has it say all of
them, and writes the audio, a manifest with the factors of each cell, and an account of what was
made, skipped and failed. Recordings that people made of the same prompts are a grid as well, with
holes: :func:`read_grid`. :class:`GridBlockSampler` cuts either into batches with pairs to learn
from.
"""

from __future__ import annotations

from speechft.grid.blocks import GridBlockSampler
from speechft.grid.engines import ENGINES, Engine, EngineError, Spoken, engine
from speechft.grid.make import Account, make_grid
from speechft.grid.read import Grid, read_grid
from speechft.grid.spec import Cell, GridSpec

__all__ = [
    "ENGINES",
    "Account",
    "Cell",
    "Engine",
    "EngineError",
    "Grid",
    "GridBlockSampler",
    "GridSpec",
    "Spoken",
    "engine",
    "make_grid",
    "read_grid",
]
