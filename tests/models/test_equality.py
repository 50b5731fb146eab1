"""On unpadded speech the encoder computes what the plain transformers model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from speechft import models

from .twins import VARIANTS, noise, plain_twin, random_encoder, relative


@pytest.mark.parametrize(("kind", "config"), VARIANTS)
@pytest.mark.parametrize("with_lengths", [False, True])
def test_features_and_hidden_states(kind: str, config: dict[str, Any], with_lengths: bool) -> None:
    encoder = random_encoder(kind, config)
    speech = noise(2, 8000)
    with torch.no_grad():
        ours = encoder(speech, [8000, 8000] if with_lengths else None)
        plain = plain_twin(encoder)(speech, output_hidden_states=True)
    assert len(ours.hidden_states) == len(plain.hidden_states) == encoder.num_layers + 1
    assert ours.lengths.tolist() == [ours.last_hidden_state.shape[1]] * 2
    assert ours.lengths.dtype == torch.int64
    # Without lengths the same kernels run, but for the group norm and WavLM's attention.
    other = with_lengths or kind == "wavlm" or encoder.config.feat_extract_norm == "group"
    bound = 2e-6 if other else 0.0
    pairs = list(zip(ours.hidden_states, plain.hidden_states, strict=True))
    if transformers.__version__.startswith("4."):
        pairs.pop()  # transformers 4 has the final layer norm on it
    for mine, theirs in pairs:
        assert relative(mine, theirs) <= bound
    assert relative(ours.last_hidden_state, plain.last_hidden_state) <= bound


@pytest.mark.parametrize(("kind", "config"), VARIANTS)
def test_gradients_in_float64(kind: str, config: dict[str, Any]) -> None:
    encoder = random_encoder(kind, config).double().train()
    plain = plain_twin(encoder)
    plain.config.apply_spec_augment = False
    speech = noise(2, 5000, dtype=torch.float64)
    encoder(speech, [5000, 5000]).last_hidden_state.square().sum().backward()
    plain(speech).last_hidden_state.square().sum().backward()
    ours = dict(encoder.hf_model.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for name, theirs in plain.named_parameters():
        if name == "masked_spec_embed":
            assert ours[name].grad is None
            continue
        torch.testing.assert_close(
            ours[name].grad, theirs.grad, rtol=1e-8, atol=1e-10 * scale, msg=name
        )


def test_eager_attention() -> None:
    plain = plain_twin(models.tiny("hubert").double())
    plain.set_attn_implementation("eager")
    encoder = models.wrap(plain)
    assert encoder.config._attn_implementation == "eager"
    speech = noise(2, 6000, dtype=torch.float64)
    with torch.no_grad():
        output = encoder(speech, [6000, 3000]).last_hidden_state
        alone = encoder(speech[1:, :3000]).last_hidden_state
    assert relative(output[1, : alone.shape[1]], alone[0]) <= 1e-12


@pytest.mark.parametrize("kind", models.SUPPORTED)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_up_to_a_layer(kind: str, pre_norm: bool) -> None:
    encoder = models.tiny(kind, config={"do_stable_layer_norm": pre_norm})
    speech = noise(2, 4000)
    with torch.no_grad():
        whole = encoder(speech, [4000, 2000])
        part = encoder(speech, [4000, 2000], up_to_layer=2)
        all_layers = encoder(speech, [4000, 2000], up_to_layer=3)
    assert len(part.hidden_states) == 3
    assert torch.equal(part.last_hidden_state, whole.hidden_states[2])
    assert torch.equal(all_layers.last_hidden_state, whole.last_hidden_state)
    with pytest.raises(ValueError, match="up_to_layer: wants 0 to 3"):
        encoder(speech, up_to_layer=4)


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_checkpointing_changes_nothing(kind: str) -> None:
    encoder = models.tiny(kind).double().train()
    speech = noise(2, 4000, dtype=torch.float64)

    def gradients() -> list[torch.Tensor]:
        encoder.zero_grad()
        encoder(speech, [4000, 2000]).last_hidden_state.square().sum().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    stored = gradients()
    encoder.checkpoint_activations()
    assert encoder.layers[0].gradient_checkpointing
    recomputed = gradients()
    encoder.checkpoint_activations(False)
    assert not encoder.layers[0].gradient_checkpointing
    torch.testing.assert_close(recomputed, stored)
