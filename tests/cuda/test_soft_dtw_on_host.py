"""The CUDA soft-DTW kernels, run on the host by `cuda_on_host.h`, against their float64 definition.

What this proves: the recursion, the wavefront's indices, the hand-over between warps and strips,
bands, lengths, and that no result hangs on the order in which warps run. What it cannot: the weaker
memory order of a GPU, and speed.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from host_library import (
    FIXED,
    FLOAT,
    FORWARD,
    RANDOM,
    REVERSE,
    SOURCES,
    Segment,
    build,
    compiler,
    run,
)
from numpy.typing import NDArray

if compiler() is None:
    pytest.skip("no C++ compiler to build the kernels for the host", allow_module_level=True)

Matrix = NDArray[np.float64]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("cuda_on_host"))


def definition(
    cost: NDArray[np.float32], gamma: float, bandwidth: int = -1
) -> tuple[float, Matrix]:
    """R[n, m] and its gradient, from absolute R in float64 and the softmin's own weights."""
    n, m = cost.shape
    inside = [
        [bandwidth < 0 or abs(i * m - j * n) <= bandwidth * max(n, m) for j in range(m + 1)]
        for i in range(n + 1)
    ]
    R = [[math.inf] * (m + 1) for _ in range(n + 1)]
    weights = [[(0.0, 0.0, 0.0)] * (m + 2) for _ in range(n + 2)]
    R[0][0] = 0.0
    D = cost.astype(np.float64).tolist()
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = (R[i - 1][j - 1], R[i - 1][j], R[i][j - 1])
            least = min(before)
            if not inside[i][j] or least == math.inf:
                continue
            parts = [math.exp((least - r) / gamma) for r in before]
            total = sum(parts)
            R[i][j] = D[i - 1][j - 1] + least - gamma * math.log(total)
            weights[i][j] = (parts[0] / total, parts[1] / total, parts[2] / total)
    E = [[0.0] * (m + 2) for _ in range(n + 2)]
    if R[n][m] < math.inf:
        E[n][m] = 1.0
    for i in range(n, 0, -1):
        for j in range(m, 0, -1):
            E[i][j] += (
                weights[i + 1][j + 1][0] * E[i + 1][j + 1]
                + weights[i + 1][j][1] * E[i + 1][j]
                + weights[i][j + 1][2] * E[i][j + 1]
            )
    return R[n][m], np.asarray(E)[1 : n + 1, 1 : m + 1]


def assert_close(
    value: float,
    alignment: NDArray[np.float32],
    expected: tuple[float, Matrix],
    *,
    gamma: float,
    weight_bytes: int,
) -> None:
    """Hold one pair to the error model.

    A path of at most n + m cells multiplies as many weights, each with an error of its own: 2 to 3
    units of 2^-23 as float32 (the special functions', and the rounding), 2^-16 as fixed point. They
    add up as a random walk. The value is a sum in float64 of increments rounded to float32.
    """
    n, m = alignment.shape
    step = 2.0**-16 if weight_bytes == FIXED else 2.0**-23
    walk = math.sqrt(n + m)
    assert value == pytest.approx(expected[0], rel=3e-7, abs=2e-7 * gamma * (n + m))
    np.testing.assert_allclose(alignment, expected[1], rtol=0, atol=step * walk)
    # A path meets every row and every column, and starts and ends in the corners.
    assert alignment.min() >= 0
    assert alignment.sum(0).min() >= 1 - step * walk
    assert alignment.sum(1).min() >= 1 - step * walk
    assert alignment[0, 0] == pytest.approx(1, abs=step * walk)
    assert alignment[-1, -1] == 1


def random_cost(n: int, m: int, *, scale: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Costs in [0, scale), nearly free along a crooked path, so that alignments are not trivial."""
    rng = np.random.default_rng([seed, n, m])
    rows = (np.arange(n) + 0.5)[:, None] / n
    columns = (np.arange(m) + 0.5) / m
    valley = np.abs(rows**1.3 - columns)
    return (scale * (0.7 * rng.random((n, m)) + 0.3 * valley)).astype(np.float32)


SHAPES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 2),
    (3, 64),  # a whole strip
    (64, 3),
    (9, 65),  # one column more
    (33, 31),
    (70, 90),
    (40, 129),  # three strips, the last of one column
    (5, 300),  # more strips than rows
    (20, 600),  # more strips than warps: second rounds
    (150, 40),
]


@cache
def expected_of(n: int, m: int, gamma: float) -> tuple[float, Matrix]:
    return definition(random_cost(n, m), gamma)


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("weight_bytes", [FLOAT, FIXED])
def test_one_pair(library: ctypes.CDLL, n: int, m: int, weight_bytes: int) -> None:
    pair = Segment(random_cost(n, m)[None])
    run(library, [pair], gamma=0.1, weight_bytes=weight_bytes)
    assert_close(
        float(pair.value[0]),
        pair.alignment[0],
        expected_of(n, m, 0.1),
        gamma=0.1,
        weight_bytes=weight_bytes,
    )


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_scales(library: ctypes.CDLL, gamma: float, scale: float) -> None:
    cost = random_cost(45, 70, scale=scale)
    pair = Segment(cost[None])
    run(library, [pair], gamma=gamma)
    assert_close(
        float(pair.value[0]),
        pair.alignment[0],
        definition(cost, gamma),
        gamma=gamma,
        weight_bytes=FLOAT,
    )


def test_costs_below_zero(library: ctypes.CDLL) -> None:
    cost = random_cost(50, 40) - np.float32(0.5)
    pair = Segment(cost[None])
    run(library, [pair], gamma=0.1)
    expected = definition(cost, 0.1)
    assert_close(float(pair.value[0]), pair.alignment[0], expected, gamma=0.1, weight_bytes=FLOAT)


@pytest.mark.parametrize("weight_bytes", [FLOAT, FIXED])
def test_long_sequences_keep_their_digits(library: ctypes.CDLL, weight_bytes: int) -> None:
    """Where the recursion on R loses them: R is 10^4 gamma here, with a float32 step of 10^-3."""
    cost = random_cost(400, 130)
    pair = Segment(cost[None])
    run(library, [pair], gamma=0.01, weight_bytes=weight_bytes)
    assert_close(
        float(pair.value[0]),
        pair.alignment[0],
        definition(cost, 0.01),
        gamma=0.01,
        weight_bytes=weight_bytes,
    )


@pytest.mark.parametrize(
    ("n", "m", "bandwidth"),
    [
        (60, 60, 0),  # the diagonal alone
        (60, 60, 1),
        (90, 41, 1),
        (41, 90, 1),
        (30, 150, 2),  # crosses strips
        (150, 70, 4),
        (20, 600, 1),  # every strip has other rows; second rounds
        (97, 130, 20),
        (70, 66, 65),  # leaves out two corners
        (40, 30, 30),  # as wide as the shorter sequence: no band at all
        (1, 9, 1),
        (9, 1, 1),
    ],
)
def test_band(library: ctypes.CDLL, n: int, m: int, bandwidth: int) -> None:
    cost = random_cost(n, m)
    expected = definition(cost, 0.1, bandwidth)
    for order, weight_bytes in ((FORWARD, FLOAT), (REVERSE, FIXED)):
        pair = Segment(cost[None])
        run(
            library,
            [pair],
            gamma=0.1,
            bandwidth=bandwidth,
            weight_bytes=weight_bytes,
            order=order,
        )
        assert_close(
            float(pair.value[0]),
            pair.alignment[0],
            expected,
            gamma=0.1,
            weight_bytes=weight_bytes,
        )
        assert (pair.alignment[0][expected[1] == 0] == 0).all()


@pytest.mark.parametrize(("n", "m"), [(5, 9), (90, 70), (1, 2)])
def test_a_band_without_a_path(library: ctypes.CDLL, n: int, m: int) -> None:
    pair = Segment(random_cost(n, m)[None])
    run(library, [pair], gamma=0.1, bandwidth=0)
    assert pair.value[0] == math.inf
    assert (pair.alignment == 0).all()


def ragged(
    sizes: list[tuple[int, int]], N: int, M: int, padding: float, *, seed: int = 0
) -> Segment:
    cost = np.full((len(sizes), N, M), padding, np.float32)
    for b, (n, m) in enumerate(sizes):
        cost[b, :n, :m] = random_cost(n, m, seed=seed + b)
    lengths = np.asarray(sizes, np.int64)
    return Segment(cost, lengths[:, 0].copy(), lengths[:, 1].copy())


SIZES = [(50, 140), (1, 1), (37, 64), (50, 5), (2, 129), (31, 65)]


@pytest.mark.parametrize("bandwidth", [-1, 3])
@pytest.mark.parametrize("padding", [math.nan, math.inf, -1e30])
def test_lengths(library: ctypes.CDLL, padding: float, bandwidth: int) -> None:
    """Nothing leaks from the padding, and the padding of the alignment is exactly zero."""
    batch = ragged(SIZES, 50, 140, padding)
    run(library, [batch], gamma=0.1, bandwidth=bandwidth)
    for b, (n, m) in enumerate(SIZES):
        expected = definition(batch.cost[b, :n, :m], 0.1, bandwidth)
        alignment = batch.alignment[b]
        assert_close(
            float(batch.value[b]), alignment[:n, :m], expected, gamma=0.1, weight_bytes=FLOAT
        )
        assert (alignment[n:] == 0).all()
        assert (alignment[:, m:] == 0).all()


def test_padding_and_neighbours_change_no_bit(library: ctypes.CDLL) -> None:
    small, large = ragged(SIZES, 50, 140, math.nan), ragged(SIZES, 77, 201, math.nan)
    run(library, [small], gamma=0.1)
    run(library, [large], gamma=0.1)
    alone = Segment(small.cost[2:3, :37, :64].copy())
    run(library, [alone], gamma=0.1)
    assert (small.value == large.value).all()
    assert (small.alignment == large.alignment[:, :50, :140]).all()
    assert alone.value[0] == small.value[2]
    assert (alone.alignment[0] == small.alignment[2, :37, :64]).all()


def test_lengths_out_of_range_do_no_harm(library: ctypes.CDLL) -> None:
    """Callers check lengths, on a GPU only when asked to: here none may reach out of bounds."""
    batch = Segment(
        np.repeat(random_cost(12, 20)[None], 4, axis=0),
        np.array([0, 12, -3, 99], np.int64),
        np.array([20, 0, 5, 2**40], np.int64),
    )
    run(library, [batch], gamma=0.1)
    assert (batch.value[:3] == math.inf).all()
    assert (batch.alignment[:3] == 0).all()
    expected = definition(batch.cost[3], 0.1)
    assert_close(float(batch.value[3]), batch.alignment[3], expected, gamma=0.1, weight_bytes=FLOAT)


def divergence() -> list[Segment]:
    x, y = [40, 9, 33], [80, 66, 1]
    return [
        ragged(list(zip(x, y, strict=True)), 40, 80, math.nan),
        ragged(list(zip(x, x, strict=True)), 40, 40, math.nan, seed=10),
        ragged(list(zip(y, y, strict=True)), 80, 80, math.nan, seed=20),
    ]


@pytest.mark.parametrize("weight_bytes", [FLOAT, FIXED])
def test_three_segments_in_one_launch(library: ctypes.CDLL, weight_bytes: int) -> None:
    together = divergence()
    run(library, together, gamma=0.1, weight_bytes=weight_bytes)
    for segment, alone in zip(together, divergence(), strict=True):
        run(library, [alone], gamma=0.1, weight_bytes=weight_bytes)
        assert (segment.value == alone.value).all()
        assert (segment.alignment == alone.alignment).all()


@pytest.mark.parametrize("weight_bytes", [FLOAT, FIXED])
def test_pairs_share_no_scratch(library: ctypes.CDLL, weight_bytes: int) -> None:
    """Blocks run one after another here, on a GPU at once: what each leaves must all be there."""
    together = run(library, divergence(), gamma=0.1, weight_bytes=weight_bytes)
    alone = []
    for segment in divergence():
        assert segment.x_lengths is not None
        assert segment.y_lengths is not None
        for b in range(3):
            pair = Segment(
                segment.cost[b : b + 1], segment.x_lengths[b : b + 1], segment.y_lengths[b : b + 1]
            )
            alone.append(run(library, [pair], gamma=0.1, weight_bytes=weight_bytes))
    assert (together == np.concatenate(alone)).all()


def test_value_alone(library: ctypes.CDLL) -> None:
    both, alone = ragged(SIZES, 50, 140, math.nan), ragged(SIZES, 50, 140, math.nan)
    run(library, [both], gamma=0.1)
    run(library, [alone], gamma=0.1, with_alignment=False)
    assert (both.value == alone.value).all()
    assert np.isnan(alone.alignment).all()


@pytest.mark.parametrize("order", [FORWARD, REVERSE])
def test_alignment_on_top_of_the_cost(library: ctypes.CDLL, order: int) -> None:
    apart, on_top = ragged(SIZES, 50, 140, math.nan), ragged(SIZES, 50, 140, math.nan)
    run(library, [apart], gamma=0.1)
    run(library, [on_top], gamma=0.1, in_place=True, order=order)
    assert (apart.value == on_top.value).all()
    assert (apart.alignment == on_top.cost).all()


@pytest.mark.parametrize("bandwidth", [-1, 3])
def test_the_order_of_the_warps_changes_no_bit(library: ctypes.CDLL, bandwidth: int) -> None:
    """With more strips than warps and more rows than the ring, so that every hand-over is met."""
    first = Segment(random_cost(45, 530)[None])
    run(library, [first], gamma=0.1, bandwidth=bandwidth)
    for order, seed in ((REVERSE, 1), (RANDOM, 1), (RANDOM, 2)):
        again = Segment(first.cost)
        run(library, [again], gamma=0.1, bandwidth=bandwidth, order=order, seed=seed)
        assert (first.value == again.value).all()
        assert (first.alignment == again.alignment).all()


def test_device(library: ctypes.CDLL) -> None:
    """The launch runs on the device it is given and leaves the current one as it was."""
    pair = Segment(random_cost(3, 3)[None])
    run(library, [pair], gamma=0.1, device=1)
    assert library.current_device() == 0
    with pytest.raises(RuntimeError, match="device"):
        run(library, [pair], gamma=0.1, device=7)
    assert library.why_not() == b""


def test_refusals(library: ctypes.CDLL) -> None:
    pair = Segment(random_cost(3, 3)[None])
    with pytest.raises(RuntimeError, match="gamma"):
        run(library, [pair], gamma=0.0)
    with pytest.raises(RuntimeError, match="gamma"):
        run(library, [pair], gamma=math.nan)
    with pytest.raises(RuntimeError, match="bandwidth"):
        run(library, [pair], gamma=1.0, bandwidth=-2)
    with pytest.raises(RuntimeError, match="workspace"):
        run(library, [pair], gamma=1.0, workspace_short_by=1)
    with pytest.raises(RuntimeError, match="weight_bytes"):
        run(library, [pair], gamma=1.0, weight_bytes=2)
    with pytest.raises(RuntimeError, match="segments"):
        run(library, [pair] * 4, gamma=1.0)
    with pytest.raises(RuntimeError, match="131072"):
        run(library, [Segment(np.zeros((1, 1, 131073), np.float32))], gamma=1.0)


def test_the_header_is_plain_cxx(tmp_path: Path) -> None:
    """Whoever binds the kernels needs no CUDA header."""
    source = tmp_path / "includes.cpp"
    source.write_text('#include "soft_dtw.h"\nint main() { return 0; }\n')
    cxx = compiler()
    assert cxx is not None
    command = [cxx, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    done = subprocess.run([*command, f"-I{SOURCES}", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
