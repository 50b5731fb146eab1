"""ResNet34 on frames as pictures of time and frequency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechft.lengths import LengthsLike
from speechft.models.networks._frames import (
    MaskedBatchNorm,
    check_frames,
    check_sizes,
    padding_mask,
)

_STAGES = ((3, 1), (4, 2), (6, 2), (3, 2))  # (blocks, stride) of each


class ResNet34(nn.Module):
    """A 3x3 convolution and 16 residual blocks of two, over time and frequency.

    Stages of 3, 4, 6 and 3 blocks have 1, 2, 4 and 8 times ``channels``; each but the first halves
    both time and frequency, rounding up. There is no max pooling. A frame of the output is all
    channels at all frequencies. With 16 channels this is the *light* ResNet34; 32 are common too.
    The embedding follows by statistics pooling and an affine layer.

    Args:
        input_size: of a frame, F.
        channels: of the first stage.

    Shape:
        frames (B, T, F), lengths (B,) or None; (B, ⌈T / 8⌉, 8 channels ⌈F / 8⌉), channels before
        frequencies, and lengths.

    Source: He et al., CVPR 2016; the light one: Cho et al., "Non-contrastive self-supervised
    learning of utterance-level speech representations", Interspeech 2022.

    >>> frames, lengths = ResNet34(80, 4)(torch.randn(2, 50, 80), [50, 30])
    >>> frames.shape, lengths
    (torch.Size([2, 7, 320]), tensor([7, 4]))
    """

    minimum_frames = 1

    def __init__(self, input_size: int = 80, channels: int = 16) -> None:
        super().__init__()
        check_sizes(input_size=input_size, channels=channels)
        self.input_size = input_size
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = MaskedBatchNorm(channels)
        self.blocks = nn.ModuleList()
        inputs, bins = channels, input_size
        for stage, (blocks, stride) in enumerate(_STAGES):
            for block in range(blocks):
                outputs = channels << stage
                self.blocks.append(ResidualBlock(inputs, outputs, 1 if block else stride))
                inputs = outputs
            bins = -(-bins // stride)
        self.output_size = inputs * bins
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """⌈n / 8⌉."""
        return (lengths.to(torch.int64) + 7).div(8, rounding_mode="floor")

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
        x = self.stem(x.transpose(1, 2)[:, None])
        padding = _padding(found, x.shape[2])
        x = torch.relu_(self.norm(x, padding))
        for block in self.blocks:
            assert isinstance(block, ResidualBlock)
            if block.stride > 1:
                found = None if found is None else (found + 1).div(2, rounding_mode="floor")
                padding = _padding(found, (x.shape[2] + 1) // 2)
            x = block(x, padding)
        return x.transpose(1, 2).flatten(2), found


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, the input added; (B, C, T, F) to (B, C', T', F').

    Where the size changes, the input goes through a 1x1 convolution of the same stride, and a norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = MaskedBatchNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = MaskedBatchNorm(outputs)
        self.shortcut: nn.Conv2d | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_norm = MaskedBatchNorm(outputs)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """``padding`` is that of the output."""
        y = torch.relu_(self.norm1(self.conv1(x), padding))
        y = self.norm2(self.conv2(y), padding)
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x), padding)
        return torch.relu_(y + x)


def _padding(lengths: Tensor | None, steps: int) -> Tensor | None:
    padding = padding_mask(lengths, steps)
    return None if padding is None else padding[..., None]
