"""Small randomly initialised encoders, for tests and for demonstrations without a download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from speechft.errors import ArgumentError
from speechft.models.encoder import SUPPORTED, Encoder

_SIZES: dict[str, dict[str, Any]] = {
    # The cheapest that still has every part: 400 samples to a frame, 320 between frames.
    "test": {
        "conv_dim": (8, 8, 8, 8, 8, 8, 16),
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "layerdrop": 0.0,
        # Torch's layers start near zero, which would hide faults: make the layers matter.
        "initializer_range": 0.2,
    },
    # The first convolutions run at the highest rates, so they have the fewest channels.
    "demo": {
        "conv_dim": (32, 64, 96, 128, 192, 256, 256),
        "hidden_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "num_conv_pos_embeddings": 64,
        "num_conv_pos_embedding_groups": 16,
        "layerdrop": 0.0,
        "feat_extract_norm": "group",
        "do_stable_layer_norm": True,
    },
}


def tiny(
    kind: str = "hubert",
    *,
    seed: int = 0,
    size: str = "test",
    do_normalize: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Encoder:
    """A small random encoder, the same for the same arguments, in eval mode.

    Args:
        kind: ``"hubert"``, ``"wav2vec2"`` or ``"wavlm"``.
        seed: of the weights. The global random state is neither read nor changed.
        size: ``"test"``, 3 layers of 16 without dropout; or ``"demo"``, 4.6 million parameters
            that train at many times real time on a few CPU cores: 5 pre-norm layers of 256 on
            convolutions of 32 to 256 channels.
        do_normalize: as in :class:`Encoder`.
        config: fields of the transformers config to set otherwise.

    Raises:
        ArgumentError: an unknown kind, size or config field.
    """
    if kind not in SUPPORTED:
        raise ArgumentError("kind", f"wants one of {', '.join(SUPPORTED)}, got {kind!r}")
    if size not in _SIZES:
        raise ArgumentError("size", f"wants one of {', '.join(_SIZES)}, got {size!r}")
    import transformers

    prefix = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}[kind]
    config_class = getattr(transformers, f"{prefix}Config")
    unknown = [name for name in config or {} if not hasattr(config_class(), name)]
    if unknown:
        raise ArgumentError("config", f"{config_class.__name__} has no field {unknown[0]!r}")
    settings = config_class(**{**_SIZES[size], **(config or {})})
    if kind != "wavlm":
        settings._attn_implementation = "sdpa"
    # Only the CPU's generator is seeded: torch.manual_seed would seed the GPUs' as well.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = getattr(transformers, f"{prefix}Model")(settings)
    return Encoder(model.eval(), do_normalize=do_normalize)
