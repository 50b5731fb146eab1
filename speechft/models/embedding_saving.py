"""Embedding models as Hugging Face folders."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from speechft.errors import ArgumentError
from speechft.models.embedding import EmbeddingModel, EmbeddingSpec, make_embedding
from speechft.models.folders import (
    CONFIG,
    ENCODER,
    WEIGHTS,
    fetch,
    is_folder_of,
    write_preprocessor,
)
from speechft.models.loading import load
from speechft.models.subspaces_saving import weights_digest

MODEL_TYPE = "speechft_embedding"
_OF_ENCODER = "frames.encoder."
_LATER = frozenset({"affine"})  # what folders written before do not say: it is as by default


def save_embedding(model: EmbeddingModel, path: Path) -> None:
    """See :meth:`EmbeddingModel.save_pretrained`."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    encoder, name = model.encoder, model.encoder_name
    save_file(
        {
            key: tensor.detach().cpu().contiguous()
            for key, tensor in model.state_dict().items()
            if not key.startswith(_OF_ENCODER)
        },
        path / WEIGHTS,
        metadata={"format": "pt"},
    )
    if encoder is not None and name is None:
        encoder.save_pretrained(path / ENCODER)
    config = {
        "model_type": MODEL_TYPE,
        **asdict(model.spec),
        "encoder": name,
        "encoder_sha256": None if encoder is None or name is None else weights_digest(encoder),
    }
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_preprocessor(
        path,
        sample_rate=model.sample_rate,
        do_normalize=encoder is not None and encoder.do_normalize,
    )


def is_embedding_folder(path: str | Path) -> bool:
    """Whether there is an embedding model in this folder."""
    return is_folder_of(path, MODEL_TYPE)


def read_embedding(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> EmbeddingModel:
    """See :func:`speechft.models.load_embedding`."""
    from safetensors.torch import load_file

    folder = fetch(name_or_path, revision, local_files_only)
    if not is_embedding_folder(folder):
        raise ArgumentError(
            "name_or_path",
            f"{folder} holds no embedding model: its config.json does not say {MODEL_TYPE!r}",
        )
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    known = {field.name for field in fields(EmbeddingSpec)}
    missing = [key for key in (*sorted(known - _LATER), "encoder") if key not in config]
    if missing:
        raise ArgumentError("name_or_path", f"{folder / CONFIG} has no {missing[0]!r}")
    spec = EmbeddingSpec(**{key: config[key] for key in known if key in config})
    encoder = None
    if spec.backbone == "encoder":
        name = config["encoder"]
        where = folder / ENCODER if name is None else name
        encoder = load(where, local_files_only=local_files_only)
        if name is not None and weights_digest(encoder) != config["encoder_sha256"]:
            raise ArgumentError(
                "name_or_path",
                f"{folder} was made with an encoder {name!r} of other weights than those of today; "
                "its vectors mean nothing on these",
            )
    model = make_embedding(spec, encoder=encoder)
    model.encoder_name = config["encoder"]
    weights = load_file(folder / WEIGHTS)
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    own = {k: t.shape for k, t in model.state_dict().items() if not k.startswith(_OF_ENCODER)}
    if shapes != own:
        odd = sorted(k for k in {*shapes, *own} if shapes.get(k) != own.get(k))
        raise ArgumentError("name_or_path", f"{folder / WEIGHTS} does not fit at {odd[0]}")
    model.load_state_dict(weights, strict=False)
    return model.to(device).eval()
