"""What the networks share: the door, batch norm over valid frames, and a convolution over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError, ClipTooShortError
from speechft.lengths import LengthsLike, check_lengths
from speechft.models.masked import valid_mask


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, C, T) or (B, C, T, F) whose statistics count valid frames only.

    ``padding`` is (B, 1, T) or (B, 1, T, 1), True = padding, which comes out as zeros; None: there
    is none, and this is torch's batch norm. Sums over the valid frames are in float64, so that
    longer padding does not change how they are rounded.
    """

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        if padding is None:
            return super().forward(x)
        if not self.training:
            return super().forward(x).masked_fill(padding, 0.0)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        each = (-1, *[1] * (x.dim() - 2))
        number = (~padding).sum() * x[0, 0, 0].numel()
        values = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(padding, 0.0)
        mean = (_total(values) / number).to(values.dtype)
        centred = (values - mean.view(each)).masked_fill(padding, 0.0)
        variance = (_total(centred.square()) / number).to(values.dtype)
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = variance * (number / (number - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        y = torch.addcmul(self.bias.view(each), centred, scale.view(each))
        return y.masked_fill(padding, 0.0).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Frames of one dimension or two: torch has a class for each."""


def _total(x: Tensor) -> Tensor:
    """Sums (C,) over all but the channels."""
    return x.sum((0, *range(2, x.dim())), dtype=torch.float64)


class FrameLayer(nn.Module):
    """Convolution over time, ReLU, batch norm: (B, C, T) to (B, C', T').

    Args:
        kernel: frames that one looks at, ``dilation`` apart.
        same: pad with zeros so that T' = T; otherwise T' = T - ``context``.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, *, same: bool = False
    ) -> None:
        super().__init__()
        self.context = 0 if same else (kernel - 1) * dilation
        self.conv = nn.Conv1d(
            inputs, outputs, kernel, dilation=dilation,
            padding=(kernel - 1) // 2 * dilation if same else 0,
        )  # fmt: skip
        self.norm = MaskedBatchNorm(outputs)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """``padding`` as in :class:`MaskedBatchNorm`, of the output."""
        y: Tensor = self.norm(torch.relu_(self.conv(x)), padding)
        return y


def padding_mask(lengths: Tensor | None, steps: int) -> Tensor | None:
    """(B, 1, steps), True = padding."""
    return None if lengths is None else ~valid_mask(lengths, steps)[:, None]


def check_frames(
    frames: Tensor, lengths: LengthsLike | None, *, input_size: int, minimum_frames: int
) -> tuple[Tensor, Tensor | None]:
    """Frames (B, input_size, T) with zeros for padding, and their lengths.

    Raises:
        ArgumentError: a wrong shape.
        ArgumentTypeError: not floating point.
        ClipTooShortError: fewer frames than the network needs (of single utterances: checked on
            the CPU, and on a GPU inside :func:`speechft.checked`).
        LengthError: lengths of the wrong shape or out of range (checked likewise).
    """
    if not frames.is_floating_point():
        raise ArgumentTypeError("frames", f"wants floating point, got {frames.dtype}")
    if frames.dim() != 3 or frames.shape[0] == 0 or frames.shape[2] != input_size:
        raise ArgumentError(
            "frames", f"wants shape (B, T, {input_size}), got {tuple(frames.shape)}"
        )
    batch, steps = frames.shape[:2]
    if steps < minimum_frames:
        raise ClipTooShortError(
            "frames", f"has {steps} frames; the network needs at least {minimum_frames}"
        )
    found = check_lengths(
        lengths, batch=batch, steps=steps, device=frames.device, argument="lengths"
    )
    if found is not None:
        if values_are_checked(found) and bool((found < minimum_frames).any()):
            where = int((found < minimum_frames).nonzero()[0, 0])
            raise ClipTooShortError(
                "lengths",
                f"sample {where} has {int(found[where])} frames; the network needs at least "
                f"{minimum_frames}",
            )
        frames = frames.masked_fill(~valid_mask(found, steps)[..., None], 0.0)
    return frames.transpose(1, 2), found


def check_sizes(**sizes: int) -> None:
    """Sizes of layers, each at least 1.

    Raises:
        ArgumentError: one is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(name, f"wants 1 or more, got {size}")
