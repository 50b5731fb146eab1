"""Masks on features, against a loop over what was drawn."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from augment.test_face import NoValueIsRead
from speechft import lengths as lengths_module
from speechft.augment import Parameters, make_keys
from speechft.augment import spec_augment as spec_augment_module
from speechft.augment.spec_augment import SpecAugment
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError, NonFiniteError
from speechft.functional import _checks as checks_module

LENGTHS = [120, 80, 1, 33, 5, 119, 64, 100]
BINS = 20
MAKERS = {
    "defaults": lambda: SpecAugment(frequency_width=(0, 8)),
    "zero": lambda: SpecAugment((1, 3), (2, 30), (0, 2), 3, fill="zero", max_time_share=0.2),
    "some": lambda: SpecAugment(frequency_width=(0, 8), p=0.5, max_time_share=0.5),
    "time": lambda: SpecAugment(frequency_masks=0),
    "frequency": lambda: SpecAugment(0, frequency_width=5),
}


@pytest.fixture(params=sorted(MAKERS))
def module(request: pytest.FixtureRequest) -> SpecAugment:
    return MAKERS[request.param]()


def batch(padding: float = float("nan")) -> tuple[Tensor, Tensor, Tensor]:
    features = 2 + torch.rand(8, 120, BINS, generator=torch.Generator().manual_seed(0))
    for row, n in enumerate(LENGTHS):
        features[row, n:] = padding
    return features, torch.tensor(LENGTHS), make_keys(0, 0, torch.arange(8))


def batched_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way that looks at no values, which is a GPU's."""
    monkeypatch.setattr(spec_augment_module, "values_are_at_hand", lambda tensor: False)
    for each in (checks_module, lengths_module):
        monkeypatch.setattr(each, "values_are_checked", lambda tensor: False)


def masked_by_hand(module: SpecAugment, drawn: Parameters, row: int, n: int) -> Tensor:
    """(n, F): which entries the drawn numbers mask."""
    masked = torch.zeros(n, BINS, dtype=torch.bool)
    if not drawn["applied"][row]:
        return masked
    for name, size, most, where in (
        ("time", n, int(module.max_time_share * n), masked),
        ("frequency", BINS, BINS, masked.T),
    ):
        for mask in range(int(drawn[f"{name}_count"][row])):
            width = min(int(drawn[f"{name}_width"][row, mask]), most)
            start = math.floor(float(drawn[f"{name}_start"][row, mask]) * (size - width + 1))
            where[start : start + width] = True
    return masked


def test_what_is_drawn_is_masked_and_nothing_else(module: SpecAugment) -> None:
    features, lengths, keys = batch()
    untouched = features.clone()
    out, after = module(features, lengths, keys)
    assert torch.equal(after, lengths)
    assert out.shape == features.shape
    assert torch.equal(features.nan_to_num(), untouched.nan_to_num())
    drawn = module.parameters_for(keys)
    share = 0.0
    for row, n in enumerate(LENGTHS):
        masked = masked_by_hand(module, drawn, row, n)
        clean, found = features[row, :n], out[row, :n]
        assert torch.equal(found[~masked], clean[~masked])
        fill = float(clean.double().mean()) if module.fill == "mean" else 0.0
        torch.testing.assert_close(
            found[masked], torch.full_like(found[masked], fill), rtol=1e-7, atol=0
        )
        assert not out[row, n:].any()
        share += float(masked.double().mean()) / 8
    assert 0.05 < share < 0.95


def test_the_defaults_are_those_of_the_paper() -> None:
    module = SpecAugment()
    drawn = module.parameters_for(make_keys(0, 0, torch.arange(20000)))
    assert drawn["time_count"].unique().tolist() == [2]
    assert drawn["frequency_count"].unique().tolist() == [2]
    assert bool(drawn["applied"].all())
    for name, most, limit in (("time", 100, 149.4), ("frequency", 27, 55.5)):
        counts = torch.bincount(drawn[f"{name}_width"].flatten())
        assert len(counts) == most + 1  # both ends
        expected = 40000 / (most + 1)
        # Passed once in a thousand times, for 100 and for 27 degrees of freedom.
        assert float(((counts - expected) ** 2 / expected).sum()) < limit
    columns = [
        drawn[f"{name}_{what}"].double()
        for name in ("time", "frequency")
        for what in ("width", "start")
    ]
    correlation = torch.corrcoef(torch.cat(columns, dim=1).T) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / 20000**0.5


def test_every_place_is_as_likely() -> None:
    """A mask 3 wide has 10 places in 12 frames of 15, whatever the padding."""
    count = 10000
    module = SpecAugment(1, 3, 1, 2, fill="zero")
    out, _ = module(torch.ones(count, 15, 11), [12] * count, make_keys(0, 0, torch.arange(count)))
    frames, bins = out.amax(dim=2)[:, :12], out.amax(dim=1)
    assert (frames == 0).sum(dim=1).unique().tolist() == [3]
    assert (bins == 0).sum(dim=1).unique().tolist() == [2]
    for empty in (frames == 0, bins == 0):
        counts = torch.bincount(empty.int().argmax(dim=1), minlength=10)
        assert len(counts) == 10
        # 9 degrees of freedom: 27.9 is passed once in a thousand times.
        assert float(((counts - count / 10) ** 2 / (count / 10)).sum()) < 27.9


@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 1.0])
def test_a_time_mask_is_no_wider_than_its_share(share: float) -> None:
    module = SpecAugment(1, 100, 0, max_time_share=share, fill="zero")
    lengths = torch.arange(1, 101)
    out, _ = module(torch.ones(100, 100, 3), lengths, make_keys(0, 0, torch.arange(100)))
    masked = lengths - out[:, :, 0].sum(dim=1).long()
    assert torch.equal(masked, (lengths.double() * share).floor().long())


def test_some_samples_only() -> None:
    count = 10000
    module = SpecAugment(1, 1, 0, fill="zero", p=0.3)
    out, _ = module(torch.ones(count, 4, 2), None, make_keys(0, 0, torch.arange(count)))
    touched = (out == 0).any(dim=2).any(dim=1).double().mean()
    assert abs(float(touched) - 0.3) < 3.3 * (0.21 / count) ** 0.5


def test_batch_mates_and_padding_mean_nothing(module: SpecAugment) -> None:
    features, lengths, keys = batch()
    expected, _ = module(features, lengths, keys)
    for row, n in enumerate(LENGTHS):
        alone, _ = module(features[row : row + 1, :n], None, keys[row : row + 1])
        assert torch.equal(alone[0], expected[row, :n])
    wide = torch.full((8, 333, BINS), -float("inf"))
    wide[:, :120] = batch(padding=float("inf"))[0]
    got, _ = module(wide, LENGTHS, keys)
    assert torch.equal(got[:, :120], expected)
    assert not got[:, 120:].any()
    strided = features.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    torch.testing.assert_close(module(strided, lengths, keys)[0], expected, rtol=1e-6, atol=0)


def test_both_ways_agree_and_nobody_waits(
    module: SpecAugment, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, lengths, keys = batch()
    expected, _ = module(features, lengths, keys)
    batched_path(monkeypatch)
    with NoValueIsRead():
        got, after = module(features, lengths, keys)
    assert torch.equal(after, lengths)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_traces_to_one_graph() -> None:
    features, lengths, keys = batch(padding=0.0)
    module = MAKERS["defaults"]()
    expected, _ = module(features, lengths, keys)
    # Not of the draws, which take long to trace and are those of every augmentation.
    masked = torch.compile(module.replay, backend="eager", fullgraph=True)
    got, after = masked(features, lengths, module.parameters_for(keys))
    assert torch.equal(after, lengths)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_gradients_pass_where_nothing_is_masked(fill: str) -> None:
    features, lengths, keys = batch()
    module = SpecAugment(1, (5, 30), 1, (1, 4), fill=fill)  # type: ignore[arg-type]
    drawn = module.parameters_for(keys)
    features.requires_grad_()
    out, _ = module(features, lengths, keys)
    weights = torch.rand(out.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((out * weights).sum(), features)
    for row, n in enumerate(LENGTHS):
        kept = ~masked_by_hand(module, drawn, row, n)
        assert torch.equal(gradient[row, :n], weights[row, :n] * kept)
        assert not gradient[row, n:].any()


def test_replay_is_the_call(module: SpecAugment) -> None:
    features, lengths, keys = batch()
    expected, _ = module(features, lengths, keys)
    drawn = module.parameters_for(keys)
    assert torch.equal(module.replay(features, lengths, drawn)[0], expected)
    none = drawn.replace(applied=torch.zeros(8, dtype=torch.bool))
    assert torch.equal(module.replay(features, lengths, none)[0], batch(padding=0.0)[0])
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module.eval()))):
        assert torch.equal(twin(features, lengths, keys)[0], expected)
    assert not module.state_dict()
    with pytest.raises(ArgumentError, match="parameters: wants those of 8 samples, got those of 3"):
        module.replay(features, lengths, drawn.rows(slice(0, 3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(module: SpecAugment, dtype: torch.dtype) -> None:
    features, lengths, keys = batch()
    rounded = features.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = module(rounded, lengths, keys)
    expected, _ = module(rounded.double(), lengths, keys)
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))


def test_a_mean_of_large_features_is_exact() -> None:
    """Half precision could not hold the sum."""
    features = torch.full((1, 3000, 80), 100.0, dtype=torch.float16)
    out, _ = SpecAugment(1, 50, 0)(features, None, torch.tensor([1]))
    assert torch.equal(out, features)


def test_reprs() -> None:
    assert repr(SpecAugment(p=0.5, max_time_share=0.2)) == (
        "SpecAugment(time_masks=2, time_width=(0, 100), frequency_masks=2, "
        'frequency_width=(0, 27), max_time_share=0.2, fill="mean", p=0.5)'
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"time_masks": -1}, ArgumentError, "time_masks: wants 0 to 64"),
        ({"time_masks": 1.5}, ArgumentTypeError, "time_masks: wants whole numbers"),
        ({"time_width": (5, 1)}, ArgumentError, "time_width: wants .* the least first"),
        ({"frequency_masks": "2"}, ArgumentTypeError, "frequency_masks: wants a number"),
        ({"frequency_width": (-1, 3)}, ArgumentError, "frequency_width: wants 0 to"),
        ({"max_time_share": 1.1}, ArgumentError, "max_time_share: wants a number from 0 to 1"),
        ({"fill": "noise"}, ArgumentError, 'fill: wants "mean" or "zero"'),
        ({"p": True}, ArgumentError, "p: wants a number from 0 to 1"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SpecAugment(**arguments)


def test_bad_batches_are_named() -> None:
    module = MAKERS["defaults"]()
    features, lengths, keys = batch()
    with pytest.raises(ArgumentError, match=r"features: wants shape \(B, T, F\)"):
        module(features[0], None, keys)
    for wrong in (features.long(), features.numpy()):
        with pytest.raises(ArgumentTypeError, match="features: wants"):
            module(wrong, lengths, keys)
    with pytest.raises(ArgumentError, match=r"keys: wants shape \(8,\), got \(7,\)"):
        module(features, lengths, keys[:7])
    with pytest.raises(ArgumentTypeError, match="keys: wants int64"):
        module(features, lengths, keys.int())
    with pytest.raises(LengthError, match="lengths"):
        module(features, [121] * 8, keys)
    with pytest.raises(NonFiniteError, match="features: holds nan at"):
        module(features, None, keys)
    with pytest.raises(ArgumentError, match="frequency_width: goes up to 27 bins"):
        SpecAugment()(features, lengths, keys)
    # All bins is what was asked for, and no masks reach nowhere.
    SpecAugment(frequency_width=BINS)(features, lengths, keys)
    SpecAugment(frequency_masks=0)(features, lengths, keys)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(module: SpecAugment) -> None:
    features, lengths, keys = batch()
    expected, _ = module(features, lengths, keys)
    features, lengths = features.cuda(), lengths.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got, _ = module(features, lengths, keys)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-6, atol=0)
