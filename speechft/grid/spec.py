"""What a grid is to hold: its factors, and its cells."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechft.errors import ArgumentError
from speechft.grid.conditions import Chain, check_conditions


@dataclass(frozen=True)
class GridSpec:
    """What is said: every text in every voice, with every value of every control and condition.

    Attributes:
        texts: what to say.
        voices: of the engine.
        controls: values of the engine's controls by name, such as ``{"pitch": [20, 50, 80]}``:
            a factor each.
        seed: for engines that draw, and for conditions.
        conditions: what is done to what was said, a factor each: chains by name, such as
            ``{"noise": {"clean": None, "street": "street.yaml"}}``; what
            :func:`speechft.augment.load_chain` takes, or an augmentation. None leaves the clip as
            it is. Those of several factors are done in the order in which they stand here.
        draw_each: conditions that are drawn for each voice, text and controls, such as a noise
            that is to be another moment of the street in every cell. The others are drawn once,
            from the seed and the names of factor and value: one room is the same room everywhere.

    Raises:
        ArgumentError: no texts, no voices, a text without letters, a control or a condition
            without values, a condition that is named as a control, ``voice`` or ``text`` is, a
            name in ``draw_each`` that is no condition's.
    """

    texts: Sequence[str]
    voices: Sequence[str]
    controls: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seed: int = 0
    conditions: Mapping[str, Mapping[str, Chain]] = field(default_factory=dict)
    draw_each: Sequence[str] = ()

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

        check_conditions(self.conditions, self.draw_each, self.controls)

    def cells(self) -> tuple[list[Cell], list[tuple[Cell, str]]]:
        """Each cell once, and those that are said already, with the reason.

        Cells that differ in conditions alone follow each other.
        """
        given = {**self.controls, **self.conditions}
        axes = [list(enumerate(self.voices)), list(enumerate(self.texts))]
        axes += [list(enumerate(values)) for values in given.values()]
        cells: list[Cell] = []
        double: list[tuple[Cell, str]] = []
        seen: dict[tuple[Any, ...], Cell] = {}
        for (v, voice), (t, text), *rest in itertools.product(*axes):
            chosen = {name: value for name, (_, value) in zip(given, rest, strict=True)}
            numbers = {name: number for name, (number, _) in zip(given, rest, strict=True)}
            done = {name: chosen.pop(name) for name in self.conditions}
            cell = Cell(voice, text, chosen, {"voice": v, "text": t} | numbers, done)
            # Nothing that is done is the same under any name.
            changes = (
                value if self.conditions[name][value] is not None else None
                for name, value in done.items()
            )
            same = (*cell.said, *changes)
            if same in seen:
                double.append((cell, f"the same as {seen[same].id}"))
            else:
                seen[same] = cell
                cells.append(cell)
        return cells, double

    def factors(self) -> dict[str, int]:
        """How many different values each factor has."""
        counts = {"voice": len(set(self.voices)), "text": len(set(self.texts))}
        for name, values in self.controls.items():
            counts[name] = len({repr(value) for value in values})
        for name, chains in self.conditions.items():
            counts[name] = len({value if chains[value] is not None else None for value in chains})
        return counts


@dataclass(frozen=True)
class Cell:
    """A text in a voice, with a value of each control and condition.

    Attributes:
        voice: which.
        text: what is said.
        controls: by name.
        factors: positions of all in the grid's lists: integers.
        conditions: names of their values, by name.
    """

    voice: str
    text: str
    controls: Mapping[str, Any]
    factors: Mapping[str, int]
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Such as ``voice3-text17-pitch0-noise1``."""
        return "-".join(f"{name}{number}" for name, number in self.factors.items())

    @property
    def said(self) -> tuple[str, ...]:
        """What the engine is asked for: the same for all conditions."""
        return (self.voice, self.text, *(f"{n}={v!r}" for n, v in sorted(self.controls.items())))

    def file(self, engine: str, version: str, seed: int, done: Sequence[Any] = ()) -> Path:
        """Below the grid's folder: named after all that decides what is heard.

        Args:
            engine: its name.
            version: of the engine.
            seed: of the grid.
            done: contents and keys of the conditions, in order.
        """
        known = [engine, version, self.voice, self.text, sorted(self.controls.items()), seed]
        known += [done] if done else []
        digest = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:20]
        folder = re.sub(r"[^\w.+-]+", "_", Path(self.voice).name)[:60]
        return Path("audio") / folder / f"{digest}.wav"
