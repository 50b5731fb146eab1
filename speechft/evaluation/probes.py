r"""Linear probes: how much of a label can be read off an embedding by a linear classifier.

Multinomial logistic regression on standardised features, which minimises

.. math:: \frac{1}{N} \sum_i -\log p(y_i \mid x_i) + \frac{\lambda}{2} \lVert W \rVert^2

by L-BFGS: from zero with the largest :math:`\lambda`, from there with the next, so nothing is drawn
at random. The problem is convex; :math:`\lambda` is chosen among a few by the accuracy on
validation data, never on the test's. Iterations are bounded: of a phone probe, 60 and 600 of them
gave accuracies that differ by up to 0.4 points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from speechft.errors import ArgumentError, NonFiniteError

PENALTIES = (3e-4, 1e-3, 3e-3, 1e-2)


class LinearProbe(NamedTuple):
    """A fitted probe: logits = ((x - mean) / deviation) W + b.

    Attributes:
        weight: (C, K).
        bias: (K,).
        mean, deviation: (C,) of the features it was fitted on.
        penalty: the λ it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    penalty: float

    def logits(self, features: Tensor) -> Tensor:
        """(N, C) -> (N, K)."""
        return ((features - self.mean) / self.deviation) @ self.weight + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """(N, C) -> (N,) int64."""
        return self.logits(features).argmax(1)


def fit_linear(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    validation: tuple[Tensor, Tensor] | None = None,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = 120,
) -> LinearProbe:
    """Fit a probe.

    Args:
        features: (N, C) float32.
        labels: (N,) int64 from 0 to ``classes`` - 1.
        classes: K.
        validation: features and labels by which the penalty is chosen; None takes the middle one
            of ``penalties``.
        penalties: values of λ to try.
        iterations: of L-BFGS, at most.

    Raises:
        ArgumentError: nothing to fit on, or one class only.
        NonFiniteError: NaN or infinity in the features.
    """
    if len(features) == 0 or len(features) != len(labels):
        raise ArgumentError(
            "features", f"wants one a label and at least one, got {len(features)}, {len(labels)}"
        )
    if not bool(features.isfinite().all()):
        raise NonFiniteError("features", "hold NaN or infinity")
    if len(set(labels.tolist())) < 2:
        raise ArgumentError("labels", "all are of one class; a probe needs two")
    mean, deviation = features.mean(0), features.std(0, correction=0)
    # A dimension that is constant here says nothing; what it does elsewhere must not count.
    still = deviation <= 1e-6 * mean.abs().clamp_min(1.0)
    deviation = deviation.masked_fill(still, torch.inf)
    standard = (features - mean) / deviation
    if validation is None:
        penalties = [penalties[len(penalties) // 2]]
    start = features.new_zeros(features.shape[1] + 1, classes)
    best, best_accuracy = None, -1.0
    for penalty in sorted(penalties, reverse=True):
        # The solution for a larger penalty is near: start from there.
        start = _minimise(standard, labels, start, penalty, iterations)
        probe = LinearProbe(start[:-1], start[-1], mean, deviation, penalty)
        if validation is None:
            return probe
        accuracy = float((probe.predict(validation[0]) == validation[1]).double().mean())
        if accuracy > best_accuracy:
            best, best_accuracy = probe, accuracy
    assert best is not None
    return best


def _minimise(
    features: Tensor, labels: Tensor, start: Tensor, penalty: float, iterations: int
) -> Tensor:
    """The solution (C + 1, K), the bias in its last row."""
    solution = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-8,
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            logits = torch.addmm(solution[-1], features, solution[:-1])
            value = cross_entropy(logits, labels) + penalty / 2 * solution[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return solution.detach()
