"""What a reader of an evaluation hands over: utterances by part, and what is asked about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechft.data import Manifest
from speechft.errors import ArgumentError, ArgumentTypeError

SPLITS = ("train", "validation", "test")
"""Names of parts that share no utterance."""


@dataclass(frozen=True, eq=False)
class TrialList:
    """Pairs of utterances: the same speaker, or not. 9 bytes a trial.

    Attributes:
        left: int32 of shape (N,), N >= 1: index of an utterance in ``parts["all"]``.
        right: int32 of shape (N,): index of the other.
        target: bool of shape (N,): whether it is the same speaker.

    Raises:
        ArgumentTypeError: another dtype.
        ArgumentError: other shapes, no trials, a negative index.
    """

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    target: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name, dtype in (("left", np.int32), ("right", np.int32), ("target", np.bool_)):
            values = getattr(self, name)
            if not isinstance(values, np.ndarray) or values.dtype != dtype:
                got = getattr(values, "dtype", type(values).__name__)
                raise ArgumentTypeError(name, f"wants {np.dtype(dtype)}, got {got}")
            if values.ndim != 1 or values.shape != self.left.shape:
                raise ArgumentError(
                    name, f"wants shape (N,), as left {self.left.shape}, got {values.shape}"
                )
        if not len(self.left):
            raise ArgumentError("left", "there are no trials")
        for name in ("left", "right"):
            if getattr(self, name).min() < 0:
                raise ArgumentError(name, "an index is negative")

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class EvaluationData:
    """Utterances of an evaluation and the part each has in it.

    Attributes:
        name: what was read, down to the split ("speech_commands v0.01 (SUPERB ...)"): it is
            printed with the results, so that no two splits are taken for one.
        parts: ``{"all": ...}``, or ``{"train", "validation", "test"}`` or some of them, or
            ``{"queries", "documents"}``.
        label: the factor that is classified, None where nothing is.
        groups: the factor whose values are never split between fitting and test.
        trials: of speaker verification; its indices are those of ``parts["all"]``.
        relevance: (query id, document id) of the pairs that match, of query by example.
        left_out: how many rows of the layout are in no part, by reason. Empty: none.

    Raises:
        ArgumentError: no parts, an empty part, an utterance or a value of ``groups`` in two of
            train, validation and test, trials or relevance that the parts do not hold.
    """

    name: str
    parts: Mapping[str, Manifest]
    label: str | None = None
    groups: str | None = None
    trials: TrialList | None = None
    relevance: frozenset[tuple[str, str]] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ArgumentError("parts", "there are none")
        for part, utterances in self.parts.items():
            if not len(utterances):
                raise ArgumentError("parts", f"{part!r} of {self.name} holds no utterances")
        self._check_splits()
        if self.trials is not None:
            self._check_trials(self.trials)
        if self.relevance is not None:
            self._check_relevance(self.relevance)

    def _check_splits(self) -> None:
        part_of: dict[str, str] = {}
        part_of_group: dict[object, str] = {}
        for part in SPLITS:
            for utterance in self.parts.get(part, ()):
                first = part_of.setdefault(utterance.id, part)
                if first != part:
                    raise ArgumentError(
                        "parts", f"{utterance.id!r} is in {first} and in {part} of {self.name}"
                    )
                group = None if self.groups is None else utterance.label(self.groups)
                if group is None:
                    continue
                first = part_of_group.setdefault(group, part)
                if first != part:
                    raise ArgumentError(
                        "parts",
                        f"{self.groups} {group!r} is in {first} and in {part} of {self.name}, "
                        "which its groups forbid",
                    )

    def _check_trials(self, trials: TrialList) -> None:
        if "all" not in self.parts:
            raise ArgumentError("trials", "are about the part 'all', which there is not")
        highest = int(max(trials.left.max(), trials.right.max()))
        count = len(self.parts["all"])
        if highest >= count:
            raise ArgumentError("trials", f"name utterance {highest} of {count}")

    def _check_relevance(self, relevance: frozenset[tuple[str, str]]) -> None:
        for name, column in (("queries", 0), ("documents", 1)):
            known = {utterance.id for utterance in self.parts.get(name, ())}
            unknown = {pair[column] for pair in relevance} - known
            if unknown:
                raise ArgumentError("relevance", f"{min(unknown)!r} is not among the {name}")
        if not relevance:
            raise ArgumentError("relevance", "no query matches a document")


class Layout(NamedTuple):
    """A layout that is known by what lies in its folder.

    Attributes:
        name: of the layout, which is that of its reader.
        read: the reader.
        find: what a folder holds of the layout; nothing (None, or an empty list) if it is another.
        looked_for: the marks by which ``find`` knows it, in words.
    """

    name: str
    read: Callable[..., EvaluationData]
    find: Callable[[Path], object]
    looked_for: str
