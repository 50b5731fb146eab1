"""Log-mel frames: Kaldi's arithmetic, whatever the padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError, ClipTooShortError, NonFiniteError
from speechft.models.log_mel import LogMel

LENGTHS = [6000, 3111, 400]


def speech(*shape: int, seed: int = 0) -> Tensor:
    """Coloured noise with an offset, in [-1, 1]."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.02 + 0.1 * torch.tanh(noise.cumsum(-1) / 20) + 0.01 * noise).float()


def by_definition(
    x: np.ndarray,
    bands: int = 80,
    *,
    rate: int = 16_000,
    low: float = 20.0,
    high: float = 7600.0,
    window: str = "povey",
    preemphasis: float = 0.97,
    remove_offset: bool = True,
) -> np.ndarray:
    """Sample by sample, band by band, in float64."""
    w, hop = rate * 25 // 1000, rate // 100
    n = np.arange(w)
    taper = {
        "povey": (0.5 - 0.5 * np.cos(2 * np.pi * n / (w - 1))) ** 0.85,
        "hamming": 0.54 - 0.46 * np.cos(2 * np.pi * n / (w - 1)),
        "hann": 0.5 - 0.5 * np.cos(2 * np.pi * n / (w - 1)),
    }[window]
    points = 2 ** math.ceil(math.log2(w))

    def mel(f: float) -> float:
        return 1127 * math.log(1 + f / 700)

    step = (mel(high) - mel(low)) / (bands + 1)
    frames = []
    for start in range(0, len(x) - w + 1, hop):
        frame = x[start : start + w].astype(np.float64) * 32768
        if remove_offset:
            frame = frame - frame.mean()
        y = frame.copy()
        for i in range(w):
            y[i] -= preemphasis * frame[max(i - 1, 0)]
        power = np.abs(np.fft.fft(y * taper, points)) ** 2
        row = []
        for k in range(bands):
            centre, energy = mel(low) + (k + 1) * step, 0.0
            for f in range(points // 2):
                side = 1 - abs(mel(f * rate / points) - centre) / step
                energy += max(side, 0.0) * power[f]
            row.append(math.log(max(energy, 2.0**-23)))
        frames.append(row)
    return np.array(frames)


def normalized(frames: np.ndarray, context: int | None) -> np.ndarray:
    out = []
    for t in range(len(frames)):
        near = frames if context is None else frames[max(0, t - context) : t + context + 1]
        out.append(frames[t] - near.mean(0))
    return np.array(out)


SETTINGS = [
    {},
    {"bands": 40, "window": "hamming", "high": 4000.0, "low": 100.0},
    {"bands": 23, "window": "hann", "preemphasis": 0.0},
    {"remove_offset": False, "preemphasis": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_its_definition(settings):
    x = speech(1, 720)
    frames, lengths = LogMel(**settings)(x)
    expected = by_definition(x[0].numpy(), **settings)
    assert lengths.tolist() == [len(expected)] == [3]
    np.testing.assert_allclose(frames[0], expected, atol=2e-4)


@pytest.mark.parametrize("settings", [*SETTINGS, {"high": None}, {"high": -400.0}, {"rate": 8000}])
def test_it_is_kaldi_s(settings):
    """Against kaldi-native-fbank, a port of Kaldi's code to C++ without Kaldi."""
    knf = pytest.importorskip("kaldi_native_fbank")
    settings = dict(settings)
    rate = settings.pop("rate", 16_000)
    if rate == 8000:
        settings |= {"high": 3700.0, "bands": 30}
    options = knf.FbankOptions()
    options.energy_floor = 0.0
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.frame_opts.samp_freq = rate
    options.frame_opts.window_type = {"hann": "hanning"}.get(
        settings.get("window", "povey"), settings.get("window", "povey")
    )
    options.frame_opts.preemph_coeff = settings.get("preemphasis", 0.97)
    options.frame_opts.remove_dc_offset = settings.get("remove_offset", True)
    options.mel_opts.num_bins = settings.get("bands", 80)
    options.mel_opts.low_freq = settings.get("low", 20.0)
    options.mel_opts.high_freq = settings.get("high", 7600.0) or 0.0
    x = speech(1, 16_000)
    kaldi = knf.OnlineFbank(options)
    kaldi.accept_waveform(rate, (x[0] * 32768).tolist())
    kaldi.input_finished()
    expected = np.stack([kaldi.get_frame(t) for t in range(kaldi.num_frames_ready)])
    frames, _ = LogMel(sample_rate=rate, **settings)(x)
    np.testing.assert_allclose(frames[0], expected, atol=1e-3)


@pytest.mark.parametrize(("normalize", "context"), [("utterance", None), ("short_time", 7)])
def test_means_are_those_of_valid_frames(normalize, context):
    x = speech(3, 6000)
    plain = LogMel(40)
    subtracted = LogMel(40, normalize=normalize, context=context or 150)
    frames, lengths = subtracted(x, LENGTHS)
    for row, n in enumerate(lengths.tolist()):
        alone = plain(x[row : row + 1, : LENGTHS[row]])[0][0].double().numpy()
        np.testing.assert_allclose(frames[row, :n], normalized(alone, context), atol=2e-5)


@pytest.mark.parametrize("normalize", ["none", "utterance", "short_time"])
def test_padding_and_batch_mates_change_nothing(normalize):
    log_mel = LogMel(normalize=normalize, context=5)
    x = speech(3, 6000)
    for row, n in zip(x, LENGTHS, strict=True):
        row[n:] = float("nan")
    frames, lengths = log_mel(x, LENGTHS)
    longer, again = log_mel(torch.nn.functional.pad(x, (0, 5000), value=math.inf), LENGTHS)
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == again.tolist() == [36, 17, 1]
    assert not longer[:, 36:].any()
    torch.testing.assert_close(longer[:, :36], frames, rtol=0, atol=1e-5)
    for row, n in enumerate(lengths.tolist()):
        alone, count = log_mel(x[row : row + 1, : LENGTHS[row]])
        assert count.tolist() == [n]
        assert not frames[row, n:].any()
        torch.testing.assert_close(frames[row : row + 1, :n], alone, rtol=0, atol=1e-5)


def test_lengths_of_frames():
    log_mel = LogMel()
    samples = torch.tensor([0, 399, 400, 559, 560, 16_000])
    assert log_mel.frame_lengths(samples).tolist() == [0, 0, 1, 1, 2, 98]
    assert (log_mel.minimum_samples, log_mel.bands, log_mel.sample_rate) == (400, 80, 16_000)
    odd = LogMel(40, sample_rate=22_050)  # parts of a sample are dropped
    assert (odd.minimum_samples, odd.hop, odd.points) == (551, 220, 1024)


def test_gradients_are_those_of_the_definition():
    x, direction = speech(1, 560), torch.randn(1, 560, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(2, 40, generator=torch.Generator().manual_seed(2))
    leaf = x.clone().requires_grad_()
    (LogMel(40)(leaf)[0][0] * weights).sum().backward()
    assert leaf.grad is not None

    def value(step: float) -> float:
        moved = x[0].double() + step * direction[0].double()
        return float((by_definition(moved.numpy(), 40) * weights.numpy()).sum())

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    assert float((leaf.grad * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_gradients_stop_at_the_length_and_silence_has_finite_ones():
    x = speech(2, 2000)
    x[1] = 0.0
    x.requires_grad_()
    frames, _ = LogMel(normalize="short_time")(x, [1000, 2000])
    frames.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0, :880].any()  # the last whole frame ends there
    assert not x.grad[0, 1000:].any()
    silence = LogMel()(torch.zeros(1, 400))[0]
    torch.testing.assert_close(silence, torch.full((1, 1, 80), -23 * math.log(2)))


def test_it_stays_in_float32():
    x = speech(2, 4000)
    log_mel = LogMel(normalize="utterance")
    expected, _ = log_mel(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_mel(x)[0], expected)
    assert torch.equal(LogMel(normalize="utterance").to(torch.bfloat16)(x)[0], expected)
    assert torch.equal(LogMel(normalize="utterance").double()(x)[0], expected)
    assert LogMel()(x.bfloat16())[0].dtype == torch.float32
    assert not log_mel.state_dict()


def test_many_utterances_are_done_a_few_at_a_time():
    x = speech(9, 40_000)
    frames, _ = LogMel()(x)
    torch.testing.assert_close(frames[8:], LogMel()(x[8:])[0], rtol=0, atol=1e-5)
    assert torch.equal(frames, LogMel()(x)[0])


def test_what_cannot_be_used_is_named():
    log_mel = LogMel()
    with pytest.raises(ClipTooShortError, match=r"waveforms: every sample has 399 .* 400 \(25 ms"):
        log_mel(speech(2, 399))
    with pytest.raises(ClipTooShortError, match="lengths: sample 1 has 300 samples"):
        log_mel(speech(2, 1000), [1000, 300])
    with pytest.raises(ArgumentError, match=r"waveforms: wants shape \(B, T\)"):
        log_mel(speech(1, 1, 1000))
    with pytest.raises(ArgumentTypeError, match="waveforms: wants floating point"):
        log_mel(torch.zeros(1, 1000, dtype=torch.int16))
    with pytest.raises(NonFiniteError, match="sample 1 holds NaN"):
        log_mel(torch.stack([torch.zeros(1000), torch.full((1000,), math.nan)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": 0}, "bands: 0 is not 1 or more"),
        ({"bands": 200}, "bands: 200 are too many for an FFT of 512 points"),
        ({"window": "blackman"}, "window: wants one of povey"),
        ({"normalize": "global"}, "normalize: wants one of none"),
        ({"context": -1}, "context: wants 0 or more"),
        ({"high": 9000.0}, "high: wants 20 Hz"),
        ({"high": 10.0}, "high: wants 20 Hz"),
        ({"window_seconds": 0.0}, "window_seconds: wants 2 samples or more"),
        ({"hop_seconds": 1e-5}, "hop_seconds: wants 1 samples or more"),
    ],
)
def test_settings_that_make_no_frames_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        LogMel(**settings)
