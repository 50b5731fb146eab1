r"""Detection: does a trial's score say that it is a target?

A trial is accepted if its score is at least the threshold :math:`t`. With
:math:`P_\text{miss}(t)` the share of targets that are not accepted and :math:`P_\text{fa}(t)` the
share of non-targets that are,

* **EER**: the error where :math:`P_\text{miss} = P_\text{fa}`, on the straight lines between the
  operating points of neighbouring distinct scores (ties are one step, so constant scores give 0.5);
* **DCF** at the prior :math:`\pi` of a target,

  .. math:: \frac{c_\text{miss}\, \pi\, P_\text{miss}(t) + c_\text{fa} (1 - \pi) P_\text{fa}(t)}
                 {\min(c_\text{miss}\, \pi,\; c_\text{fa} (1 - \pi))},

  *min* at the best threshold, *act* at :math:`t = \log \frac{c_\text{fa} (1 - \pi)}{c_\text{miss}
  \pi}`, for scores that are natural log-likelihood ratios (NIST SRE 2016 evaluation plan, §3);
* **Cllr**, the cost of log-likelihood ratios :math:`s` over all priors, in bits (Brümmer & du
  Preez, "Application-independent evaluation of speaker detection", 2006):

  .. math:: \frac{1}{2} \Big( \frac{1}{T} \sum_\text{targets} \log_2 (1 + e^{-s})
            + \frac{1}{N} \sum_\text{non-targets} \log_2 (1 + e^{s}) \Big).

Targets and non-targets are sorted apart, once: O(N log N) time, and memory for the scores alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError

Scores = NDArray[Any]
_CHUNK = 1 << 20  # scores that Cllr takes at once
_BEYOND = (1, 0.0)  # a threshold above all scores, infinite ones too; others are (0, score)


class Trials:
    """Scored trials, added piece by piece; how they are cut into pieces changes no figure.

    float32 scores are kept as such; any other floating-point scores make all of them float64.

    >>> trials = Trials()
    >>> trials.update([2.0, -1.0], [True, False])
    >>> trials.update([0.5, 0.7], [True, False])
    >>> trials.eer(), trials.min_dcf(p_target=0.5)
    (0.5, 0.5)
    """

    def __init__(self) -> None:
        self._parts: tuple[list[Scores], list[Scores]] = ([], [])  # non-targets, targets
        self._sorted: tuple[Scores, Scores] | None = None

    def update(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Add trials.

        Args:
            scores: (N,) real numbers, the higher the more a target; infinite ones are admitted.
            labels: (N,) booleans, or integers 0 and 1; 1 is a target.

        Raises:
            ArgumentTypeError: scores that are not real numbers, labels that are neither boolean
                nor integer.
            ArgumentError: wrong shapes, a label other than 0 and 1.
            NonFiniteError: a score is NaN.
        """
        values, targets = _checked(scores, labels)
        for parts, chosen in zip(self._parts, (~targets, targets), strict=True):
            parts.append(values[chosen])
        self._sorted = None

    def __len__(self) -> int:
        return sum(len(part) for parts in self._parts for part in parts)

    def eer(self) -> float:
        """Equal error rate, from 0 to 1."""
        nontargets, targets = self._sort()
        # P_miss - P_fa rises with the threshold: the first distinct score where it is not negative
        # is the upper end of the step on which they cross.
        threshold = min(
            _first_not_negative(side, nontargets, targets) for side in (nontargets, targets)
        )
        beyond = threshold == _BEYOND
        miss, false_alarm = (1.0, 0.0) if beyond else _rates(threshold[1], nontargets, targets)
        before = _highest_below(threshold, nontargets, targets)
        miss_before, false_alarm_before = _rates(before, nontargets, targets)
        gap, gap_before = miss - false_alarm, false_alarm_before - miss_before
        return float(miss_before + gap_before / (gap_before + gap) * (miss - miss_before))

    def min_dcf(self, *, p_target: float = 0.05, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
        """Detection cost at the best threshold, over that of the better blind decision: 0 to 1.

        Raises:
            ArgumentError: ``p_target`` outside (0, 1), a cost that is not above 0.
        """
        miss, false_alarm = _weights(p_target, c_miss, c_fa)
        nontargets, targets = self._sort()
        # Raising the threshold to the next target only ever saves false alarms.
        thresholds, first = np.unique(targets, return_index=True)
        p_miss = first / len(targets)
        p_fa = 1.0 - np.searchsorted(nontargets, thresholds, side="left") / len(nontargets)
        return float(min(miss, (miss * p_miss + false_alarm * p_fa).min()))

    def act_dcf(self, *, p_target: float = 0.05, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
        """Detection cost at the threshold that is right for log-likelihood ratios (natural).

        Raises:
            ArgumentError: as :meth:`min_dcf`.
        """
        miss, false_alarm = _weights(p_target, c_miss, c_fa)
        threshold = np.log(c_fa * (1.0 - p_target)) - np.log(c_miss * p_target)
        p_miss, p_fa = _rates(threshold, *self._sort())
        return float(miss * p_miss + false_alarm * p_fa)

    def cllr(self) -> float:
        """Cost of log-likelihood ratios (natural), in bits; 1 for scores that say nothing."""
        nontargets, targets = self._sort()
        nats = 0.5 * (_mean_softplus(targets, -1.0) + _mean_softplus(nontargets, 1.0))
        return float(nats / np.log(2.0))

    def det_curve(self) -> tuple[Scores, Scores, Scores]:
        """Every operating point: thresholds (distinct scores, then infinity), P_miss and P_fa."""
        nontargets, targets = self._sort()
        thresholds = np.append(np.unique(np.concatenate([nontargets, targets])), np.inf)
        p_miss, p_fa = _rates(thresholds, nontargets, targets)
        p_miss[-1], p_fa[-1] = 1.0, 0.0  # also where scores are infinite
        return thresholds, p_miss, p_fa

    def _sort(self) -> tuple[Scores, Scores]:
        if self._sorted is None:
            for parts, name in zip(self._parts, ("non-target", "target"), strict=True):
                if not any(map(len, parts)):
                    raise ArgumentError(
                        "labels", f"there is no {name} among {len(self)} trials; both are needed"
                    )
            dtype = np.result_type(*self._parts[0], *self._parts[1])
            nontargets, targets = (
                np.sort(np.concatenate(parts, dtype=dtype)) for parts in self._parts
            )
            self._sorted = nontargets, targets
            self._parts = ([nontargets], [targets])
        return self._sorted


def eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """Equal error rate, from 0 to 1: :meth:`Trials.eer`.

    >>> eer([1.0, 1.0, 1.0], [1, 0, 0])
    0.5
    """
    return _trials(scores, labels).eer()


def min_dcf(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    p_target: float = 0.05,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Normalised detection cost at the best threshold: :meth:`Trials.min_dcf`."""
    return _trials(scores, labels).min_dcf(p_target=p_target, c_miss=c_miss, c_fa=c_fa)


def act_dcf(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    p_target: float = 0.05,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Normalised detection cost of natural log-likelihood ratios: :meth:`Trials.act_dcf`."""
    return _trials(scores, labels).act_dcf(p_target=p_target, c_miss=c_miss, c_fa=c_fa)


def cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Cost of natural log-likelihood ratios, in bits: :meth:`Trials.cllr`.

    >>> cllr([0.0, 0.0], [1, 0])
    1.0
    """
    return _trials(scores, labels).cllr()


def det_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Scores, Scores, Scores]:
    """Thresholds, P_miss and P_fa of every operating point: :meth:`Trials.det_curve`."""
    return _trials(scores, labels).det_curve()


def _trials(scores: ArrayLike, labels: ArrayLike) -> Trials:
    trials = Trials()
    trials.update(scores, labels)
    return trials


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Scores, NDArray[np.bool_]]:
    values, marks = _array(scores), _array(labels)
    if values.dtype.kind not in "fiu":
        raise ArgumentTypeError("scores", f"wants real numbers, got {values.dtype}")
    if marks.dtype.kind not in "biu" and marks.size:
        raise ArgumentTypeError("labels", f"wants booleans or 0 and 1, got {marks.dtype}")
    if values.ndim != 1:
        raise ArgumentError("scores", f"wants shape (N,), got {values.shape}")
    if marks.shape != values.shape:
        raise ArgumentError(
            "labels", f"wants the shape of scores, {values.shape}, got {marks.shape}"
        )
    targets = marks.astype(bool)
    wrong = np.flatnonzero(marks != targets)
    if len(wrong):
        raise ArgumentError("labels", f"wants 0 or 1, got {marks[wrong[0]]} at {wrong[0]}")
    values = values.astype(np.float32 if values.dtype.itemsize <= 4 and values.dtype.kind == "f"
                           else np.float64)  # fmt: skip
    nans = np.flatnonzero(np.isnan(values))
    if len(nans):
        raise NonFiniteError(
            "scores", f"{len(nans)} of {len(values)} are NaN, the first at {nans[0]}"
        )
    return values, targets


def _array(values: ArrayLike) -> Scores:
    detach = getattr(values, "detach", None)  # a torch tensor, which may be bfloat16
    if detach is not None:
        tensor = detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()
        values = tensor.numpy()
    return np.asarray(values)


def _weights(p_target: float, c_miss: float, c_fa: float) -> tuple[float, float]:
    """Weights of P_miss and P_fa, the smaller of them 1."""
    if not 0.0 < p_target < 1.0:
        raise ArgumentError("p_target", f"wants a probability between 0 and 1, got {p_target}")
    for name, cost in (("c_miss", c_miss), ("c_fa", c_fa)):
        if not 0.0 < cost < np.inf:
            raise ArgumentError(name, f"wants a cost above 0, got {cost}")
    miss, false_alarm = c_miss * p_target, c_fa * (1.0 - p_target)
    return miss / min(miss, false_alarm), false_alarm / min(miss, false_alarm)


def _rates(threshold: Any, nontargets: Scores, targets: Scores) -> tuple[Any, Any]:
    """P_miss and P_fa at one threshold or an array of them."""
    threshold = np.asarray(threshold)
    if threshold.ndim == 0 and threshold.astype(targets.dtype) == threshold:
        threshold = threshold.astype(targets.dtype)  # else searchsorted copies the scores
    p_miss = np.searchsorted(targets, threshold, side="left") / len(targets)
    p_fa = 1.0 - np.searchsorted(nontargets, threshold, side="left") / len(nontargets)
    return p_miss, p_fa


def _first_not_negative(side: Scores, nontargets: Scores, targets: Scores) -> tuple[int, float]:
    """The lowest score of this side where P_miss is at least P_fa, or ``_BEYOND``."""
    low, high = 0, len(side)
    while low < high:
        middle = (low + high) // 2
        p_miss, p_fa = _rates(side[middle], nontargets, targets)
        if p_miss >= p_fa:
            high = middle
        else:
            low = middle + 1
    return (0, float(side[low])) if low < len(side) else _BEYOND


def _highest_below(threshold: tuple[int, float], nontargets: Scores, targets: Scores) -> float:
    """The highest score below the threshold; the lowest score of all has P_miss < P_fa."""
    found = []
    for side in (nontargets, targets):
        end = len(side)
        if threshold != _BEYOND:
            end = int(np.searchsorted(side, side.dtype.type(threshold[1]), side="left"))
        if end:
            found.append(float(side[end - 1]))
    return max(found)


def _mean_softplus(scores: Scores, sign: float) -> float:
    """Mean of log(1 + exp(sign s)), in float64 whatever the scores are."""
    total = 0.0
    for start in range(0, len(scores), _CHUNK):
        total += float(np.logaddexp(0.0, sign * scores[start : start + _CHUNK].astype(float)).sum())
    return total / len(scores)
