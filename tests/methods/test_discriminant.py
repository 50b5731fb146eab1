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


# Recordings: one factor known and no other


def recordings(people: int = 7, takes: int = 9, first: int = 20) -> Tensor:
    """Speakers numbered with gaps, one of them with fewer takes, texts unknown."""
    speaker = (first + 3 * torch.arange(people)).repeat_interleave(takes)[:-4]
    return torch.stack([speaker, torch.full_like(speaker, -1)], 1)


def joined() -> tuple[Tensor, Tensor]:
    """A grid whose voices are numbered after the people, then recordings, of another mean."""
    factors = torch.cat([GRIDS["holed"] + torch.tensor([50, 3]), recordings()])
    features = speech(factors, noise=1.0)
    features[len(GRIDS["holed"]) :] += 4
    return features, factors


@pytest.mark.parametrize(("share", "weight"), [(0.0, 1.0), (0.3, 1.0), (0.7, 5.0)])
def test_recordings_join_the_eigenproblem(share, weight):
    features, factors = joined()
    size = len(GRIDS["holed"])
    tables, left = effects(features[:size], GRIDS["holed"])
    scatters = [(table.T @ table / len(table)).numpy() for table in tables]
    x, who = features[size:].double().numpy(), factors[size:, 0].numpy()
    own = [x[who == person] for person in np.unique(who)]
    between = np.cov(np.stack([mine.mean(0) for mine in own]).T, bias=True)
    within = np.mean([np.cov(mine.T, bias=True) for mine in own], 0)
    signal = (1 - share) * scatters[0] + share * between
    grid_noise = weight * scatters[1] + (left.T @ left).numpy() / size
    noise = (1 - share) * grid_noise + share * within
    order = torch.randperm(len(factors), generator=torch.Generator().manual_seed(4))
    w, bias = directions(
        features[order], factors[order], 0, 3, recorded_share=share, noise_weight=weight
    )
    gains, found = scipy.linalg.eigh(signal, noise)
    rows = w.double().numpy()
    for row, best in zip(rows, found.T[::-1], strict=False):
        sign = np.sign(best[np.abs(best).argmax()])
        np.testing.assert_allclose(row, sign * best, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.diag(rows @ signal @ rows.T), gains[::-1][:3], rtol=1e-4)
    # As far from the one corpus as from the other, people counting alike.
    middle = np.mean([mine.mean(0) for mine in own], 0)
    ends = rows @ np.stack([features[:size].double().numpy().mean(0), middle]).T
    np.testing.assert_allclose(ends[:, 0] + bias.numpy(), -(ends[:, 1] + bias.numpy()), atol=1e-4)


def test_directions_keep_off_what_varies_within_people():
    """Voices differ along two axes alike; people along the second, and along the first at will."""
    generator = torch.Generator().manual_seed(8)
    grid = full(24, 30)
    axes = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    voices = 2 * torch.randn(24, 2, generator=generator) @ axes[:2]
    texts = torch.randn(30, 3, generator=generator) @ axes[2:5]
    features = voices[grid[:, 0]] + texts[grid[:, 1]]
    features = features + 0.1 * torch.randn(len(grid), 10, generator=generator)
    people = recordings(12, 40, first=24)
    means = 2 * torch.randn(12, 1, generator=generator) @ axes[1:2]
    takes = 5 * torch.randn(len(people), 1, generator=generator) @ axes[:1]
    recorded = means[(people[:, 0] - 24) // 3] + takes
    recorded = recorded + 0.1 * torch.randn(len(people), 10, generator=generator)
    x, factors = torch.cat([features, recorded]), torch.cat([grid, people])

    def first(share: float) -> float:
        weight, _ = directions(x, factors, 0, 1, recorded_share=share)
        moved = weight[0] @ axes[:2].T
        return float(moved[0].abs() / moved.norm())

    assert first(0.0) > 0.2
    assert first(0.2) < 0.05


def test_recordings_leave_the_other_factor_alone():
    features, factors = joined()
    size = len(GRIDS["holed"])
    alone = directions(features[:size], GRIDS["holed"], 1, 3)
    both = directions(features, factors, 1, 3, recorded_share=0.5)
    assert torch.equal(alone[0], both[0])
    assert torch.equal(alone[1], both[1])
    # Nor does a share matter where nothing was recorded.
    for share in (0.0, 0.9):
        same = directions(features[:size], factors[:size], 0, 3, recorded_share=share)
        assert torch.equal(same[0], directions(features[:size], GRIDS["holed"], 0, 3)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recorded_share": 1.0}, "recorded_share.*0 to below 1, got 1.0"),
        ({"recorded_share": -0.1}, "recorded_share.*0 to below 1, got -0.1"),
        ({"noise_weight": 0.0}, "noise_weight.*above 0, got 0.0"),
        ({"noise_weight": float("nan")}, "noise_weight.*above 0, got nan"),
    ],
)
def test_a_share_or_a_weight_out_of_range_is_an_error(changes, message):
    with pytest.raises(ArgumentError, match=message):
        directions(*joined(), 0, 2, **changes)


def test_recordings_alone_are_no_grid():
    factors = recordings()
    with pytest.raises(ArgumentError, match=r"factors.*no sample has two factors known"):
        directions(speech(factors), factors, 0, 2, recorded_share=0.5)
