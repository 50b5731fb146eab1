"""Compositions: what is drawn, and that running members together changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechft.augment import (
    AddNoise,
    Augmentation,
    Clip,
    Compose,
    Gain,
    HighPass,
    LowPass,
    MuLaw,
    MultiCrop,
    OneOf,
    Pitch,
    Polarity,
    Quantise,
    Reverb,
    RoomBank,
    SomeOf,
    SpecAugment,
    Speed,
    TimeDrop,
    fold_in,
    make_keys,
)
from speechft.augment.stages import plan
from speechft.errors import ArgumentError, ArgumentTypeError


def keys(count: int) -> Tensor:
    return make_keys(0, 0, torch.arange(count))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    x = 0.1 * torch.randn(8, 4000, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([3000, 4000, 1, 2500, 513, 4000, 1234, 37]), keys(8)


def members() -> list[Augmentation]:
    return [
        Gain(p=0.6),
        AddNoise(snr=(0, 20), p=0.6),
        Speed(p=0.6),
        OneOf([Clip(), TimeDrop(), Compose([Polarity(), Gain()]), Pitch()]),
        Reverb(RoomBank.simulated(2, seconds=0.05), p=0.6),
        SomeOf([LowPass(), HighPass(), Quantise(), AddNoise(voices=2)], (1, 3)),
        Gain(-3.0),
    ]


def test_together_is_one_after_another() -> None:
    x, lengths, key = batch()
    chain = Compose(members())
    y, after = chain(x, lengths, key)
    steps = chain.flatten(chain.parameters_for(key))
    assert len(steps) == 14
    one, n = x, lengths
    for member, drawn in steps:
        # Filters ring into each other; those that act on a sample together are tested apart.
        one, n = member.replay(one, n, drawn)
    assert torch.equal(after, n)
    both = [(m, d) for m, d in steps if isinstance(m, (LowPass, HighPass, Reverb))]
    several = torch.stack([d["applied"] for _, d in both]).sum(dim=0) > 1
    assert 0 < int(several.sum()) < 8
    torch.testing.assert_close(y[~several], one[~several], rtol=0, atol=2e-3)
    assert float(((y - one)[~several].abs() > 1e-6).float().mean()) < 1e-3  # edges of steps


def test_neighbours_of_a_kind_are_one_stage() -> None:
    chain = Compose(members())
    stages = plan(chain.flatten(chain.parameters_for(keys(2))))
    names = [[type(member).__name__ for member, _ in stage] for stage in stages]
    assert names == [
        ["Gain", "AddNoise"],
        ["Speed"],
        ["Clip", "TimeDrop", "Polarity", "Gain"],
        ["Pitch"],
        ["Reverb", "LowPass", "HighPass"],
        ["Quantise", "AddNoise", "Gain"],
    ]


def test_replay_is_what_was_done_and_can_be_changed() -> None:
    x, lengths, key = batch()
    chain = Compose(members())
    drawn = chain.parameters_for(key)
    y, after = chain(x, lengths, key)
    again, n = chain.replay(x, lengths, drawn)
    assert torch.equal(again, y)
    assert torch.equal(n, after)
    rows = torch.tensor([6, 1])
    part, _ = chain.replay(x[rows], lengths[rows], drawn.rows(rows))
    assert torch.equal(part, y[rows][:, : part.shape[1]])
    gain = Gain((-6, 6))
    louder = gain.parameters_for(key).replace(decibels=torch.full((8,), 20.0).double())
    z, _ = gain.replay(x, None, louder)
    torch.testing.assert_close(z, 10 * x)
    with pytest.raises(ArgumentError, match="decibels: wants shape"):
        louder.replace(decibels=torch.zeros(3))
    with pytest.raises(ArgumentError, match="snr: is not drawn here; there are applied, decibels"):
        louder.replace(snr=torch.zeros(8))
    with pytest.raises(ArgumentTypeError, match=r"applied: wants torch\.bool, got torch\.int64"):
        louder.replace(applied=torch.ones(8, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="wants those of Gain: applied, decibels; got"):
        gain.replay(x, None, AddNoise().parameters_for(key))
    with pytest.raises(ArgumentError, match="parameters: wants those of Compose"):
        Compose([gain, gain]).replay(x, None, Compose([gain]).parameters_for(key))
    silent = Compose([Compose(), Compose([gain])])
    within = silent.parameters_for(key)
    assert len(within) == 8
    within = within.replace(**{"1.0.decibels": torch.full((8,), -120.0).double()})
    torch.testing.assert_close(silent.replay(x, None, within)[0], 1e-6 * x)
    speed = Speed((0.9, 1.1))
    other = speed.parameters_for(key).replace(factor=torch.ones(8).double())
    with pytest.raises(ArgumentError, match=r"factor 1 is none of this Speed's: 0\.9, 1\.1"):
        speed.replay(x, None, other)
    with pytest.raises(ArgumentError, match="parameters: wants those of 8 samples, got those of 2"):
        chain.replay(x, lengths, drawn.rows(rows))


def test_one_of_several_as_likely_as_its_weight() -> None:
    one = OneOf([Gain(), Polarity(p=1), Clip(), MuLaw()], weights=[1, 0, 2, 5], p=0.5)
    drawn = one.parameters_for(keys(20000))
    applied = torch.stack([member["applied"] for member in drawn.members], dim=1)
    assert int(applied.sum(dim=1).max()) == 1
    share = applied.float().mean(dim=0)
    for got, expected in zip(share.tolist(), (1 / 16, 0, 2 / 16, 5 / 16), strict=True):
        assert got == pytest.approx(expected, abs=0.01)


def test_some_of_several_every_subset_as_likely() -> None:
    some = SomeOf([Gain(), Clip(), MuLaw(), TimeDrop()], (1, 3))
    drawn = some.parameters_for(keys(30000))
    applied = torch.stack([member["applied"] for member in drawn.members], dim=1)
    size = applied.sum(dim=1)
    code = (applied * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    for count, subsets in ((1, 4), (2, 6), (3, 4)):
        assert float((size == count).float().mean()) == pytest.approx(1 / 3, abs=0.01)
        found = code[size == count].bincount(minlength=16)
        found = found[found > 0]
        assert len(found) == subsets
        assert float(found.min() / found.sum()) > 0.93 / subsets
    assert int(SomeOf([Gain(), Clip()], 0).parameters_for(keys(9)).members[0]["applied"].sum()) == 0


def test_a_composition_that_is_not_applied_leaves_all_alone() -> None:
    x = torch.randn(40, 300)
    chain = Compose([Gain(5.0), Speed((0.9,)), MuLaw()], p=0.5)
    y, lengths = chain(x, None, keys(40))
    applied = chain.parameters_for(keys(40)).members[0]["applied"]
    assert 8 < int(applied.sum()) < 32
    assert torch.equal(lengths == 300, ~applied)
    assert torch.equal(y[~applied, :300], x[~applied])


def test_probability_of_each() -> None:
    for member in (Gain(p=0.3), Speed(p=0.3), Reverb(RoomBank.simulated(1, seconds=0.05), p=0.3)):
        share = member.parameters_for(keys(10000))["applied"].float().mean()
        assert float(share) == pytest.approx(0.3, abs=0.02)
    assert bool(Gain().parameters_for(keys(9))["applied"].all())
    assert not bool(Gain(p=0).parameters_for(keys(9))["applied"].any())


def test_nothing_draws_the_same_numbers_as_another() -> None:
    count = 4000
    key = keys(count)
    chain = Compose([Gain(), AddNoise(), Compose([Gain(), OneOf([Gain(), Clip()])]), TimeDrop(2)])
    several = {
        "chain": chain.parameters_for(key),
        "second view": chain.parameters_for(fold_in(key, 1)),
        "crops": MultiCrop(regions="disjoint", augment_long=chain).parameters_for(key),
        "masks": SpecAugment(p=0.5).parameters_for(key),
    }
    columns = {
        f"{name} {path} {k}": column.double()
        for name, drawn in several.items()
        for path, tensor in drawn.flat().items()
        for k, column in enumerate(tensor.reshape(count, -1).unbind(1))
    }
    drawn = torch.stack([c for c in columns.values() if float(c.std()) > 0])
    names = [name for name, c in columns.items() if float(c.std()) > 0]
    assert len(names) > 60
    correlation = torch.corrcoef(drawn) - torch.eye(len(names))
    # Two members of a OneOf that are not applied at a time belong together, and are left out.
    for row, name in enumerate(names):
        for column, other in enumerate(names):
            if "applied" in name and "applied" in other:
                correlation[row, column] = 0
    assert float(correlation.abs().max()) < 6 / count**0.5


def test_what_comes_back_is_never_the_callers_own() -> None:
    x = torch.randn(2, 50)
    for chain in (Compose(), Compose([Compose()]), Compose([Gain(p=0)]), Compose([Speed((1.0,))])):
        y, _ = chain(x, None, keys(2))
        assert torch.equal(y, x)
        y.zero_()
        assert bool(x.any())


def test_made_in_inference_mode_and_used_outside() -> None:
    with torch.inference_mode():
        chain = Compose([AddNoise(), LowPass()])
        chain(torch.zeros(2, 50), None, keys(2))
    chain(torch.zeros(2, 50), None, keys(2))
    assert int(chain.members[0].skipped) == 4


def test_labels_that_change_are_said() -> None:
    assert Compose(members()).changes == {"timing", "speaker", "content"}
    assert Compose([Gain(), AddNoise()]).changes == frozenset()
    assert Speed().changes == {"timing", "speaker"}


def test_time_drop_stays_within_the_true_length() -> None:
    x = torch.ones(50, 2000)
    lengths = torch.arange(1, 51) * 40
    drop = TimeDrop((2, 4), (0.01, 0.03))
    y, _ = drop(x, lengths, keys(50))
    drawn = drop.parameters_for(keys(50))
    for row, n in enumerate(lengths.tolist()):
        silent = int((y[row, :n] == 0).sum())
        spans = (drawn["seconds"][row, : drawn["count"][row]] * 16000).round()
        assert silent <= int(spans.sum())
        assert silent >= min(n, int(spans.max()))
    starts = drop.parameters_for(keys(5000))["start"]
    assert float(starts.mean()) == pytest.approx(0.5, abs=0.01)


def test_bad_compositions_are_named() -> None:
    with pytest.raises(ArgumentTypeError, match="augmentations: wants a list of them, got Gain"):
        Compose(Gain())  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"bank: wants a ClipBank, got str; ClipBank\.from"):
        AddNoise("musan/noise")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="bank: wants a RoomBank, got ClipBank"):
        Reverb(AddNoise().bank)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="got ReLU at position 1"):
        OneOf([Gain(), torch.nn.ReLU()])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="augmentations: is empty"):
        OneOf([])
    with pytest.raises(ArgumentError, match="weights: wants 1 numbers, got 2"):
        OneOf([Gain()], weights=[1, 2])
    with pytest.raises(ArgumentError, match="weights: wants numbers from 0, not all 0"):
        OneOf([Gain(), Clip()], weights=[0, 0])
    with pytest.raises(ArgumentError, match="count: wants 0 to 2, the least first"):
        SomeOf([Gain(), Clip()], 3)
    with pytest.raises(ArgumentTypeError, match="count: wants an integer or two"):
        SomeOf([Gain(), Clip()], (1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="bits: wants 2 to 24"):
        Quantise(1)
    with pytest.raises(ArgumentError, match="share: wants 0 to 1"):
        Clip(1.5)
