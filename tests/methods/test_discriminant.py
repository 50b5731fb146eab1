"""The closed form: effects against dense least squares, directions against the eigenproblem."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from speechft.errors import ArgumentError
from speechft.methods.discriminant import directions, effects


def full(rows: int, columns: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def some(grid: Tensor, share: float, seed: int = 0) -> Tensor:
    """Cells of a grid, with every row and column still there."""
    kept = torch.rand(len(grid), generator=torch.Generator().manual_seed(seed)) < share
    return grid[kept | (grid[:, 0] == 0) | (grid[:, 1] == 0)]


def third(grid: Tensor, values: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([grid, torch.randint(values, (len(grid), 1), generator=generator)], 1)


def hidden(factors: Tensor, share: float, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return factors.masked_fill(torch.rand(factors.shape, generator=generator) < share, -1)


def blocks() -> Tensor:
    """Three grids that share no value."""
    one = full(4, 5)
    return torch.cat([one, some(one, 0.7) + torch.tensor([4, 5]), one + torch.tensor([8, 10])])


GRIDS = {
    "dense": full(5, 7),
    "holed": some(full(6, 8), 0.5),
    "several in a cell": full(4, 5).repeat(2, 1)[:33],
    "three factors": third(some(full(6, 7), 0.8), 3),
    "a staircase": torch.stack([torch.arange(39) // 2, torch.arange(1, 40) // 2], 1),
    "disconnected": blocks(),
    "one cell alone": torch.cat([full(3, 4), torch.tensor([[3, 4]])]),
    "unknown": hidden(full(6, 9), 0.1),
    "unknown of three": hidden(third(full(8, 9), 4), 0.1),
    "unknown in parts": hidden(blocks(), 0.1),
    "nothing known of some": torch.cat([full(3, 4), torch.full((2, 2), -1)]),
    "a factor not known at all": torch.cat([full(3, 4), torch.full((12, 1), -1)], 1),
}


def speech(factors: Tensor, size: int = 6, seed: int = 5, noise: float = 0.5) -> Tensor:
    """Effects of each value, a mean, and noise; what is unknown has an effect of its own."""
    generator = torch.Generator().manual_seed(seed)
    features = 3 + noise * torch.randn(len(factors), size, generator=generator)
    for column in factors.T:
        features += torch.randn(int(column.max()) + 2, size, generator=generator)[column]
    return features


def connected(factors: np.ndarray) -> np.ndarray:
    """The part of each sample, by walking from one to all that share a known value with it."""
    part = np.full(len(factors), -1)
    for start in range(len(factors)):
        walk = [start] if part[start] < 0 else []
        number = part.max() + 1
        while walk:
            here = walk.pop()
            part[here] = number
            shares = ((factors == factors[here]) & (factors >= 0)).any(1)
            walk += np.flatnonzero(shares & (part < 0)).tolist()
    return part


def dummies(labels: np.ndarray) -> np.ndarray:
    return (labels[:, None] == np.arange(max(labels.max() + 1, 0))).astype(np.float64)


@pytest.mark.parametrize("name", GRIDS)
def test_effects_are_the_dense_least_squares(name):
    factors = GRIDS[name]
    features = speech(factors)
    tables, left = effects(features, factors)
    assert left.dtype == torch.float64
    columns = [dummies(column) for column in factors.T.numpy()]
    parts = connected(factors.numpy())
    design = np.concatenate([dummies(parts), *columns], 1)
    x = features.double().numpy()
    fitted = design @ np.linalg.lstsq(design, x, rcond=None)[0]
    np.testing.assert_allclose(x - left.numpy(), fitted, atol=1e-6)
    # The effects say what was fitted, but for a mean of each part and each pattern of unknowns.
    told = sum(column @ table.numpy() for column, table in zip(columns, tables, strict=True))
    patterns = np.concatenate([parts[:, None], factors.numpy() >= 0], 1)
    for pattern in np.unique(patterns, axis=0):
        rest = (fitted - told)[(patterns == pattern).all(1)]
        np.testing.assert_allclose(rest, np.broadcast_to(rest[0], rest.shape), atol=1e-6)
    for column, table in zip(columns, tables, strict=True):  # of mean zero in each part
        for part in range(parts.max() + 1):
            mean = (column @ table.numpy())[parts == part].sum(0)
            np.testing.assert_allclose(mean, 0, atol=1e-8)


def test_effects_leave_their_input_alone():
    factors = GRIDS["holed"]
    features = speech(factors).double()
    before = features.clone()
    effects(features, factors)
    assert torch.equal(features, before)


@pytest.mark.parametrize("name", ["dense", "holed", "three factors", "unknown"])
@pytest.mark.parametrize("factor", [0, 1])
def test_directions_solve_the_eigenproblem(name, factor):
    factors = GRIDS[name]
    features = speech(factors)
    tables, left = effects(features, factors)
    scatters = [(table.T @ table / len(table)).numpy() for table in tables]
    noise = (left.T @ left / len(left)).numpy()
    noise = noise + sum(s for k, s in enumerate(scatters) if k != factor)
    weight, bias = directions(features, factors, factor, 3)
    assert weight.dtype == bias.dtype == torch.float32
    gains, found = scipy.linalg.eigh(scatters[factor], noise)
    w = weight.double().numpy()
    for row, best in zip(w, found.T[::-1], strict=False):
        sign = np.sign(best[np.abs(best).argmax()])
        np.testing.assert_allclose(row, sign * best, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w @ noise @ w.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(np.diag(w @ scatters[factor] @ w.T), gains[::-1][:3], rtol=1e-4)
    np.testing.assert_allclose((features @ weight.T + bias).mean(0).numpy(), 0, atol=1e-5)


def test_an_invertible_map_of_the_features_changes_no_score():
    factors = GRIDS["holed"]
    features = speech(factors, noise=1.0).double()
    generator = torch.Generator().manual_seed(9)
    mix = torch.randn(6, 6, generator=generator).double() + 3 * torch.eye(6).double()
    scores = []
    for x in (features, features @ mix + 7):
        weight, bias = directions(x, factors, 0, 4)
        scores.append(x @ weight.double().T + bias)
    one, two = scores
    sign = (one * two).sum(0).sign()
    torch.testing.assert_close(two, one * sign, rtol=1e-4, atol=1e-4)


def test_a_planted_direction_is_found():
    """Voices differ along one axis, texts and noise along others, and these are louder."""
    factors = full(12, 100)
    generator = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    voices = torch.linspace(-1, 1, 12)
    texts = 5 * torch.randn(100, 8, generator=generator)
    features = voices[factors[:, 0], None] * axes[0] + texts[factors[:, 1]] @ axes[1:9]
    features = features + 0.05 * torch.randn(len(factors), 16, generator=generator)
    weight, bias = directions(features, factors, 0, 2)
    cosine = torch.nn.functional.cosine_similarity(weight[0], axes[0], 0)
    assert abs(cosine) > 0.98
    score = (features @ weight.T + bias)[:, 0]
    correlation = torch.corrcoef(torch.stack([score, voices[factors[:, 0]]]))[0, 1]
    assert abs(correlation) > 0.99


def test_the_same_bits_again_and_signs_that_are_settled():
    factors = GRIDS["three factors"]
    features = speech(factors)
    one, two = (directions(features, factors, 0, 5) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert (one[0].gather(1, one[0].abs().argmax(1, keepdim=True)) > 0).all()
    # Less is the beginning of more.
    torch.testing.assert_close(directions(features, factors, 0, 2)[0], one[0][:2])


def test_features_without_full_rank_give_finite_directions():
    factors = GRIDS["dense"]
    features = speech(factors)
    weight, bias = directions(torch.cat([features, features[:, :2]], 1), factors, 0, 3)
    assert weight.isfinite().all()
    assert bias.isfinite().all()


@pytest.mark.parametrize(("factor", "size", "most"), [(0, 5, "5 and 6"), (1, 7, "7 and 6")])
def test_more_directions_than_there_are_is_an_error(factor, size, most):
    factors = GRIDS["dense"]
    with pytest.raises(ArgumentError, match=f"subspaces.*{size} dimensions.*there are {most}"):
        directions(speech(factors), factors, factor, size)
    directions(speech(factors), factors, factor, size - 1)
