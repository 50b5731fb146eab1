r"""Clustering: do the clusters that were found say what the true classes say?

With :math:`n_{kj}` items of cluster k and class j out of n,

* **purity** is :math:`\frac{1}{n} \sum_k \max_j n_{kj}`, the share of items whose class is the
  commonest of their cluster. Clusters of one item each have 1: look at their number as well;
* **normalised mutual information** is :math:`\frac{2 I(K; J)}{H(K) + H(J)}`, 0 when cluster and
  class are independent, 1 when each determines the other;
* **phone-normalised mutual information** is :math:`\frac{I(K; J)}{H(J)}`, the share of what there
  is to know of the class, a phone say, that the cluster tells. Clusters of one item each have 1;
* **perplexity** is :math:`e^{H(K)}`, how many clusters are in use;
* **coverage** is the share of items that have a cluster.

For discrete units of speech (Hsu et al., "HuBERT", TASLP 2021) purity of units, with phones for
classes, is called phone purity; purity of phones, with units for classes, cluster purity.

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


def pnmi(units: ArrayLike, phones: ArrayLike) -> float:
    """Mutual information of unit and phone over the entropy of phones, 0 to 1.

    Args:
        units: (N,) integers, one a frame; -1 for left out.
        phones: (N,) integers; -1 for unknown.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`purity`; a single phone, of which there is
            nothing to know.

    Source: Hsu et al., "HuBERT", TASLP 2021, section IV.D.

    >>> pnmi([7, 7, 2, 2, 5], [0, 0, 1, 1, 1])
    1.0
    >>> pnmi([7, 7, 7, 7], [0, 1, 0, 1])
    0.0
    """
    clusters, classes, together = _together(units, phones, ("units", "phones"))
    of_units, of_phones = (
        np.bincount(codes, weights=together) / together.sum() for codes in (clusters, classes)
    )
    known = _entropy(of_phones)
    if known == 0.0:
        raise ArgumentError("phones", "wants two or more, got one: there is nothing to know of it")
    information = known + _entropy(of_units) - _entropy(together / together.sum())
    return float(np.clip(information / known, 0.0, 1.0))


def perplexity(labels: ArrayLike) -> float:
    """The exponential of the entropy of clusters: how many are in use, were all used alike.

    Args:
        labels: (N,) integers, the clusters; -1 for left out.

    Raises:
        ArgumentTypeError: something other than integers.
        ArgumentError: a wrong shape, or no item in a cluster.

    >>> round(perplexity([0, 0, 1, 1, 4, 4, -1]), 6)
    3.0
    """
    found = _checked(labels, "labels")
    if not (found >= 0).any():
        raise ArgumentError("labels", "wants an item with a cluster, got none")
    counts = np.unique(found[found >= 0], return_counts=True)[1]
    return float(np.exp(_entropy(counts / counts.sum())))


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
    labels: ArrayLike, truth: ArrayLike, names: tuple[str, str] = ("labels", "truth")
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each pair of cluster and class that occurs: both, from 0, and how often.

    Pairs that do not occur are most of them, so there is no table.
    """
    found, true = _checked(labels, names[0]), _checked(truth, names[1])
    if len(true) != len(found):
        wanted = f"one a {names[0].removesuffix('s')}, {len(found)}"
        raise ArgumentError(names[1], f"wants {wanted}, got {len(true)}")
    counts = (found >= 0) & (true >= 0)
    if not counts.any():
        raise ArgumentError(names[0], "wants an item with a cluster and a class, got none")
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
