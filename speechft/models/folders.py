"""What the folders of models of utterances share: their kind, their preprocessor, the Hub."""

from __future__ import annotations

import json
from pathlib import Path

from speechft.errors import ArgumentError
from speechft.models.saving import PREPROCESSOR_FILE

CONFIG, WEIGHTS, ENCODER = "config.json", "model.safetensors", "encoder"


def is_folder_of(path: str | Path, model_type: str) -> bool:
    """Whether the config in a folder says that it holds a model of this type."""
    try:
        config = json.loads(Path(path, CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == model_type


def write_preprocessor(path: Path, *, sample_rate: int, do_normalize: bool) -> None:
    """What other tools read of the waveforms that a model wants."""
    content = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
        "sampling_rate": sample_rate, "padding_value": 0.0, "do_normalize": do_normalize,
    }  # fmt: skip
    (path / PREPROCESSOR_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def fetch(name_or_path: str | Path, revision: str | None, local_files_only: bool) -> Path:
    """The folder, or that of what a name on the Hugging Face Hub has.

    Raises:
        ArgumentError: there is none.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from transformers.utils import cached_file

    name = str(name_or_path)
    try:
        files = [
            cached_file(name, file, revision=revision, local_files_only=local_files_only)
            for file in (CONFIG, WEIGHTS)
        ]
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise ArgumentError("name_or_path", f"{name} cannot be loaded: {reason}") from error
    return Path(files[0]).parent
