"""Lengths: every convention in, one meaning out, and errors for what is no length."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import speechft
from speechft import Lengths, errors
from speechft import lengths as lengths_module
from speechft.lengths import check_lengths

batches = st.lists(st.integers(1, 300), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(batches, st.integers(0, 50))
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_every_convention_means_the_same(values: list[int], more_padding: int) -> None:
    steps = max(values) + more_padding
    valid = torch.tensor([[step < value for step in range(steps)] for value in values])
    made = [
        Lengths(values),
        Lengths(torch.tensor(values)),
        Lengths(torch.tensor(values, dtype=torch.uint8 if steps < 256 else torch.int16)),
        Lengths.from_hf(valid.long()),
        Lengths.from_hf(valid),
        Lengths.from_padding_mask(~valid),
        Lengths.from_relative([value / steps for value in values], steps),
        Lengths.from_relative(torch.tensor(values) / steps, steps),
        Lengths.from_list([torch.zeros(value, 2) for value in values]),
        Lengths.from_nested(torch.nested.nested_tensor([torch.zeros(v, 2) for v in values])),
        Lengths.from_nested(
            torch.nested.nested_tensor([torch.zeros(v, 2) for v in values], layout=torch.jagged)
        ),
    ]
    for lengths in made:
        assert lengths.values.dtype == torch.int64
        assert lengths.values.tolist() == values
        assert len(lengths) == len(values)
    assert torch.equal(made[0].to_mask(steps), valid)
    assert torch.equal(made[0].to_padding_mask(steps), ~valid)
    torch.testing.assert_close(made[0].to_relative(steps), torch.tensor(values) / steps)
    assert Lengths.from_relative(made[0].to_relative(steps), steps).values.tolist() == values


@settings(deadline=None)
@given(st.integers(1, 2**22), st.data())
def test_relative_lengths_are_inverted_exactly(steps: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(1, steps))
    relative = Lengths([value]).to_relative(steps)
    assert relative.dtype == torch.float32
    assert Lengths.from_relative(relative, steps).values.tolist() == [value]


def test_a_model_converts_samples_to_frames() -> None:
    class Halving:
        def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
            return sample_lengths // 2

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert Lengths.from_hf(mask, Halving()).values.tolist() == [2, 1]
    with pytest.raises(errors.LengthError, match="sample 1 has length 0"):
        Lengths.from_hf(torch.tensor([[1, 1], [1, 0]]), Halving())


MASK = torch.tensor([[1, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Lengths([3, 0]), errors.LengthError, "lengths: sample 1 has length 0"),
        (lambda: Lengths([-1]), errors.LengthError, "sample 0 has length -1"),
        (lambda: Lengths([]), errors.LengthError, r"B >= 1, got \(0,\)"),
        (lambda: Lengths(torch.ones(2, 2).long()), errors.LengthError, r"got \(2, 2\)"),
        (lambda: Lengths(torch.tensor(3)), errors.LengthError, r"wants shape \(B,\)"),
        (lambda: Lengths([0.5]), errors.ArgumentTypeError, "from_relative"),
        (lambda: Lengths(torch.tensor([True])), errors.ArgumentTypeError, "from_hf"),
        (lambda: Lengths.from_hf(MASK), errors.LengthError, "valid steps after padding"),
        (lambda: Lengths.from_hf(MASK * 2), errors.ArgumentError, "zeros and ones"),
        (lambda: Lengths.from_hf(MASK[0]), errors.ArgumentError, r"wants shape \(B, T\)"),
        (lambda: Lengths.from_hf(MASK * 0), errors.LengthError, "sample 0 has length 0"),
        (lambda: Lengths.from_padding_mask(MASK == 1), errors.LengthError, "padding_mask"),
        (lambda: Lengths.from_relative([1], 4), errors.ArgumentTypeError, "fractions"),
        (lambda: Lengths.from_relative([1.5], 4), errors.LengthError, r"\(0, 1\]"),
        (lambda: Lengths.from_relative([0.0], 4), errors.LengthError, r"\(0, 1\]"),
        (lambda: Lengths.from_relative([float("nan")], 4), errors.LengthError, r"\(0, 1\]"),
        (lambda: Lengths.from_list([]), errors.LengthError, "is empty"),
        (lambda: Lengths.from_list([torch.zeros(0)]), errors.LengthError, "length 0"),
        (lambda: Lengths.from_nested(MASK), errors.ArgumentTypeError, "nested"),
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_check_lengths() -> None:
    def check(lengths: Any) -> Tensor | None:
        return check_lengths(
            lengths, batch=2, steps=5, device=torch.device("cpu"), argument="x_lengths"
        )

    assert check(None) is None
    for good in ([5, 1], torch.tensor([5, 1], dtype=torch.int32), Lengths([5, 1])):
        checked = check(good)
        assert checked is not None
        assert checked.dtype == torch.int64
        assert checked.tolist() == [5, 1]
    for bad, message in (
        ([5, 6], r"x_lengths: sample 1 has length 6; wants 1 to 5"),
        ([0, 5], r"x_lengths: sample 0 has length 0"),
        ([5], r"x_lengths: wants shape \(2,\), got \(1,\)"),
        (Lengths([5, 6]), r"x_lengths: sample 1 has length 6"),
    ):
        with pytest.raises(errors.LengthError, match=message):
            check(bad)
    with pytest.raises(errors.ArgumentTypeError, match="x_lengths: wants integers"):
        check([0.5, 1.0])
    # Errors of the library are caught by who knows only Python's own.
    with pytest.raises(ValueError):
        check([5])


def test_on_another_device_values_are_not_looked_at() -> None:
    meta = torch.tensor([1, 2]).to("meta")
    checked = check_lengths(meta, batch=2, steps=1, device=meta.device, argument="lengths")
    assert checked is not None
    assert checked.device.type == "meta"
    moved = check_lengths([5, 1], batch=2, steps=5, device=meta.device, argument="lengths")
    assert moved is not None
    assert moved.device.type == "meta"
    with pytest.raises(errors.LengthError, match="sample 1 has length 9"):
        check_lengths([5, 9], batch=2, steps=5, device=meta.device, argument="lengths")


def test_lengths_inside_a_compiled_function() -> None:
    def masked_sum(x: Tensor, lengths: Tensor) -> Tensor:
        return (x * Lengths(lengths).to_mask(x.shape[1])).sum(1)

    compiled = torch.compile(masked_sum, backend="eager", fullgraph=True)
    x, lengths = torch.rand(2, 6), torch.tensor([6, 2])
    assert torch.equal(compiled(x, lengths), masked_sum(x, lengths))


def test_the_examples_in_the_documentation() -> None:
    assert speechft.Lengths is Lengths
    results = doctest.testmod(lengths_module)
    assert results.attempted > 0
    assert results.failed == 0
