"""Subspace models as Hugging Face folders, and as ONNX."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError, ConfigError
from speechft.models.encoder import Encoder, EncoderOutput
from speechft.models.folders import (
    CONFIG,
    ENCODER,
    WEIGHTS,
    fetch,
    is_folder_of,
    write_preprocessor,
)
from speechft.models.loading import load
from speechft.models.subspaces import SubspaceModel

MODEL_TYPE = "speechft_subspaces"


def save_subspaces(model: SubspaceModel, path: Path) -> None:
    """See :meth:`SubspaceModel.save_pretrained`."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    weights = {f"transform.{name}": tensor for name, tensor in model.transform.state_dict().items()}
    if model.layer_weights is not None:
        weights["layer_weights"] = model.layer_weights.detach()
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        path / WEIGHTS,
        metadata={"format": "pt"},
    )
    if model.encoder_name is None:
        model.encoder.save_pretrained(path / ENCODER)
    config = {
        "model_type": MODEL_TYPE,
        "encoder": model.encoder_name,
        "encoder_sha256": None if model.encoder_name is None else weights_digest(model.encoder),
        "subspaces": model.subspaces,
        "layer": model.layer,
        "hidden_sizes": list(model.hidden_sizes),
    }
    text = json.dumps(config, indent=2) + "\n"
    (path / CONFIG).write_text(text, encoding="utf-8")
    write_preprocessor(
        path,
        sample_rate=model.encoder.sample_rate,
        do_normalize=model.encoder.do_normalize,
    )


def is_subspace_folder(path: str | Path) -> bool:
    """Whether there is a subspace model in this folder."""
    return is_folder_of(path, MODEL_TYPE)


def read_subspaces(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> SubspaceModel:
    """See :func:`speechft.models.load_subspaces`."""
    from safetensors.torch import load_file

    folder = fetch(name_or_path, revision, local_files_only)
    if not is_subspace_folder(folder):
        raise ArgumentError(
            "name_or_path",
            f"{folder} holds no subspace model: its config.json does not say {MODEL_TYPE!r}",
        )
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    name = config["encoder"]
    where = folder / ENCODER if name is None else name
    encoder = load(where, local_files_only=local_files_only)
    if name is not None and weights_digest(encoder) != config["encoder_sha256"]:
        raise ArgumentError(
            "name_or_path",
            f"{folder} was made with an encoder {name!r} of other weights than those of today; "
            "its subspaces mean nothing on these",
        )
    model = SubspaceModel(
        encoder,
        config["subspaces"],
        layer=config["layer"],
        weighted_layers=config["layer"] is None,
        hidden_sizes=tuple(config["hidden_sizes"]),
        encoder_name=name,
    )
    weights = load_file(folder / WEIGHTS)
    own = {key for key in model.state_dict() if not key.startswith("encoder.")}
    if set(weights) != own:
        odd = sorted(set(weights) ^ own)
        raise ArgumentError("name_or_path", f"{folder / WEIGHTS} does not fit at {odd[0]}")
    model.load_state_dict(weights, strict=False)
    return model.to(device).eval()


def weights_digest(encoder: Encoder) -> str:
    """SHA-256 of the names, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.hf_model.state_dict().items()):
        raw = tensor.detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(raw.shape)}".encode())
        digest.update(raw.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Outputs(nn.Module):
    """A plain tuple, as ONNX wants it."""

    def __init__(self, model: SubspaceModel | Encoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        output = self.model(waveforms, lengths)
        if isinstance(output, EncoderOutput):
            return output.last_hidden_state, output.lengths
        return tuple(output.values())


def export_onnx(model: SubspaceModel | Encoder, path: str | Path) -> None:
    """Write a model as ONNX: ``waveforms`` (B, T) and ``lengths`` (B,) in.

    Out come (B, D) for each subspace, by its name, or of an encoder ``features`` (B, T', C) and
    ``frames`` (B,), how many of them are valid. B and T are free. What the encoder checks of its
    input it checks no more: lengths below ``minimum_samples`` give nonsense.

    Args:
        model: on the CPU.
        path: of the file to write.

    Raises:
        ConfigError: onnx or onnxscript is not installed; a WavLM, whose attention torch cannot
            export for a free number of frames.
    """
    encoder = model if isinstance(model, Encoder) else model.encoder
    if encoder.config.model_type == "wavlm":
        raise ConfigError(
            "export: a WavLM cannot be written as ONNX: torch's exporter does not follow its "
            "attention for a free number of frames"
        )
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise ConfigError(
                f"export: {package} is not installed; pip install 'speechft[export]'"
            ) from error
    training = model.training
    names = ["features", "frames"] if isinstance(model, Encoder) else list(model.subspaces)
    second = encoder.sample_rate
    waveforms = torch.zeros(2, 2 * second)
    lengths = torch.tensor([2 * second, second])
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("samples", min=second // 2)
    try:
        with warnings.catch_warnings():
            # About what the exporter does inside.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)
            program: Any = torch.onnx.export(
                _Outputs(model).eval(),
                (waveforms, lengths),
                input_names=["waveforms", "lengths"],
                output_names=names,
                dynamic_shapes={"waveforms": {0: batch, 1: steps}, "lengths": {0: batch}},
                dynamo=True,
                verbose=False,
            )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        program.save(str(path))
    finally:
        model.train(training)
