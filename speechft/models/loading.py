"""Getting an :class:`~speechft.models.Encoder` from a folder, the Hugging Face Hub or memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechft.errors import ArgumentError
from speechft.models.encoder import SUPPORTED, Encoder
from speechft.models.saving import PREPROCESSOR_FILE

EMBEDDED = {"speechft/hubert-mini": Path(__file__).parent / "hubert-mini"}
"""Encoders that ship with speechft, by name."""

UNTRAINED = "-untrained"
"""After the name of one of them: the same architecture with random weights."""

_CLASSES = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}


def load(
    name_or_path: str | Path,
    *,
    do_normalize: bool | None = None,
    spec_augment: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Encoder:
    """Load a wav2vec 2.0, HuBERT or WavLM encoder, in eval mode.

    Args:
        name_or_path: a folder that ``save_pretrained`` wrote, or a name on the Hugging Face Hub
            such as ``"facebook/hubert-base-ls960"``. The head of a fine-tuned model is left aside.
            ``"speechft/hubert-mini"`` ships with speechft: 4.7 million parameters, pre-trained on
            three hours of speech (its model card says on what); no network is used.
            ``"speechft/hubert-mini-untrained"`` has random weights: a floor to compare with.
        do_normalize: bring each waveform to zero mean and unit variance. None: what the model's
            ``preprocessor_config.json`` says, and False if it has none.
        spec_augment: keep SpecAugment masking in training mode.
        dtype: of the weights; None: float32.
        device: to put the model on.
        revision: branch, tag or commit on the Hub.
        local_files_only: do not use the network.

    Raises:
        ArgumentError: no such folder or model, no ``config.json`` in it, a type of model that is
            not supported, or a checkpoint that lacks weights.
    """
    from transformers import AutoConfig

    name = os.fspath(name_or_path)
    if name.removesuffix(UNTRAINED) in EMBEDDED and name.endswith(UNTRAINED):
        encoder = Encoder(
            _untrained(EMBEDDED[name.removesuffix(UNTRAINED)]),
            do_normalize=bool(do_normalize),
            spec_augment=spec_augment,
        )
        return encoder.to(device=device, dtype=dtype)
    source = _source(name_or_path)
    where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    try:
        config = AutoConfig.from_pretrained(source, **where)
    except (OSError, ValueError) as error:
        raise _cannot_load(source, error) from error
    if config.model_type not in _CLASSES:
        raise ArgumentError(
            "name_or_path",
            f"{source} is of type {config.model_type!r}; supported: {', '.join(SUPPORTED)}",
        )
    model = _load_model(source, config, dtype or torch.float32, where)
    preprocessor = _read_preprocessor(source, where)
    known = preprocessor or {}
    if do_normalize is None:
        do_normalize = bool(known.get("do_normalize", False))
    encoder = Encoder(
        model,
        do_normalize=do_normalize,
        sample_rate=int(known.get("sampling_rate", 16_000)),
        spec_augment=spec_augment,
        preprocessor=preprocessor,
    )
    return encoder if device is None else encoder.to(device)


def wrap(
    hf_model: nn.Module,
    *,
    do_normalize: bool = False,
    sample_rate: int = 16_000,
    spec_augment: bool = False,
) -> Encoder:
    """An :class:`Encoder` around a transformers model in memory, which it uses without a copy.

    Args and errors: see :class:`Encoder`.
    """
    return Encoder(
        hf_model, do_normalize=do_normalize, sample_rate=sample_rate, spec_augment=spec_augment
    )


def _source(name_or_path: str | Path) -> str:
    """The folder, checked, or the name on the Hub."""
    name = os.fspath(name_or_path)
    if name in EMBEDDED:
        return os.fspath(EMBEDDED[name])
    if name.startswith("speechft/") and not Path(name).exists():
        known = ", ".join(f"{known}, {known}{UNTRAINED}" for known in EMBEDDED)
        raise ArgumentError("name_or_path", f"no encoder {name!r} ships with speechft; {known} do")
    path = Path(name_or_path).expanduser()
    looks_like_path = (
        isinstance(name_or_path, Path)
        or name.startswith((".", "~", os.sep))
        or name.count("/") > 1
        or path.exists()
    )
    if not looks_like_path:
        return name
    if not path.is_dir():
        problem = "is a file; give the folder it lies in" if path.exists() else "does not exist"
        raise ArgumentError("name_or_path", f"{path} {problem}")
    if not (path / "config.json").is_file():
        raise ArgumentError(
            "name_or_path", f"{path} has no config.json, so it is not a Hugging Face model folder"
        )
    return os.fspath(path)


def _untrained(folder: Path) -> nn.Module:
    """The architecture of an embedded encoder with its first random weights."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        model: nn.Module = HubertModel(config)
        return model.eval()


def _load_model(source: str, config: Any, dtype: torch.dtype, where: dict[str, Any]) -> nn.Module:
    import transformers

    model_class = getattr(transformers, _CLASSES[config.model_type])
    # WavLM's attention is replaced, and its class refuses anything but "eager".
    attention = "eager" if config.model_type == "wavlm" else "sdpa"
    try:
        model, report = model_class.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            **where,
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(source, error) from error
    # Some checkpoints come without the embedding that masked frames get, which is not used here.
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise ArgumentError(
            "name_or_path",
            f"{source} lacks {len(missing)} weights of {model_class.__name__} "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}), which would be random",
        )
    assert isinstance(model, nn.Module)
    return model


def _read_preprocessor(source: str, where: dict[str, Any]) -> dict[str, Any] | None:
    from transformers.utils import cached_file

    file = cached_file(
        source,
        PREPROCESSOR_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )
    if file is None:
        return None
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError("name_or_path", f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentError("name_or_path", f"{file} does not hold a JSON object")
    return content


def _cannot_load(source: str, error: Exception) -> ArgumentError:
    reason = str(error).strip().split("\n")[0]
    return ArgumentError("name_or_path", f"{source} cannot be loaded: {reason}")
