"""A transformers that is built otherwise, or a setting that is not supported, is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechft import errors, models

from .twins import plain_twin


def rebuilt(kind: str, **config: Any) -> Any:
    return plain_twin(models.tiny(kind, config=config))


@pytest.mark.parametrize("kind", models.SUPPORTED)
@pytest.mark.parametrize(
    "path",
    ["feature_extractor.conv_layers", "encoder.pos_conv_embed", "encoder.layer_norm",
     "encoder.layers.1.attention.q_proj", "feature_extractor.conv_layers.0.conv"],
)  # fmt: skip
def test_a_missing_submodule_is_named(kind: str, path: str) -> None:
    model = rebuilt(kind)
    parent, name = path.rsplit(".", 1)
    delattr(model.get_submodule(parent), name)
    with pytest.raises(errors.ArgumentTypeError, match=path.replace(".", r"\.")):
        models.wrap(model)


def test_a_missing_argument_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rebuilt("wavlm")

    def forward(self: nn.Module, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        return hidden_states

    monkeypatch.setattr(type(model.encoder.layers[0]), "forward", forward)
    with pytest.raises(errors.ArgumentTypeError, match=r"layers\.0 takes no 'position_bias'"):
        models.wrap(model)


def test_another_norm_is_noticed() -> None:
    model = rebuilt("hubert")
    model.feature_extractor.conv_layers[0].layer_norm = nn.GroupNorm(2, 8)
    with pytest.raises(errors.ArgumentTypeError, match="one group a channel"):
        models.wrap(model)
    model = rebuilt("hubert", feat_extract_norm="layer")
    model.feature_extractor.conv_layers[3].layer_norm = nn.GroupNorm(8, 8)
    with pytest.raises(errors.ArgumentTypeError, match=r"conv_layers\.3\.layer_norm is a Group"):
        models.wrap(model)
    model = rebuilt("hubert")
    model.feature_extractor.conv_layers[1].conv = nn.Conv1d(8, 8, 3, padding=1)
    with pytest.raises(errors.ArgumentTypeError, match="padding"):
        models.wrap(model)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_unsupported_settings(kind: str) -> None:
    with pytest.raises(errors.ArgumentError, match="add_adapter"):
        models.wrap(rebuilt_with_adapter(kind))
    if kind == "wav2vec2":
        model = rebuilt(kind)
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(errors.ArgumentError, match="'sdpa' or 'eager'"):
            models.wrap(model)


def rebuilt_with_adapter(kind: str) -> Any:
    model = rebuilt(kind)
    model.config.add_adapter = True
    return type(model)(model.config)


@pytest.mark.parametrize("model", [nn.Linear(1, 1), "facebook/hubert-base-ls960"])
def test_not_a_model(model: Any) -> None:
    with pytest.raises(
        errors.ArgumentTypeError, match=r"hf_model: wants .*hubert, wav2vec2, wavlm"
    ):
        models.wrap(model)


def test_tiny_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = models.tiny(seed=1), models.tiny(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again = models.tiny(seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    name = "hf_model.encoder.layers.0.attention.q_proj.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_tiny_for_the_demonstration(kind: str) -> None:
    encoder = models.tiny(kind, size="demo")
    assert (encoder.num_layers, encoder.hidden_size, len(encoder.layers)) == (5, 256, 5)
    assert 4.4e6 < sum(p.numel() for p in encoder.parameters()) < 4.8e6
    assert (encoder.sample_rate, encoder.minimum_samples) == (16_000, 400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "whisper"}, "kind: wants one of hubert, wav2vec2, wavlm"),
        ({"size": "huge"}, "size: wants one of test, demo"),
        ({"config": {"layer_drop": 0.1}}, "config: HubertConfig has no field 'layer_drop'"),
    ],
)
def test_tiny_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        models.tiny(**arguments)


def test_importing_the_models_does_not_import_transformers() -> None:
    import subprocess
    import sys

    code = "import sys, speechft.models; print('transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
