"""WavLM's attention calls its modules, so that adapters on them train, and computes the same."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from speechft import models
from speechft.models.wavlm import ModularWavLMAttention, relative_position_bias

from .twins import noise, plain_twin, relative

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def lora(model: nn.Module) -> dict[str, Tensor]:
    """Put LoRA on the projections, in place; returns its parameters."""
    config = peft.LoraConfig(r=2, target_modules=PROJECTIONS, init_lora_weights=False)
    peft.get_peft_model(model, config)
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def test_transformers_never_calls_an_adapter() -> None:
    plain = plain_twin(models.tiny("wavlm"))
    speech = noise(1, 4000)
    before = plain(speech).last_hidden_state
    adapters = lora(plain)
    output = plain(speech).last_hidden_state
    assert relative(output, before) <= 1e-6
    assert not output.requires_grad  # the adapters are all that is trainable
    assert len(adapters) == 24


@pytest.mark.parametrize("kind", models.SUPPORTED)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_adapter_tensor_trains(kind: str, pre_norm: bool) -> None:
    encoder = models.tiny(kind, config={"do_stable_layer_norm": pre_norm})
    speech = noise(2, 6000)
    before = encoder(speech, [6000, 3000]).last_hidden_state.detach()
    adapters = lora(encoder.hf_model)
    assert len(adapters) == 2 * len(PROJECTIONS) * encoder.num_layers
    with peft_disabled(encoder.hf_model):
        without = encoder(speech, [6000, 3000]).last_hidden_state
    assert relative(without, before) <= 1e-6
    output = encoder(speech, [6000, 3000]).last_hidden_state
    assert relative(output, before) > 1e-2
    torch.manual_seed(0)
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in adapters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    # And each of them matters to what comes out.
    for name, parameter in adapters.items():
        with torch.no_grad():
            saved = parameter.clone()
            parameter.mul_(2)
            assert not torch.equal(encoder(speech, [6000, 3000]).last_hidden_state, output), name
            parameter.copy_(saved)


class peft_disabled:
    """Adapters off for the time being."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[Any] = [m for m in model.modules() if hasattr(m, "lora_A")]
        self.layers = [m for m in self.layers if hasattr(m, "enable_adapters")]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.enable_adapters(False)

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.enable_adapters(True)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_the_plain_one(dtype: torch.dtype, bound: float, padded: bool) -> None:
    encoder = models.tiny("wavlm").to(dtype)
    ours = encoder.layers[0].attention
    theirs = plain_twin(encoder).encoder.layers[0].attention
    assert type(ours) is ModularWavLMAttention
    assert type(theirs) is not ModularWavLMAttention
    results = []
    mask = torch.arange(30) < torch.tensor([[30], [11]]) if padded else None
    with torch.no_grad():
        theirs.gru_rel_pos_const.uniform_(0.5, 2)
        ours.load_state_dict(theirs.state_dict())
    for attention in (ours, theirs):
        hidden = noise(2, 30, 16, dtype=dtype).mul(20).requires_grad_()
        output, _, position_bias = attention(hidden, attention_mask=mask)
        again, _, _ = attention(hidden.flip(1), attention_mask=mask, position_bias=position_bias)
        weights = noise(2, 30, 16, seed=1, dtype=dtype)
        ((output + again.square()) * weights).sum().backward()
        gradients = [p.grad for p in attention.parameters()]
        results.append([output, again, hidden.grad, *gradients])
    names = ["output", "again", "hidden"] + [name for name, _ in ours.named_parameters()]
    for name, mine, plain in zip(names, *results, strict=True):
        if name == "k_proj.bias":  # exactly zero but for rounding
            assert mine.abs().max() < 1e-4
            continue
        assert relative(mine, plain) <= bound, name


def test_the_model_inside_is_mended_too() -> None:
    encoder = models.tiny("wavlm").double()
    speech = noise(2, 5000, dtype=torch.float64)
    mask = torch.ones(2, 5000, dtype=torch.long)
    mask[1, 3000:] = 0
    ours = encoder.hf_model(speech, attention_mask=mask).last_hidden_state
    theirs = plain_twin(encoder)(speech, attention_mask=mask).last_hidden_state
    assert relative(ours[1, :9], theirs[1, :9]) <= 1e-12
    assert relative(ours[0], theirs[0]) <= 1e-12


@pytest.mark.parametrize("frames", [1, 2, 7, 900])
def test_position_bias_against_transformers(frames: int) -> None:
    attention = plain_twin(
        models.tiny("wavlm", config={"num_buckets": 320, "max_bucket_distance": 800})
    ).encoder.layers[0].attention  # fmt: skip
    ours = relative_position_bias(attention.rel_attn_embed, frames, max_distance=800)
    assert torch.equal(ours[0], attention.compute_bias(frames, frames))


def test_attention_dropout_is_kept() -> None:
    encoder = models.tiny("wavlm", config={"attention_dropout": 0.5})
    speech = noise(1, 4000)
    assert torch.equal(*(encoder(speech).last_hidden_state for _ in range(2)))
    encoder.train()
    assert not torch.equal(*(encoder(speech).last_hidden_state for _ in range(2)))
