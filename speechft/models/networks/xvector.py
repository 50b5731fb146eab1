"""The x-vector's time-delay layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechft.lengths import LengthsLike
from speechft.models.networks._frames import FrameLayer, check_frames, check_sizes, padding_mask

_CONTEXTS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # (frames, how far apart) of each layer


class XVector(nn.Module):
    """Five time-delay layers (affine, ReLU, batch norm), each of a few frames of the one below.

    Their contexts are {t-2, ..., t+2}, {t-2, t, t+2}, {t-3, t, t+3}, {t} and {t}: 15 frames make
    one, and nothing is padded. The x-vector follows by statistics pooling and an affine layer.

    Args:
        input_size: of a frame.
        channels: of the first four layers.
        output_size: of the last layer.

    Shape:
        frames (B, T, input_size), lengths (B,) or None; (B, T - 14, output_size) and lengths.

    Source: Snyder et al., "X-vectors", ICASSP 2018, table 1.

    >>> frames, lengths = XVector(24)(torch.randn(2, 100, 24), [100, 50])
    >>> frames.shape, lengths
    (torch.Size([2, 86, 1500]), tensor([86, 36]))
    """

    def __init__(self, input_size: int = 80, channels: int = 512, output_size: int = 1500) -> None:
        super().__init__()
        check_sizes(input_size=input_size, channels=channels, output_size=output_size)
        self.input_size = input_size
        self.output_size = output_size
        sizes = (input_size, *[channels] * 4, output_size)
        self.layers = nn.ModuleList(
            FrameLayer(inputs, outputs, kernel, dilation)
            for inputs, outputs, (kernel, dilation) in zip(
                sizes[:-1], sizes[1:], _CONTEXTS, strict=True
            )
        )
        self.minimum_frames = 1 + sum((kernel - 1) * dilation for kernel, dilation in _CONTEXTS)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """14 fewer, at least 0."""
        return (lengths.to(torch.int64) - (self.minimum_frames - 1)).clamp(min=0)

    def forward(
        self, frames: Tensor, lengths: LengthsLike | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Frames and their lengths; what lies beyond each length is ignored.

        Raises:
            ClipTooShortError: an utterance of fewer than :attr:`minimum_frames` (checked on the
                CPU, and on a GPU inside :func:`speechft.checked`; unchecked, it makes one).
            LengthError: lengths of the wrong shape or out of range (checked likewise).
            ArgumentError: frames of another shape.
            ArgumentTypeError: frames that are not floating point.
        """
        x, found = check_frames(
            frames, lengths, input_size=self.input_size, minimum_frames=self.minimum_frames
        )
        for layer in self.layers:
            assert isinstance(layer, FrameLayer)
            if found is not None:
                found = (found - layer.context).clamp(min=1)
            x = layer(x, padding_mask(found, x.shape[2] - layer.context))
        return x.transpose(1, 2), found
