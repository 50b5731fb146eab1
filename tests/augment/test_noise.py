"""Noise: its level over the true length, its draws, its banks, and babble of the batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from speechft.augment import AddNoise, Babble, ClipBank, Compose, Gain, make_keys
from speechft.errors import ArgumentError, ArgumentTypeError, AudioError

RATE = 16000


def keys(count: int) -> Tensor:
    return make_keys(0, 0, torch.arange(count))


def speech(count: int, steps: int) -> Tensor:
    return 0.1 * torch.randn(count, steps, generator=torch.Generator().manual_seed(0))


def ratio(x: Tensor, y: Tensor) -> Tensor:
    """Decibels from the energies of a waveform and what was added to it."""
    energies = [part.double().square().sum(dim=1) for part in (x, y - x)]
    return 10 * (energies[0] / energies[1]).log10()


def test_the_ratio_holds_over_the_true_length() -> None:
    x = speech(6, 20000)
    lengths = torch.tensor([20000, 10000, 5000, 200, 20000, 7])
    noise = AddNoise(snr=(-5, 20))
    y, _ = noise(x, lengths, keys(6))
    drawn = noise.parameters_for(keys(6))["snr"]
    for row, n in enumerate(lengths.tolist()):
        got = ratio(x[row : row + 1, :n], y[row : row + 1, :n])
        assert float(got) == pytest.approx(float(drawn[row]), abs=2e-3)
        assert not y[row, n:].any()
    assert drawn.unique().numel() == 6


def test_draws_cover_range_bank_and_clip() -> None:
    noise = AddNoise(snr=(3, 18), voices=(2, 4), p=0.7)
    drawn = noise.parameters_for(keys(20000))
    snr, clips, start = drawn["snr"], drawn["clips"], drawn["start"]
    assert float(snr.min()) > 3
    assert float(snr.max()) < 18
    assert float(snr.mean()) == pytest.approx(10.5, abs=0.1)
    assert float(snr.std()) == pytest.approx(15 / math.sqrt(12), abs=0.05)
    voices = (clips >= 0).sum(dim=1)
    for count in (2, 3, 4):
        assert float((voices == count).float().mean()) == pytest.approx(1 / 3, abs=0.02)
    assert torch.equal(clips >= 0, torch.arange(4) < voices[:, None])
    counts = clips[:, 0].bincount()
    assert len(counts) == 6
    assert float(counts.min()) > 20000 / 6 * 0.93
    assert float(start.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn["applied"].float().mean()) == pytest.approx(0.7, abs=0.015)


def test_a_clip_of_the_bank_is_what_is_heard() -> None:
    time = torch.arange(1000)
    tones = [torch.sin(2 * math.pi * f * time / 1000) for f in (10.0, 35.0)]
    bank = ClipBank([tones[0], 5 * tones[1]])
    noise = AddNoise(bank, snr=0)
    x = speech(8, 1000)
    y, _ = noise(x, None, keys(8))
    clips = noise.parameters_for(keys(8))["clips"][:, 0]
    strongest = torch.fft.rfft(y - x).abs().argmax(dim=1)
    assert strongest.tolist() == [10 if clip == 0 else 35 for clip in clips]
    assert set(clips.tolist()) == {0, 1}


def test_several_voices_count_alike() -> None:
    time = torch.arange(1000)
    tones = [a * torch.sin(2 * math.pi * f * time / 1000) for f, a in ((10.0, 0.01), (35.0, 1.0))]
    noise = AddNoise(ClipBank(tones), snr=0, voices=2)
    x = speech(20, 1000)
    y, _ = noise(x, None, keys(20))
    both = noise.parameters_for(keys(20))["clips"].sum(dim=1) == 1
    spectrum = torch.fft.rfft(y - x)[both].abs()
    assert len(spectrum) > 3
    torch.testing.assert_close(spectrum[:, 10], spectrum[:, 35], rtol=1e-2, atol=0)


def test_silence_is_skipped_and_counted() -> None:
    x = speech(4, 500)
    x[2] = 0
    noise = AddNoise(snr=10)
    y, _ = noise(x, None, keys(4))
    assert torch.equal(y[2], x[2])
    assert int(noise.skipped) == 1
    chain = Compose([Gain(), noise, AddNoise(snr=3)])
    chain(x, None, keys(4))
    # Each counts its own: in the chain both skip the silent sample.
    assert [int(member.skipped) for member in chain.members] == [0, 2, 1]


def test_one_augmentation_twice_in_a_chain_counts_twice() -> None:
    noise = AddNoise(snr=10)
    Compose([noise, noise])(torch.zeros(2, 100), None, keys(2))
    assert int(noise.skipped) == 4


def test_skipped_samples_are_counted_in_place() -> None:
    """A CUDA graph holds the tensor that it was captured with."""
    noise = AddNoise(snr=10)
    counter = noise.skipped
    for _ in range(3):
        noise(torch.zeros(2, 100), None, keys(2))
    assert noise.skipped is counter
    assert int(counter) == 6


def test_coloured_noise_has_its_colour() -> None:
    bank = ClipBank.coloured(seconds=8)
    for clip in range(6):
        offset, count = int(bank.offsets[clip]), int(bank.counts[clip])
        samples = bank.samples[offset : offset + count].double()
        power = torch.fft.rfft(samples).abs().square()
        frequency = torch.fft.rfftfreq(count, 1 / RATE, dtype=torch.float64)
        octaves = [(100 * 2**k, 200 * 2**k) for k in range(6)]
        levels = torch.stack(
            [power[(frequency >= a) & (frequency < b)].mean().log10() for a, b in octaves]
        )
        slope = 10 * float((levels[-1] - levels[0]) / 5)  # decibels an octave
        assert slope == pytest.approx((0.0, -3.01, -6.02)[clip // 2], abs=0.3)
        z = (samples / samples.std()) ** 4
        assert float(z.mean()) == pytest.approx(3, abs=0.35 if clip < 4 else 1.5)
    assert not torch.equal(bank.samples[:1000], bank.samples[128000:129000])


def test_a_bank_is_read_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    tone = 0.25 * torch.sin(torch.arange(8000) * 0.1)
    soundfile.write(tmp_path / "b.wav", tone.numpy(), RATE)
    soundfile.write(tmp_path / "deep" / "a.flac", (0.5 * tone[:4000]).numpy(), 8000)
    (tmp_path / "notes.txt").write_text("no audio")
    bank = ClipBank.from_folder(tmp_path, progress=False)
    assert [Path(name).name for name in bank.names] == ["b.wav", "a.flac"]
    assert bank.counts.tolist() == [8000, 8000]
    full = bank.samples[:8000].double()
    assert int(full.abs().max()) == 32767
    torch.testing.assert_close(
        full / full.std(), tone.double() / tone.double().std(), rtol=0, atol=1e-3
    )
    soundfile.write(tmp_path / "c.wav", torch.zeros(100).numpy(), RATE)
    with pytest.raises(AudioError, match=r"c\.wav: is silent"):
        ClipBank.from_folder(tmp_path, progress=False)
    with pytest.raises(ArgumentError, match="has no audio"):
        ClipBank.from_folder(_made(tmp_path / "empty"), progress=False)
    with pytest.raises(ArgumentError, match="is no folder"):
        ClipBank.from_folder(tmp_path / "nowhere", progress=False)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_casting_a_module_does_not_round_its_bank() -> None:
    noise = AddNoise(snr=5)
    levels = noise.bank.levels.clone()
    noise.bfloat16()
    assert noise.bank.levels.dtype == torch.float32
    assert torch.equal(noise.bank.levels, levels)
    assert noise.to("meta").bank.samples.device.type == "meta"


def test_babble_is_of_the_others() -> None:
    time = torch.arange(2000) / RATE
    x = torch.stack([torch.sin(2 * math.pi * 200 * (k + 1) * time) for k in range(5)])
    babble = Babble(snr=6, voices=2)
    y, _ = babble(x, None, keys(5))
    torch.testing.assert_close(ratio(x, y), torch.full((5,), 6.0).double(), rtol=0, atol=1e-3)
    spectrum = torch.fft.rfft(y - x).abs()[:, [25, 50, 75, 100, 125]]
    heard = spectrum > 0.3 * spectrum.amax(dim=1, keepdim=True)
    assert heard.sum(dim=1).tolist() == [2] * 5
    assert not heard.diagonal().any()


def test_the_order_of_the_batch_means_nothing_to_babble() -> None:
    x, lengths = speech(6, 3000), torch.tensor([3000, 2000, 10, 3000, 700, 1])
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    babble = Babble()
    y, _ = babble(x, lengths, keys(6))
    wide = torch.full((6, 4000), float("nan"))
    for row, n in enumerate(lengths.tolist()):
        wide[row, :n] = x[row, :n]
    shuffled, _ = babble(wide[order], lengths[order], keys(6)[order])
    torch.testing.assert_close(shuffled[:, :3000], y[order], rtol=0, atol=1e-6)
    other, _ = babble(x[:5], lengths[:5], keys(6)[:5])
    assert not torch.allclose(other, y[:5])


def test_babble_in_a_chain_hears_what_came_before() -> None:
    x = speech(3, 1000)
    loud = Compose([Gain(20.0), Babble(snr=0, voices=2)])
    y, _ = loud(x, None, keys(3))
    torch.testing.assert_close(ratio(10 * x, y), torch.zeros(3).double(), rtol=0, atol=1e-3)


def test_alone_in_a_batch_there_is_no_babble() -> None:
    x = speech(1, 100)
    babble = Babble()
    assert torch.equal(babble(x, None, keys(1))[0], x)
    assert int(babble.skipped) == 1


def test_bad_banks_and_arguments_are_named() -> None:
    good = torch.ones(10)
    with pytest.raises(ArgumentError, match="clips: is empty"):
        ClipBank([])
    for clip, what in (
        (0 * good, "is silent"),
        (good[:0], "is empty"),
        (good / 0, "is not finite"),
    ):
        with pytest.raises(ArgumentError, match=f"clip street {what}"):
            ClipBank([good, clip], names=["hall", "street"])
    with pytest.raises(ArgumentTypeError, match="clip 0 wants floats"):
        ClipBank([good.long()])
    with pytest.raises(ArgumentError, match=r"snr: wants -120 to 120, the least first"):
        AddNoise(snr=(10, 0))
    with pytest.raises(ArgumentTypeError, match="snr: wants a number, or a range of two"):
        AddNoise(snr=(1, 2, 3))
    with pytest.raises(ArgumentTypeError, match="voices: wants whole numbers"):
        AddNoise(voices=(1, 2.5))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="p: wants a probability"):
        AddNoise(p=1.5)
