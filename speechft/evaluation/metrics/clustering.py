r"""Clustering: do the clusters that were found say what the true classes say?

With :math:`n_{kj}` items of cluster k and class j out of n,

* **purity** is :math:`\frac{1}{n} \sum_k \max_j n_{kj}`, the share of items whose class is the
  commonest of their cluster. Clusters of one item each have 1: look at their number as well;
* **normalised mutual information** is :math:`\frac{2 I(K; J)}{H(K) + H(J)}`, 0 when cluster and
  class are independent, 1 when each determines the other;
* **coverage** is the share of items that have a cluster.

A label of -1 is of an item that was left out, and a class of -1 is unknown: neither item counts in
the first two, so they mean little without the third.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.evaluation.metrics.detection import _array


def purity(labels: ArrayLike, truth: ArrayLike) -> float:
    """Share of clustered items whose class is the commonest of their cluster, 0 to 1.

    Args:
        labels: (N,) integers, the clusters; -1 for left out.
        truth: (N,) integers, the classes; -1 for unknown.

    Raises:
        ArgumentTypeError: something other than integers.
        ArgumentError: wrong shapes, sizes that differ, no item that counts.

    >>> purity([0, 0, 0, 1, -1], [5, 5, 6, 6, 6])
    0.75
    """
    clusters, _, together = _together(labels, truth)
    largest = np.zeros(int(clusters.max()) + 1, np.int64)
    np.maximum.at(largest, clusters, together)
    return float(largest.sum() / together.sum())


def normalized_mutual_information(labels: ArrayLike, truth: ArrayLike) -> float:
    """Mutual information of cluster and class over the mean of their entropies, 0 to 1.

    One cluster and one class, of which none says anything, have 1: they agree.

    Args:
        labels: (N,) integers, the clusters; -1 for left out.
        truth: (N,) integers, the classes; -1 for unknown.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`purity`.

    >>> normalized_mutual_information([1, 1, 0, 0, -1], [3, 3, 4, 4, 4])
    1.0
    """
    clusters, classes, together = _together(labels, truth)
    of_clusters, of_classes = (
        np.bincount(codes, weights=together) / together.sum() for codes in (clusters, classes)
    )
    of_pairs = together / together.sum()
    entropies = _entropy(of_clusters), _entropy(of_classes)
    if sum(entropies) == 0.0:
        return 1.0
    information = sum(entropies) - _entropy(of_pairs)
    return float(np.clip(2.0 * information / sum(entropies), 0.0, 1.0))


def coverage(labels: ArrayLike) -> float:
    """Share of items that were put into a cluster, 0 to 1.

    Args:
        labels: (N,) integers, the clusters; -1 for left out.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`purity`.

    >>> coverage([0, 1, -1, 0])
    0.75
    """
    found = _checked(labels, "labels")
    return float((found >= 0).mean())


def _together(
    labels: ArrayLike, truth: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each pair of cluster and class that occurs: both, from 0, and how often.

    Pairs that do not occur are most of them, so there is no table.
    """
    found, true = _checked(labels, "labels"), _checked(truth, "truth")
    if len(true) != len(found):
        raise ArgumentError("truth", f"wants one a label, {len(found)}, got {len(true)}")
    counts = (found >= 0) & (true >= 0)
    if not counts.any():
        raise ArgumentError("labels", "wants an item with a cluster and a class, got none")
    clusters = np.unique(found[counts], return_inverse=True)[1]
    classes = np.unique(true[counts], return_inverse=True)[1]
    width = int(classes.max()) + 1
    pairs, together = np.unique(clusters.astype(np.int64) * width + classes, return_counts=True)
    return pairs // width, pairs % width, together


def _checked(values: ArrayLike, name: str) -> NDArray[np.int64]:
    found = _array(values)
    if found.ndim != 1 or not len(found):
        raise ArgumentError(name, f"wants shape (N,), N at least 1, got {found.shape}")
    if found.dtype.kind not in "iu":
        raise ArgumentTypeError(name, f"wants integers, got {found.dtype}")
    return found.astype(np.int64)


def _entropy(shares: NDArray[np.float64]) -> float:
    return float(-(shares * np.log(shares)).sum())
