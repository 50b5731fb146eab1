"""Angular-margin softmax with several centres a class."""

from __future__ import annotations

from speechft.losses.margin import AAMSoftmaxLoss


class SubCenterArcFaceLoss(AAMSoftmaxLoss):
    r""":class:`AAMSoftmaxLoss` with several centres a class, of which the nearest counts.

    A second centre takes what is wrongly labelled, or far from the rest of its class, and does not
    let it pull the first. Arguments, shapes and errors are those of :class:`AAMSoftmaxLoss`, with
    ``sub_centers=2``.

    Source: Deng et al., "Sub-center ArcFace", ECCV 2020.

    >>> import torch
    >>> SubCenterArcFaceLoss(16, 100).logits(torch.randn(4, 16)).shape
    torch.Size([4, 100])
    """

    def __init__(
        self,
        size: int,
        classes: int,
        *,
        margin: float = 0.2,
        scale: float = 30.0,
        sub_centers: int = 2,
        margin_warmup_steps: int = 0,
        top_k: int = 0,
        top_k_margin: float = 0.1,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            size, classes, margin=margin, scale=scale, sub_centers=sub_centers,
            margin_warmup_steps=margin_warmup_steps, top_k=top_k, top_k_margin=top_k_margin,
            label_smoothing=label_smoothing, reduction=reduction,
        )  # fmt: skip
