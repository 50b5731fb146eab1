"""Frame arithmetic, clips too short for a frame, and what the door lets in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechft import Lengths, errors, models
from speechft.models import encoder as encoder_module

from .twins import noise, plain_twin


def test_frame_lengths_against_the_convolutions() -> None:
    encoder = models.tiny()
    lengths = torch.arange(400, 2001)
    frames = encoder.frame_lengths(lengths)
    assert frames.dtype == torch.int64
    extractor = encoder.hf_model.feature_extractor
    with torch.no_grad():
        for length, expected in zip(lengths.tolist(), frames.tolist(), strict=True):
            assert extractor(torch.zeros(1, length)).shape[-1] == expected
    assert encoder.minimum_samples == 400
    assert encoder.frame_lengths(torch.tensor([0, 1, 399, 400, 16_000])).tolist() == [
        0, 0, 0, 1, 49,
    ]  # fmt: skip


def test_frame_lengths_of_unusual_convolutions() -> None:
    config = {"conv_dim": (4, 4), "conv_kernel": (7, 4), "conv_stride": (3, 5)}
    encoder = models.tiny(config={**config, "num_feat_extract_layers": 2})
    assert encoder.minimum_samples == 7 + 3 * 3
    extractor = encoder.hf_model.feature_extractor
    for length in range(16, 120):
        with torch.no_grad():
            expected = extractor(torch.zeros(1, length)).shape[-1]
        assert encoder.frame_lengths(torch.tensor([length])).item() == expected
    output = encoder(noise(2, 100), [100, 16])
    assert output.lengths.tolist() == [output.last_hidden_state.shape[1], 1]


def test_every_kind_of_lengths() -> None:
    encoder = models.tiny()
    speech, values = noise(2, 4000), [4000, 1234]
    mask = torch.arange(4000) < torch.tensor(values)[:, None]
    reference = encoder(speech, values)
    for lengths in (torch.tensor(values), torch.tensor(values, dtype=torch.int32),
                    Lengths(values), Lengths.from_hf(mask)):  # fmt: skip
        output = encoder(speech, lengths)
        assert torch.equal(output.last_hidden_state, reference.last_hidden_state)
        assert torch.equal(output.lengths, encoder.frame_lengths(torch.tensor(values)))
    assert torch.equal(Lengths.from_hf(mask, encoder).values, reference.lengths)


def test_transformers_marks_every_frame_of_a_short_clip_valid() -> None:
    plain = plain_twin(models.tiny())
    mask = torch.zeros(2, 16_000, dtype=torch.long)
    mask[0], mask[1, :399] = 1, 1
    assert plain._get_feature_vector_attention_mask(49, mask).sum(1).tolist() == [49, 49]


def test_a_short_clip_is_an_error_that_names_it() -> None:
    encoder = models.tiny()
    with pytest.raises(errors.ClipTooShortError) as caught:
        encoder(noise(3, 16_000), [16_000, 400, 399])
    assert isinstance(caught.value, ValueError)
    for part in ("sample 2", "399 samples", "at least 400", "25 ms"):
        assert part in str(caught.value)
    with pytest.raises(errors.ClipTooShortError, match="399 samples"):
        encoder(noise(1, 399))
    assert encoder(noise(1, 400)).lengths.tolist() == [1]


def test_unchecked_a_short_clip_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU values are not looked at: the clip counts as one frame and hurts no other."""
    encoder = models.tiny()
    speech = noise(2, 4000)
    alone = encoder(speech[:1]).last_hidden_state

    def unchecked(_: Tensor) -> bool:
        return False

    monkeypatch.setattr(encoder_module, "values_are_checked", unchecked)
    output = encoder(speech, [4000, 3])
    assert output.lengths.tolist() == [12, 1]
    assert output.last_hidden_state.isfinite().all()
    assert not output.last_hidden_state[1, 1:].any()
    torch.testing.assert_close(output.last_hidden_state[:1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("waveforms", "lengths", "error", "message"),
    [
        (torch.zeros(16_000), None, errors.ArgumentError, r"waveforms: wants shape \(B, T\)"),
        (torch.zeros(1, 2, 16_000), None, errors.ArgumentError, "one channel"),
        (torch.zeros(0, 16_000), None, errors.ArgumentError, "waveforms: wants shape"),
        (torch.zeros(1, 16_000, dtype=torch.int16), None, errors.ArgumentTypeError, "32768"),
        (torch.zeros(2, 16_000), [16_000], errors.LengthError, r"lengths: wants shape \(2,\)"),
        (torch.zeros(2, 16_000), [16_000, 16_001], errors.LengthError, "sample 1"),
        (torch.zeros(2, 16_000), [16_000, 0], errors.LengthError, "sample 1"),
        (torch.zeros(2, 16_000), [0.5, 1.0], errors.ArgumentTypeError, "from_relative"),
        (torch.tensor([[0.0] * 500, [0.0] * 450 + [float("nan")] * 50]), [500, 451],
         errors.ArgumentError, "waveforms: sample 1 holds NaN"),
    ],
)  # fmt: skip
def test_bad_input(
    waveforms: Tensor, lengths: list[int] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        models.tiny()(waveforms, lengths)
