"""Have an engine say every text in every voice, and keep account of it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechft.errors import ArgumentError
from speechft.grid._audio import checked, samples_of, wav_of, within_scale, write_whole
from speechft.grid.conditions import load_conditions
from speechft.grid.engines import Engine, EngineError, check_voices
from speechft.grid.spec import Cell, GridSpec


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

    A voice, a text and controls are said once, whatever the number of conditions, and only where
    one of their cells is missing; conditions work on the 16 bits that a cell without any would
    hold. One that takes samples beyond full scale has the whole clip scaled down to a peak of 1:
    nothing is clipped that its chain does not clip. One that leaves silence is a failed cell.

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
        ConfigError: the chain of a condition cannot be made.
    """
    unknown = [name for name in spec.controls if name not in engine.controls]
    if unknown:
        known = ", ".join(engine.controls) or "none"
        raise ArgumentError("controls", f"{engine.name} has no {unknown[0]!r}; it has {known}")
    version = engine.version()
    check_voices(spec.voices, engine)
    conditions = load_conditions(spec.conditions, spec.draw_each)
    cells, double = spec.cells()
    folder = Path(output)
    account = Account(folder, spec.factors(), skipped={cell.id: why for cell, why in double})

    def make(group: Sequence[Cell]) -> list[tuple[Cell, Path, bool, str | None]]:
        """Cells that differ in conditions alone: what each is, whether it is new, why it is not."""
        made: dict[str, tuple[Cell, Path, bool, str | None]] = {}
        missing = []
        plain = folder / group[0].file(engine.name, version, spec.seed)
        for cell in group:
            todo = [conditions[name][value] for name, value in cell.conditions.items()]
            steps = [(one, one.key(spec.seed, cell.said)) for one in todo if one is not None]
            done = [(one.content, key) for one, key in steps]
            path = folder / cell.file(engine.name, version, spec.seed, done)
            made[cell.id] = (cell, path, False, None)
            if not path.exists():
                missing.append((cell, path, steps))
        said: bytes | str | None = None  # a WAV file, or why there is none
        for cell, path, steps in missing:
            try:
                if said is None:
                    said = _said(engine, group[0], spec.seed, plain)
                if isinstance(said, str):
                    raise EngineError(said)
                if not steps:
                    write_whole(path, said)
                else:
                    samples = samples_of(said)
                    for condition, key in steps:
                        samples = condition.apply(samples, key)
                    write_whole(path, wav_of(within_scale(samples, cell.conditions)))
            except EngineError as error:
                said = str(error) if said is None else said
                made[cell.id] = (cell, path, True, str(error))
            else:
                made[cell.id] = (cell, path, True, None)
        return list(made.values())

    rows = []
    groups = [list(group) for _, group in itertools.groupby(cells, key=lambda cell: cell.said)]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        results = itertools.chain.from_iterable(pool.map(make, groups))
        for cell, path, new, reason in _bar(results, len(cells), progress):
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
        **({"conditions": dict(cell.conditions)} if cell.conditions else {}),
    }


def _said(engine: Engine, cell: Cell, seed: int, plain: Path) -> bytes:
    """The WAV file of a cell without conditions, or of what the engine says now."""
    if plain.exists():
        return plain.read_bytes()
    return wav_of(checked(engine.speak(cell.text, cell.voice, seed, cell.controls)))


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
