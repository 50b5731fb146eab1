"""Steps on each sample apart: every backend against the definition in float64, and its oracles."""

from __future__ import annotations

import math
import random
import sys

import pytest
import torch
from contract import name_of, providers, running_on
from torch import Tensor

import speechft
from speechft import functional as F
from speechft import reference as R
from speechft.errors import ArgumentError, ArgumentTypeError, BackendError, LengthError
from speechft.functional.pointwise import (
    Clip,
    Mix,
    MuLaw,
    PointwiseStep,
    Quantise,
    Scale,
    Silence,
)

PROVIDERS = providers("pointwise")
KINDS = ("scale", "clip", "mix", "long mix", "silence", "quantise", "mu_law")


def bank(generator: torch.Generator, *, short: bool) -> tuple[Tensor, ...]:
    """Clips of 1, 3, 700 and 9000 samples, and a silent one."""
    counts = torch.tensor([1, 3, 700, 9000, 50])
    samples = 0.3 * torch.randn(int(counts.sum()), generator=generator)
    samples[-50:] = 0
    offsets = counts.cumsum(0) - counts
    levels = torch.stack(
        [samples[o : o + n].square().mean().sqrt() for o, n in zip(offsets, counts, strict=True)]
    ).clamp(min=1e-3)
    if short:
        samples, levels = (samples * 20000).clamp(-32768, 32767).to(torch.int16), levels * 20000
    return samples, offsets, counts, levels


def make_step(kind: str, batch: int, width: int, seed: int) -> PointwiseStep:
    g = torch.Generator().manual_seed(seed)

    def some(neutral: float, values: Tensor) -> Tensor:
        """A third of the rows keep the value that changes nothing."""
        return torch.where(torch.rand(batch, generator=g) < 1 / 3, neutral, values)

    if kind == "scale":
        return Scale(some(1.0, 2 * torch.randn(batch, generator=g)))
    if kind == "clip":
        return Clip(some(1.0, 1.2 * torch.rand(batch, generator=g)))
    if kind in ("mix", "long mix"):
        samples, offsets, counts, levels = bank(g, short=seed % 2 == 0)
        voices = 1 if kind == "long mix" else seed % 4
        clips = torch.randint(-1, 5, (batch, voices), generator=g)
        if kind == "long mix":
            clips = torch.full_like(clips, 3)
        starts = (torch.rand(batch, voices, generator=g) * counts[clips.clamp(min=0)]).long()
        snr = some(math.inf, 40 * torch.rand(batch, generator=g) - 15)
        return Mix(samples, offsets, counts, levels, clips, starts, snr)
    if kind == "silence":
        first = torch.randint(0, width, (batch, 3), generator=g)
        return Silence(first, first + torch.randint(-9, width, (batch, 3), generator=g))
    if kind == "quantise":
        return Quantise(some(0, torch.randint(2, 25, (batch,), generator=g)).long())
    return MuLaw(torch.rand(batch, generator=g) < 0.7)


def make_batch(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    width = (1, 17, 2048, 2049, 5000, 20000)[seed % 6]
    lengths = torch.randint(1, width + 1, (5,), generator=g)
    lengths[0], lengths[1] = width, 1
    x = 0.4 * torch.randn(5, width, generator=g)
    x[3] = 0  # a silent sample has no signal-to-noise ratio
    return x, lengths


def in_double(x: Tensor, lengths: Tensor, steps: list[PointwiseStep]) -> tuple[Tensor, Tensor]:
    return R.pointwise(x.double(), lengths, steps)


def assert_same(got: Tensor, truth: Tensor, steps: list[PointwiseStep]) -> None:
    """Within 1e-6 of the loudest; where values are rounded to steps, but for one in a thousand.

    There a value at the edge of a step may go to either side.
    """
    scale = truth.abs().amax(dim=1, keepdim=True).clamp(min=1)
    wrong = (got.double() - truth).abs() > 1e-6 * scale
    if any(isinstance(step, (Quantise, MuLaw)) for step in steps):
        assert int(wrong.sum()) <= 1 + wrong.numel() // 1000
    else:
        assert not bool(wrong.any())


@pytest.mark.parametrize("provider", PROVIDERS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_is_its_definition(provider: tuple[str, str], kind: str) -> None:
    for seed in range(24):
        x, lengths = make_batch(seed)
        steps = [make_step(kind, 5, x.shape[1], seed)]
        truth, truth_skipped = in_double(x, lengths, steps)
        with running_on(provider):
            got, skipped = F.pointwise(x, lengths, steps)
        assert torch.equal(skipped, truth_skipped)
        assert got.dtype == torch.float32
        assert_same(got, truth, steps)


@pytest.mark.parametrize("provider", PROVIDERS, ids=name_of)
def test_chains_are_their_steps_one_after_another(provider: tuple[str, str]) -> None:
    rng = random.Random(0)
    for seed in range(60):
        x, lengths = make_batch(seed)
        # Values that are rounded come last, so that one at an edge does not spread.
        kinds = [rng.choice(KINDS[:5]) for _ in range(rng.randrange(7))]
        kinds += [rng.choice(KINDS[5:])] * rng.randrange(2)
        steps = [make_step(k, 5, x.shape[1], 100 * seed + i) for i, k in enumerate(kinds)]
        truth, truth_skipped = in_double(x, lengths, steps)
        with running_on(provider):
            got, skipped = F.pointwise(x, lengths, steps)
        assert torch.equal(skipped, truth_skipped), (seed, kinds)
        assert_same(got, truth, steps)


@pytest.mark.parametrize("provider", [("reference", ""), *PROVIDERS], ids=name_of)
def test_padding_and_batch_mates_mean_nothing(provider: tuple[str, str]) -> None:
    x, lengths = make_batch(5)
    steps = [make_step(kind, 5, x.shape[1], 7) for kind in ("scale", "mix", "clip", "silence")]
    wide = torch.full((5, 23456), float("nan"))
    for row, n in enumerate(lengths.tolist()):
        wide[row, :n] = x[row, :n]
    before = wide.clone()
    with running_on(provider) if provider[0] != "reference" else speechft.use_backend("reference"):
        expected, skips = F.pointwise(x, lengths, steps)
        got, wide_skips = F.pointwise(wide, lengths, steps)
        strided, _ = F.pointwise(wide.T.contiguous().T, lengths, steps)
    assert torch.equal(wide.nan_to_num(), before.nan_to_num())
    assert torch.equal(skips, wide_skips)
    assert torch.equal(got, strided)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(got[row, :n], expected[row, :n], rtol=0, atol=1e-6)
        assert not got[row, n:].any()
        assert not expected[row, n:].any()


@pytest.mark.parametrize("provider", PROVIDERS, ids=name_of)
def test_a_row_gives_the_same_bits_alone(provider: tuple[str, str]) -> None:
    x, lengths = make_batch(5)
    steps = [make_step(kind, 5, x.shape[1], 7) for kind in ("mix", "clip", "quantise")]
    mix, clip, quantise = steps
    assert isinstance(mix, Mix)
    assert isinstance(clip, Clip)
    assert isinstance(quantise, Quantise)
    with running_on(provider):
        together, _ = F.pointwise(x, lengths, steps)
        for row, n in enumerate(lengths.tolist()):
            one = slice(row, row + 1)
            alone, _ = F.pointwise(
                x[one, :n],
                None,
                [
                    Mix(mix.samples, mix.offsets, mix.counts, mix.levels,
                        mix.clips[one], mix.starts[one], mix.snr[one]),
                    Clip(clip.share[one]),
                    Quantise(quantise.bits[one]),
                ],
            )  # fmt: skip
            assert torch.equal(alone[0], together[row, :n])


def one(value: float) -> Tensor:
    return torch.tensor([value])


def test_quantise_rounds_to_the_grid() -> None:
    x = torch.linspace(-1.2, 1.2, 4001)[None]
    for bits in (2, 3, 8, 16, 22, 23, 24):
        y = F.pointwise(x, None, [Quantise(torch.tensor([bits]))])[0]
        grid = y.double() * 2 ** (bits - 1)
        assert torch.equal(grid, grid.round())
        assert float(y.min()) == -1
        assert float(y.max()) == 1 - 2.0 ** (1 - bits)
        inside = x.abs() < 1 - 2.0 ** (1 - bits)
        assert float((y - x)[inside].abs().max()) <= 2.0**-bits
    half = F.pointwise(torch.tensor([[0.125, 0.375]]), None, [Quantise(torch.tensor([3]))])[0]
    assert half.tolist() == [[0.0, 0.5]]  # half to even


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="audioop left the standard library")
@pytest.mark.filterwarnings("ignore:'audioop' is deprecated")
def test_mu_law_is_g711() -> None:
    import audioop

    values = torch.arange(-32768, 32768, 4)
    raw = values.to(torch.int16).numpy().tobytes()
    decoded = audioop.ulaw2lin(audioop.lin2ulaw(raw, 2), 2)
    expected = torch.frombuffer(bytearray(decoded), dtype=torch.int16).float() / 32768
    got = F.pointwise(values.float()[None] / 32768, None, [MuLaw(torch.tensor([True]))])[0][0]
    assert torch.equal(got.abs(), expected.abs())
    assert torch.equal(got[values > 3], expected[values > 3])


@pytest.mark.parametrize("provider", PROVIDERS, ids=name_of)
def test_values_at_their_bounds(provider: tuple[str, str]) -> None:
    x = torch.linspace(-1, 1, 2500)[None].repeat(3, 1)
    with running_on(provider):
        y, _ = F.pointwise(x, None, [Scale(torch.tensor([-1.0, 0.0, 1.0]))])
        z, _ = F.pointwise(x, None, [Clip(torch.tensor([0.0, 0.5, 1.0]))])
        quiet, _ = F.pointwise(1e-6 * x, None, [Clip(torch.full((3,), 0.25))])
    assert torch.equal(y, torch.stack([-x[0], 0 * x[0], x[0]]))
    assert not z[0].any()
    assert torch.equal(z[1:], torch.stack([x[1].clamp(-0.5, 0.5), x[2]]))
    torch.testing.assert_close(quiet, 1e-6 * x.clamp(-0.25, 0.25), rtol=1e-6, atol=0)


@pytest.mark.parametrize("provider", PROVIDERS, ids=name_of)
def test_every_number_of_bits_rounds_half_to_even(provider: tuple[str, str]) -> None:
    for bits in range(3, 25):
        x = torch.tensor([[-1.5, -0.5, 0.5, 1.5, 2.5]]) / 2 ** (bits - 1)
        with running_on(provider):
            y = F.pointwise(x, None, [Quantise(torch.tensor([bits]))])[0]
        assert (y * 2 ** (bits - 1)).tolist() == [[-2, 0, 0, 2, 2]], bits


@pytest.mark.parametrize("provider", PROVIDERS, ids=name_of)
def test_the_level_of_a_long_row_is_exact(provider: tuple[str, str]) -> None:
    steps, i = 1 << 22, torch.tensor([1])
    x = torch.full((1, steps), 0.1)
    start = (i - 1)[None]
    mix = Mix(torch.tensor([0.3, 0.7]), i - 1, i + 1, torch.ones(1), start, start, one(20.0))
    with running_on(provider):
        y, _ = F.pointwise(x, None, [mix])
    truth, _ = R.pointwise(x.double(), i * steps, [mix])
    assert float(((y - x) / (truth - x) - 1).double().abs().median()) < 1e-6


def test_mu_law_gives_the_levels_of_the_standard() -> None:
    # G.711, table 2a: the decoder's values at the ends of segments, of 8159.
    x = torch.tensor([[0.0, 1.0, 30.0, 95.0, 4063.0, 8100.0, 8159.0, 99999.0]]) / 8192
    y = F.pointwise(x, None, [MuLaw(torch.tensor([True]))])[0] * 8192
    assert y.tolist() == [[0.0, 2.0, 30.0, 99.0, 4191.0, 8031.0, 8031.0, 8031.0]]


def test_the_ratio_is_what_was_asked_for() -> None:
    g = torch.Generator().manual_seed(0)
    samples, offsets, counts, levels = bank(g, short=True)
    x = torch.randn(1, 20000, generator=g)
    for snr in (-10.0, 0.0, 17.5):
        clips, starts = torch.tensor([[3, 2]]), torch.tensor([[8999, 1]])
        mix = Mix(samples, offsets, counts, levels, clips, starts, one(snr))
        y = F.pointwise(x, [12345], [mix])[0]
        noise = (y - x)[0, :12345].double()
        ratio = x[0, :12345].double().square().sum() / noise.square().sum()
        assert float(10 * ratio.log10()) == pytest.approx(snr, abs=1e-3)
        # Sample by sample: both clips go round.
        time = torch.arange(12345)
        expected = (
            samples[offsets[3] + (8999 + time) % 9000] / levels[3]
            + samples[offsets[2] + (1 + time) % 700] / levels[2]
        ).double()
        scale = float((noise @ expected) / (expected @ expected))
        torch.testing.assert_close(noise, scale * expected, rtol=0, atol=1e-5)


def test_silence_has_no_ratio() -> None:
    samples, offsets, counts, levels = bank(torch.Generator().manual_seed(0), short=False)
    x = torch.randn(3, 40)
    x[1] = 0
    clips = torch.tensor([[4], [3], [-1]])  # a silent clip, a silent sample, no clip
    mix = Mix(samples, offsets, counts, levels, clips, torch.zeros_like(clips), torch.zeros(3))
    y, skipped = F.pointwise(x, None, [mix, Scale(torch.full((3,), 2.0))])
    assert skipped.tolist() == [[True], [True], [True]]
    assert torch.equal(y, 2 * x)


def test_no_steps_only_clear_padding() -> None:
    x = torch.randn(2, 9)
    y, skipped = F.pointwise(x, [9, 4], [])
    assert skipped.shape == (2, 0)
    assert torch.equal(y[0], x[0])
    assert y[1].tolist() == x[1, :4].tolist() + [0.0] * 5


def test_inputs_are_left_alone_and_get_no_gradient() -> None:
    x = torch.randn(2, 100, requires_grad=True)
    before = x.detach().clone()
    y, _ = F.pointwise(x, None, [Scale(torch.full((2,), 3.0))])
    assert not y.requires_grad
    assert torch.equal(x, before)


def test_float64_runs_in_float64() -> None:
    x = torch.randn(2, 100, dtype=torch.float64)
    y, _ = F.pointwise(x, None, [Scale(torch.full((2,), 3.0))])
    assert torch.equal(y, 3 * x)
    with speechft.use_backend("cpu"), pytest.raises(BackendError, match="float64"):
        F.pointwise(x, None, [])


def test_bad_arguments_are_named() -> None:
    x = torch.randn(2, 10)
    with pytest.raises(ArgumentError, match=r"waveforms: wants shape \(B, T\)"):
        F.pointwise(x[0], None, [])
    with pytest.raises(ArgumentTypeError, match="waveforms: wants floating point"):
        F.pointwise(x.long(), None, [])
    with pytest.raises(LengthError, match="lengths"):
        F.pointwise(x, [11, 1], [])
    with pytest.raises(ArgumentTypeError, match=r"steps: wants steps .* got int at position 1"):
        F.pointwise(x, None, [Scale(torch.ones(2)), 3])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match=r"step 0, Scale\.factor: wants 2 rows, got shape"):
        F.pointwise(x, None, [Scale(torch.ones(3))])
    with pytest.raises(ArgumentError, match=r"step 0, Scale\.factor: wants the device"):
        F.pointwise(x, None, [Scale(torch.ones(2, device="meta"))])


def test_what_would_be_read_out_of_bounds_is_refused() -> None:
    x, two = torch.randn(2, 10), torch.zeros(2, dtype=torch.int64)

    def mix(**changes: Tensor) -> Mix:
        values = {
            "samples": torch.ones(7),
            "offsets": torch.tensor([0, 3]),
            "counts": torch.tensor([3, 4]),
            "levels": torch.ones(2),
            "clips": two[:, None],
            "starts": two[:, None],
            "snr": torch.zeros(2),
        }
        return Mix(**{**values, **changes})

    F.pointwise(x, None, [mix()])
    wrong: list[tuple[PointwiseStep, str]] = [
        (Scale(torch.ones(2, 2)), r"Scale\.factor: wants shape \(2,\), got \(2, 2\)"),
        (Scale(torch.tensor(1.0)), r"Scale\.factor: wants 2 rows, got shape \(\)"),
        (Silence(two[:, None].repeat(1, 3), two[:, None]), "first and end differ in shape"),
        (mix(starts=two[:, None].repeat(1, 2)), "clips and starts differ in shape"),
        (mix(starts=two[:, None] - 1), r"Mix\.starts: wants at least 0"),
        (mix(clips=two[:, None] + 2), r"Mix\.clips: wants -1 to 1"),
        (mix(counts=torch.tensor([3, 0])), "a clip is empty, or lies outside"),
        (mix(counts=torch.tensor([3, 5])), "a clip is empty, or lies outside"),
        (Quantise(torch.tensor([8, 25])), r"Quantise\.bits: wants 2 to 24, or 0"),
        (Quantise(torch.tensor([8, -3])), r"Quantise\.bits: wants 2 to 24, or 0"),
    ]
    for step, message in wrong:
        with pytest.raises(ArgumentError, match=message):
            F.pointwise(x, None, [step])
    with pytest.raises(ArgumentTypeError, match=r"Mix\.samples: wants float32 or int16"):
        F.pointwise(x, None, [mix(samples=torch.ones(7).double())])
