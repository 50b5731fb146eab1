"""What holds for every augmentation: the face, the keys, the padding, bad input."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import speechft
from speechft import backends
from speechft import lengths as lengths_module
from speechft.augment import (
    AddNoise,
    Augmentation,
    BandDrop,
    Clip,
    Compose,
    Equaliser,
    Gain,
    HighPass,
    LowPass,
    MuLaw,
    OneOf,
    Pitch,
    Polarity,
    Quantise,
    RandomCrop,
    Reverb,
    RoomBank,
    SomeOf,
    Speed,
    Tempo,
    TimeDrop,
    Voice,
    fold_in,
    make_keys,
)
from speechft.augment.keys import MEMBER
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError

MAKERS: dict[str, Callable[[], Augmentation]] = {
    "speed": lambda: Speed((0.9, 1.0, 1.1)),
    "pitch": lambda: Pitch((-2, 0, 2)),
    "both": lambda: Compose([Speed(), Pitch()]),
    "samples": lambda: Compose(
        [Gain(), Polarity(), AddNoise(), Clip(), TimeDrop(seconds=0.01), Quantise(), MuLaw(p=0.5)]
    ),
    "filters": lambda: Compose([LowPass(p=0.5), HighPass(), BandDrop((0, 2)), rooms()]),
    "tempo": lambda: Tempo((0.9, 1.0, 1.1)),
    "equaliser": lambda: Equaliser(p=0.8),
    "voice": lambda: Voice(p=0.8),
    "crop": lambda: Compose([RandomCrop((0.05, 0.2)), Gain()]),
    "babble of a bank": lambda: AddNoise(voices=(2, 4), p=0.8),
    "all kinds": lambda: Compose(
        [
            OneOf([Speed((0.9, 1.1)), Pitch(), Clip()]),
            SomeOf([AddNoise(), rooms(), Gain(), TimeDrop()], (1, 3)),
        ],
        p=0.9,
    ),
}


def rooms() -> Reverb:
    return Reverb(RoomBank.simulated(2, seconds=0.05))


LENGTHS = [3000, 4000, 1, 2500, 513, 4000, 1234, 37]


@pytest.fixture(params=sorted(MAKERS))
def augmentation(request: pytest.FixtureRequest) -> Augmentation:
    return MAKERS[request.param]()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    waveforms = torch.randn(8, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    return waveforms, torch.tensor(LENGTHS), make_keys(0, 0, torch.arange(8))


def batched_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way that looks at no values, which is a GPU's."""
    for name, module in list(sys.modules.items()):
        if name.startswith("speechft.augment.") and hasattr(module, "values_are_at_hand"):
            monkeypatch.setattr(module, "values_are_at_hand", lambda tensor: False)
    pointwise = sys.modules["speechft.functional.pointwise"]
    for module in (sys.modules["speechft.augment.base"], lengths_module, pointwise):
        monkeypatch.setattr(module, "values_are_checked", lambda tensor: False)
    convolve = sys.modules["speechft.functional.convolve"]
    monkeypatch.setattr(convolve, "_row_by_row", lambda waveforms: False)
    monkeypatch.setattr(backends._switches, "backend", "reference")


def test_alone_or_in_any_batch_the_bits_are_the_same(augmentation: Augmentation) -> None:
    x, lengths, keys = batch()
    y, after = augmentation(x, lengths, keys)
    order = torch.tensor([5, 2, 7, 0])
    part, part_after = augmentation(x[order], lengths[order], keys[order])
    assert torch.equal(part_after, after[order])
    for row, source in enumerate(order.tolist()):
        n = int(after[source])
        assert torch.equal(part[row, :n], y[source, :n])
        alone, length = augmentation(
            x[source : source + 1, : LENGTHS[source]], None, keys[source : source + 1]
        )
        assert length.tolist() == [n]
        assert torch.equal(alone[0], y[source, :n])


@pytest.mark.parametrize("way", ["per sample", "batched"])
@pytest.mark.parametrize("garbage", [1e3, float("nan"), float("inf")])
def test_padding_means_nothing(
    augmentation: Augmentation, way: str, garbage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "batched":
        batched_path(monkeypatch)
    x, lengths, keys = batch()
    expected, after = augmentation(x, lengths, keys)
    wide = torch.full((8, 5333), garbage)
    for row, n in enumerate(LENGTHS):
        wide[row, :n] = x[row, :n]
    untouched = wide.clone()
    got, got_after = augmentation(wide, lengths, keys)
    assert torch.equal(got_after, after)
    assert torch.equal(torch.nan_to_num(wide), torch.nan_to_num(untouched))
    for row, n in enumerate(after.tolist()):
        torch.testing.assert_close(got[row, :n], expected[row, :n], rtol=0, atol=1e-6)
        assert not got[row, n:].any()
        assert not expected[row, n:].any()
    if way == "per sample":
        assert got.shape[1] == int(after.max())


def test_both_ways_agree(augmentation: Augmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    x, lengths, keys = batch()
    expected, after = augmentation(x, lengths, keys)
    batched_path(monkeypatch)
    got, got_after = augmentation(x, lengths, keys)
    assert torch.equal(got_after, after)
    assert got.shape[1] >= expected.shape[1]
    torch.testing.assert_close(got[:, : expected.shape[1]], expected, rtol=0, atol=1e-6)


class NoValueIsRead(TorchDispatchMode):
    """Raises at each op that makes the host wait for a GPU, or carries something over to it."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITING), name
        return func(*args, **(kwargs or {}))


def test_a_gpu_is_never_waited_for(
    augmentation: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, lengths, keys = batch()
    batched_path(monkeypatch)
    augmentation(x, lengths, keys)  # the first call makes the filters
    with NoValueIsRead():
        y, after = augmentation(x, lengths, keys)
        nothing_given, _ = augmentation(x, None, keys)
    # The padded size is made of the padded size alone.
    bound = 4445 if "timing" in augmentation.changes else 4000
    if any(isinstance(module, RandomCrop) for module in augmentation.modules()):
        bound = 3200
    assert y.shape == nothing_given.shape == (8, bound)
    assert after.shape == (8,)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoValueIsRead():
        int(augmentation(x, lengths, keys)[1].max())


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(
    "make",
    [
        lambda: SomeOf([Speed((0.9, 1.1)), OneOf([rooms(), Gain()])], (1, 2)),
        pytest.param(MAKERS["all kinds"], marks=pytest.mark.slow),
    ],
    ids=["some kinds", "all kinds"],
)
def test_compiles_to_one_graph(make: Callable[[], Augmentation]) -> None:
    x, lengths, keys = batch()
    both = make()
    expected, after = both(x, lengths, keys)
    got, got_after = torch.compile(both, backend="eager", fullgraph=True)(x, lengths, keys)
    assert torch.equal(got_after, after)
    assert got.shape == (8, 4445)
    torch.testing.assert_close(got[:, : expected.shape[1]], expected, rtol=0, atol=1e-6)


def test_threads_change_no_bits(augmentation: Augmentation) -> None:
    x = torch.randn(2, 60000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(augmentation(x, None, torch.tensor([1, 6]))[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(augmentation: Augmentation, dtype: torch.dtype) -> None:
    x, lengths, keys = batch()
    x = x.to(dtype)
    y, after = augmentation(x, lengths, keys)
    assert y.dtype == dtype
    expected, expected_after = augmentation(x.float(), lengths, keys)
    assert torch.equal(after, expected_after)
    if dtype == torch.float64:
        torch.testing.assert_close(y.float(), expected, rtol=0, atol=2e-4)
    else:
        assert torch.equal(y, expected.to(dtype))


def test_autocast_and_casting_the_module_change_nothing(augmentation: Augmentation) -> None:
    x, lengths, keys = batch()
    expected = augmentation(x, lengths, keys)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmentation(x, lengths, keys)[0], expected)
    assert torch.equal(augmentation.bfloat16().eval()(x, lengths, keys)[0], expected)
    for twin in (copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))):
        assert torch.equal(twin(x, lengths, keys)[0], expected)
    assert not list(augmentation.parameters())
    assert not augmentation.state_dict()


def test_no_gradient_flows(augmentation: Augmentation) -> None:
    x, lengths, keys = batch()
    assert not augmentation(x.requires_grad_(), lengths, keys)[0].requires_grad


def test_strides_do_not_matter(augmentation: Augmentation) -> None:
    x, lengths, keys = batch()
    expected = augmentation(x, lengths, keys)[0]
    assert torch.equal(augmentation(x.T.contiguous().T, lengths, keys)[0], expected)


def test_lengths_in_every_form(augmentation: Augmentation) -> None:
    x, lengths, keys = batch()
    expected, after = augmentation(x, lengths, keys)
    for form in (LENGTHS, lengths.int(), speechft.Lengths(LENGTHS)):
        got, got_after = augmentation(x, form, keys)
        assert torch.equal(got, expected)
        assert got_after.dtype == torch.int64
        assert torch.equal(got_after, after)
    full, _ = augmentation(x, None, keys)
    assert torch.equal(full, augmentation(x, [4000] * 8, keys)[0])


@pytest.mark.parametrize(
    ("module", "values"),
    [(Speed((0.85, 0.9, 1.0, 1.1, 1.15)), 5), (Pitch((-2, 2)), 2), (Speed((1.0,)), 1)],
)
def test_choices_are_equally_likely(module: Speed | Pitch, values: int) -> None:
    drawn = module.parameters_for(make_keys(0, 0, torch.arange(10000)))[module.drawn]
    assert drawn.dtype == torch.float64
    found, counts = drawn.unique(return_counts=True)
    assert found.tolist() == sorted(module.values)
    expected = 10000 / values
    # Once in a thousand times it is more, for 1 and for 4 degrees of freedom.
    limit = {1: 1e-9, 2: 10.83, 5: 18.47}[values]
    assert float(((counts - expected) ** 2 / expected).sum()) < limit


def test_parameters_are_what_was_done() -> None:
    x, lengths, keys = batch()
    speed = Speed((0.8, 1.25))
    _, after = speed(x, lengths, keys)
    expected = torch.ceil(lengths / speed.parameters_for(keys)["factor"]).long()
    assert torch.equal(after, expected)
    assert speed.parameters_for(keys)["factor"].unique().numel() == 2


def test_members_of_a_compose_draw_for_themselves() -> None:
    keys = make_keys(0, 0, torch.arange(5000))
    drawn = Compose([Pitch(), Pitch(), Compose([Pitch()])]).parameters_for(keys).flat()
    first, second, third = (drawn[f"{name}.semitones"] for name in ("0", "1", "2.0"))
    for a, b in ((first, second), (first, third), (second, third)):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / 5000**0.5
    assert torch.equal(first, Pitch().parameters_for(fold_in(keys, 0, use=MEMBER))["semitones"])


def test_a_compose_is_its_members_in_order() -> None:
    x, lengths, keys = batch()
    same = Speed()
    y, after = Compose([same, same])(x, lengths, keys)
    step, step_after = same(x, lengths, fold_in(keys, 0, use=MEMBER))
    step, step_after = same(step, step_after, fold_in(keys, 1, use=MEMBER))
    assert torch.equal(after, step_after)
    assert torch.equal(y, step)


def test_an_empty_compose_only_clears_padding() -> None:
    x, lengths, keys = batch()
    y, after = Compose()(x, lengths, keys)
    assert torch.equal(after, lengths)
    assert torch.equal(y, x * speechft.Lengths(lengths).to_mask(4000))


def test_reprs() -> None:
    assert repr(Compose([Speed((0.9, 1.1)), Compose([Pitch()])])) == (
        "Compose([\n"
        "  Speed(factors=(0.9, 1.1), zero_crossings=80),\n"
        "  Compose([\n"
        "    Pitch(semitones=(-2.0, 2.0)),\n"
        "  ]),\n"
        "])"
    )


def test_bad_batches_are_named(augmentation: Augmentation) -> None:
    x, lengths, keys = batch()
    with pytest.raises(ArgumentError, match=r"waveforms: wants shape \(B, T\)"):
        augmentation(x[0], None, keys)
    with pytest.raises(ArgumentError, match=r"waveforms: wants shape \(B, T\)"):
        augmentation(x[:, :0], None, keys)
    for wrong in (x.long(), x.bool(), x.numpy()):
        with pytest.raises(ArgumentTypeError, match="waveforms: wants floats"):
            augmentation(wrong, lengths, keys)
    with pytest.raises(ArgumentError, match=r"keys: wants shape \(8,\), got \(7,\)"):
        augmentation(x, lengths, keys[:7])
    for wrong in (keys.int(), keys.float()):
        with pytest.raises(ArgumentTypeError, match="keys: wants int64"):
            augmentation(x, lengths, wrong)
    with pytest.raises(ArgumentTypeError, match="keys: wants an int64 tensor, got int"):
        augmentation(x, lengths, 3)
    for wrong in ([4001] + [1] * 7, [0] + [1] * 7, [1] * 7):
        with pytest.raises(LengthError, match="lengths"):
            augmentation(x, wrong, keys)
    with pytest.raises(ArgumentTypeError, match="lengths"):
        augmentation(x, lengths / 4000, keys)
    for value in (float("nan"), float("inf"), -float("inf")):
        x[3, 2499] = value
        with pytest.raises(ArgumentError, match="waveforms: sample 3 has NaN or infinity"):
            augmentation(x, lengths, keys)


def test_huge_but_finite_is_not_an_error() -> None:
    Speed()(torch.full((1, 1000), 1e38), None, torch.tensor([1]))


def test_a_compose_takes_augmentations_only() -> None:
    with pytest.raises(ArgumentTypeError, match="got ReLU at position 1"):
        Compose([Speed(), torch.nn.ReLU()])  # type: ignore[list-item]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(augmentation: Augmentation) -> None:
    x, lengths, keys = batch()
    expected, after = augmentation(x, lengths, keys)
    on_gpu = [tensor.cuda() for tensor in (x, lengths, keys)]
    augmentation(*on_gpu)  # the first call carries the filters over
    torch.cuda.set_sync_debug_mode("error")
    try:
        got, got_after = augmentation(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got_after.cpu(), after)
    torch.testing.assert_close(
        got.cpu()[:, : expected.shape[1]], expected, rtol=0, atol=2e-3, check_stride=False
    )
