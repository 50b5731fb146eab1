"""Writing an encoder as the plain Hugging Face folder that every other tool reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft.errors import ArgumentError

if TYPE_CHECKING:
    from speechft.models.encoder import Encoder

PREPROCESSOR_FILE = "preprocessor_config.json"


def save_encoder(encoder: Encoder, path: str | Path) -> None:
    """See :meth:`speechft.models.Encoder.save_pretrained`."""
    model: Any = encoder.hf_model
    adapter = next((name for name, m in model.named_modules() if hasattr(m, "base_layer")), None)
    if adapter is not None:
        raise ArgumentError(
            "hf_model",
            f"holds an adapter at {adapter} that is not merged, so its weights do not have the "
            "names of the plain model; merge it first: peft_model.merge_and_unload()",
        )
    config = model.config
    now = {name: getattr(config, name) for name in encoder.config_as_loaded()}
    try:
        # LayerDrop and SpecAugment are off in here; whoever fine-tunes the saved model gets the
        # recipe of the original back.
        for name, value in encoder.config_as_loaded().items():
            setattr(config, name, value)
        model.save_pretrained(path)
    finally:
        for name, value in now.items():
            setattr(config, name, value)
    text = json.dumps(_preprocessor(encoder), indent=2, sort_keys=True)
    Path(path, PREPROCESSOR_FILE).write_text(text + "\n", encoding="utf-8")


def _preprocessor(encoder: Encoder) -> dict[str, Any]:
    """What was in effect, on top of what the checkpoint came with.

    Where it came with nothing, other tools would assume ``do_normalize=True``: so it is written.
    """
    content: dict[str, Any] = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": encoder.config.feat_extract_norm == "layer",
    }
    content.update(encoder.preprocessor or {})
    content.update(do_normalize=encoder.do_normalize, sampling_rate=encoder.sample_rate)
    return content
