r"""Gaussian PLDA with two covariances: whether two vectors are of one class, as a likelihood ratio.

A vector is the centre of its class and a deviation from it,

.. math:: x = y + e, \qquad y \sim \mathcal N(\mu, B), \qquad e \sim \mathcal N(0, W),

and the score of two vectors is

.. math::

    \log \frac{p(x_1, x_2 \mid \text{one } y)}{p(x_1)\, p(x_2)}.

B and W are diagonal in one basis, :math:`V^T W V = I` and :math:`V^T B V = \Psi`, where
everything is a sum over dimensions; this basis is what is kept.

Source: Ioffe, "Probabilistic linear discriminant analysis", ECCV 2006; Brümmer and de Villiers,
"The speaker partitioning problem", Odyssey 2010; length normalisation: Garcia-Romero and
Espy-Wilson, Interspeech 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation._plda_fit import (
    START,
    Array,
    Whitening,
    diagonalize,
    log_likelihood,
    moments,
    step,
    whiten,
)

ArrayLike = Union[Tensor, NDArray[Any], Sequence[Any]]

_BLOCK = 1 << 16  # trials scored at once


@dataclass(frozen=True, eq=False)
class PLDA:
    """A fitted model; :meth:`fit` makes one.

    Attributes:
        whitening: what is done to vectors first.
        mean: (d,), of class centres.
        basis: (d, d), V: columns in which the covariance within is 1 and that between diagonal.
        between: (d,), the variances of class centres in that basis, falling.
        log_likelihoods: of the vectors fitted on, a vector: before EM and after each iteration.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(np.arange(50), 6)
    >>> centres = 2 * rng.normal(size=(50, 16))
    >>> vectors = centres[labels] + rng.normal(size=(300, 16))
    >>> plda = PLDA.fit(vectors, labels)
    >>> same, other = plda.score(vectors[[0, 0]], vectors[[1, 6]])
    >>> bool(same > 0 > other)
    True
    """

    whitening: Whitening
    mean: Array
    basis: Array
    between: Array
    log_likelihoods: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        vectors: ArrayLike,
        labels: ArrayLike,
        *,
        dimensions: int | None = None,
        length_normalize: bool = True,
        iterations: int = 10,
    ) -> PLDA:
        """Fit by EM, from the moments, to the maximum of the likelihood; classes of any sizes.

        PCA comes first, and not LDA: what LDA leaves out has a small variance between classes, to
        which the model gives a small weight by itself; what is missing where vectors are many
        dimensions and few is an invertible covariance within classes, and PCA gives one.

        Args:
            vectors: (N, D); computed in float64.
            labels: (N,), integers or strings.
            dimensions: d, kept by PCA. None: all in which vectors vary, but at most half as many as
                there are vectors beyond the first of each class, from which W is estimated.
            length_normalize: make whitened vectors of one length, so that they are more Gaussian.
            iterations: of EM; 0 leaves the moments.

        Raises:
            ArgumentError: one class; no class of two vectors; more dimensions than the vectors
                have; vectors that do not vary within classes; another shape.
            ArgumentTypeError: vectors that are not numbers.
            NonFiniteError: NaN or infinity.
        """
        x = _rows(vectors, "vectors")
        names, y = np.unique(_plain(labels), return_inverse=True)
        if y.shape != (len(x),) or np.ndim(_plain(labels)) != 1:
            raise ArgumentError(
                "labels", f"wants (N,), one of {len(x)} vectors; got {np.shape(_plain(labels))}"
            )
        if len(names) < 2:
            raise ArgumentError("labels", f"are of {len(names)} class; PLDA wants two or more")
        spare = len(x) - len(names)
        if not spare:
            raise ArgumentError(
                "labels", "no class has two vectors: what varies within a class cannot be known"
            )
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
            raise ArgumentError("iterations", f"wants a whole number from 0, got {iterations!r}")
        whitening = whiten(x, dimensions, spare, length_normalize)
        z = whitening(x)
        counts = np.bincount(y).astype(np.float64)
        order = np.argsort(y, kind="stable")
        first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        means = np.add.reduceat(z[order], first) / counts[:, None]
        deviations = z - means[y]
        scatter = deviations.T @ deviations
        mean, between, within = moments(means, counts, scatter)
        state = (mean, *diagonalize(between, within, START))
        found = [log_likelihood(means, counts, scatter, *state)]
        for _ in range(iterations):
            state = step(means, counts, scatter, *state)
            found.append(log_likelihood(means, counts, scatter, *state))
        return cls(whitening, *state, tuple(found))

    def transform(self, vectors: ArrayLike) -> Array:
        """(N, D) -> (N, d): whitened, and in the basis; what :meth:`compare` takes.

        Raises:
            ArgumentError: another size than the vectors fitted on.
            NonFiniteError: NaN or infinity.
        """
        x = _rows(vectors, "vectors")
        if x.shape[1] != len(self.whitening.mean):
            raise ArgumentError("vectors", f"wants (N, {len(self.whitening.mean)}), got {x.shape}")
        found: Array = (self.whitening(x) - self.mean) @ self.basis
        return found

    def score(self, left: ArrayLike, right: ArrayLike) -> Array:
        """Log-likelihood ratios (natural) of pairs: (N, D), (N, D) -> (N,).

        Raises:
            ArgumentError: another size than the vectors fitted on, or another N.
            NonFiniteError: NaN or infinity.
        """
        a, b = _rows(left, "left"), _rows(right, "right")
        if len(a) != len(b):
            raise ArgumentError("right", f"wants as many as left, {len(a)}; got {len(b)}")
        parts = [
            self.compare(self.transform(a[i : i + _BLOCK]), self.transform(b[i : i + _BLOCK]))
            for i in range(0, len(a), _BLOCK)
        ]
        return np.concatenate(parts)

    def score_matrix(self, left: ArrayLike, right: ArrayLike) -> Array:
        """Log-likelihood ratios of all with all: (N, D), (M, D) -> (N, M).

        Raises:
            ArgumentError, NonFiniteError: as :meth:`score`.
        """
        return self.compare_all(self.transform(left), self.transform(right))

    def compare(self, left: Array, right: Array) -> Array:
        """:meth:`score` of transformed vectors: (N, d), (N, d) -> (N,)."""
        found: Array = ((left * self._product) * right).sum(1)
        return found + self._own(left) + self._own(right)

    def compare_all(self, left: Array, right: Array) -> Array:
        """:meth:`score_matrix` of transformed vectors: (N, d), (M, d) -> (N, M)."""
        found: Array = (left * self._product) @ right.T
        return found + self._own(left)[:, None] + self._own(right)

    @property
    def _product(self) -> Array:
        """The weight of a product: psi / (1 + 2 psi)."""
        return self.between / (1 + 2 * self.between)

    def _own(self, rows: Array) -> Array:
        """What a score owes to each vector alone: its square, and a half of the constant."""
        psi = self.between
        square = psi**2 / ((1 + psi) * (1 + 2 * psi))
        constant = np.log1p(psi).sum() - np.log1p(2 * psi).sum() / 2
        found: Array = constant / 2 - rows**2 @ square / 2
        return found


def _plain(values: ArrayLike) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _rows(vectors: ArrayLike, argument: str) -> Array:
    """(N, D) float64, finite."""
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().double()  # numpy has no bfloat16
    found = _plain(vectors)
    if found.dtype.kind not in "fiu":
        raise ArgumentTypeError(argument, f"wants numbers, got {found.dtype}")
    if found.ndim != 2 or not found.size:
        raise ArgumentError(argument, f"wants shape (N, D), not empty; got {found.shape}")
    if not np.isfinite(found).all():
        raise NonFiniteError(argument, "hold NaN or infinity")
    return found.astype(np.float64)
