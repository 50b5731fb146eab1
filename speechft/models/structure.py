"""Is this transformers model built the way the encoder walks it? If not, an error says so.

The encoder calls the submodules of the transformers model itself, so it stands on their names and
on what their ``forward`` takes. A version of transformers that changed these must not be run with
half of the mending undone in silence.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from speechft.errors import ArgumentError, ArgumentTypeError

_ATTRIBUTES = (
    "feature_extractor.conv_layers",
    "feature_projection",
    "encoder.pos_conv_embed.conv",
    "encoder.pos_conv_embed.padding",
    "encoder.pos_conv_embed.activation",
    "encoder.layer_norm",
    "encoder.dropout",
    "encoder.layers",
)
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_WAVLM_ATTENTION = ("gru_rel_pos_linear", "gru_rel_pos_const", "num_heads", "head_dim", "dropout")


def check_structure(model: Any) -> None:
    """Raise unless the encoder can walk this model.

    Raises:
        ArgumentTypeError: a submodule or a parameter that the encoder relies on is not there.
        ArgumentError: a setting of the model that the encoder does not support.
    """
    for path in _ATTRIBUTES:
        _require(model, path)
    wavlm = model.config.model_type == "wavlm"
    layers = list(model.encoder.layers)
    for index, layer in enumerate(layers):
        where = f"encoder.layers.{index}"
        _require(model, f"{where}.attention")
        names = _ATTENTION + (_WAVLM_ATTENTION if wavlm else ())
        for name in names:
            _require(model, f"{where}.attention.{name}")
        wants = ("attention_mask", "position_bias") if wavlm else ("attention_mask",)
        _require_parameters(model, layer, where, wants)
        if wavlm:
            _require_parameters(model, layer.attention, f"{where}.attention", wants)
    if wavlm and layers:
        _require(model, "encoder.layers.0.attention.rel_attn_embed")
    _check_convolutions(model)
    _check_settings(model)


def _check_convolutions(model: Any) -> None:
    grouped = model.config.feat_extract_norm == "group"
    for index, layer in enumerate(model.feature_extractor.conv_layers):
        where = f"feature_extractor.conv_layers.{index}"
        _require(model, f"{where}.conv")
        conv = layer.conv
        if conv.padding not in ((0,), "valid") or conv.dilation != (1,):
            raise _unlike(model, f"{where}.conv has padding or dilation")
        norm = getattr(layer, "layer_norm", None)
        if grouped and index == 0:
            _require(model, f"{where}.activation")
            if not isinstance(norm, nn.GroupNorm) or norm.num_groups != norm.num_channels:
                raise _unlike(model, f"{where}.layer_norm is no group norm of one group a channel")
        elif not (norm is None if grouped else isinstance(norm, nn.LayerNorm)):
            raise _unlike(model, f"{where}.layer_norm is a {type(norm).__name__}")


def _check_settings(model: Any) -> None:
    config = model.config
    if getattr(config, "add_adapter", False):
        raise ArgumentError(
            "hf_model",
            "has a convolutional adapter on top (config.add_adapter=True), which is not supported; "
            "set add_adapter to false in its config.json to load the encoder without it",
        )
    attention = getattr(config, "_attn_implementation", None) or "eager"
    if config.model_type != "wavlm" and attention not in ("sdpa", "eager"):
        raise ArgumentError(
            "hf_model",
            f"uses attn_implementation={attention!r}; use 'sdpa' or 'eager': "
            "model.set_attn_implementation('sdpa')",
        )


def _require(model: nn.Module, path: str) -> None:
    value: object = model
    for name in path.split("."):
        missing = object()
        value = value[int(name)] if name.isdigit() else getattr(value, name, missing)  # type: ignore[index]
        if value is missing:
            raise _unlike(model, f"it has no {path}")


def _require_parameters(
    model: nn.Module, module: nn.Module, where: str, names: tuple[str, ...]
) -> None:
    parameters = inspect.signature(type(module).forward).parameters
    for name in names:
        if name not in parameters:
            raise _unlike(model, f"the forward of {where} takes no {name!r}")


def _unlike(model: nn.Module, what: str) -> ArgumentTypeError:
    import transformers

    return ArgumentTypeError(
        "hf_model",
        f"this {type(model).__name__} of transformers {transformers.__version__} is not built as "
        f"expected: {what}. speechft.models is written for transformers 4.56 to 5.23; use one of "
        "these",
    )
