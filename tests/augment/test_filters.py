"""Filters by their frequency responses, and rooms by their acoustics."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from torch import Tensor

from speechft.augment import (
    BandDrop,
    Compose,
    Gain,
    HighPass,
    LowPass,
    Reverb,
    RoomBank,
    load_chain,
    make_keys,
)
from speechft.augment.filters import low_pass
from speechft.augment.rooms import (
    SPEED_OF_SOUND,
    _impulses,
    _without_rumble,
    reflection,
    simulate_room,
    simulate_rooms,
)
from speechft.errors import ArgumentError, ArgumentTypeError

RATE = 16000


def keys(count: int) -> Tensor:
    return make_keys(0, 0, torch.arange(count))


def impulse(count: int = 1) -> Tensor:
    x = torch.zeros(count, 4096, dtype=torch.float64)
    x[:, 2048] = 1
    return x


def response(y: Tensor) -> tuple[Tensor, Tensor]:
    """Hz, and decibels of (B, F)."""
    frequency = torch.fft.rfftfreq(y.shape[1], 1 / RATE)
    return frequency, 20 * torch.fft.rfft(y).abs().clamp(min=1e-9).log10()


@pytest.mark.parametrize("cutoff", [30.0, 1000.0, 3400.0, 7900.0])
@pytest.mark.parametrize("half", [31, 511])
def test_taps_are_those_of_scipy(cutoff: float, half: int) -> None:
    expected = scipy.signal.firwin(
        2 * half + 3, cutoff, fs=RATE, window=("kaiser", 5.65326), scale=True
    )[1:-1]
    got = low_pass(torch.tensor([cutoff / RATE], dtype=torch.float64), half)[0]
    np.testing.assert_allclose(got.numpy(), expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize("kind", [LowPass, HighPass])
def test_passes_and_stops(kind: type[LowPass]) -> None:
    for cutoff in (400.0, 3000.0):
        y, _ = kind(cutoff)(impulse(), None, keys(1))
        frequency, level = response(y)
        passed = frequency < cutoff - 60 if kind is LowPass else frequency > cutoff + 60
        stopped = frequency > cutoff + 60 if kind is LowPass else frequency < cutoff - 60
        assert float(level[0, passed].abs().max()) < 0.02
        assert float(level[0, stopped].max()) < -57
        at = int((frequency - cutoff).abs().argmin())
        assert float(level[0, at]) == pytest.approx(-6, abs=1.5)


def test_a_filter_delays_nothing() -> None:
    time = torch.arange(8000, dtype=torch.float64) / RATE
    tone = torch.sin(2 * math.pi * 1000 * time)[None]
    for filtered in (LowPass(3000.0), HighPass(300.0), BandDrop(1, 4000.0, 300.0)):
        y, lengths = filtered(tone, None, keys(1))
        assert lengths.tolist() == [8000]
        torch.testing.assert_close(y[:, 1000:-1000], tone[:, 1000:-1000], rtol=0, atol=3e-3)


def test_bands_are_dropped() -> None:
    drop = BandDrop((0, 3), (500, 6000), (200, 400))
    y, _ = drop(impulse(12), None, keys(12))
    drawn = drop.parameters_for(keys(12))
    frequency, level = response(y)
    for row in range(12):
        count = int(drawn["count"][row])
        kept = torch.ones_like(frequency, dtype=torch.bool)
        for center, width in zip(drawn["center"][row], drawn["width"][row], strict=True):
            if count == 0:
                break
            count -= 1
            inside = (frequency - center).abs() < width / 2 - 60
            assert float(level[row, inside].max()) < -50
            kept &= (frequency - center).abs() > width / 2 + 60
        assert float(level[row, kept].abs().max()) < 0.05
    assert set(drawn["count"].tolist()) == {0, 1, 2, 3}


def test_cutoffs_are_even_in_their_logarithm() -> None:
    drawn = LowPass((1000, 4000)).parameters_for(keys(20000))["cutoff"]
    assert float((drawn < 2000).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(drawn.min()) >= 1000
    assert float(drawn.max()) < 4000


def test_samples_that_are_not_applied_pass_their_bits() -> None:
    x = torch.randn(30, 500)
    chain = Compose([LowPass(p=0.5), HighPass(p=0.5)])
    y, _ = chain(x, None, keys(30))
    first, second = (m["applied"] for m in chain.parameters_for(keys(30)).members)
    same = (x == y).all(dim=1)
    assert torch.equal(same, ~(first | second))
    assert 0 < int(same.sum()) < 30


def test_filters_in_a_row_are_what_they_are_apart() -> None:
    x, lengths = torch.randn(4, 3000), torch.tensor([3000, 5, 700, 2999])
    members = [LowPass(p=0.7), Reverb(RoomBank.simulated(2, seconds=0.05)), BandDrop(p=0.7)]
    together = Compose(members)
    drawn = together.parameters_for(keys(4)).members
    full = torch.full((4,), 3000)
    y, _ = together(x, full, keys(4))
    step = x
    for member, part in zip(members, drawn, strict=True):
        step, _ = member.replay(step, full, part)
    # Apart, each cuts what its filter rings into the next; only there they may differ.
    torch.testing.assert_close(y[:, 1200:-1200], step[:, 1200:-1200], rtol=0, atol=1e-4)
    y, _ = together(x, lengths, keys(4))
    assert not any(y[row, n:].any() for row, n in enumerate(lengths.tolist()))


def test_the_direct_sound_stays_where_it_was() -> None:
    bank = RoomBank.simulated(8)
    assert bank.responses.square().sum(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
    reverb = Reverb(bank)
    x = torch.zeros(20, 6000)
    x[:, 1000] = 1
    y, lengths = reverb(x, None, keys(20))
    assert lengths.tolist() == [6000] * 20
    rooms = reverb.parameters_for(keys(20))["room"]
    for row, room in enumerate(rooms.tolist()):
        expected, delay = bank.responses[room], int(bank.delays[room])
        torch.testing.assert_close(
            y[row, 1000 - delay :], expected[: 5000 + delay], rtol=0, atol=1e-6
        )


def test_the_direct_sound_is_found_though_reflections_are_louder() -> None:
    responses, direct = simulate_rooms(64, seed=5, seconds=0.2)
    loudest = [int(response.abs().argmax()) for response in responses]
    assert sum(abs(a - b) > 32 for a, b in zip(loudest, direct, strict=True)) > 5
    known, found = RoomBank(responses, direct=direct), RoomBank(responses)
    for row in range(64):
        assert abs(int(known.delays[row]) - int(found.delays[row])) <= 1
        # What is at the delay is what lies 32 samples, or less, behind where the response is cut.
        assert int(known.delays[row]) == min(direct[row], 32)
    with pytest.raises(ArgumentError, match="direct: room 0 has no sample 99"):
        RoomBank([torch.ones(9)], direct=[99])


def test_a_room_longer_than_the_clip_is_cut() -> None:
    reverb = Reverb(RoomBank.simulated(1, seconds=0.5))
    y, lengths = reverb(torch.ones(1, 10), None, keys(1))
    assert lengths.tolist() == [10]
    assert bool(y.isfinite().all())


def test_rooms_are_read_from_a_folder(tmp_path: Path) -> None:
    response = np.zeros(4000, dtype=np.float32)
    response[500], response[700], response[3900] = 0.5, -0.25, 0.4
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    bank = RoomBank.from_folder(tmp_path, seconds=0.1, progress=False)
    assert bank.delays.tolist() == [32]
    kept = bank.responses[0]
    assert len(kept) == 1632
    assert kept.nonzero()[:, 0].tolist() == [32, 232]
    assert float(kept[232] / kept[32]) == pytest.approx(-0.5)


def decay_time(h: Tensor) -> float:
    """Seconds to fall by 60 dB, from Schroeder's integral between -5 and -25 dB."""
    left = h.square().flip(0).cumsum(0).flip(0)
    level = 10 * (left / left[0]).log10()
    start, end = (int((level < limit).nonzero()[0, 0]) for limit in (-5, -25))
    return 3 * (end - start) / RATE


@pytest.mark.parametrize("reverberation", [0.25, 0.5])
def test_a_room_rings_as_long_as_asked(reverberation: float) -> None:
    h = simulate_room(
        (5, 4, 3), (1.3, 1.1, 1.4), (3.2, 2.7, 1.6), reverberation=reverberation, seconds=0.6
    )
    # Images decay less along the longer walls, so a shoebox's slope is only near Eyring's.
    assert decay_time(h) == pytest.approx(reverberation, rel=0.25)


def test_sound_arrives_when_and_as_loud_as_it_should() -> None:
    size, source, ear = (6.0, 5.0, 3.0), (1.0, 2.0, 1.5), (4.0, 2.5, 1.2)
    h = _impulses(size, source, ear, 0.3, 0.4, RATE)
    beta = reflection(size, 0.3)

    def heard(place: tuple[float, ...], walls: int) -> None:
        distance = math.dist(place, ear)
        at = distance / SPEED_OF_SOUND * RATE
        below = int(at)
        found = float(h[below - 3 : below + 5].sum())
        assert found == pytest.approx(beta**walls / (4 * math.pi * distance), rel=0.12)

    heard(source, 0)
    heard((1.0, 2.0, -1.5), 1)  # the floor
    direct = math.dist(source, ear) / SPEED_OF_SOUND * RATE
    assert float(h[: int(direct) - 9].abs().max()) == 0


def test_a_room_does_not_raise_a_constant_offset() -> None:
    for h in simulate_rooms(4, seconds=0.3)[0]:
        assert abs(float(h.sum())) < 0.01 * float(h.square().sum().sqrt())
    h = torch.zeros(3000, dtype=torch.float64)
    h[5], h[60] = 1.0, 0.5
    sections = scipy.signal.butter(2, 50, "highpass", fs=RATE, output="sos")
    expected = scipy.signal.sosfilt(sections, h.numpy())
    np.testing.assert_allclose(_without_rumble(h, RATE).numpy(), expected, atol=1e-7)


def test_simulated_rooms_are_the_same_each_time_and_differ() -> None:
    first, _ = simulate_rooms(3, seed=4, seconds=0.1)
    simulate_rooms.cache_clear()
    again, _ = simulate_rooms(3, seed=4, seconds=0.1)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    other, _ = simulate_rooms(3, seed=5, seconds=0.1)
    assert not any(torch.equal(a, b) for a in first for b in other)


def test_a_gain_between_filters_is_not_lost() -> None:
    x = torch.randn(2, 4000)
    low = LowPass(3000.0)
    y, _ = Compose([low, Gain(6.0), low])(x, None, keys(2))
    expected, _ = Compose([low, low])(x, None, keys(2))
    torch.testing.assert_close(y[:, 800:-800], expected[:, 800:-800] * 10 ** (6 / 20),
                               rtol=0, atol=1e-4)  # fmt: skip


def test_defaults_fit_any_sample_rate() -> None:
    for rate in (8000, 16000, 44100):
        for kind in (LowPass, HighPass, BandDrop):
            y, _ = kind(sample_rate=rate)(torch.randn(2, 300), None, keys(2))
            assert bool(y.isfinite().all())
        x = torch.zeros(1, 3 * rate, dtype=torch.float64)
        x[0, rate] = 1
        y, _ = HighPass(100.0, sample_rate=rate)(x, None, keys(1))
        level = 20 * torch.fft.rfft(y[0]).abs().log10()
        assert float(level[300]) == pytest.approx(-6, abs=1)  # 100 Hz
        assert float(level[150]) < -50
        load_chain("[LowPass, BandDrop, Equaliser, HighPass]", sample_rate=rate)
    assert not isinstance(HighPass(), LowPass)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentTypeError, match=r"half_taps: wants an integer, got 10\.5"):
        HighPass(half_taps=10.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="cutoff: wants 1 to 8000"):
        LowPass((100, 9000))
    with pytest.raises(ArgumentError, match="half_taps: wants at least 8"):
        LowPass(half_taps=3)
    with pytest.raises(ArgumentError, match="count: wants 0 to 16"):
        BandDrop(17)
    with pytest.raises(ArgumentError, match="responses: is empty"):
        RoomBank([])
    with pytest.raises(ArgumentError, match="room hall is silent"):
        RoomBank([torch.zeros(9)], names=["hall"])
    with pytest.raises(ArgumentTypeError, match="room 0 wants floats"):
        RoomBank([torch.ones(9, 2)])
    with pytest.raises(ArgumentError, match="source: wants a place inside"):
        simulate_room((3, 3, 3), (3, 1, 1), (1, 1, 1), reverberation=0.3, seconds=0.1)
    with pytest.raises(ArgumentError, match="reverberation: wants seconds above 0"):
        simulate_room((3, 3, 3), (2, 1, 1), (1, 1, 1), reverberation=0, seconds=0.1)
    with pytest.raises(ArgumentError, match="count: wants at least 1 room"):
        simulate_rooms(0)
