"""Grouping of vectors: principal directions, k-means, and agglomeration from a matrix of scores.

float64, numpy in and out. k-means is scikit-learn's and average linkage is scipy's, which comes
with it (the extra ``evaluate``); both are imported when called.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechft.errors import ArgumentError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_MANY = 100_000  # vectors from which k-means takes them in batches
_BLOCK = 1 << 22  # numbers in memory at once where the whole is not needed
_INSTALL = "clustering needs scikit-learn: pip install 'speechft[evaluate]'"


def principal(vectors: Floats, variance: float) -> Floats:
    """Centred vectors (N, D) along the fewest principal directions with this share of variance.

    The sign of a direction is such that its largest entry is positive.

    Raises:
        ArgumentError: all vectors are the same.
    """
    centred = vectors - vectors.mean(0)
    energy, basis = np.linalg.eigh(centred.T @ centred / len(centred))
    energy, basis = energy[::-1].clip(min=0), basis[:, ::-1]
    size = float(np.square(vectors).mean(0).sum())
    if not energy.sum() > 1e-20 * size:  # what rounding leaves of vectors that are the same
        raise ArgumentError("vectors", "are all the same; wants vectors that differ")
    share = np.cumsum(energy) / energy.sum()
    # Rounding of the sum must not add directions of no variance when all of it is asked for.
    kept = int(np.searchsorted(share, variance - 1e-12)) + 1
    basis = basis[:, : min(kept, basis.shape[1])]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0)
    projected: Floats = centred @ (basis * np.sign(largest))
    return projected


def unit(vectors: Floats) -> Floats:
    """Rows of length 1; one that is zero stays, and is unlike every other."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.where(length > 0, length, 1.0)
    return scaled


def means(vectors: Floats, labels: Integers, count: int) -> Floats:
    """The mean vector of each label, (count, D); every label from 0 has a vector."""
    # Sorted by label, a sum over neighbours: the order within is that of the vectors.
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels, minlength=count)
    sums = np.add.reduceat(vectors[order], np.cumsum(sizes) - sizes, axis=0)
    found: Floats = sums / sizes[:, None]
    return found


def k_means(vectors: Floats, count: int, seed: int) -> Integers:
    """Labels (N,) from 0 of at most ``count`` groups, none of them empty.

    Lloyd's algorithm from k-means++; in batches beyond 100 000 vectors.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    with warnings.catch_warnings():
        # Vectors that are the same leave groups empty; they are dropped below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(vectors) > _MANY:
            batch = max(4096, count)
            model = MiniBatchKMeans(count, batch_size=batch, n_init=1, random_state=seed)
        else:
            model = KMeans(count, n_init=1, random_state=seed)
        found = model.fit(vectors).labels_
    return numbered(found)


def agglomerate(
    count: int,
    similarity: Callable[[slice], Floats],
    least: float,
    clusters: int | None,
) -> Integers:
    """Labels (count,) of items that average linkage put together.

    Again and again the two groups with the highest mean similarity between their items become one:
    until it is below ``least``, or until there are ``clusters`` groups if that is given. Every item
    counts once, whatever it stands for. At its peak it holds ``8 count^2`` bytes: the distances of
    pairs, and the copy that scipy works on.

    Args:
        count: C.
        similarity: (rows, C) of some of the items to all of them, symmetric.
        least: similarity to go on for.
        clusters: to end with.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.cluster.hierarchy import linkage  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    if count == 1:
        return np.zeros(1, np.int64)
    # The upper triangle without the diagonal, row after row. Linkage wants distances, of which it
    # looks at the order and the means alone: the negative similarity, raised above zero, will do.
    distances = np.empty(count * (count - 1) // 2)
    place, rows = 0, max(1, _BLOCK // count)
    for start in range(0, count, rows):
        block = similarity(slice(start, min(start + rows, count)))
        for row, values in enumerate(block, start):
            distances[place : place + count - row - 1] = values[row + 1 :]
            place += count - row - 1
    highest = float(distances.max())
    np.subtract(highest, distances, out=distances)
    merges = linkage(distances, "average")
    if clusters is None:
        number = int((merges[:, 2] <= highest - least).sum())
    else:
        number = count - clusters
    # Node count + i is what merge i made. From the last made to the first, each knows its top.
    top = np.arange(count + number)
    for made in range(number - 1, -1, -1):
        top[merges[made, :2].astype(np.int64)] = top[count + made]
    return numbered(top[:count])


def numbered(labels: NDArray[np.integer]) -> Integers:
    """Labels from 0 in the order in which they first occur."""
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    found: Integers = place[codes]
    return found


def posterior(vectors: Floats, labels: Integers) -> Floats:
    r"""How probable the own label of each vector is, (N,), by the Gaussians of all labels.

    .. math:: p_i = \frac{n_{k_i} N(x_i; m_{k_i}, S)}{\sum_k n_k N(x_i; m_k, S)},

    with the sizes n and means m of the groups, and one diagonal S of all: the variance within
    groups. A group of eight has too few for a variance of its own.
    """
    count = int(labels.max()) + 1
    if count == 1:
        return np.ones(len(vectors))
    centres = means(vectors, labels, count)
    sizes = np.bincount(labels, minlength=count)
    within = np.square(vectors - centres[labels]).sum(0) / max(len(vectors) - count, 1)
    # Where nothing varies within groups, distances count a millionth of what they are overall.
    within = np.maximum(within, 1e-6 * vectors.var(0).mean())
    x, m = vectors / np.sqrt(within), centres / np.sqrt(within)
    offset = np.log(sizes) - 0.5 * np.square(m).sum(1)
    found = np.empty(len(vectors))
    rows = max(1, _BLOCK // count)
    for start in range(0, len(vectors), rows):
        part = slice(start, start + rows)
        logits = x[part] @ m.T + offset  # what all labels have in common is left out
        logits -= logits.max(1, keepdims=True)
        own = np.take_along_axis(logits, labels[part, None], 1)[:, 0]
        found[part] = np.exp(own) / np.exp(logits).sum(1)
    return found


def free_memory() -> int:
    """Bytes that this process may still take, as far as the system says."""
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines.get("MemAvailable", f"{free >> 10} kB").split()[0]) << 10
    if (group / "memory.max").exists() and (group / "memory.current").exists():
        most = (group / "memory.max").read_text().strip()
        if most.isdigit():  # else "max"
            free = min(free, int(most) - int((group / "memory.current").read_text()))
    return max(free, 0)
