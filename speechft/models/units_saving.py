"""Unit heads in the Hugging Face folders of their encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from speechft.errors import ArgumentError
from speechft.models.loading import load
from speechft.models.units import UnitHead, UnitModel

WEIGHTS, CONFIG = "units.safetensors", "units.json"
_SHAPES = {
    "projection.weight": "(size, features)",
    "projection.bias": "(size,)",
    "codebook": "(codes, size)",
}


def save_units(head: UnitHead, path: Path) -> None:
    """Write a unit head into the folder of its encoder."""
    from safetensors.torch import save_file

    tensors = {k: t.detach().cpu().contiguous() for k, t in head.state_dict().items()}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    content = {
        "codes": head.codes, "size": head.codebook.shape[1],
        "features": head.projection.in_features,
    }  # fmt: skip
    (path / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_unit_folder(path: str | Path) -> bool:
    """Whether there is a unit head in this folder."""
    return Path(path, CONFIG).is_file()


def read_unit_config(folder: str | Path, argument: str = "folder") -> dict[str, int]:
    """What ``units.json`` says: ``codes``, ``size`` and ``features``.

    Raises:
        ArgumentError: there is no such file, or not what it should hold.
    """
    path = Path(folder, CONFIG)
    if not path.is_file():
        raise ArgumentError(
            argument,
            f"{folder} has no {CONFIG}, so no unit head; speechft refine spin writes one",
        )
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError(argument, f"{path} is not JSON: {error}") from error
    names = ("codes", "size", "features")
    if not isinstance(content, dict) or not all(type(content.get(name)) is int for name in names):
        raise ArgumentError(argument, f"{path} wants whole numbers {', '.join(names)}")
    return {name: content[name] for name in names}


def load_units(folder: str | Path, *, device: torch.device | str | None = None) -> UnitModel:
    """Load an encoder with its unit head, in eval mode: waveforms to discrete units.

    Args:
        folder: what ``speechft refine spin`` wrote.
        device: to put the model on.

    Raises:
        ArgumentError: no unit head in the folder, or one that does not fit; as
            :func:`speechft.models.load`.
    """
    from safetensors.torch import load_file

    config = read_unit_config(folder)
    encoder = load(folder, local_files_only=True)
    if config["features"] != encoder.hidden_size:
        raise ArgumentError(
            "folder",
            f"{folder}: the unit head is of frames of {config['features']}, and the encoder's "
            f"have {encoder.hidden_size}; the two are not of one run",
        )
    head = UnitHead(config["features"], config["size"], config["codes"])
    path = Path(folder, WEIGHTS)
    if not path.is_file():
        raise ArgumentError("folder", f"{path} is missing; {CONFIG} is there without it")
    weights = load_file(path)
    own = head.state_dict()
    for name, shape in _SHAPES.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != tuple(own[name].shape):
            raise ArgumentError("folder", f"{path}: {name} wants {shape}, got {found}")
    head.load_state_dict(weights)
    return UnitModel(encoder, head).to(device).eval()
