"""The triplet loss of cosine distances."""

from __future__ import annotations

from torch import Tensor

from speechft.functional._checks import (
    check_finite,
    check_floating,
    check_reduction,
    check_same,
    check_weight,
)
from speechft.reference.triplet import triplet as reference


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Triplet loss: an anchor is nearer to its positive than to its negative, by a margin.

    .. math::

        \ell_i = \max(0,\; d(a_i, p_i) - d(a_i, n_i) + m), \qquad d(u, v) = 1 - \cos(u, v).

    Args:
        anchor: (B, D), floating point, of any lengths: only directions count.
        positive: (B, D), of the dtype and device of ``anchor``: the class of the anchor.
        negative: (B, D), likewise: another class.
        margin: in units of the distance, which is between 0 and 2; 0 or above.
        reduction: over triplets: ``"none"``, ``"mean"`` or ``"sum"``. The mean is over all
            triplets, also those that are far enough apart already.

    Returns:
        Tensor: a scalar, or (B,) with ``reduction="none"``; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, a negative margin, NaN.
        ArgumentTypeError: inputs that are not floating point or differ in dtype.

    The cosine of a zero vector is 0, and its gradient finite: that of a vector of length 1. At the
    corner of the hinge the gradient is 0. Values of GPU tensors are checked only inside
    :func:`speechft.checked`. Under autocast the loss is computed in float32. Plain PyTorch: any
    derivative. Memory beyond inputs and gradients: four tensors (B, D).

    Source: Schroff, Kalenichenko & Philbin, "FaceNet", CVPR 2015, equation 3, with cosine instead
    of squared Euclidean distances, as Lux, Chen & Vu, "Combining Contrastive and Non-Contrastive
    Losses for Fine-Tuning Pretrained Models in Speech Analysis", SLT 2022, use it.
    (``torch.nn.functional.triplet_margin_loss`` takes Euclidean distances.)

    >>> import torch
    >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> float(triplet(x, x, y)), float(triplet(x, y, x)), float(triplet(x, y, y))
    (0.0, 2.0, 1.0)
    """
    check_floating(anchor, "anchor", "(B, D)")
    for tensor, name in ((positive, "positive"), (negative, "negative")):
        check_floating(tensor, name, "(B, D)")
        check_same(anchor, tensor, name, "anchor", {0: "batch size", 1: "feature size"})
    margin = check_weight(margin, "margin")
    check_reduction(reduction)
    for tensor, name in ((anchor, "anchor"), (positive, "positive"), (negative, "negative")):
        check_finite(tensor, name)
    return reference(anchor, positive, negative, margin=margin, reduction=reduction)
