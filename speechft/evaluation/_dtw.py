"""The dynamic programmes of :mod:`speechft.evaluation.search`, for numba to compile.

Each takes the distances of the frames of some items (rows) to those of others (columns), all in
one matrix, and fills a value for every pair of items. Sums are in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Starts = NDArray[np.int64]
"""Where each item begins among the frames of all, and where the last ends."""


def least_along_query(
    cells: NDArray[Any], rows: Starts, columns: Starts, minmax: bool, out: NDArray[Any]
) -> None:
    """Mean distance of a query frame on the best path, for each pair; numba compiles it."""
    widest = 0
    for document in range(len(columns) - 1):
        widest = max(widest, columns[document + 1] - columns[document])
    before, now = np.empty(widest + 2), np.empty(widest + 2)
    for query in range(len(rows) - 1):
        for document in range(len(columns) - 1):
            first, width = columns[document], columns[document + 1] - columns[document]
            before[: width + 2] = 0.0  # a path may begin anywhere
            for i in range(rows[query], rows[query + 1]):
                line = cells[i, first : first + width]
                low, scale = 0.0, 1.0
                if minmax:
                    low, high = np.inf, -np.inf
                    for cell in line:
                        low, high = min(low, cell), max(high, cell)
                    scale = 1.0 / max(high - low, 1e-9)
                now[:2] = np.inf  # there is no document frame before the first
                for j in range(width):
                    least = before[j + 1] if before[j + 1] < before[j] else before[j]
                    least = before[j + 2] if before[j + 2] < least else least
                    now[j + 2] = (line[j] - low) * scale + least
                before, now = now, before
            least = np.inf
            for j in range(width):
                least = min(least, before[j + 2])
            out[query, document] = least / (rows[query + 1] - rows[query])


def mean_along_path(cells: NDArray[Any], rows: Starts, columns: Starts, out: NDArray[Any]) -> None:
    """Mean distance on the path of the least sum, for each pair; numba compiles it."""
    widest = 0
    for b in range(len(columns) - 1):
        widest = max(widest, columns[b + 1] - columns[b])
    sums, counts = np.empty(widest + 1), np.empty(widest + 1)  # of the row before
    for a in range(len(rows) - 1):
        for b in range(len(columns) - 1):
            first, width = columns[b], columns[b + 1] - columns[b]
            sums[:] = np.inf
            counts[:] = 0.0
            sums[0] = 0.0
            for i in range(rows[a], rows[a + 1]):
                diagonal, diagonal_count = sums[0], counts[0]
                left, left_count = np.inf, 0.0
                sums[0] = np.inf  # only the first row begins there
                for j in range(width):
                    above, above_count = sums[j + 1], counts[j + 1]
                    least, count = diagonal, diagonal_count
                    if above < least or (above == least and above_count < count):
                        least, count = above, above_count
                    if left < least or (left == least and left_count < count):
                        least, count = left, left_count
                    diagonal, diagonal_count = above, above_count
                    left, left_count = least + cells[i, first + j], count + 1.0
                    sums[j + 1], counts[j + 1] = left, left_count
            out[a, b] = sums[width] / counts[width]


@functools.cache
def compiled(function: Callable[..., None]) -> Callable[..., None]:
    import numba

    # Not cached on disk: that wants a folder to write to, and compiling takes a second or two.
    compiled: Callable[..., None] = numba.njit(nogil=True)(function)
    return compiled
