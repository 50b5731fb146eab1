"""Plain transformers models to hold the encoders against, and waveforms to feed them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from speechft import models

VARIANTS = [
    pytest.param(
        kind,
        {"feat_extract_norm": norm, "do_stable_layer_norm": pre_norm},
        id=f"{kind}-{norm}-{'pre' if pre_norm else 'post'}norm",
    )
    for kind, norm, pre_norm in itertools.product(
        models.SUPPORTED, ("group", "layer"), (False, True)
    )
]


def random_encoder(
    kind: str, config: Mapping[str, Any], *, seed: int = 0, do_normalize: bool = False
) -> models.Encoder:
    """A tiny encoder whose biases and norms are random too, so that none is without effect."""
    encoder = models.tiny(kind, seed=seed, do_normalize=do_normalize, config=config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder


def plain_twin(encoder: models.Encoder) -> Any:
    """An untouched transformers model with the same weights, config, dtype and mode."""
    config = copy.deepcopy(encoder.config)
    for name, value in encoder.config_as_loaded().items():
        setattr(config, name, value)
    twin = type(encoder.hf_model)(config).to(next(encoder.parameters()).dtype)
    twin.load_state_dict(encoder.hf_model.state_dict())
    return twin.train(encoder.training)


def relative(value: Tensor, truth: Tensor) -> float:
    """|value − truth| / |truth|, Frobenius norms."""
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm())


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Waveforms with an offset and a level, as recordings have."""
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.02).to(dtype)
