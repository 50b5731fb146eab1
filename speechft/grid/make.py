"""Have an engine say every text in every voice, and keep account of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speechft.errors import ArgumentError
from speechft.grid.engines import Engine, EngineError, Spoken, check_voices

RATE = 16000
_SILENT = 10 ** (-60 / 20)  # of full scale: nothing in it is louder
_SHORTEST = 0.1  # seconds


@dataclass(frozen=True)
class GridSpec:
    """What is said: every text in every voice, with every value of every control.

    Attributes:
        texts: what to say.
        voices: of the engine.
        controls: values of the engine's controls by name, such as ``{"pitch": [20, 50, 80]}``:
            a factor each.
        seed: for engines that draw.

    Raises:
        ArgumentError: no texts, no voices, a text without letters, a control without values.
    """

    texts: Sequence[str]
    voices: Sequence[str]
    controls: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("texts", "voices"):
            values = getattr(self, name)
            if isinstance(values, str) or not values:
                raise ArgumentError(name, f"wants a list of at least one, got {values!r}")
        for position, text in enumerate(self.texts):
            if not any(character.isalnum() for character in text):
                raise ArgumentError("texts", f"text {position} has nothing to say: {text!r}")
        for name, values in self.controls.items():
            if isinstance(values, str) or not values:
                raise ArgumentError(
                    "controls", f"{name} wants a list of at least one value, got {values!r}"
                )

    def cells(self) -> tuple[list[Cell], list[tuple[Cell, str]]]:
        """Each cell once, and those that are said already, with the reason."""
        names = list(self.controls)
        cells: list[Cell] = []
        double: list[tuple[Cell, str]] = []
        seen: dict[tuple[Any, ...], Cell] = {}
        axes = [list(enumerate(self.voices)), list(enumerate(self.texts))]
        axes += [list(enumerate(self.controls[name])) for name in names]
        for (v, voice), (t, text), *rest in itertools.product(*axes):
            cell = Cell(
                voice,
                text,
                {name: value for name, (_, value) in zip(names, rest, strict=True)},
                {"voice": v, "text": t}
                | {name: number for name, (number, _) in zip(names, rest, strict=True)},
            )
            same = (voice, text, *(repr(value) for _, value in rest))
            if same in seen:
                double.append((cell, f"the same as {seen[same].id}"))
            else:
                seen[same] = cell
                cells.append(cell)
        return cells, double


@dataclass(frozen=True)
class Cell:
    """A text in a voice, with a value of each control.

    Attributes:
        voice: which.
        text: what is said.
        controls: by name.
        factors: positions of all three in the grid's lists: integers.
    """

    voice: str
    text: str
    controls: Mapping[str, Any]
    factors: Mapping[str, int]

    @property
    def id(self) -> str:
        """Such as ``voice3-text17-pitch0``."""
        return "-".join(f"{name}{number}" for name, number in self.factors.items())

    def file(self, engine: str, version: str, seed: int) -> Path:
        """Below the grid's folder: named after all that decides what is heard."""
        known = [engine, version, self.voice, self.text, sorted(self.controls.items()), seed]
        digest = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:20]
        folder = re.sub(r"[^\w.+-]+", "_", Path(self.voice).name)[:60]
        return Path("audio") / folder / f"{digest}.wav"


@dataclass
class Account:
    """What became of each cell.

    Attributes:
        output: the grid's folder.
        factors: how many values each has.
        made: ids of what was said now.
        kept: ids of what was said before.
        skipped: ids and why: what is in the grid already.
        failed: ids and why: holes of the grid.
    """

    output: Path
    factors: dict[str, int]
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, as in ``account.json``."""
        return {
            "factors": self.factors,
            "cells": len(self.made) + len(self.kept) + len(self.skipped) + len(self.failed),
            "seconds": round(self.seconds, 3),
            "made": len(self.made),
            "kept": len(self.kept),
            "skipped": self.skipped,
            "failed": self.failed,
            "single_valued": [name for name, count in self.factors.items() if count == 1],
        }

    def __str__(self) -> str:
        sizes = " × ".join(f"{count} of {name}" for name, count in self.factors.items())
        lines = [
            f"grid of {sizes}: {self.seconds / 60:.1f} minutes of speech",
            f"  made {len(self.made)}, kept {len(self.kept)}, skipped {len(self.skipped)}, "
            f"failed {len(self.failed)}",
        ]
        for title, cells in (("skipped", self.skipped), ("failed", self.failed)):
            shown = list(cells.items())[:5]
            lines += [f"  {title}: {name}: {reason}" for name, reason in shown]
            if len(cells) > len(shown):
                lines.append(f"  {title}: and {len(cells) - len(shown)} more, in account.json")
        lines += [
            f"  note: {name} has one value, and can be no factor to learn from"
            for name in self.to_dict()["single_valued"]
        ]
        return "\n".join(lines)


def make_grid(
    spec: GridSpec,
    engine: Engine,
    output: str | Path,
    *,
    workers: int | None = None,
    progress: bool | None = None,
) -> Account:
    """Say all cells of a grid, and write ``audio/``, ``manifest.jsonl`` and ``account.json``.

    What is there already is kept, so a run that was stopped goes on, and one more voice costs that
    voice. Audio is 16 kHz, 16 bits, mono. A cell that fails is a hole of the grid, and is named in
    the account with the reason.

    Args:
        spec: what is said.
        engine: who says it.
        output: the folder.
        workers: how many at a time; None: as many as there are processors.
        progress: whether to show a bar; None: where somebody sees it.

    Returns:
        The account.

    Raises:
        EngineError: the engine is not installed, has no such voice, or fails on every cell.
        ArgumentError: controls that the engine does not have.
    """
    unknown = [name for name in spec.controls if name not in engine.controls]
    if unknown:
        known = ", ".join(engine.controls) or "none"
        raise ArgumentError("controls", f"{engine.name} has no {unknown[0]!r}; it has {known}")
    version = engine.version()
    check_voices(spec.voices, engine)
    cells, double = spec.cells()
    folder = Path(output)
    factors = {"voice": len(set(spec.voices)), "text": len(set(spec.texts))}
    factors |= {
        name: len({repr(value) for value in values}) for name, values in spec.controls.items()
    }
    account = Account(folder, factors, skipped={cell.id: reason for cell, reason in double})

    def make(cell: Cell) -> tuple[Cell, Path, bool, str | None]:
        path = folder / cell.file(engine.name, version, spec.seed)
        if path.exists():
            return cell, path, False, None
        try:
            _write(path, _checked(engine.speak(cell.text, cell.voice, spec.seed, cell.controls)))
        except EngineError as error:
            return cell, path, True, str(error)
        return cell, path, True, None

    rows = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for cell, path, new, reason in _bar(pool.map(make, cells), len(cells), progress):
            if reason is not None:
                account.failed[cell.id] = reason
                continue
            (account.made if new else account.kept).append(cell.id)
            rows.append(_row(cell, path, folder))
    if not rows:
        first = next(iter(account.failed.values()))
        raise EngineError(f"{engine.name} failed on every cell; the first: {first}")
    account.seconds = sum(row["duration"] for row in rows)
    _write_text(
        folder / "manifest.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    )
    _write_text(
        folder / "account.json", json.dumps(account.to_dict(), indent=2, ensure_ascii=False)
    )
    return account


def _row(cell: Cell, path: Path, folder: Path) -> dict[str, Any]:
    import soundfile

    return {
        "id": cell.id,
        "audio": str(path.relative_to(folder)),
        "duration": round(soundfile.info(path).duration, 6),
        "speaker": cell.voice,
        "text": cell.text,
        "factors": {f"{name}_id": number for name, number in cell.factors.items()},
    }


def _checked(spoken: Spoken) -> np.ndarray[Any, np.dtype[np.float32]]:
    """At 16 kHz; what nobody can hear is no cell."""
    samples, rate = spoken
    if len(samples) < _SHORTEST * rate or float(np.abs(samples).max()) < _SILENT:
        raise EngineError(f"silence: {len(samples) / rate:.2f} s, and nothing louder than -60 dB")
    if rate != RATE:
        import soxr

        samples = soxr.resample(samples, rate, RATE)
    return np.asarray(samples, dtype=np.float32)


def _write(path: Path, samples: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Whole or not at all."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.{id(samples)}.part")
    with unfinished.open("wb") as file:
        soundfile.write(file, samples.clip(-1, 1), RATE, subtype="PCM_16", format="WAV")
    os.replace(unfinished, path)


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _bar(results: Iterable[Any], total: int, progress: bool | None) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(
        results, total=total, desc="grid", unit="cell",
        disable=None if progress is None else not progress,
    )  # fmt: skip
    return bar
