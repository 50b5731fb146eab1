r"""Spread: does an embedding use its space? No label is needed.

**RankMe** (Garrido et al., "RankMe: Assessing the downstream performance of pretrained
self-supervised representations by their rank", ICML 2023) is the exponential of the entropy of the
singular values :math:`\sigma` of the N embeddings,

.. math:: \exp \Big( -\sum_k p_k \log p_k \Big), \qquad
          p_k = \frac{\sigma_k}{\sum_j \sigma_j} + 10^{-7},

between 1, all on one line, and min(N, D).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from speechft.errors import ArgumentError
from speechft.evaluation.metrics.retrieval import _check


def rank_me(embeddings: Tensor) -> float:
    """The effective rank of embeddings (N, D); they are not centred, as published.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: see :func:`retrieval`.

    >>> round(rank_me(torch.eye(3)), 3)
    3.0
    """
    _check(embeddings)
    singular = torch.linalg.svdvals(embeddings.detach().double())
    share = singular / singular.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def unit_std(embeddings: Tensor) -> float:
    r"""Mean standard deviation of a dimension, of embeddings brought to unit length.

    0 when all are one, and :math:`1 / \sqrt{D}` when they lie evenly on the sphere (Chen & He,
    "Exploring simple Siamese representation learning", CVPR 2021, §4.1).

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: see :func:`retrieval`; fewer than 2 rows.

    >>> unit_std(torch.ones(4, 3))
    0.0
    """
    _check(embeddings)
    if len(embeddings) < 2:
        raise ArgumentError("embeddings", "wants at least 2 rows, got 1")
    return float(normalize(embeddings.detach().double(), dim=1).std(0, correction=0).mean())
