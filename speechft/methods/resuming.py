"""Runs of several trainings that go on where they stopped: what each was trained with is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from speechft.data import Manifest
from speechft.errors import ConfigError


def digests(model: str | Path, manifest: Manifest, label: str) -> dict[str, str]:
    """What stands for a model, and for labelled utterances."""
    weights = Path(model) / "model.safetensors"
    return {
        "model": sha256(weights.read_bytes()).hexdigest() if weights.is_file() else str(model),
        "utterances": utterances_digest(manifest, label),
    }


def utterances_digest(manifest: Manifest, label: str) -> str:
    """What stands for labelled utterances."""
    rows = [(row.id, row.start, row.end, row.label(label)) for row in manifest]
    return sha256(repr(rows).encode()).hexdigest()


def check_same(folder: Path, what: Mapping[str, Any]) -> None:
    """Keep what a stage is trained with, or see that it is what was kept: figures are of that."""
    path, now = folder / "stage.json", json.loads(json.dumps(what))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name in now if then.get(name) != now[name]]
    if other:
        name = other[0]
        raise ConfigError(
            f"output: {folder} holds a run with other settings ({name} was {then.get(name)!r} and "
            f"is {now[name]!r}); choose another folder, or remove it"
        )
