"""One row a measurement, the same columns for every op, saved as CSV or JSON."""

from __future__ import annotations

import csv
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement. What was not measured is None (an empty cell), never 0.

    Attributes:
        op: the op, ``soft_dtw``.
        case: sizes and settings, as registered by the op's file.
        provider: whose implementation: ``speechft``, ``reference`` or a peer.
        mode: ``forward`` (value alone, no gradient wanted), ``backward`` (of a graph already
            built), ``forward+backward``.
        status: ``ok``, or why it was not run: ``not run: no GPU``.
        median_ms: of ``repeats`` calls, each provider in turn; also ``p20_ms`` and ``p80_ms``.
        repeats: calls timed.
        ratio: ``median_ms`` over speechft's in the same case, mode and run; above 1 speechft wins.
        memory_mib: peak beyond the inputs, gradients included. On the CPU the resident set of a
            fresh process, on a GPU what torch allocated.
        value_error: largest error of the value against float64, over the largest value.
        gradient_error: the same of the gradients.
        floor_percent: ``floor_ms`` over ``median_ms``, in percent: 100 is at the floor.
        floor_ms: what the machine cannot beat, by the arithmetic in ``floor``.
        host_syncs: times that a call makes the host wait for the GPU.
        device, threads: where it ran, and the CPU threads given to it.
        torch, speechft, numba, triton: versions; empty where not installed.
        commit: of the checkout, with a ``+`` if it was changed; date: UTC.
    """

    op: str
    case: str
    provider: str
    mode: str
    status: str
    median_ms: float | None
    p20_ms: float | None
    p80_ms: float | None
    repeats: int | None
    ratio: float | None
    memory_mib: float | None
    value_error: float | None
    gradient_error: float | None
    floor_percent: float | None
    floor_ms: float | None
    floor: str
    host_syncs: int | None
    device: str
    threads: int
    torch: str
    speechft: str
    numba: str
    triton: str
    commit: str
    date: str


def save(rows: Iterable[Row], path: Path) -> None:
    """Write rows to ``path``: JSON if it ends so, else CSV."""
    records = [{key: _rounded(value) for key, value in asdict(row).items()} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(records, file, indent=1)
            file.write("\n")
        else:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(records)


def load(path: Path) -> list[Row]:
    """Rows that :func:`save` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        records: list[dict[str, Any]] = (
            json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))
        )
    return [
        Row(**{name: _typed(record[name], kind) for name, kind in _KINDS}) for record in records
    ]


_KINDS = list(typing.get_type_hints(Row).items())


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _typed(value: Any, kind: Any) -> Any:
    """A CSV cell as what its column holds."""
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
        if value in ("", None):
            return None
    return kind(value)
