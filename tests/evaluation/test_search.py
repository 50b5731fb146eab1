"""Alignments against every path there is, against slow programmes, and against dtw-python."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation import search
from speechft.evaluation.search import dtw_distance, dtw_distances, subsequence_dtw

DISTANCES = ("cosine", "cosine_exp", "angular")


def frame_distance(u, v, distance):
    norm = math.sqrt(math.fsum(x * x for x in u)) * math.sqrt(math.fsum(x * x for x in v))
    cosine = math.fsum(x * y for x, y in zip(u, v, strict=True)) / norm if norm else 0.0
    cosine = max(-1.0, min(1.0, cosine))
    if distance == "angular":
        return math.acos(cosine) / math.pi
    return 1 - cosine if distance == "cosine" else math.exp(1 - cosine) - 1


def frame_distances(x, y, distance="cosine"):
    rows, columns = x.double().tolist(), y.double().tolist()
    return [[frame_distance(u, v, distance) for v in columns] for u in rows]


def query_paths(n, m):
    """The document frame of each of n query frames, in every way there is."""
    for start in range(m):
        for steps in itertools.product((0, 1, 2), repeat=n - 1):
            path = [start, *itertools.accumulate(steps, initial=start)][1:]
            if path[-1] < m:
                yield path


def whole_paths(n, m):
    """Cells from the first to the last, in every way there is."""
    if (n, m) == (1, 1):
        yield [(0, 0)]
    for before in ((n - 1, m), (n, m - 1), (n - 1, m - 1)):
        if min(before) > 0:
            for path in whole_paths(*before):
                yield [*path, (n - 1, m - 1)]


def slow_score(d):
    """By memoised recursion on the definition."""
    n, m = len(d), len(d[0])
    best = {(0, j): d[0][j] for j in range(m)}
    for i, j in itertools.product(range(1, n), range(m)):
        best[i, j] = d[i][j] + min(best[i - 1, k] for k in (j - 2, j - 1, j) if k >= 0)
    return -min(best[n - 1, j] for j in range(m)) / n


def slow_distance(d):
    """The least (sum, cells), and its mean."""
    n, m = len(d), len(d[0])
    best = {}
    for i, j in itertools.product(range(n), range(m)):
        before = [best[k] for k in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if k in best]
        total, cells = min(before, default=(0, 0))
        best[i, j] = total + d[i][j], cells + 1
    return best[n - 1, m - 1][0] / best[n - 1, m - 1][1]


def sequences(lengths, channels, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, channels, generator=generator, dtype=dtype) for n in lengths]


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_best_of_all_paths(distance):
    for n, m in itertools.product(range(1, 6), range(1, 6)):
        x, y = sequences((n, m), 3, seed=10 * n + m)
        d = frame_distances(x, y, distance)
        want = max(-sum(d[i][j] for i, j in enumerate(p)) / n for p in query_paths(n, m))
        got = subsequence_dtw([x], [y], distance=distance)
        assert float(got) == pytest.approx(want, abs=1e-12)
        sums = {tuple(p): sum(d[i][j] for i, j in p) for p in whole_paths(n, m)}
        path = min(sums, key=sums.get)
        want = sums[path] / len(path)
        assert dtw_distance(x, y, distance=distance) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_of_equally_cheap_paths_the_shortest(seed):
    """Frames along the axes: distances are 0 and 1, and most paths are tied."""
    draw = np.random.default_rng(seed)
    n, m = draw.integers(1, 6, 2)
    x, y = (torch.eye(2)[torch.from_numpy(draw.integers(0, 2, k))] for k in (n, m))
    d = [[Fraction(int((u != v).any())) for v in y] for u in x]
    paths = [(sum(d[i][j] for i, j in p), len(p)) for p in whole_paths(n, m)]
    total, cells = min(paths)
    assert dtw_distance(x, y) == pytest.approx(total / cells, abs=1e-7)
    assert dtw_distance(y, x) == dtw_distance(x, y)


@pytest.mark.parametrize(
    ("dtype", "distance"),
    [
        (torch.float64, "cosine"),
        (torch.float64, "cosine_exp"),
        (torch.float64, "angular"),
        (torch.float32, "cosine_exp"),
        (torch.float16, "cosine"),
    ],
)
def test_ragged_lists(dtype, distance, monkeypatch):
    """More than one block, some items longer than one."""
    monkeypatch.setattr(search, "_ROWS", 40)
    monkeypatch.setattr(search, "_COLUMNS", 50)
    a = sequences((5, 1, 20, 12, 18, 45, 7), 4, seed=1, dtype=dtype)
    b = sequences((30, 11, 1, 2, 55, 9), 4, seed=2, dtype=dtype)
    scores = subsequence_dtw(a, b, distance=distance)
    distances = dtw_distances(a, b, distance=distance)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        d = frame_distances(x, y, distance)
        assert float(scores[i, j]) == pytest.approx(slow_score(d), abs=tolerance)
        assert float(distances[i, j]) == pytest.approx(slow_distance(d), abs=tolerance)
    assert scores.dtype == distances.dtype == torch.promote_types(dtype, torch.float32)
    turned = dtw_distances(b, a, distance=distance).T
    torch.testing.assert_close(turned, distances, atol=tolerance, rtol=0)


def test_the_range_of_every_query_frame():
    for seed in range(10):
        x, y = sequences((7, 15), 4, seed=seed)
        d = frame_distances(x, y, "cosine_exp")
        for row in d:
            low, high = min(row), max(row)
            row[:] = [(cell - low) / (high - low) for cell in row]
        got = subsequence_dtw([x], [y], distance="cosine_exp", minmax=True)
        assert float(got) == pytest.approx(slow_score(d), abs=1e-12)
    one = subsequence_dtw([x], [y[:1]], minmax=True)  # a range of nothing
    assert float(one) == 0.0


def test_a_query_is_found_where_it_is_spoken():
    (query, *parts) = sequences((20, 33, 41, 50), 16, seed=3, dtype=torch.float32)
    said = torch.cat([parts[0], query, parts[1]])
    faster = torch.cat([parts[0], query[::2], parts[1]])  # half the frames
    slower = torch.cat([parts[0], query.repeat_interleave(2, 0), parts[1]])
    scores = subsequence_dtw([query], [said, faster, slower, parts[2], query[5:9]])[0]
    assert scores[0] == pytest.approx(0.0, abs=1e-6)
    assert scores[2] == pytest.approx(0.0, abs=1e-6)
    assert scores[[0, 2, 1]].min() > scores[[3, 4]].max()


def test_the_score_does_not_grow_with_the_query():
    (query, document) = sequences((10, 30), 4, seed=5)
    long = query.repeat_interleave(3, 0)
    held = document.repeat_interleave(3, 0)
    short = float(subsequence_dtw([query], [document]))
    assert float(subsequence_dtw([long], [held])) == pytest.approx(short, rel=0.2)


@pytest.mark.parametrize("distance", DISTANCES)
def test_threads_and_batch_mates_change_nothing(distance, monkeypatch):
    monkeypatch.setattr(search, "_ROWS", 80)
    a = sequences((50, 31, 77, 12, 8), 64, seed=6, dtype=torch.float32)
    b = sequences((300, 1200, 950, 20), 64, seed=7, dtype=torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append((subsequence_dtw(a, b, distance=distance), dtw_distances(a, b)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert torch.equal(other[1], found[0][1])
    alone = subsequence_dtw(a[2:3], b[1:2], distance=distance)
    assert float(alone) == pytest.approx(float(found[0][0][2, 1]), abs=1e-6)


def test_only_directions_count():
    x, y = sequences((4, 9), 5, seed=8, dtype=torch.float32)
    want = subsequence_dtw([x], [y])
    for factor in (1e-30, 1e30):
        torch.testing.assert_close(subsequence_dtw([x * factor], [y]), want)
    assert dtw_distance(x, x) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_rounding_makes_no_distance_negative_or_nan(distance):
    frames = list(torch.randn(300, 1, 24, generator=torch.Generator().manual_seed(0)))
    found = dtw_distances(frames, frames, distance=distance)  # cosines of 1 and a bit
    assert (found >= 0).all()
    assert (subsequence_dtw(frames, frames, distance=distance) <= 0).all()


@pytest.mark.parametrize(
    ("distance", "value"), [("cosine", 1), ("cosine_exp", math.e - 1), ("angular", 0.5)]
)
def test_a_frame_of_zeros_is_at_right_angles_to_all(distance, value):
    zeros, ones = torch.zeros(3, 4), torch.ones(2, 4)
    for x, y in ((zeros, ones), (ones, zeros), (zeros, zeros)):
        assert float(subsequence_dtw([x], [y], distance=distance)) == pytest.approx(-value)
        assert dtw_distance(x, y, distance=distance) == pytest.approx(value)


def test_against_dtw_python():
    dtw = pytest.importorskip("dtw").dtw
    for seed in range(20):
        n, m = np.random.default_rng(seed).integers(2, 40, 2)
        x, y = sequences((n, m), 8, seed=seed)
        d = np.array(frame_distances(x, y))
        if m >= 3:  # dtw-python wants to end after the first frames
            found = dtw(d, step_pattern="asymmetric", open_begin=True, open_end=True)
            score = float(subsequence_dtw([x], [y]))
            assert score == pytest.approx(-found.normalizedDistance, abs=1e-12)
        found = dtw(d, step_pattern="symmetric1")
        assert dtw_distance(x, y) == pytest.approx(found.distance / len(found.index1), abs=1e-12)


def test_progress(capsys):
    x, y = sequences((4, 9), 5, seed=9)
    subsequence_dtw([x], [y, y], progress=True)
    assert "aligning" in capsys.readouterr().err
    subsequence_dtw([x], [y, y], progress=False)
    assert not capsys.readouterr().err


def test_numba_and_jiwer_are_imported_when_needed():
    heavy = ("numba", "jiwer", "sklearn")
    code = (
        "import sys, speechft.evaluation.metrics, speechft.evaluation.search; "
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not run.stdout.strip()


FRAMES = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("a", "b", "error", "said"),
    [
        ([], [FRAMES], ArgumentError, "{0}: wants at least one tensor"),
        ([FRAMES], [], ArgumentError, "{1}: wants at least one tensor"),
        ([FRAMES], [FRAMES.long()], ArgumentTypeError, "{1}: .* got torch.int64 at 0"),
        ([FRAMES, [1.0]], [FRAMES], ArgumentTypeError, "{0}: .* got list at 1"),
        ([FRAMES, FRAMES[:0]], [FRAMES], ArgumentError, r"{0}: .* got \(0, 4\) at 1"),
        ([FRAMES[0]], [FRAMES], ArgumentError, r"{0}: .* got \(4,\) at 0"),
        ([FRAMES], [FRAMES, FRAMES[:, :3]], ArgumentError, "{1}: wants 4 channels .* got 3 at 1"),
        ([FRAMES], [FRAMES * math.nan], NonFiniteError, "{1}: the tensor at 0 holds NaN"),
        ([FRAMES / 0], [FRAMES], NonFiniteError, "{0}: the tensor at 0 holds NaN or inf"),
    ],
)
def test_bad_input(a, b, error, said):
    for function, names in (
        (subsequence_dtw, ("queries", "documents")),
        (dtw_distances, ("items_a", "items_b")),
    ):
        with pytest.raises(error, match=said.format(*names)):
            function(a, b)


def test_unknown_distance():
    with pytest.raises(ArgumentError, match=r"distance: wants one of 'cosine'.*got 'cos'"):
        subsequence_dtw([FRAMES], [FRAMES], distance="cos")
