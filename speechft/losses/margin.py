"""Softmax over the classes of a label, with a margin of the angle: ArcFace and its kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from speechft.backends import values_are_checked
from speechft.errors import ArgumentError
from speechft.functional._checks import (
    check_finite,
    check_floating,
    check_labels,
    check_positive,
    check_reduction,
    check_weight,
)
from speechft.reference._unit import unit


class AAMSoftmaxLoss(nn.Module):
    r"""Cross-entropy of cosines with learnt class centres, the own angle made larger by a margin.

    With the angle :math:`\theta_{ij}` between embedding i and its nearest sub-centre of class j,

    .. math::

        \ell_i = -\log \frac{e^{s \cos(\theta_{iy} + m)}}
                 {e^{s \cos(\theta_{iy} + m)} + \sum_{j \ne y} e^{s \cos \theta_{ij}}}.

    Where :math:`\theta + m` is beyond :math:`\pi` the cosine would rise again; there the own logit
    goes on as :math:`\cos\theta - m \sin m`, which falls. With ``top_k``, the k wrong classes
    nearest to each embedding have :math:`\cos(\theta - m_k)`, continued in the same way where
    :math:`\theta < m_k`: they have to be farther still. Also called ArcFace.

    Args:
        size: D of the embeddings.
        classes: how many; labels are 0 to ``classes`` - 1.
        margin: m, in radians.
        scale: s, above 0.
        sub_centers: centres of each class; the nearest counts.
        margin_warmup_steps: calls over which both margins grow, linearly from 0: call t (t = 0, 1,
            ...) has min(1, t / steps) of them. Calls in training mode count.
        top_k: how many wrong classes get a margin; 0: none.
        top_k_margin: :math:`m_k`, in radians.
        label_smoothing: share of the target that is spread over all classes.
        reduction: ``"none"``, ``"mean"`` over known labels, or ``"sum"``.

    Shape:
        embeddings (N, D), of any length; labels (N,) int, -1 for unknown; a scalar, or (N,) with
        ``reduction="none"``; float32 (float64 for float64 embeddings).

    An unknown label has loss 0 and counts nowhere; without a known one the mean is 0, with a graph.
    Autocast changes nothing. Where :math:`\sin^2\theta` is under 8 epsilons of the dtype the sine
    is constant: the angle has no derivative at a cosine of ±1. Memory: some N x ``classes``, one of
    them times ``sub_centers``.

    ``weight`` (classes * sub_centers, D) has the sub-centres of a class one after the other, as
    wespeaker does, and is drawn by Xavier. The buffer ``step`` counts the calls, without a wait
    for the device.

    Raises:
        ArgumentError: a setting out of range; embeddings or labels of another shape, NaN, a label
            from ``classes`` on.
        ArgumentTypeError: labels that are not integers, embeddings that are not floating point.

    Source: Deng et al., "ArcFace", CVPR 2019, equation 3; ``top_k``: Zhao et al., "Multi-query
    multi-head attention pooling and inter-topK penalty", ICASSP 2022.

    >>> import torch
    >>> loss = AAMSoftmaxLoss(2, 2, margin=0.0, scale=1.0)
    >>> _ = loss.weight.data.copy_(torch.eye(2))
    >>> value = loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
    >>> round(float(value.detach()), 4)    # log(1 + 1 / e)
    0.3133
    """

    step: Tensor

    def __init__(
        self,
        size: int,
        classes: int,
        *,
        margin: float = 0.2,
        scale: float = 30.0,
        sub_centers: int = 1,
        margin_warmup_steps: int = 0,
        top_k: int = 0,
        top_k_margin: float = 0.1,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_whole(size, "size", 1)
        _check_whole(classes, "classes", 2)
        _check_whole(sub_centers, "sub_centers", 1)
        _check_whole(margin_warmup_steps, "margin_warmup_steps", 0)
        _check_whole(top_k, "top_k", 0)
        if top_k >= classes:
            raise ArgumentError("top_k", f"wants fewer than classes={classes}, got {top_k}")
        for value, name in ((margin, "margin"), (top_k_margin, "top_k_margin")):
            if check_weight(value, name) > math.pi:
                raise ArgumentError(name, f"wants radians up to pi, got {value}")
        if check_weight(label_smoothing, "label_smoothing") >= 1:
            raise ArgumentError("label_smoothing", f"wants less than 1, got {label_smoothing}")
        check_reduction(reduction)
        self.size, self.classes, self.sub_centers = size, classes, sub_centers
        self.margin, self.scale = float(margin), check_positive(scale, "scale")
        self.margin_warmup_steps = margin_warmup_steps
        self.top_k, self.top_k_margin = top_k, float(top_k_margin)
        self.label_smoothing = float(label_smoothing)
        self.reduction = reduction
        self.weight = nn.Parameter(torch.empty(classes * sub_centers, size))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch; in training mode, a step of the margin's warm-up."""
        check_reduction(self.reduction)
        cosine = self._cosine(embeddings)
        self._check_labels(labels, embeddings)
        labels = labels.long()
        own = labels.clamp_min(0)[:, None]  # of an unknown label, any: it does not count
        with torch.autocast(cosine.device.type, enabled=False):
            grown = self._grown(cosine)
            values = cosine
            if self.top_k:
                wrong = cosine.detach().scatter(1, own, -math.inf)
                nearest = wrong.topk(self.top_k, dim=1).indices
                nearer = -_turned(-cosine.gather(1, nearest), grown * self.top_k_margin)
                values = values.scatter(1, nearest, nearer)
            values = values.scatter(1, own, _turned(cosine.gather(1, own), grown * self.margin))
            losses = cross_entropy(
                self.scale * values, labels, ignore_index=-1,
                label_smoothing=self.label_smoothing, reduction="none",
            )  # fmt: skip
        if self.training:
            self.step.add_(1)
        if self.reduction == "none":
            return losses
        known = (labels >= 0).sum().clamp_min(1)
        return losses.sum() / known if self.reduction == "mean" else losses.sum()

    def logits(self, embeddings: Tensor) -> Tensor:
        r"""What classifies: :math:`s \cos\theta`, without margins: (N, D) -> (N, classes)."""
        return self.scale * self._cosine(embeddings)

    def _cosine(self, embeddings: Tensor) -> Tensor:
        """(N, classes), of the nearest sub-centres, in float32 or float64."""
        check_floating(embeddings, "embeddings", "(N, D)")
        if embeddings.shape[1] != self.size:
            raise ArgumentError(
                "embeddings", f"wants rows of size={self.size}, got {tuple(embeddings.shape)}"
            )
        check_finite(embeddings, "embeddings")
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = unit(embeddings.to(dtype)) @ unit(self.weight.to(dtype)).T
            if self.sub_centers == 1:
                return cosine
            return cosine.view(-1, self.classes, self.sub_centers).amax(2)

    def _check_labels(self, labels: Tensor, embeddings: Tensor) -> None:
        check_labels(labels, "labels", embeddings, "embeddings")
        if values_are_checked(labels) and bool((labels >= self.classes).any()):
            where = int((labels >= self.classes).nonzero()[0])
            raise ArgumentError(
                "labels", f"wants numbers below {self.classes}, got {int(labels[where])} at {where}"
            )

    def _grown(self, like: Tensor) -> Tensor:
        """The share of the margins that this step has, from 0 to 1."""
        if not self.margin_warmup_steps:
            return torch.ones((), dtype=like.dtype, device=like.device)
        # A copy: what backward reads is not to change when the step does.
        return (self.step.to(like.dtype) / self.margin_warmup_steps).clamp_max(1.0)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, classes={self.classes}, margin={self.margin}, scale={self.scale}, "
            f"sub_centers={self.sub_centers}, margin_warmup_steps={self.margin_warmup_steps}, "
            f"top_k={self.top_k}, top_k_margin={self.top_k_margin}, "
            f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )


def _turned(cosine: Tensor, margin: Tensor) -> Tensor:
    """The cosine of the angle and the margin; falling where their sum is beyond pi, too."""
    cos, sin = margin.cos(), margin.sin()
    floor = 8 * torch.finfo(cosine.dtype).eps  # under it, 1 - cosine² is rounding
    sine = (1 - cosine.square()).clamp_min(floor).sqrt()
    return torch.where(cosine > -cos, cosine * cos - sine * sin, cosine - margin * sin)


def _check_whole(value: int, argument: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(argument, f"wants a whole number from {least}, got {value!r}")
