r"""Geometry: do the classes of a label lie together, and apart from each other?

With :math:`\mu_k` the mean of the vectors of class k, and :math:`s_k` their mean Euclidean distance
from it,

* the **distance to the centroid** is the mean over classes of :math:`s_k`: less is denser;
* the **distance between centroids** is the mean over pairs of classes of
  :math:`\lVert \mu_k - \mu_j \rVert`: more is further apart;
* the **Davies-Bouldin index** puts both together (Davies & Bouldin, "A cluster separation
  measure", IEEE TPAMI 1979): less is better,

  .. math:: \frac 1K \sum_k \max_{j \ne k} \frac{s_k + s_j}{\lVert \mu_k - \mu_j \rVert};

* **k-shot accuracy**: k vectors of each class are drawn, and others are given to the class whose
  mean of these is nearest by cosine.

The first two grow with the scale of the vectors, so of two models they can be compared where all
vectors have been brought to unit length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft.errors import ArgumentError
from speechft.evaluation.metrics.retrieval import _check


def davies_bouldin(embeddings: Tensor, labels: Any) -> float:
    """The Davies-Bouldin index, 0 or above; infinite where two classes have one centroid.

    Args:
        embeddings: (N, D), floating point.
        labels: N integers or strings.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: see :func:`retrieval`; fewer than two
            classes.

    >>> davies_bouldin(torch.tensor([[1.0], [3.0], [11.0], [13.0]]), [0, 0, 1, 1])
    0.2
    """
    means, spreads = _classes(embeddings, labels)
    apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    ratio = (spreads[:, None] + spreads[None]) / apart
    ratio.fill_diagonal_(-torch.inf)
    # Two classes of one vector each at one place: nothing over nothing.
    return float(ratio.nan_to_num(torch.inf, torch.inf, -torch.inf).amax(1).mean())


def centroid_distance(embeddings: Tensor, labels: Any) -> float:
    """The mean over classes of the mean distance of vectors from the centroid of their class.

    Args, Raises: as :func:`davies_bouldin`.

    >>> centroid_distance(torch.tensor([[1.0], [3.0], [11.0], [17.0]]), [0, 0, 1, 1])
    2.0
    """
    return float(_classes(embeddings, labels)[1].mean())


def centroid_separation(embeddings: Tensor, labels: Any) -> float:
    """The mean over pairs of classes of the distance between their centroids.

    Args, Raises: as :func:`davies_bouldin`.

    >>> centroid_separation(torch.tensor([[1.0], [3.0], [11.0], [13.0]]), [0, 0, 1, 1])
    10.0
    """
    return float(torch.pdist(_classes(embeddings, labels)[0]).mean())


def k_shot_accuracy(
    support: Tensor,
    support_labels: Any,
    queries: Tensor,
    query_labels: Any,
    *,
    shots: int,
    draws: int = 100,
    seed: int = 0,
) -> float:
    """Share of queries whose class has the nearest mean of ``shots`` vectors, by cosine, 0 to 1.

    Args:
        support: (M, D) vectors to draw from; a class with fewer than ``shots`` has them all.
        support_labels: M integers or strings.
        queries: (N, D).
        query_labels: N integers or strings.
        shots: vectors of each class.
        draws: how often they are drawn; the share is averaged.
        seed: of the draws.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: see :func:`retrieval`; no shots or draws,
            a class of queries without support.

    >>> k_shot_accuracy(torch.eye(2), ["a", "b"], torch.eye(2) + 0.1, ["a", "b"], shots=1)
    1.0
    """
    for name, value in (("shots", shots), ("draws", draws)):
        if value < 1:
            raise ArgumentError(name, f"wants at least 1, got {value}")
    known, names = _coded(support, support_labels, "support_labels")
    place = {name: number for number, name in enumerate(names)}
    asked, others = _coded(queries, query_labels, "query_labels")
    missing = [name for name in others if name not in place]
    if missing:
        raise ArgumentError("query_labels", f"class {missing[0]!r} has no support")
    truth = torch.tensor([place[name] for name in others])[torch.from_numpy(asked)]
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(known == number) for number in range(len(names))]
    unit = normalize(queries.detach().double(), dim=1)
    vectors = support.detach().double()
    right = 0.0
    for _ in range(draws):
        drawn = [torch.from_numpy(rng.permutation(mine)[:shots]) for mine in members]
        means = normalize(torch.stack([vectors[rows].mean(0) for rows in drawn]), dim=1)
        guesses = (unit @ means.T).argmax(1)
        right += float((guesses == truth).double().mean())
    return right / draws


def _classes(embeddings: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    """Centroids (K, D), and the mean distance from each of its vectors (K,), in float64."""
    codes, names = _coded(embeddings, labels, "labels")
    if len(names) < 2:
        raise ArgumentError("labels", f"wants two classes or more, got {len(names)}")
    vectors, numbers = embeddings.detach().double(), torch.from_numpy(codes)
    counts = torch.bincount(numbers).double()
    means = torch.zeros(len(names), vectors.shape[1], dtype=torch.float64)
    means = means.index_add(0, numbers, vectors) / counts[:, None]
    distances = (vectors - means[numbers]).norm(dim=1)
    return means, torch.zeros_like(counts).index_add(0, numbers, distances) / counts


def _coded(embeddings: Tensor, labels: Any, argument: str) -> tuple[Any, list[Any]]:
    """Labels as integers from 0 on, and what each stands for."""
    _check(embeddings)
    values = np.asarray(labels.tolist() if isinstance(labels, Tensor) else labels)
    if values.shape != (len(embeddings),):
        raise ArgumentError(
            argument, f"wants one for each of {len(embeddings)}, got shape {values.shape}"
        )
    names, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int64), names.tolist()
