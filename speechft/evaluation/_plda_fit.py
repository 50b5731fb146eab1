"""How PLDA is fitted: whitening, moments, and EM in the basis where covariances are diagonal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechft.errors import ArgumentError

Array = NDArray[np.float64]

START = 1e-3  # the least variance between classes that EM starts from, over that within
_LEAST = 1e-10  # of the largest variance: what is under it is rounding


class Whitening(NamedTuple):
    """What is done to a vector before the model: centred, whitened by PCA, of length sqrt(d).

    Attributes:
        mean: (D,).
        projection: (D, d).
        length_normalize: whether the length is changed.
    """

    mean: Array
    projection: Array
    length_normalize: bool

    def __call__(self, vectors: Array) -> Array:
        """(N, D) -> (N, d). The mean itself has no direction, and stays at 0."""
        found: Array = (vectors - self.mean) @ self.projection
        if not self.length_normalize:
            return found
        length = np.linalg.norm(found, axis=1, keepdims=True)
        found = found / np.where(length > 0, length, 1.0) * np.sqrt(found.shape[1])
        return found


def whiten(x: Array, dimensions: int | None, spare: int, length_normalize: bool) -> Whitening:
    """PCA to so many dimensions."""
    mean = x.mean(0)
    centred = x - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(x))
    variances, directions = variances[::-1], directions[:, ::-1]
    # A constant column varies by the rounding of its mean.
    rounding = (1e3 * np.finfo(np.float64).eps) ** 2 * float((x**2).mean(0).max())
    rank = int((variances > max(_LEAST * variances[0], rounding)).sum())
    if not rank:
        raise ArgumentError("vectors", "are all the same")
    if dimensions is None:
        dimensions = min(rank, max(1, spare // 2))
    elif not 1 <= dimensions <= min(rank, spare):
        raise ArgumentError(
            "dimensions",
            f"wants 1 to {min(rank, spare)}, got {dimensions}: vectors vary in {rank}, and {spare} "
            "are beyond the first of their class",
        )
    scale = np.sqrt(variances[:dimensions])
    return Whitening(mean, directions[:, :dimensions] / scale, length_normalize)


def moments(means: Array, counts: Array, scatter: Array) -> tuple[Array, Array, Array]:
    """Mean, covariance between and covariance within, to start from."""
    mean = means.mean(0)
    within = scatter / (counts.sum() - len(counts))
    spread = means - mean
    between = spread.T @ spread / (len(counts) - 1) - within * (1 / counts).mean()
    return mean, between, within


def diagonalize(between: Array, within: Array, least: float = 0.0) -> tuple[Array, Array]:
    """V and the diagonal of V'BV, falling, where V'WV = I; the diagonal at least ``least``."""
    variances, axes = np.linalg.eigh(within)
    still = variances <= _LEAST * max(variances[-1], 1.0)
    if still.any():
        raise ArgumentError(
            "vectors",
            f"do not vary within classes in {int(still.sum())} of {len(still)} dimensions; wants "
            "fewer dimensions, or more vectors a class",
        )
    root = axes / np.sqrt(variances)
    ratios, turned = np.linalg.eigh(root.T @ between @ root)
    return (root @ turned)[:, ::-1], np.maximum(ratios[::-1], least)


def step(
    means: Array, counts: Array, scatter: Array, mean: Array, basis: Array, variances: Array
) -> tuple[Array, Array, Array]:
    """One iteration of EM, in the basis of the last."""
    z = (means - mean) @ basis
    n = counts[:, None]
    posterior = variances / (1 + n * variances)  # variance of each class centre
    centres = n * posterior * z  # and its mean
    shift = centres.mean(0)
    between = (centres - shift).T @ (centres - shift) + np.diag(posterior.sum(0))
    rest = z - centres
    within = basis.T @ scatter @ basis + (n * rest).T @ rest + np.diag((n * posterior).sum(0))
    turn, ratios = diagonalize(between / len(counts), within / counts.sum())
    return mean + np.linalg.solve(basis.T, shift), basis @ turn, ratios


def log_likelihood(
    means: Array, counts: Array, scatter: Array, mean: Array, basis: Array, variances: Array
) -> float:
    """Of all vectors, a vector."""
    z, n = (means - mean) @ basis, counts[:, None]
    total = 1 + n * variances
    size = counts.sum()
    found = np.log(total).sum() + (n * z**2 / total).sum() + np.sum((scatter @ basis) * basis)
    found += size * (z.shape[1] * np.log(2 * np.pi) - 2 * np.linalg.slogdet(basis)[1])
    return float(-found / 2 / size)
