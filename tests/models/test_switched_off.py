"""LayerDrop is off, SpecAugment masking is off unless asked for, and freezing freezes."""

from __future__ import annotations

import pytest
import torch

from speechft import errors, models

from .twins import noise, plain_twin


@pytest.mark.parametrize("kind", models.SUPPORTED)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_layerdrop_and_masking_are_off(kind: str, pre_norm: bool) -> None:
    config = {"layerdrop": 0.5, "mask_time_prob": 0.3, "mask_time_length": 2}
    encoder = models.tiny(kind, config={**config, "do_stable_layer_norm": pre_norm}).train()
    speech = noise(2, 6000)
    torch.manual_seed(0)
    plain = plain_twin(encoder)
    with torch.no_grad():
        runs = [plain(speech).last_hidden_state for _ in range(6)]
        assert not all(torch.equal(run, runs[0]) for run in runs)
        first = encoder(speech, [6000, 3000]).last_hidden_state
        for _ in range(6):
            assert torch.equal(encoder(speech, [6000, 3000]).last_hidden_state, first)
        # Whoever calls the model inside directly does not meet them either.
        runs = [encoder.hf_model(speech).last_hidden_state for _ in range(6)]
        assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_masking_when_asked_for(kind: str) -> None:
    tiny = models.tiny(kind, config={"mask_time_prob": 0.5, "mask_time_length": 2})
    encoder = models.wrap(plain_twin(tiny), spec_augment=True)
    speech = noise(2, 6000)
    with torch.no_grad():
        assert torch.equal(*(encoder(speech).last_hidden_state for _ in range(2)))
        encoder.train()
        runs = [encoder(speech, [6000, 3000]).last_hidden_state for _ in range(3)]
    assert not torch.equal(runs[0], runs[1]) or not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("kind", models.SUPPORTED)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_what_is_trainable_is_trained(kind: str, pre_norm: bool) -> None:
    """Every tensor that asks for a gradient gets one: DistributedDataParallel stops otherwise."""
    encoder = models.tiny(kind, config={"do_stable_layer_norm": pre_norm}).train()
    encoder(noise(2, 6000), [6000, 3000]).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    masking = models.wrap(plain_twin(encoder), spec_augment=True)
    assert masking.hf_model.masked_spec_embed.requires_grad


def test_dropout_is_kept() -> None:
    encoder = models.tiny(config={"hidden_dropout": 0.5}).train()
    speech = noise(1, 4000)
    assert not torch.equal(*(encoder(speech).last_hidden_state for _ in range(2)))


@pytest.mark.parametrize("kind", models.SUPPORTED)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_only_the_top_layers_are_tuned(kind: str, pre_norm: bool) -> None:
    encoder = models.tiny(kind, config={"do_stable_layer_norm": pre_norm}).train()
    names = encoder.freeze_all_but_top(2)
    expected = {
        name
        for name, _ in encoder.hf_model.named_parameters()
        if name.startswith(("encoder.layers.1.", "encoder.layers.2."))
        or (pre_norm and name.startswith("encoder.layer_norm."))
    }
    assert set(names) == expected
    encoder(noise(2, 4000), [4000, 2000]).last_hidden_state[..., 0].sum().backward()
    for name, parameter in encoder.hf_model.named_parameters():
        assert (parameter.grad is not None) == (name in expected), name
    assert encoder.freeze_all_but_top(0) == []
    assert len(encoder.freeze_all_but_top(3)) > len(names)
    for layers in (-1, 4):
        with pytest.raises(errors.ArgumentError, match="layers: wants 0 to 3"):
            encoder.freeze_all_but_top(layers)
