"""Pseudo-labels: what a teacher's embeddings say of who speaks, as labels to train on.

The embeddings go through PCA; k-means makes groups of a few utterances each, and agglomeration
puts these together as long as they are alike (Cho et al., "Non-contrastive self-supervised learning
of utterance-level speech representations", JSTSP 2022). What remains unsure, and clusters of too
few, are left out. Training on the labels gives another teacher, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.methods.clustering import (
    Floats,
    Integers,
    agglomerate,
    free_memory,
    k_means,
    means,
    numbered,
    posterior,
    principal,
    unit,
)

Score = Callable[[Tensor, Tensor], Tensor]


class PseudoLabels(NamedTuple):
    """Labels of utterances, and what was left out of them.

    Attributes:
        labels: (N,) int64, from 0 in the order in which they first occur; -1 where left out, which
            the losses take for unknown.
        confidence: (N,) float64, the posterior of the cluster that an utterance fell into, whether
            left out or not.
        clusters: how many labels there are.
        found: how many clusters there were before any was left out.
        unsure: utterances left out for a confidence too low.
        small: utterances left out with a cluster too small.
        surplus: utterances left out of a cluster too large.
    """

    labels: Tensor
    confidence: Tensor
    clusters: int
    found: int
    unsure: int
    small: int
    surplus: int


def pseudo_labels(
    vectors: Tensor | ArrayLike,
    *,
    variance: float = 0.99,
    per_cluster: float = 4.0,
    similarity: float = 0.5,
    clusters: int | None = None,
    score: Score | None = None,
    least_score: float = 0.0,
    least: int = 8,
    most: int | None = 50,
    confidence: float = 0.9,
    seed: int = 0,
) -> PseudoLabels:
    r"""Cluster embeddings, and say of each which cluster it is of, or that it is of none.

    1. PCA keeps ``variance`` of the variance; rows are centred and of length 1.
    2. k-means makes N / ``per_cluster`` groups.
    3. Agglomeration of their centres by cosine, average linkage, each centre counting once: two
       groups become one while their mean cosine is ``similarity`` or more, or until ``clusters``
       are left.
    4. An utterance is left out if the posterior of its cluster (see
       :func:`speechft.methods.clustering.posterior`) is below ``confidence``; then clusters of
       fewer than ``least`` are; then all but the ``most`` nearest to the centre of their cluster.
       So every label has ``least`` to ``most`` utterances.

    The published second pass agglomerates by the scores of a PLDA trained on the labels of the
    first. Call this once, train, and call it again with ``score``.

    Args:
        vectors: (N, D), an embedding an utterance.
        variance: share kept, above 0; 1 for all.
        per_cluster: utterances in a group of k-means; 1 for no k-means.
        similarity: mean **cosine similarity** at which merging stops, -1 to 1. A published cosine
            *distance* is 1 less this.
        clusters: how many to stop at; then ``similarity`` and ``least_score`` do not count.
        score: of means of some ``vectors`` as they were given, (A, D) and (B, D) float64, each with
            each: (A, B), symmetric and higher for more alike; takes the place of the cosine.
        least_score: mean score at which merging stops; 0 suits a log-likelihood ratio.
        least: utterances of a cluster, else it is left out; 1 for all.
        most: utterances of a cluster that are kept; None for no bound.
        confidence: 0 leaves none out.
        seed: of k-means. The same seed gives the same labels.

    Memory: ``8 C^2`` bytes for C = N / ``per_cluster`` centres, 5 GB for 100 000 utterances.

    Raises:
        ArgumentError: fewer utterances than two clusters need; all the same; more clusters than
            centres; more centres than memory allows; nothing left in the end; another setting that
            cannot be.
        ArgumentTypeError: vectors that are not floating point.
        NonFiniteError: NaN or infinity.
        ImportError: scikit-learn (extra ``evaluate``) is not installed.

    >>> draw = torch.Generator().manual_seed(0)
    >>> speakers = torch.randn(3, 16, generator=draw).repeat_interleave(20, 0)
    >>> found = pseudo_labels(speakers + 0.1 * torch.randn(60, 16, generator=draw))
    >>> found.clusters, found.labels[::20].tolist()
    (3, [0, 1, 2])
    """
    given = _checked(vectors)
    count = _check_settings(
        len(given), variance, per_cluster, similarity, clusters, least, most, confidence
    )
    rows = unit(principal(given, variance))
    groups = k_means(rows, count, seed) if count < len(rows) else np.arange(len(rows))
    count = int(groups.max()) + 1  # k-means finds fewer where vectors are the same
    if clusters is not None and clusters > count:
        raise ArgumentError("clusters", f"wants at most the {count} centres there are: {clusters}")
    if score is None:
        centres = unit(means(rows, groups, count))
        joined = agglomerate(count, lambda part: centres[part] @ centres.T, similarity, clusters)
    else:
        of_score = _scorer(score, torch.from_numpy(means(given, groups, count)))
        joined = agglomerate(count, of_score, least_score, clusters)
    return _filtered(rows, numbered(joined[groups]), least, most, confidence)


def _filtered(
    rows: Floats, found: Integers, least: int, most: int | None, confidence: float
) -> PseudoLabels:
    sure = posterior(rows, found)
    clusters = int(found.max()) + 1
    labels = np.where(sure >= confidence, found, -1)
    unsure = int((labels < 0).sum())
    left = np.bincount(labels[labels >= 0], minlength=clusters)
    labels[(labels >= 0) & (left[labels] < least)] = -1
    small = int((labels < 0).sum()) - unsure
    if not (labels >= 0).any():
        raise ArgumentError(
            "vectors",
            f"all {len(rows)} utterances were left out: {unsure} are below the confidence of "
            f"{confidence:g}, and of {clusters} clusters the largest keeps {int(left.max())}, "
            f"fewer than the least, {least}. Lower "
            + ("confidence" if unsure > small else "similarity, which makes larger clusters, or")
            + (" or" if unsure > small else "")
            + " least",
        )
    if most is not None:
        nearness = (rows * unit(means(rows, found, clusters))[found]).sum(1)
        kept = np.flatnonzero(labels >= 0)
        order = kept[np.lexsort((-nearness[kept], labels[kept]))]  # stable: the first of the same
        sizes = np.bincount(labels[kept], minlength=clusters)
        rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[labels[order]]
        labels[order[rank >= most]] = -1
    surplus = int((labels < 0).sum()) - unsure - small
    labels[labels >= 0] = numbered(labels[labels >= 0])
    return PseudoLabels(
        torch.from_numpy(labels),
        torch.from_numpy(sure),
        int(labels.max()) + 1,
        clusters,
        unsure,
        small,
        surplus,
    )


def _scorer(score: Score, centres: Tensor) -> Callable[[slice], Floats]:
    def of(part: slice) -> Floats:
        values = score(centres[part], centres)
        wanted = (len(centres[part]), len(centres))
        if not isinstance(values, Tensor) or tuple(values.shape) != wanted:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ArgumentError("score", f"wants to give a tensor {wanted}, gave {got}")
        found: Floats = values.detach().cpu().double().numpy()
        if not np.isfinite(found).all():
            raise NonFiniteError("score", "gave NaN or infinity")
        return found

    return of


def _checked(vectors: Any) -> Floats:
    tensor = vectors.detach().cpu() if isinstance(vectors, Tensor) else None
    if tensor is None:
        tensor = torch.from_numpy(np.asarray(vectors))
    if not tensor.is_floating_point():
        raise ArgumentTypeError("vectors", f"wants floating point, got {tensor.dtype}")
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ArgumentError("vectors", f"wants shape (N, D), got {tuple(tensor.shape)}")
    found: NDArray[np.float64] = tensor.double().numpy()
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    if len(bad):
        raise NonFiniteError("vectors", f"row {bad[0]} holds NaN or infinity")
    return found


def _check_settings(
    rows: int,
    variance: float,
    per_cluster: float,
    similarity: float,
    clusters: int | None,
    least: int,
    most: int | None,
    confidence: float,
) -> int:
    """The number of centres."""
    if not 0.0 < variance <= 1.0:
        raise ArgumentError("variance", f"wants a share above 0, up to 1; got {variance}")
    if not (per_cluster >= 1.0 and math.isfinite(per_cluster)):
        raise ArgumentError("per_cluster", f"wants a number from 1, got {per_cluster}")
    if not -1.0 <= similarity <= 1.0:
        raise ArgumentError("similarity", f"wants a cosine from -1 to 1, got {similarity}")
    if not 0.0 <= confidence <= 1.0:
        raise ArgumentError("confidence", f"wants a probability, 0 to 1; got {confidence}")
    if least < 1:
        raise ArgumentError("least", f"wants a whole number from 1, got {least}")
    if most is not None and most < least:
        raise ArgumentError("most", f"wants at least the least of a cluster, {least}; got {most}")
    if clusters is not None and clusters < 1:
        raise ArgumentError("clusters", f"wants a whole number from 1, got {clusters}")
    if rows < 2 * least or rows < 2:
        raise ArgumentError(
            "vectors",
            f"two clusters of at least {least} need {max(2 * least, 2)} utterances, got {rows}; "
            "bring more or lower least",
        )
    count = max(2, round(rows / per_cluster))
    needed, free = 9 * count**2, free_memory()  # the distances, and a little of everything else
    if needed > free:
        enough = math.ceil(rows / math.isqrt(free // 9 + 1) * 1.05)
        raise ArgumentError(
            "per_cluster",
            f"{rows} utterances by {per_cluster:g} are {count} centres, whose distances take "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; wants {enough} or more",
        )
    return count
