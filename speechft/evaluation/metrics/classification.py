r"""Classification: is the predicted class the right one?

With :math:`\mathrm{TP}_k` the items of class k predicted as such, :math:`\mathrm{FN}_k` those
predicted as another and :math:`\mathrm{FP}_k` the others predicted as k,

* **accuracy** is the share of items predicted right;
* **UAR**, unweighted average recall, is the mean of :math:`\frac{\mathrm{TP}_k}{\mathrm{TP}_k +
  \mathrm{FN}_k}` over the classes among the labels: chance is 1 over their number, however rare
  some are (Schuller et al., "The INTERSPEECH 2009 emotion challenge");
* **macro-F1** is the mean over classes of :math:`F_k = \frac{2 \mathrm{TP}_k}{2 \mathrm{TP}_k +
  \mathrm{FP}_k + \mathrm{FN}_k}`, 0 for a class that neither labels nor predictions hold;
* **micro-F1** is the same of the sums over classes: of all classes it is the accuracy, so it says
  something new where some class, such as "none of these", is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.evaluation.metrics.detection import _array


class _Counts(NamedTuple):
    classes: NDArray[Any]  # (K,) of labels or predictions, or those asked for
    right: NDArray[np.int64]  # (K,) labelled and predicted as such
    labelled: NDArray[np.int64]  # (K,)
    predicted: NDArray[np.int64]  # (K,)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of items whose predicted class is the right one, 0 to 1.

    Args:
        labels: (N,) integers, the right classes.
        predictions: (N,) integers.

    Raises:
        ArgumentTypeError: something other than integers.
        ArgumentError: wrong shapes, sizes that differ, no item.

    >>> accuracy([0, 0, 1, 1], [0, 1, 1, 1])
    0.75
    """
    right, chosen = _checked(labels, predictions)
    return float((chosen == right).mean())


def uar(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Unweighted average recall: the mean over classes of the share predicted right, 0 to 1.

    Args:
        labels: (N,) integers, the right classes; only these count as classes.
        predictions: (N,) integers.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`accuracy`.

    >>> uar([0, 0, 0, 1], [0, 0, 0, 0])
    0.5
    """
    counts = _counts(labels, predictions, None)
    there = counts.labelled > 0
    return float((counts.right[there] / counts.labelled[there]).mean())


def macro_f1(
    labels: ArrayLike, predictions: ArrayLike, *, classes: Sequence[int] | None = None
) -> float:
    """Mean F1 of classes, 0 to 1.

    Args:
        labels: (N,) integers, the right classes.
        predictions: (N,) integers.
        classes: which to average over; None: all that labels or predictions hold.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`accuracy`; no class, or one twice.

    >>> round(macro_f1([0, 0, 0, 1], [0, 0, 0, 0]), 3)
    0.429
    """
    counts = _counts(labels, predictions, classes)
    return float((2 * counts.right / np.maximum(counts.labelled + counts.predicted, 1)).mean())


def micro_f1(
    labels: ArrayLike, predictions: ArrayLike, *, classes: Sequence[int] | None = None
) -> float:
    """F1 of the sums over classes, 0 to 1.

    Args:
        labels: (N,) integers, the right classes.
        predictions: (N,) integers.
        classes: which to sum over; None: all, which gives the accuracy.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`macro_f1`.

    >>> micro_f1([0, 0, 1], [0, 1, 1], classes=[1])
    0.6666666666666666
    """
    counts = _counts(labels, predictions, classes)
    total = int(counts.labelled.sum() + counts.predicted.sum())
    return float(2 * counts.right.sum() / max(total, 1))


def _counts(labels: ArrayLike, predictions: ArrayLike, classes: Sequence[int] | None) -> _Counts:
    right, chosen = _checked(labels, predictions)
    known, codes = np.unique(np.concatenate([chosen, right]), return_inverse=True)
    of_chosen, of_right = codes[: len(chosen)], codes[len(chosen) :]
    of_all = [
        np.bincount(of, minlength=len(known))
        for of in (of_right[of_right == of_chosen], of_right, of_chosen)
    ]
    if classes is None:
        return _Counts(known, *of_all)
    wanted = np.asarray(classes)
    if not len(wanted) or len(np.unique(wanted)) < len(wanted):
        raise ArgumentError("classes", f"wants different integers, got {classes}")
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    there = known[place] == wanted
    return _Counts(wanted, *(np.where(there, count[place], 0) for count in of_all))


def _checked(labels: ArrayLike, predictions: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    right, chosen = _array(labels), _array(predictions)
    for name, values in (("labels", right), ("predictions", chosen)):
        if values.ndim != 1:
            raise ArgumentError(name, f"wants shape (N,), got {values.shape}")
        if not len(values):
            raise ArgumentError(name, "wants at least one item, got none")
        if values.dtype.kind not in "iu":
            raise ArgumentTypeError(name, f"wants integers, got {values.dtype}")
    if len(chosen) != len(right):
        raise ArgumentError("predictions", f"wants one a label, {len(right)}, got {len(chosen)}")
    return right, chosen
