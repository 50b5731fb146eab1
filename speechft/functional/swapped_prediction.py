"""Spin's swapped prediction: DINO's pass, with Sinkhorn's centre."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.distributed import Gather
from speechft.functional._checks import check_floating, check_same, check_scale
from speechft.functional.dino import dino
from speechft.functional.sinkhorn import sinkhorn_center
from speechft.lengths import LengthsLike


def swapped_prediction(
    logits1: Tensor,
    logits2: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    epsilon: float | Tensor = 0.02,
    iterations: int = 3,
    lengths: LengthsLike | None = None,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Each of two views is to predict the code that the other was assigned to.

    With the similarities :math:`s, \tilde s` of a frame in both views to the codes, and Sinkhorn's
    assignments :math:`q, \tilde q`, made over all frames of a view,

    .. math::

        p = \mathrm{softmax}(s / \tau), \qquad
        L = - \frac 1 2 \Bigl\langle \sum_k \tilde q_k \log p_k
            + \sum_k q_k \log \tilde p_k \Bigr\rangle.

    Args:
        logits1: (B, K), or (B, T, K) with frames: similarities to the codes, cosines in Spin.
        logits2: of the same frames in the other view; of the shape and dtype of ``logits1``.
        temperature: of the prediction, above 0.
        epsilon: of the assignment, above 0.
        iterations: of Sinkhorn's, 1 or more.
        lengths: (B,) valid frames; those beyond have no part.
        gather: the frames of all ranks are assigned together: True, or a process group. The loss is
            that of this rank's frames.
        reduction: ``"mean"`` over frames, ``"sum"``, or ``"none"``.

    Returns:
        Tensor: a scalar, (B,) or (B, T); float32 (float64 for float64 inputs). The assignments have
        no gradient.

    Raises:
        ArgumentError: as :func:`sinkhorn` and :func:`dino`.
        ArgumentTypeError: likewise.
        LengthError: likewise.
        BackendError: likewise.

    Memory beyond inputs and outputs: that of :func:`dino` and :func:`sinkhorn_center`; the
    assignments are never stored.

    Source: Chang et al., "Spin", Interspeech 2023; Caron et al., "SwAV", NeurIPS 2020.

    >>> import torch
    >>> views = torch.eye(2), torch.eye(2)
    >>> round(float(swapped_prediction(*views)), 6)    # each knows its code
    4.5e-05
    """
    frames = isinstance(logits1, Tensor) and logits1.dim() == 3
    for logits, argument in ((logits1, "logits1"), (logits2, "logits2")):
        check_floating(logits, argument, "(B, T, K)" if frames else "(B, K)")
    meanings = ("batch size", "number of frames") if frames else ("batch size",)
    sizes = dict(enumerate((*meanings, "number of codes")))
    check_same(logits1, logits2, "logits2", "logits1", sizes)
    check_scale(epsilon, "epsilon", logits1)
    views = [logits1, logits2]
    centers = [
        sinkhorn_center(
            view, epsilon=epsilon, iterations=iterations, lengths=lengths, gather=gather
        )
        for view in views
    ]
    return dino(
        views, [view.detach() for view in views], center=torch.stack(centers),
        student_temperature=temperature, teacher_temperature=epsilon, student_lengths=lengths,
        reduction=reduction,
    )  # fmt: skip
