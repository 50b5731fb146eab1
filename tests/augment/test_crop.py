"""Crops of ramps, whose samples say where they come from."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from augment.test_face import NoValueIsRead
from speechft import lengths as lengths_module
from speechft.augment import (
    Augmentation,
    Babble,
    Compose,
    Gain,
    OneOf,
    Polarity,
    Speed,
    fold_in,
    make_keys,
)
from speechft.augment import base as base_module
from speechft.augment import crop as crop_module
from speechft.augment.crop import MultiCrop, RandomCrop
from speechft.augment.keys import VIEW
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError

RATE = 100
LENGTHS = [900, 400, 1, 250, 2, 899, 33, 600]
Crops = list[tuple[Tensor, Tensor]]


def ramps(lengths: list[int] = LENGTHS, *, padding: float = float("nan")) -> Tensor:
    """Sample t of every row is t + 1; in the padding is what must not be read."""
    steps = torch.arange(1.0, max(lengths) + 1)
    return torch.where(steps <= torch.tensor(lengths)[:, None], steps, padding)


def keys_of(count: int, epoch: int = 0) -> Tensor:
    return make_keys(0, epoch, torch.arange(count))


def batched_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way that looks at no values, which is a GPU's."""
    for module in (base_module, crop_module):
        monkeypatch.setattr(module, "values_are_at_hand", lambda tensor: False)
    for module in (base_module, crop_module, lengths_module):
        monkeypatch.setattr(module, "values_are_checked", lambda tensor: False)


def spans(crop: Tensor, lengths: Tensor, sources: list[int]) -> list[tuple[int, int]]:
    """First sample and one past the last, of crops of ramps; they are whole, then zero."""
    found = []
    for row, (count, source) in enumerate(zip(lengths.tolist(), sources, strict=True)):
        first = int(crop[row, 0]) - 1
        assert 0 <= first <= first + count <= source
        assert torch.equal(crop[row, :count], torch.arange(first + 1.0, first + count + 1))
        assert not crop[row, count:].any()
        found.append((first, first + count))
    return found


def chi_square(places: Tensor, values: int) -> float:
    counts = torch.bincount(places, minlength=values)
    assert len(counts) == values
    expected = len(places) / values
    return float(((counts - expected) ** 2 / expected).sum())


# One at a time: a crop that is the same for all, one of a range, and one that not all have.
CROPS = {
    "fixed": lambda: RandomCrop(3, sample_rate=RATE),
    "range": lambda: RandomCrop((0.5, 3), sample_rate=RATE),
    "some": lambda: RandomCrop((0.5, 3), sample_rate=RATE, p=0.5),
}


@pytest.fixture(params=sorted(CROPS))
def crop(request: pytest.FixtureRequest) -> RandomCrop:
    return CROPS[request.param]()


def test_a_crop_is_a_span_of_the_drawn_length(crop: RandomCrop) -> None:
    keys = keys_of(8)
    cut, after = crop(ramps(), LENGTHS, keys)
    drawn = crop.parameters_for(keys)
    steps = (drawn["seconds"] * RATE).round().long()
    expected = torch.where(
        drawn["applied"], torch.minimum(steps, torch.tensor(LENGTHS)), torch.tensor(LENGTHS)
    )
    assert torch.equal(after, expected)
    assert cut.shape == (8, int(after.max()))
    spans(cut, after, LENGTHS)
    if crop.p == 1:
        assert int(after.max()) <= 300
    assert len(after.unique()) > (4 if crop.seconds[0] < 3 else 3)


def test_every_place_is_as_likely() -> None:
    count = 20000
    cut, after = RandomCrop(0.91, sample_rate=RATE)(
        torch.arange(1.0, 101).expand(count, -1), None, keys_of(count)
    )
    assert after.unique().tolist() == [91]
    # 10 places, 9 degrees of freedom: 27.9 is passed once in a thousand times.
    assert chi_square(cut[:, 0].long() - 1, 10) < 27.9


def test_seconds_are_evenly_spread_and_apart_from_the_place() -> None:
    drawn = RandomCrop((1, 3), sample_rate=RATE).parameters_for(keys_of(20000))
    seconds, start = drawn["seconds"], drawn["start"]
    assert float(seconds.min()) >= 1
    assert float(seconds.max()) < 3
    assert chi_square(((seconds - 1) * 5).long(), 10) < 27.9
    assert abs(float(torch.corrcoef(torch.stack([seconds, start]))[0, 1])) < 5 / 20000**0.5


def test_batch_mates_and_padding_mean_nothing(crop: RandomCrop) -> None:
    keys = keys_of(8)
    expected, after = crop(ramps(), LENGTHS, keys)
    for row, n in enumerate(LENGTHS):
        alone, alone_after = crop(ramps([n]), None, keys[row : row + 1])
        assert torch.equal(alone_after, after[row : row + 1])
        assert torch.equal(alone[0], expected[row, : int(after[row])])
    wide = torch.full((8, 2000), float("inf"))
    wide[:, :900] = ramps(padding=float("inf"))
    got, got_after = crop(wide, LENGTHS, keys)
    assert torch.equal(got, expected)
    assert torch.equal(got_after, after)


def test_both_ways_give_the_same_bits(crop: RandomCrop, monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys, lengths = ramps(), keys_of(8), torch.tensor(LENGTHS)
    expected, after = crop(x, lengths, keys)
    batched_path(monkeypatch)
    with NoValueIsRead():
        got, got_after = crop(x, lengths, keys)
        again, _ = crop.replay(x, lengths, crop.parameters_for(keys))
    bound = 300 if crop.p == 1 else 900
    assert got.shape == again.shape == (8, bound)
    assert torch.equal(got_after, after)
    assert torch.equal(got[:, : expected.shape[1]], expected)
    assert not got[:, expected.shape[1] :].any()
    assert torch.equal(again, got)


@pytest.mark.parametrize("way", ["per sample", "batched"])
def test_a_composition_may_leave_it_out(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that passes uncut is as long as ever, even where lengths are not looked at."""
    if way == "batched":
        batched_path(monkeypatch)
    keys = keys_of(8)
    crop = RandomCrop(1, sample_rate=RATE)
    either = OneOf([crop, Polarity(p=1)])
    out, after = either(ramps(padding=0.0), torch.tensor(LENGTHS), keys)
    cut = either.parameters_for(keys).members[0]["applied"]
    assert 0 < int(cut.sum()) < 8
    expected = torch.where(cut, torch.tensor(LENGTHS).clamp(max=100), torch.tensor(LENGTHS))
    assert torch.equal(after, expected)
    for row, n in enumerate(after.tolist()):
        assert int((out[row] != 0).sum()) == n
    # And what a replay changes is done as it says.
    drawn = crop.parameters_for(keys)
    for changed in (
        drawn.replace(applied=torch.zeros(8, dtype=torch.bool)),
        drawn.replace(seconds=torch.full((8,), 50.0, dtype=torch.float64)),
    ):
        whole, after = crop.replay(ramps(), torch.tensor(LENGTHS), changed)
        assert torch.equal(whole, ramps(padding=0.0))
        assert after.tolist() == LENGTHS


def test_replay_is_the_call_and_rows_are_its_parts(crop: RandomCrop) -> None:
    keys = keys_of(8)
    expected, after = crop(ramps(), LENGTHS, keys)
    drawn = crop.parameters_for(keys)
    got, got_after = crop.replay(ramps(), LENGTHS, drawn)
    assert torch.equal(got, expected)
    assert torch.equal(got_after, after)
    two, two_after = crop.replay(ramps()[2:4], LENGTHS[2:4], drawn.rows(slice(2, 4)))
    assert two_after.tolist() == after[2:4].tolist()
    assert torch.equal(two, expected[2:4, : two.shape[1]])


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (1.0, 600), (2.0, 600), (-1.0, 0)])
def test_a_place_stays_within_the_sample(share: float, first: int) -> None:
    crop = RandomCrop(3, sample_rate=RATE)
    drawn = crop.parameters_for(keys_of(1)).replace(start=torch.tensor([share]).double())
    cut, after = crop.replay(ramps([900]), None, drawn)
    assert spans(cut, after, [900]) == [(first, first + 300)]


def test_traces_to_one_graph() -> None:
    keys, lengths = keys_of(8), torch.tensor(LENGTHS)
    x = ramps(padding=0.0)
    crop = CROPS["range"]()
    expected, after = crop(x, lengths, keys)
    got, got_after = torch.compile(crop, backend="eager", fullgraph=True)(x, lengths, keys)
    assert torch.equal(got_after, after)
    assert got.shape == (8, 300)
    assert torch.equal(got[:, : expected.shape[1]], expected)


def test_labels_that_a_crop_does_not_keep() -> None:
    assert RandomCrop(1).changes == {"timing", "content"}
    assert Compose([RandomCrop(1)]).changes == {"timing", "content"}


# Several of each.

MULTI = {
    "shared": lambda **more: MultiCrop(sample_rate=RATE, **more),
    "disjoint": lambda **more: MultiCrop(sample_rate=RATE, regions="disjoint", **more),
}


@pytest.fixture(params=sorted(MULTI))
def regions(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same(got: Crops, expected: Crops) -> None:
    assert len(got) == len(expected)
    for (x, x_lengths), (y, y_lengths) in zip(got, expected, strict=True):
        assert torch.equal(x_lengths, y_lengths)
        width = min(x.shape[1], y.shape[1])
        assert torch.equal(x[:, :width], y[:, :width])
        assert not x[:, width:].any()
        assert not y[:, width:].any()


def test_long_crops_then_short_ones(regions: str) -> None:
    crops = MULTI[regions]()(ramps(), LENGTHS, keys_of(8))
    assert len(crops) == 6
    # Of one size each: they can be stacked.
    assert torch.stack([x for x, _ in crops[:2]]).shape == (2, 8, 400)
    assert torch.stack([x for x, _ in crops[2:]]).shape == (4, 8, 200)
    for number, (x, after) in enumerate(crops):
        assert after.dtype == torch.int64
        spans(x, after, LENGTHS)
        if regions == "shared":
            most = 400 if number < 2 else 200
            assert after.tolist() == [min(n, most) for n in LENGTHS]


def test_disjoint_regions_share_no_sample() -> None:
    # Just one, two, short, just long enough for both, and long.
    lengths = [1, 2, 3, 5, 31, 300, 599, 600, 601, 605, 900, 2000] * 25
    crops = MULTI["disjoint"]()(ramps(lengths), lengths, keys_of(300))
    found = [spans(x, after, lengths) for x, after in crops]
    orders = []
    for row, n in enumerate(lengths):
        long, short = [view[row] for view in found[:2]], [view[row] for view in found[2:]]
        if n == 1:
            assert set(long + short) == {(0, 1)}
            continue
        longs_end, longs_begin = max(e for _, e in long), min(b for b, _ in long)
        shorts_end, shorts_begin = max(e for _, e in short), min(b for b, _ in short)
        assert longs_end <= shorts_begin or shorts_end <= longs_begin
        orders.append(longs_end <= shorts_begin)
        if n >= 600:
            assert {e - b for b, e in long} == {400}
            assert {e - b for b, e in short} == {200}
        else:  # in proportion, and nothing left out
            [(b, e)] = set(long)
            assert e - b == (2 if n == 3 else max(1, min(n - 1, round(n * 2 / 3))))
            assert {e - b for b, e in short} == {min(200, n - (e - b))}
            if n - (e - b) <= 200:
                assert {b, e, *short[0]} == {0, n, b, e} | set(short[0])
                assert sum(e - b for b, e in (long[0], short[0])) == n
    # A fair coin: more than this once in a thousand times.
    assert abs(sum(orders) / len(orders) - 0.5) < 3.3 * 0.5 / len(orders) ** 0.5


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_the_smaller_region_is_never_empty(n: int) -> None:
    module = MultiCrop(1, 1, 10, 0.1, sample_rate=RATE, regions="disjoint")
    (long, long_after), (short, short_after) = module(ramps([n]), None, keys_of(1))
    [long_span], [short_span] = spans(long, long_after, [n]), spans(short, short_after, [n])
    if n == 1:
        assert long_span == short_span == (0, 1)
    else:
        assert short_span[1] - short_span[0] == 1
        assert sorted([*long_span, *short_span])[1:3] == [min(long_span[1], short_span[1])] * 2


def test_where_disjoint_regions_part_is_evenly_spread() -> None:
    module = MultiCrop(1, 1, 0.4, 0.2, sample_rate=RATE, regions="disjoint")
    count = 8000
    drawn = module.parameters_for(keys_of(count))
    # As far as it goes to the right in its part, and to the left.
    ends = [torch.full((count,), share, dtype=torch.float64) for share in (1.0, 0.0)]
    for member, end in zip(drawn.members, ends, strict=True):
        member.values["start"] = end
    drawn.values["long_first"] = torch.ones(count, dtype=torch.bool)
    (long, _), (short, _) = module.replay(torch.arange(1.0, 70).expand(count, -1), None, drawn)
    split = long[:, 39].long()  # the last sample of the one part
    assert torch.equal(short[:, 0].long(), split + 1)  # and the first of the other
    assert chi_square(split - 40, 10) < 27.9


def test_every_crop_of_each_kind_has_a_place_of_its_own(regions: str) -> None:
    drawn = MULTI[regions](short=3).parameters_for(keys_of(5000))
    starts = torch.stack([member["start"] for member in drawn.members])
    columns = torch.cat([starts, *([drawn["split"][None]] if regions == "disjoint" else [])])
    correlation = torch.corrcoef(columns) - torch.eye(len(columns))
    assert float(correlation.abs().max()) < 5 / 5000**0.5
    for start in starts:
        assert chi_square((start * 10).long(), 10) < 27.9


def test_a_view_more_changes_none_before_it(regions: str) -> None:
    x, keys = ramps(), keys_of(8)
    plain = MULTI[regions]()(x, LENGTHS, keys)
    assert_same(MULTI[regions](short=7)(x, LENGTHS, keys)[:6], plain)
    # Nor does what is done to the others.
    both = MULTI[regions](augment_short=Speed())(x, LENGTHS, keys)
    assert_same(both[:2], plain[:2])
    louder = MULTI[regions](augment_long=Gain())(x, LENGTHS, keys)
    assert_same(louder[2:], plain[2:])
    assert not torch.equal(louder[0][0], plain[0][0])


def test_each_view_is_perturbed_in_its_own_way() -> None:
    gain = Gain((-20, 0))
    module = MultiCrop(sample_rate=RATE, augment_long=gain, augment_short=gain)
    keys = keys_of(2000)
    drawn = module.parameters_for(keys)
    decibels = [member.members[0]["decibels"] for member in drawn.members]
    starts = [member["start"] for member in drawn.members]
    correlation = torch.corrcoef(torch.stack(decibels + starts)) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / 2000**0.5
    x = ramps()
    plain = MultiCrop(sample_rate=RATE)(x, LENGTHS, keys[:8])
    done = module(x, LENGTHS, keys[:8])
    for number, ((a, n), (b, m)) in enumerate(zip(plain, done, strict=True)):
        expected, _ = gain(a, n, fold_in(fold_in(keys[:8], 1 + number, use=VIEW), 0))
        assert torch.equal(b, expected)
        assert torch.equal(m, n)


@pytest.mark.parametrize("augment", [Speed(), RandomCrop((0.5, 1), sample_rate=RATE)])
def test_an_augmentation_may_change_lengths(augment: Augmentation) -> None:
    module = MultiCrop(sample_rate=RATE, augment_long=augment)
    lengths = [900, 500, 450]
    crops = module(ramps(lengths), lengths, keys_of(3))
    drawn = module.parameters_for(keys_of(3))
    for (x, after), member in zip(crops[:2], drawn.members[:2], strict=True):
        inner = member.members[0]
        expected = (
            torch.ceil(400 / inner["factor"])
            if isinstance(augment, Speed)
            else (inner["seconds"] * RATE).round()
        )
        assert torch.equal(after, expected.long())
        assert x.shape[1] == int(after.max())


def test_spread_puts_two_long_crops_far_apart() -> None:
    keys = keys_of(4000)
    plain = MultiCrop(sample_rate=RATE).parameters_for(keys).members
    for spread in (1.0, 0.25):
        members = MultiCrop(sample_rate=RATE, spread=spread).parameters_for(keys).members
        one, other = members[0]["start"], members[1]["start"]
        moved = one != plain[0]["start"]
        assert abs(float(moved.double().mean()) - spread) < 3.3 * 0.5 / 4000**0.5
        assert torch.equal(moved, other != plain[1]["start"])
        gap = (one - other).abs()[moved]
        # The range of five uniform numbers: mean 2/3, variance 2/63.
        tolerance = 3.3 * (2 / 63 / len(gap)) ** 0.5
        assert abs(float(gap.mean()) - 2 / 3) < tolerance
        assert abs(float((one < other)[moved].double().mean()) - 0.5) < 1.7 / len(gap) ** 0.5
        for a, b in zip(members[2:], plain[2:], strict=True):
            assert torch.equal(a["start"], b["start"])


def test_batch_mates_and_padding_mean_nothing_to_any_view(regions: str) -> None:
    module = MULTI[regions](augment_long=Gain(), augment_short=Speed(), spread=0.5)
    keys = keys_of(8)
    expected = module(ramps(), LENGTHS, keys)
    order = torch.tensor([6, 0, 3])
    part = module(ramps()[order], torch.tensor(LENGTHS)[order], keys[order])
    assert_same(part, [(x[order], after[order]) for x, after in expected])
    wide = torch.full((8, 1234), float("inf"))
    wide[:, :900] = ramps(padding=float("inf"))
    assert_same(module(wide, LENGTHS, keys), expected)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_both_ways_give_the_same_crops(
    regions: str, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = MULTI[regions](spread=spread)
    x, keys, lengths = ramps(), keys_of(8), torch.tensor(LENGTHS)
    expected = module(x, lengths, keys)
    batched_path(monkeypatch)
    with NoValueIsRead():
        got = module(x, lengths, keys)
    assert [x.shape[1] for x, _ in got] == [400] * 2 + [200] * 4
    assert_same(got, expected)
    with NoValueIsRead():  # nor is any crop wider than what it is of
        assert [x.shape[1] for x, _ in module(x[:, :300].nan_to_num(), None, keys)] == [300] * 2 + [
            200
        ] * 4


def test_all_views_trace_to_one_graph() -> None:
    then = RandomCrop(1, sample_rate=RATE)
    module = MULTI["disjoint"](long=1, short=1, augment_short=then)
    x, keys, lengths = ramps(padding=0.0), keys_of(8), torch.tensor(LENGTHS)
    expected = module(x, lengths, keys)
    # Not of the draws, which take long to trace and are those of one crop.
    crops_of = torch.compile(module.replay, backend="eager", fullgraph=True)
    got = crops_of(x, lengths, module.parameters_for(keys))
    assert [y.shape[1] for y, _ in got] == [400, 100]
    assert_same(got, expected)


def test_replay_gives_the_same_crops(regions: str) -> None:
    module = MULTI[regions](augment_long=Gain(), spread=0.5)
    keys = keys_of(8)
    drawn = module.parameters_for(keys)
    assert len(drawn) == 8
    expected = module(ramps(), LENGTHS, keys)
    assert_same(module.replay(ramps(), LENGTHS, drawn), expected)
    assert_same(pickle.loads(pickle.dumps(module))(ramps(), LENGTHS, keys), expected)
    assert_same(copy.deepcopy(module)(ramps(), LENGTHS, keys), expected)
    for wrong in (drawn.rows(slice(0, 4)), MULTI[regions](short=1).parameters_for(keys)):
        with pytest.raises(ArgumentError, match="parameters: wants those of 8 samples and 6 crops"):
            module.replay(ramps(), LENGTHS, wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_crops_keep_dtype_and_carry_no_gradient(dtype: torch.dtype) -> None:
    x = ramps().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        crops = MultiCrop(sample_rate=RATE, augment_long=Polarity())(x, LENGTHS, keys_of(8))
    expected = MultiCrop(sample_rate=RATE)(ramps(), LENGTHS, keys_of(8))
    for (crop, _), (plain, _) in zip(crops, expected, strict=True):
        assert crop.dtype == dtype
        assert not crop.requires_grad
        assert torch.equal(crop.abs(), plain.to(dtype))


def test_a_crop_of_all_is_a_copy() -> None:
    x = ramps([50, 50])
    [(crop, _)] = MultiCrop(1, 0, sample_rate=RATE)(x, None, keys_of(2))
    crop.zero_()
    assert torch.equal(x, ramps([50, 50]))


def test_babble_is_of_the_batch() -> None:
    module = MultiCrop(sample_rate=RATE, augment_short=Babble())
    crops = module(ramps([400, 400]), None, keys_of(2))
    assert all(bool(x.isfinite().all()) for x, _ in crops)


def test_reprs() -> None:
    assert repr(RandomCrop((1, 3), p=0.5)) == "RandomCrop(seconds=(1, 3), p=0.5)"
    assert "long=2, short=4, long_seconds=4" in repr(MultiCrop(augment_long=Gain()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seconds": 0}, ArgumentError, "seconds: wants"),
        ({"seconds": (3, 1)}, ArgumentError, "seconds: wants .* the least first"),
        ({"seconds": "3"}, ArgumentTypeError, "seconds: wants a number"),
        ({"seconds": 1, "sample_rate": 0}, ArgumentError, "sample_rate: wants"),
        ({"seconds": 1, "p": 2}, ArgumentError, "p: wants a probability"),
    ],
)
def test_bad_arguments_of_one(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RandomCrop(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"long": 0}, ArgumentError, "long: wants 1 to 64, got 0"),
        ({"long": 2.0}, ArgumentTypeError, "long: wants an integer"),
        ({"short": -1}, ArgumentError, "short: wants 0 to 64, got -1"),
        ({"long_seconds": 0}, ArgumentError, "long_seconds: wants"),
        ({"short_seconds": 5}, ArgumentError, "short_seconds: wants 6.25e-05 to 4, got 5"),
        ({"short_seconds": "2"}, ArgumentTypeError, "short_seconds: wants a number"),
        ({"regions": "both"}, ArgumentError, "regions: wants"),
        ({"regions": "disjoint", "short": 0}, ArgumentError, "regions: .* wants short crops"),
        ({"spread": 1.5}, ArgumentError, "spread: wants a number from 0 to 1"),
        ({"spread": 0.5, "long": 3}, ArgumentError, "spread: is for two long crops"),
        ({"augment_long": torch.nn.ReLU()}, ArgumentTypeError, "augment_long: .* got ReLU"),
        ({"augment_short": 3}, ArgumentTypeError, "augment_short: .* got int"),
    ],
)
def test_bad_arguments_of_several(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultiCrop(**arguments)


def test_bad_batches_are_named(regions: str) -> None:
    module, x, keys = MULTI[regions](), ramps(), keys_of(8)
    with pytest.raises(ArgumentError, match=r"waveforms: wants shape \(B, T\)"):
        module(x[None], LENGTHS, keys)
    with pytest.raises(ArgumentTypeError, match="waveforms: wants floats"):
        module(x.long(), LENGTHS, keys)
    with pytest.raises(ArgumentError, match=r"keys: wants shape \(8,\), got \(7,\)"):
        module(x, LENGTHS, keys[:7])
    with pytest.raises(ArgumentTypeError, match="keys: wants int64"):
        module(x, LENGTHS, keys.float())
    with pytest.raises(LengthError, match="lengths"):
        module(x, [0] * 8, keys)
    with pytest.raises(ArgumentError, match="waveforms: sample 1 has NaN or infinity"):
        module(x, None, keys)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(regions: str) -> None:
    module = MULTI[regions](spread=0.5)
    x, lengths, keys = ramps(), torch.tensor(LENGTHS), keys_of(8)
    one = RandomCrop((0.5, 3), sample_rate=RATE)
    expected = [*module(x, lengths, keys), one(x, lengths, keys)]
    x, lengths = x.cuda(), lengths.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = [*module(x, lengths, keys), one(x, lengths, keys)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same([(a.cpu(), n.cpu()) for a, n in got], expected)


def test_on_a_grid_every_place_of_it_is_as_likely():
    crop = RandomCrop(0.5, grid=30, sample_rate=RATE)
    count = 4000
    waveforms = torch.arange(200.0)[None].expand(count, -1)
    cut, lengths = crop(waveforms, torch.full((count,), 199), keys_of(count))
    starts = cut[:, 0].to(torch.int64)
    assert (lengths == 50).all()
    places, counts = starts.unique(return_counts=True)
    assert places.tolist() == [0, 30, 60, 90, 120]  # 149 is the last, and not on the grid
    assert (counts - count / 5).abs().max() < 5 * (count * 0.16) ** 0.5
    first, after = crop.place(torch.full((count,), 199), crop.parameters_for(keys_of(count)))
    assert torch.equal(first, starts)
    assert torch.equal(after, lengths)


def test_a_grid_is_a_whole_number():
    with pytest.raises(ArgumentError, match="grid: wants 1 sample or more, got 0"):
        RandomCrop(1.0, grid=0)
    with pytest.raises(ArgumentTypeError, match=r"grid: wants an integer, got 2\.5"):
        RandomCrop(1.0, grid=2.5)
