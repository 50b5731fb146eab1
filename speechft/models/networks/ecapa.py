"""ECAPA-TDNN: time-delay blocks of several scales, with channels weighed by the utterance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError
from speechft.lengths import LengthsLike
from speechft.models.networks._frames import FrameLayer, check_frames, check_sizes, padding_mask


class ECAPA(nn.Module):
    r"""A convolution, three SE-Res2 blocks, and one layer on the outputs of all three.

    .. math::

        x_0 = \mathrm{conv}_5(x), \qquad
        x_i = B_i(s_i) + s_i, \quad s_i = \sum_{j<i} x_j, \qquad
        y = \mathrm{ReLU}(W [x_1; x_2; x_3] + b)

    with blocks :math:`B_i` of dilation 2, 3, 4. Each convolution is followed by ReLU and batch
    norm, and pads with zeros, so there are as many frames as before. The embedding follows by
    :class:`speechft.pooling.AttentiveStatisticsPooling`, batch norm and an affine layer.

    Args:
        input_size: of a frame.
        channels: of the blocks: 512 or 1024 in the paper.
        output_size: of the last layer.
        scale: pieces of the channels in a Res2 convolution.
        bottleneck: of squeeze and excitation.

    Shape:
        frames (B, T, input_size), lengths (B,) or None; (B, T, output_size) and lengths.

    Raises:
        ArgumentError: channels that are not a multiple of ``scale``.

    Source: Desplanques et al., "ECAPA-TDNN", Interspeech 2020.

    >>> frames, lengths = ECAPA(80, 64, 96)(torch.randn(2, 50, 80), [50, 30])
    >>> frames.shape, lengths
    (torch.Size([2, 50, 96]), tensor([50, 30]))
    """

    minimum_frames = 1

    def __init__(
        self,
        input_size: int = 80,
        channels: int = 512,
        output_size: int = 1536,
        *,
        scale: int = 8,
        bottleneck: int = 128,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, output_size=output_size, bottleneck=bottleneck)
        if scale < 2 or channels < scale or channels % scale:
            raise ArgumentError(
                "channels", f"wants a multiple of scale ({scale}, 2 or more), got {channels}"
            )
        self.input_size = input_size
        self.output_size = output_size
        self.first = FrameLayer(input_size, channels, 5, same=True)
        self.blocks = nn.ModuleList(
            SERes2Block(channels, dilation, scale, bottleneck) for dilation in (2, 3, 4)
        )
        self.aggregate = nn.Conv1d(3 * channels, output_size, 1)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """As many as before."""
        return lengths.to(torch.int64)

    def forward(
        self, frames: Tensor, lengths: LengthsLike | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Frames and their lengths; what lies beyond each length is ignored.

        Raises:
            LengthError: lengths of the wrong shape or out of range (checked on the CPU, and on a
                GPU inside :func:`speechft.checked`).
            ArgumentError: frames of another shape.
            ArgumentTypeError: frames that are not floating point.
        """
        x, found = check_frames(
            frames, lengths, input_size=self.input_size, minimum_frames=self.minimum_frames
        )
        padding = padding_mask(found, x.shape[2])
        total = self.first(x, padding)
        outputs: list[Tensor] = []
        for block in self.blocks:
            outputs.append(block(total, padding, found))
            if len(outputs) < len(self.blocks):
                total = total + outputs[-1]
        y = torch.relu_(self.aggregate(torch.cat(outputs, dim=1)))
        if padding is not None:
            y = y.masked_fill(padding, 0.0)
        return y.transpose(1, 2), found


class SERes2Block(nn.Module):
    """A layer, a Res2 convolution, a layer, squeeze and excitation; and the input added."""

    def __init__(self, channels: int, dilation: int, scale: int, bottleneck: int) -> None:
        super().__init__()
        self.before = FrameLayer(channels, channels)
        self.scales = nn.ModuleList(
            FrameLayer(channels // scale, channels // scale, 3, dilation, same=True)
            for _ in range(scale - 1)
        )
        self.after = FrameLayer(channels, channels)
        self.squeeze = nn.Linear(channels, bottleneck)
        self.excite = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, padding: Tensor | None, lengths: Tensor | None) -> Tensor:
        first, *pieces = self.before(x, padding).chunk(len(self.scales) + 1, dim=1)
        outputs = [first]
        for index, (layer, piece) in enumerate(zip(self.scales, pieces, strict=True)):
            outputs.append(layer(piece if index == 0 else piece + outputs[-1], padding))
        y = self.after(torch.cat(outputs, dim=1), padding)
        # Padding holds zeros. In float64, longer padding does not change how the sum is rounded.
        total = y.sum(2, dtype=torch.float64)
        mean = (total / (y.shape[2] if lengths is None else lengths[:, None])).to(x.dtype)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))
        return torch.addcmul(x, y, gate[..., None].to(x.dtype))
