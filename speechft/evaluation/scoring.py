"""How trials of verification are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from speechft.evaluation.normalisation import cohort_statistics, s_norm
from speechft.evaluation.plda import PLDA

_BLOCK = 1 << 24  # scores with the cohort at once


class Scorer(Protocol):
    """Scores of vectors that were made ready for it once."""

    def ready(self, vectors: Tensor) -> Tensor:
        """(N, C) -> (N, d)."""
        ...

    def pairs(self, left: Tensor, right: Tensor) -> NDArray[Any]:
        """(N, d), (N, d) -> (N,)."""
        ...

    def all_pairs(self, left: Tensor, right: Tensor) -> NDArray[Any]:
        """(N, d), (M, d) -> (N, M)."""
        ...


class CosineScorer:
    """Cosines, float32."""

    def ready(self, vectors: Tensor) -> Tensor:
        """Rows of length 1."""
        return normalize(vectors.double(), dim=1).float()

    def pairs(self, left: Tensor, right: Tensor) -> NDArray[Any]:
        """(N, d), (N, d) -> (N,)."""
        found: NDArray[Any] = (left * right).sum(1).numpy()
        return found

    def all_pairs(self, left: Tensor, right: Tensor) -> NDArray[Any]:
        """(N, d), (M, d) -> (N, M)."""
        found: NDArray[Any] = (left @ right.T).numpy()
        return found


class PLDAScorer:
    """Log-likelihood ratios of :class:`speechft.evaluation.plda.PLDA`, float64."""

    def __init__(self, plda: PLDA) -> None:
        self.plda = plda

    def ready(self, vectors: Tensor) -> Tensor:
        """In the basis of the model."""
        return torch.from_numpy(self.plda.transform(vectors))

    def pairs(self, left: Tensor, right: Tensor) -> NDArray[Any]:
        """(N, d), (N, d) -> (N,)."""
        return self.plda.compare(left.numpy(), right.numpy())

    def all_pairs(self, left: Tensor, right: Tensor) -> NDArray[Any]:
        """(N, d), (M, d) -> (N, M)."""
        return self.plda.compare_all(left.numpy(), right.numpy())


class ScoredVectors:
    """Vectors whose trials are scored, and normalised where there is a cohort.

    Args:
        scorer: of pairs.
        vectors: (N, C).
        cohort: (K, C) of other speakers, for AS-norm; None: scores are left as they are.
        top: how many of the cohort count for each vector.

    Raises:
        ArgumentError: see :func:`speechft.evaluation.normalisation.cohort_statistics`.
    """

    def __init__(
        self, scorer: Scorer, vectors: Tensor, cohort: Tensor | None = None, top: int = 300
    ) -> None:
        self.scorer = scorer
        self.rows = scorer.ready(vectors)
        self.statistics: NDArray[np.float64] | None = None
        if cohort is not None:
            others = scorer.ready(cohort)
            step = max(1, _BLOCK // len(others))
            blocks = [
                cohort_statistics(scorer.all_pairs(self.rows[i : i + step], others), top=top)
                for i in range(0, len(self.rows), step)
            ]
            self.statistics = np.concatenate(blocks, axis=1)

    def __len__(self) -> int:
        return len(self.rows)

    def pairs(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[Any]:
        """Scores of vectors by their indices: (T,), (T,) -> (T,)."""
        found = self.scorer.pairs(
            self.rows[torch.from_numpy(left)], self.rows[torch.from_numpy(right)]
        )
        if self.statistics is None:
            return found
        return s_norm(found, self.statistics[:, left], self.statistics[:, right])

    def with_all(self, start: int, stop: int) -> NDArray[Any]:
        """Scores of some vectors with all: (stop - start, N)."""
        found = self.scorer.all_pairs(self.rows[start:stop], self.rows)
        if self.statistics is None:
            return found
        return s_norm(found, self.statistics[:, start:stop, None], self.statistics[:, None])


def class_means(vectors: Tensor, labels: Sequence[str]) -> Tensor:
    """The mean vector of each label, by sorted label: (N, ...) -> (K, ...), float64."""
    names, members = np.unique(np.array(labels), return_inverse=True)
    sums = vectors.new_zeros((len(names), *vectors.shape[1:]), dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(members), vectors.double())
    counts = torch.from_numpy(np.bincount(members))
    return sums / counts.view(-1, *[1] * (vectors.dim() - 1))
