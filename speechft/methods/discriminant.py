r"""Subspaces in closed form: the directions in which one factor moves the features and no other.

In a grid the features of an utterance are a sum of what each factor adds, and of what is left:

.. math:: x_i = \mu + \sum_k a^{(k)}_{f_k(i)} + e_i

An analysis of variance gives the effects :math:`a^{(k)}` by least squares. With the scatter
:math:`S_k` of each factor's effects and :math:`E` of what is left, the subspace of factor k is made
of the d directions w with the largest

.. math:: \frac{w^\top S_k w}{w^\top \bigl(\sum_{j \ne k} S_j + E\bigr) w},

which is Fisher's discriminant (1936) with the other factors' effects among the noise. They are
scaled so that the noise has unit variance in each. Nothing is drawn, and there is nothing to tune
but d.

People differ in other ways than synthetic voices do, and no two say the same texts. Recordings of
which nothing but the factor is known join as a second corpus: with the scatter :math:`S_r` of the
means of its values, the mean over values :math:`E_r` of the scatter within one, and a share
:math:`\rho`, the quotient is

.. math:: \frac{w^\top \bigl((1 - \rho) S_k + \rho S_r\bigr) w}
    {w^\top \bigl((1 - \rho) (\tau \sum_{j \ne k} S_j + E) + \rho E_r\bigr) w}

:math:`S_r` holds what people say, too, so :math:`\tau` can be above 1. As cosines depend on the
origin, it is half-way between the two corpora.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.errors import ArgumentError

_STEPS = 1000
_ENOUGH = 1e-8
_TINY = 1e-300


def effects(features: Tensor, factors: Tensor) -> tuple[list[Tensor], Tensor]:
    """Least squares of the additive model, by conjugate gradients.

    Args:
        features: (N, C).
        factors: (N, K) integers, -1 for unknown: such a sample has no effect of that factor.

    Returns:
        the effects of each factor, (values, C), of mean zero over the samples; and what is left of
        each sample, (N, C). float64. Parts of a grid that share no value of any factor are
        centred each: what differs between them belongs to no factor.
    """
    left = features.double().clone()
    parts = _parts(factors)
    groups = [*factors.T, parts]
    known = [(group >= 0).nonzero()[:, 0] for group in groups]
    sizes = [int(group.max()) + 1 for group in groups]
    counts = [
        torch.bincount(g[k], minlength=n) for g, k, n in zip(groups, known, sizes, strict=True)
    ]

    def means() -> list[Tensor]:
        return [_means(left[k], g[k], n) for g, k, n in zip(groups, known, sizes, strict=True)]

    def energy(tables: list[Tensor]) -> Tensor:
        pairs = zip(tables, counts, strict=True)
        return torch.stack([(n[:, None] * t.square()).sum(0) for t, n in pairs]).sum(0)

    # Of each feature: a direction, and how far along it.
    tables = [torch.zeros(size, left.shape[1], dtype=left.dtype) for size in sizes]
    direction = means()
    slope = energy(direction)
    enough = _ENOUGH**2 * slope
    for _ in range(_STEPS):
        if (slope <= enough).all():
            break
        moved = torch.zeros_like(left)
        for table, group, where in zip(direction, groups, known, strict=True):
            moved[where] += table[group[where]]
        far = slope / moved.square().sum(0).clamp(min=_TINY)
        left -= far * moved
        for table, step in zip(tables, direction, strict=True):
            table += far * step
        steepest = means()
        before, slope = slope, energy(steepest)
        keep = slope / before.clamp(min=_TINY)
        direction = [new + keep * old for new, old in zip(steepest, direction, strict=True)]
    for table, group, where in zip(tables[:-1], groups, known, strict=False):
        home = torch.zeros(len(table), dtype=torch.int64)
        home[group[where]] = parts[where]
        table -= _means(table[group[where]], parts[where], sizes[-1])[home]
    return tables[:-1], left


def directions(
    features: Tensor,
    factors: Tensor,
    factor: int,
    size: int,
    *,
    recorded_share: float | None = None,
    noise_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""The discriminant directions of a factor: weight (size, C) and bias (size,), float32.

    ``features @ weight.T + bias`` has mean zero, or that of each corpus is as far from zero as the
    other's; the first dimension is the most discriminative.

    Args:
        features: (N, C).
        factors: (N, K), see :func:`effects`.
        factor: which column.
        size: how many directions.
        recorded_share: :math:`\rho`, from 0 to below 1: samples of which this factor alone is known
            are the second corpus and do not touch the first; others of which no two factors are
            known are left out. None: there is one corpus, of all samples.
        noise_weight: :math:`\tau`, above 0.

    Raises:
        ArgumentError: more directions than the factor has values less one, or than features; a
            share or weight out of range; nothing but the second corpus.
    """
    if recorded_share is not None and not 0 <= recorded_share < 1:
        raise ArgumentError("recorded_share", f"wants 0 to below 1, got {recorded_share}")
    if not 0 < noise_weight < float("inf"):
        raise ArgumentError("noise_weight", f"wants a number above 0, got {noise_weight}")
    recorded = None
    if recorded_share is not None:
        known = (factors >= 0).sum(1)
        alone = (factors[:, factor] >= 0) & (known == 1)
        if alone.any():
            recorded = _people(features[alone], factors[alone, factor])
        grid = known > 1
        if not grid.any():
            raise ArgumentError("factors", "no sample has two factors known, so there is no grid")
        features, factors = features[grid], _renumbered(factors[grid])
    tables, left = effects(features, factors)
    values = int(factors[:, factor].max()) + 1
    most = min(values - 1, features.shape[1])
    if size > most:
        raise ArgumentError(
            "subspaces",
            f"a closed form of {size} dimensions needs more than {size} values of the factor and "
            f"{size} features; there are {values} and {features.shape[1]}",
        )
    # Of balanced grids: every value counts alike.
    scatters = [table.T @ table / max(len(table), 1) for table in tables]
    signal, noise = scatters[factor], left.T @ left / len(left)
    noise = noise + noise_weight * sum(s for k, s in enumerate(scatters) if k != factor)
    origin = features.double().mean(0)
    if recorded is not None:
        assert recorded_share is not None
        between, within, middle = recorded
        signal = (1 - recorded_share) * signal + recorded_share * between
        noise = (1 - recorded_share) * noise + recorded_share * within
        origin = (origin + middle) / 2
    energy, basis = torch.linalg.eigh(noise)
    # A direction in which nothing moves is a matter of rounding.
    whiten = basis * energy.clamp(min=float(energy.max()) * 1e-8).rsqrt()
    gain, found = torch.linalg.eigh(whiten.T @ signal @ whiten)
    weight = (whiten @ found[:, gain.argsort(descending=True)[:size]]).T
    # The sign of an eigenvector is anybody's: the largest entry is positive.
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    weight = weight * largest.sign()
    return weight.float(), -(weight @ origin).float()


def _people(features: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scatter of the values' means, mean scatter within a value, and mean; all values alike."""
    values = torch.unique(values, return_inverse=True)[1]
    x = features.double()
    means = _means(x, values)
    left = x - means[values]
    share = 1 / (torch.bincount(values)[values] * len(means)).double()
    middle = means.mean(0)
    apart = means - middle
    return apart.T @ apart / len(means), (left * share[:, None]).T @ left, middle


def _renumbered(factors: Tensor) -> Tensor:
    """The values that there are, from 0 without gaps; -1 stays."""
    columns = []
    for column in factors.T:
        numbers = column.clone()
        known = column >= 0
        numbers[known] = torch.unique(column[known], return_inverse=True)[1]
        columns.append(numbers)
    return torch.stack(columns, 1)


def _means(x: Tensor, groups: Tensor, count: int | None = None) -> Tensor:
    number = int(groups.max()) + 1 if count is None else count
    sums = torch.zeros(number, x.shape[1], dtype=x.dtype).index_add_(0, groups, x)
    return sums / torch.bincount(groups, minlength=number).clamp(min=1)[:, None]


def _parts(factors: Tensor) -> Tensor:
    """Which connected part of the grid each sample is in: (N,) from 0.

    Two samples are connected if they share a value of some factor, all but one of which they may
    differ in; a grid of two factors whose blocks share neither falls into these blocks.
    """
    labels = torch.arange(len(factors))
    while True:
        before = labels
        for column in factors.T:
            known = column >= 0
            if not known.any():
                continue
            least = torch.full((int(column.max()) + 1,), len(factors))
            least.scatter_reduce_(0, column[known], labels[known], "amin")
            labels = labels.clone()
            labels[known] = least[column[known]]
        if torch.equal(labels, before):
            break
    numbers: Tensor = torch.unique(labels, return_inverse=True)[1]
    return numbers
