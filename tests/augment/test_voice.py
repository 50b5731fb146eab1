from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from speechft.augment import base as base_module
from speechft.augment import envelope as envelope_module
from speechft.augment import make_keys
from speechft.augment import voice as voice_module
from speechft.augment.envelope import envelope_cepstrum, moving_gain
from speechft.augment.parameters import Parameters
from speechft.augment.resample import nearest_fraction, resample, resampled_length
from speechft.augment.resample_each import resample_each, speed_table
from speechft.augment.vocoder import HOP, WINDOW, analyse
from speechft.augment.voice import CENTS, PER_OCTAVE, Voice
from speechft.errors import ArgumentError

from .signals import RATE, band_limited_noise, decibels, fundamental, harmonic_tone, speech_like

# Formants and their widths in Hz.
FORMANTS = [(600, 80), (1300, 100), (2500, 130), (3500, 180)]
FORMANTS += [(4500, 250), (5500, 300), (6500, 350), (7500, 400)]
UP, DOWN = 2 ** (9 / PER_OCTAVE), 2 ** (-12 / PER_OCTAVE)  # 1.30 and 0.71


def with_ratios(formant: float, pitch: float, rows: int = 1) -> Parameters:
    return Parameters(
        {
            "applied": torch.ones(rows, dtype=torch.bool),
            "formant": torch.full((rows,), formant, dtype=torch.float64),
            "pitch": torch.full((rows,), pitch, dtype=torch.float64),
        }
    )


def change(x: Tensor, formant: float, pitch: float) -> Tensor:
    return Voice().replay(x.float()[None], None, with_ratios(formant, pitch))[0][0]


def vocal_tract(frequency: float) -> float:
    """The magnitude of the resonators in a row."""
    z = cmath.exp(-2j * math.pi * frequency / RATE)
    value = 1.0
    for formant, width in FORMANTS:
        pole = cmath.exp(-math.pi * width / RATE + 2j * math.pi * formant / RATE)
        value /= abs((1 - pole * z) * (1 - pole.conjugate() * z))
    return value


def vowel(f0: float, steps: int) -> Tensor:
    """Impulses at a rate of ``f0`` through the resonators."""
    time = torch.arange(steps, dtype=torch.float64) / RATE
    x = torch.zeros(steps, dtype=torch.float64)
    for number in range(1, int(7900 / f0) + 1):
        x += vocal_tract(number * f0) * torch.cos(
            2 * math.pi * number * f0 * time + 0.01 * number**2 * f0
        )
    return 0.1 * x / x.pow(2).mean().sqrt()


def partials(y: Tensor, f0: float, highest: float) -> tuple[list[float], Tensor]:
    """Frequencies of the partials up to ``highest``, and their levels in dB."""
    y = y[4000:-4000].double()
    time = torch.arange(len(y), dtype=torch.float64) / RATE
    window = torch.hann_window(len(y), dtype=torch.float64)
    places = [number * f0 for number in range(1, int(highest / f0) + 1)]
    waves = torch.exp(-2j * math.pi * torch.tensor(places, dtype=torch.float64)[:, None] * time)
    return places, 20 * (waves @ (y * window).to(waves.dtype)).abs().log10()


@pytest.mark.parametrize("formant", [1 / 1.4, 1.0, 1.4])
@pytest.mark.parametrize("pitch", [0.5, DOWN, 1.0, UP, 2.0])
def test_the_fundamental_moves_by_the_pitch_alone(formant: float, pitch: float) -> None:
    x = vowel(140.0, 24000)
    y = change(x, formant, pitch)
    assert y.shape == x.shape
    wanted = 140 * pitch
    # The strongest partial of all is near the first formant: which one it is says where it is.
    heard = fundamental(y[4000:-4000], highest=4000)
    assert abs(1200 * math.log2(heard / (round(heard / wanted) * wanted))) < 5
    assert abs(decibels(y[2000:-2000]) - decibels(x[2000:-2000])) < 1.5


@pytest.mark.parametrize(
    ("f0", "formant", "pitch"),
    [
        (100.0, 1.4, 1.0),
        (100.0, 1 / 1.4, 1.0),
        (100.0, 1.0, 2.0),
        (100.0, 1 / 1.2, UP),
        (160.0, 1.2, DOWN),
        (160.0, 1.0, UP),
        (160.0, 1.3, UP),
        (230.0, 1.0, DOWN),
    ],
)
def test_the_envelope_moves_by_the_formant_ratio_alone(
    f0: float, formant: float, pitch: float
) -> None:
    """Each partial of the result has the level of the moved resonators where it is."""
    x = vowel(f0, 24000)
    played = float(nearest_fraction(pitch, cents=CENTS))
    places, levels = partials(change(x, formant, pitch), f0 * played, 4000 * formant)

    def off(ratio: float) -> float:
        wanted = torch.tensor([20 * math.log10(vocal_tract(place / ratio)) for place in places])
        return float((levels - wanted).std())

    # An envelope of 28 quefrencies cannot have all of a formant of 80 Hz.
    assert off(formant) < 3.5
    ratios = [formant * (1 + step / 100) for step in range(-30, 31)]
    best = min(ratios, key=off)
    assert abs(best / formant - 1) < 0.04
    if formant != 1:
        assert off(1.0) > 1.8 * off(formant)
    if abs(pitch / formant - 1) > 0.1:
        assert off(pitch) > 1.5 * off(formant)


@pytest.mark.parametrize("pitch", [DOWN, UP])
@pytest.mark.parametrize("formant", [1 / 1.3, 1.3])
def test_speech_keeps_its_level_and_its_contour(formant: float, pitch: float) -> None:
    x = speech_like(48000).float()
    y = change(x, formant, pitch)
    assert abs(decibels(y) - decibels(x)) < 1.5
    before, after = (
        signal.unfold(0, 400, 160).pow(2).sum(dim=1).log() for signal in (x.float(), y)
    )
    assert float(torch.corrcoef(torch.stack([before, after]))[0, 1]) > 0.98


@pytest.mark.parametrize(("formant", "pitch"), [(1.3, UP), (1 / 1.3, DOWN), (1.0, UP), (1.3, 1.0)])
def test_events_stay_where_they_are(formant: float, pitch: float) -> None:
    places = torch.tensor([3000, 9000, 20000, 30001])
    x = torch.zeros(32000)
    x[places] = 1.0
    y = change(x, formant, pitch)
    for place in places.tolist():
        near = y[place - 1000 : place + 1000].double() ** 2
        centre = float((near * torch.arange(-1000, 1000)).sum() / near.sum())
        assert abs(centre) < HOP / 2


@pytest.mark.parametrize("formant", [1.0, 1.2])
def test_a_lower_voice_keeps_its_fricatives(formant: float) -> None:
    """What lies above all that is played comes from the clip, as loud as it was."""
    hiss = band_limited_noise(32000, 1.0)
    y = change(hiss, formant, 0.5)

    def band(signal: Tensor, low: float, high: float) -> float:
        spectrum = torch.fft.rfft(signal.double()).abs().square()
        return float(10 * spectrum[int(2 * low) : int(2 * high)].mean().log10())

    for low, high in ((500, 3400), (3400, 4200), (4200, 7500)):
        assert abs(band(y, low, high) - band(hiss, low, high)) < 2


@pytest.mark.parametrize("formant", [1 / 1.15, 1.15])
def test_what_lies_above_has_its_envelope_moved_too(formant: float) -> None:
    """Noise about 6 kHz, with the pitch an octave down: all of it comes from the clip itself."""
    spectrum = torch.fft.rfft(band_limited_noise(32000, 1.0))
    hertz = torch.arange(len(spectrum)) / 2
    y = change(torch.fft.irfft(spectrum / (1 + ((hertz - 6000) / 300) ** 2)), formant, 0.5)
    power = torch.fft.rfft(y.double()).abs().square()[8400:]
    centre = float((power * hertz[8400:]).sum() / power.sum())
    assert abs(centre / (6000 * formant) - 1) < 0.06


def test_ratios_of_one_are_the_clip_again() -> None:
    """Nothing is left but the phase vocoder's analysis and synthesis."""
    x = speech_like(8000).float()
    torch.testing.assert_close(change(x, 1.0, 1.0), x, rtol=0, atol=1e-5)


def test_what_is_not_applied_passes_the_bits() -> None:
    x = torch.randn(32, 700, generator=torch.Generator().manual_seed(0))
    keys = make_keys(0, 0, torch.arange(32))
    voice = Voice(p=0.5)
    applied = voice.parameters_for(keys)["applied"]
    y, lengths = voice(x, None, keys)
    assert lengths.tolist() == [700] * 32
    assert 8 < int(applied.sum()) < 24
    assert torch.equal(y[~applied], x[~applied])
    assert bool((y != x).any(dim=1)[applied].all())


def test_ratios_are_drawn_as_published() -> None:
    count = 8000
    drawn = Voice().draw(make_keys(0, 0, torch.arange(count)))
    for name, most in (("formant", 1.4), ("pitch", 2.0)):
        ratio = drawn[name]
        assert ratio.dtype == torch.float64
        up = ratio.log() > 1e-9
        if name == "formant":
            assert abs(float(up.double().mean()) - 0.5) < 3.3 / 2 / math.sqrt(count)
        for side in (ratio[up], 1 / ratio[ratio.log() < -1e-9]):
            assert 1 <= float(side.min()) < float(side.max()) <= most * (1 + 1e-9)
            share = ((side - 1) / (most - 1)).sort().values
            even = (torch.arange(len(side)) + 0.5) / len(side)
            # Kolmogorov's once in a thousand; and the quarter tones, 3 % of a ratio each.
            grid = 0.03 if name == "pitch" else 0.0
            assert float((share - even).abs().max()) < 1.95 / math.sqrt(len(side)) + grid
    steps = drawn["pitch"].log2() * PER_OCTAVE
    assert float((steps - steps.round()).abs().max()) < 1e-9
    assert steps.round().unique().tolist() == list(range(-24, 25))
    logs = torch.stack([drawn["formant"].log(), drawn["pitch"].log()])
    for pair in (logs, logs.abs()):
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(count)


def test_fractions_are_within_three_cents() -> None:
    for step, fraction in zip(range(-24, 25), Voice().fractions, strict=True):
        assert abs(1200 * math.log2(fraction) - 50 * step) <= 3
        assert fraction.denominator <= 41


@pytest.mark.parametrize("settings", [{}, {"pitch": 1.0}, {"formant": 1.0, "pitch": 1.5}])
def test_the_batched_way_agrees(
    settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-6, some roundings of samples near 0.5: float32 sums in another order.

    Phases are integers and the peaks are those of the same magnitudes, so nothing is decided
    otherwise.
    """
    x = torch.randn(12, 6000, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths = torch.tensor([6000, 1, 5000, 37, 513, 6000, 4321, 128, 2999, 3000, 5999, 700])
    keys = make_keys(0, 0, torch.arange(12))
    voice = Voice(**settings, p=0.8)
    expected, _ = voice(x, lengths, keys)
    for module in (base_module, voice_module):
        monkeypatch.setattr(module, "values_are_at_hand", lambda tensor: False)
    got, after = voice(x, lengths, keys)
    assert torch.equal(after, lengths)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_the_table_of_speeds_is_the_resampler() -> None:
    speeds = Voice().fractions
    table = speed_table(speeds, 80, torch.float64, torch.device("cpu"))
    x = torch.randn(len(speeds), 3001, dtype=torch.float64)
    got = resample_each(x, torch.arange(len(speeds)), table, 6100)
    for row, speed in enumerate(speeds):
        wanted = resample(x[row : row + 1], speed, zero_crossings=80)[0]
        n = resampled_length(3001, speed)
        torch.testing.assert_close(got[row, :n], wanted[:n], rtol=0, atol=1e-12)


def test_the_envelope_moves() -> None:
    magnitude = analyse(vowel(200.0, 8000)[None])[2]
    cepstrum = envelope_cepstrum(magnitude)
    bins = magnitude.shape[-1]
    still = moving_gain(cepstrum, torch.ones(1, dtype=torch.float64), bins)
    assert torch.equal(still, torch.ones_like(still))
    # The gain of twice the frequency at k is that from k to 2 k.
    number = torch.arange(cepstrum.shape[-1])
    frame = cepstrum[0, 30]
    weights = torch.cat([frame[:1], 2 * frame[1:]])

    def envelope(k: float) -> Tensor:
        return (weights * torch.cos(number * math.pi * k / (bins - 1))).sum()

    gain = moving_gain(cepstrum, torch.full((1,), 2.0, dtype=torch.float64), bins)[0, 30]
    for k in (5, 40, 100):
        assert float(gain[k].log()) == pytest.approx(float(envelope(2 * k) - envelope(k)), abs=1e-5)
    assert float(gain[200].log()) == pytest.approx(
        float(envelope(bins - 1) - envelope(200)), abs=1e-5
    )


def test_the_envelope_rests_on_the_partials(monkeypatch: pytest.MonkeyPatch) -> None:
    magnitude = analyse(vowel(230.0, 8000)[None])[2]
    places = torch.tensor([round(230 * n / RATE * WINDOW) for n in range(1, 16)])
    tops = torch.stack([magnitude[0, 30, k - 1 : k + 2].max() for k in places.tolist()]).log()
    number = torch.arange(28)

    def off() -> Tensor:
        frame = envelope_cepstrum(magnitude)[0, 30]
        weights = torch.cat([frame[:1], 2 * frame[1:]])
        cosines = torch.cos(number * math.pi * places[:, None] / (magnitude.shape[-1] - 1))
        return cosines.double() @ weights - tops

    # Nepers. The mean of partials and valleys lies far below the partials.
    assert abs(float(off().mean())) < 0.8
    assert float(off().std()) < 0.4
    monkeypatch.setattr(envelope_module, "_ROUNDS", 0)
    assert float(off().mean()) < -2


@pytest.mark.parametrize("steps", [1, 2, 63, 128, 129, 255, 257, 511, 513, 1000])
@pytest.mark.parametrize(("formant", "pitch"), [(1.4, 2.0), (1 / 1.4, 0.5), (1.4, 0.5)])
def test_every_length_works(steps: int, formant: float, pitch: float) -> None:
    x = torch.randn(steps, generator=torch.Generator().manual_seed(steps)).clamp(-3, 3)
    y = change(x, formant, pitch)
    assert y.shape == x.shape
    assert bool(y.isfinite().all())
    assert float(y.abs().max()) < 30


def test_silence_stays_silent_and_nothing_is_blown_up() -> None:
    x = torch.zeros(16000)
    x[8000:] = harmonic_tone(200.0, 8000).float()
    for formant, pitch in ((1.4, 2.0), (1 / 1.4, 0.5)):
        y = change(x, formant, pitch)
        assert float(y[: 8000 - 2 * WINDOW].abs().max()) == 0.0
        assert abs(decibels(y[9000:-1000]) - decibels(x[9000:-1000])) < 1.5
    # All but nothing of this is left in the band.
    tone = 0.1 * torch.sin(2 * math.pi * 7000 / RATE * torch.arange(16000))
    assert decibels(change(tone, 1.0, 2.0)[2000:-2000]) < decibels(tone) - 20


def test_what_it_says_of_itself() -> None:
    assert Voice().changes == {"speaker"}
    assert repr(Voice(1.25, 1.5, p=0.5)) == "Voice(formant=1.25, pitch=1.5, p=0.5)"


def test_bad_arguments_are_named() -> None:
    for wrong in (0.9, 2.5, float("nan")):
        with pytest.raises(ArgumentError, match="formant: wants a ratio from 1 to 2"):
            Voice(wrong)
    with pytest.raises(ArgumentError, match=r"pitch: wants a ratio from 1 to 4, got 0\.5"):
        Voice(1.4, 0.5)
