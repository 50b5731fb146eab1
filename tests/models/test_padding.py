"""Features of an utterance do not depend on its padding or on what it is batched with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from speechft import Lengths, models
from speechft.models.masked import masked_group_norm, zero_mean_unit_variance

from .twins import VARIANTS, noise, plain_twin, random_encoder, relative

LENGTHS = [9000, 5000, 433]


def padded(waveforms: Tensor, lengths: list[int], garbage: float) -> Tensor:
    """The same speech, with ``garbage`` where the padding is."""
    waveforms = waveforms.clone()
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = garbage
    return waveforms


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_transformers_has_the_fault_and_the_encoder_has_not(kind: str) -> None:
    encoder = models.tiny(kind)
    plain = plain_twin(encoder)
    speech = noise(1, 16_000)
    batch = functional.pad(speech, (0, 16_000)).repeat(2, 1)
    mask = torch.zeros(2, 32_000, dtype=torch.long)
    mask[:, :16_000] = 1
    with torch.no_grad():
        alone = plain(speech).last_hidden_state[0]
        batched = plain(batch, attention_mask=mask).last_hidden_state[0, :49]
        ours = encoder(batch, [16_000, 16_000]).last_hidden_state[0, :49]
        ours_alone = encoder(speech).last_hidden_state[0]
    assert relative(batched, alone) > 0.05
    assert relative(ours, ours_alone) <= 1e-6
    assert relative(ours, alone) <= 2e-6


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
@pytest.mark.parametrize("padding", [1, 4_000, 100_000])
def test_of_the_size_of_base_in_float32(kind: str, padding: int) -> None:
    """Seven convolutions of 512 make much of a last bit that a group norm gets wrong."""
    size = {"conv_dim": (512,) * 7, "hidden_size": 64, "num_attention_heads": 4}
    encoder = models.tiny(kind, config={**size, "num_hidden_layers": 4})
    speech = noise(1, 16_000)
    with torch.no_grad():
        alone = encoder(speech).last_hidden_state
        padded_too = encoder(functional.pad(speech, (0, padding)), [16_000]).last_hidden_state
    assert relative(padded_too[:, : alone.shape[1]], alone) <= 1e-6


@pytest.mark.parametrize(("kind", "config"), VARIANTS)
@pytest.mark.parametrize("garbage", [0.0, 1e3, float("nan"), float("inf")])
def test_exact_in_float64(kind: str, config: dict[str, Any], garbage: float) -> None:
    encoder = random_encoder(kind, config).double()
    speech = noise(3, 9000, dtype=torch.float64)
    with torch.no_grad():
        output = encoder(padded(speech, LENGTHS, garbage), LENGTHS)
        for sample, length in enumerate(LENGTHS):
            alone = encoder(speech[sample : sample + 1, :length])
            frames = int(alone.lengths[0])
            assert frames == alone.last_hidden_state.shape[1] == int(output.lengths[sample])
            for batched, single in zip(output.hidden_states, alone.hidden_states, strict=True):
                assert relative(batched[sample, :frames], single[0]) <= 1e-12
                assert not batched[sample, frames:].any()
            last = output.last_hidden_state[sample]
            assert relative(last[:frames], alone.last_hidden_state[0]) <= 1e-12
            assert not last[frames:].any()


@pytest.mark.parametrize(("kind", "config"), VARIANTS)
def test_float32_error_is_that_of_the_plain_model_on_unpadded_speech(
    kind: str, config: dict[str, Any]
) -> None:
    encoder = random_encoder(kind, config)
    truth_encoder = copy.deepcopy(encoder).double()
    plain = plain_twin(encoder)
    speech = noise(3, 9000)
    with torch.no_grad():
        output = encoder(padded(speech, LENGTHS, 1e3), LENGTHS).last_hidden_state
        for sample, length in enumerate(LENGTHS):
            clip = speech[sample : sample + 1, :length]
            truth = truth_encoder(clip.double()).last_hidden_state[0]
            batched = relative(output[sample, : len(truth)], truth)
            unpadded = relative(plain(clip).last_hidden_state[0], truth)
            assert batched <= 2 * unpadded + 5e-7


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(models.SUPPORTED),
    norm=st.sampled_from(["group", "layer"]),
    pre_norm=st.booleans(),
    do_normalize=st.booleans(),
    lengths=st.lists(st.integers(400, 3000), min_size=1, max_size=4),
    more_padding=st.integers(0, 2000),
    seed=st.integers(0, 99),
)
def test_features_and_gradients_of_any_ragged_batch(
    kind: str,
    norm: str,
    pre_norm: bool,
    do_normalize: bool,
    lengths: list[int],
    more_padding: int,
    seed: int,
) -> None:
    """The masked mean of a batch, its value and its gradient, is the mean over single clips."""
    config = {"feat_extract_norm": norm, "do_stable_layer_norm": pre_norm}
    encoder = random_encoder(kind, config, seed=seed, do_normalize=do_normalize).double().train()
    # Its gradient is nothing but rounding: softmax does not see what all keys share.
    weights = {n: p for n, p in encoder.named_parameters() if not n.endswith("k_proj.bias")}
    weights.pop("hf_model.masked_spec_embed", None)
    speech = noise(len(lengths), max(lengths) + more_padding, seed=seed, dtype=torch.float64)
    target = noise(encoder.hidden_size, seed=seed + 1, dtype=torch.float64)

    def loss_of(output: models.EncoderOutput) -> Tensor:
        """Σ over the valid frames of a fixed nonlinear function of the features."""
        mask = Lengths(output.lengths).to_mask(output.last_hidden_state.shape[1])
        values = (output.last_hidden_state - target).square() + output.hidden_states[1]
        return (values.mean(-1) * mask).sum() / 100

    batch_loss = loss_of(encoder(padded(speech, lengths, float("nan")), lengths))
    batch_gradients = torch.autograd.grad(batch_loss, list(weights.values()))
    single_losses = [
        loss_of(encoder(speech[sample : sample + 1, :length]))
        for sample, length in enumerate(lengths)
    ]
    single_loss = torch.stack(single_losses).sum()
    single_gradients = torch.autograd.grad(single_loss, list(weights.values()))
    assert batch_loss.item() == pytest.approx(single_loss.item(), rel=1e-10)
    # Against the largest: some gradients vanish, and what is left of them is rounding.
    scale = max(float(g.abs().max()) for g in single_gradients)
    for name, ours, theirs in zip(weights, batch_gradients, single_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * scale, msg=name)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_before_the_positions(pre_norm: bool, training: bool) -> None:
    config = {"conv_pos_batch_norm": True, "do_stable_layer_norm": pre_norm}
    encoder = models.tiny("hubert", config=config).double()
    norm = encoder.hf_model.encoder.pos_conv_embed.batch_norm
    with torch.no_grad():
        norm.running_mean.uniform_(0.5, 1)
        norm.bias.uniform_(0.5, 1)
    encoder.train(training)
    before = copy.deepcopy(norm.state_dict())
    speech = noise(2, 6000, dtype=torch.float64)
    with torch.no_grad():
        output = encoder(speech, [6000, 3000]).last_hidden_state
        alone = encoder(speech[1:, :3000]).last_hidden_state
        plain = plain_twin(encoder).eval()(speech[1:, :3000]).last_hidden_state
    assert relative(output[1, : alone.shape[1]], alone[0]) <= 1e-12
    assert relative(alone, plain) <= 1e-12
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_statistics_are_float32(dtype: torch.dtype) -> None:
    # Squares of these overflow float16, and their mean is lost in a half-precision sum.
    x = (300 * noise(2, 4, 20_000) + 100).to(dtype)
    lengths = torch.tensor([20_000, 7000])
    weight, bias = noise(4, seed=1).to(dtype), noise(4, seed=2).to(dtype)
    normed = masked_group_norm(x, lengths, weight, bias, eps=1e-5)
    assert normed.dtype == dtype
    for sample, length in enumerate(lengths.tolist()):
        clip = x[sample : sample + 1, :, :length].double()
        truth = functional.group_norm(clip, 4, weight.double(), bias.double())
        assert relative(normed[sample, :, :length], truth[0]) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_bfloat16_model(kind: str) -> None:
    encoder = models.tiny(kind).to(torch.bfloat16)
    speech = noise(2, 6000)
    with torch.no_grad():
        output = encoder(padded(speech, [6000, 3000], 1e3), [6000, 3000])
        alone = encoder(speech[1:, :3000]).last_hidden_state
    assert output.last_hidden_state.dtype == torch.bfloat16
    assert relative(output.last_hidden_state[1, : alone.shape[1]], alone[0]) <= 1e-2


def test_normalisation_of_waveforms_is_that_of_the_feature_extractor() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    speech = noise(3, 9000) * 3 + 1
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    clips = [row[:length].numpy() for row, length in zip(speech, LENGTHS, strict=True)]
    theirs = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    zeroed = padded(speech, LENGTHS, 0.0)
    ours = zero_mean_unit_variance(zeroed, torch.tensor(LENGTHS))
    torch.testing.assert_close(ours, theirs.input_values, rtol=1e-5, atol=1e-6)
    ours = zero_mean_unit_variance(speech[:1], None)
    torch.testing.assert_close(ours, theirs.input_values[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 255, 256, 257, 3199, 60_000])
def test_padding_changes_no_bit_of_the_norm(steps: int) -> None:
    x = noise(2, 8, steps)
    x[1] *= 100
    lengths = torch.tensor([steps, max(1, steps - 100)])
    alone = masked_group_norm(x, lengths, None, None, eps=1e-5)
    for more in (1, 200, 5000):
        longer = functional.pad(x, (0, more), value=7.0)
        normed = masked_group_norm(longer, lengths, None, None, eps=1e-5)
        assert torch.equal(normed[..., :steps], alone)


def test_the_norm_in_pieces_is_the_norm() -> None:
    x = noise(3, 40, 30_000)
    lengths = torch.tensor([30_000, 20_001, 7])
    weight, bias = noise(40, seed=1).requires_grad_(), noise(40, seed=2)
    whole = masked_group_norm(x, lengths, weight, bias, eps=1e-5)
    assert whole.requires_grad
    with torch.no_grad():
        pieces = masked_group_norm(x, lengths, weight, bias, eps=1e-5)
    assert torch.equal(whole, pieces)


def test_silence_is_finite() -> None:
    encoder = models.tiny(do_normalize=True).train()
    output = encoder(torch.zeros(2, 2000), [2000, 900])
    output.last_hidden_state.square().sum().backward()
    assert output.last_hidden_state.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)
