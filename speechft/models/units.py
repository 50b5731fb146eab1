r"""Discrete units: which code of a codebook a frame of an encoder is nearest to.

A unit head is what Spin trains beside the encoder: a projection and a codebook of unit rows,

.. math:: u_t = \arg\max_k \frac{c_k \cdot (A h_t + b)}{\lVert c_k \rVert},

of the encoder's last hidden states :math:`h_t`. It lies in the encoder's own folder, in two files:
``units.safetensors`` and ``units.json``; whoever does not know of them finds a plain Hugging Face
folder.

    units, lengths = speechft.models.load_units("spin/")(waveforms, lengths)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from speechft.lengths import LengthsLike
from speechft.models.encoder import Encoder, EncoderOutput
from speechft.models.masked import valid_mask


class Units(NamedTuple):
    """What a :class:`UnitModel` returns.

    Attributes:
        units: (B, T') int64, from 0 to K - 1; -1 beyond each length.
        lengths: (B,) int64, the valid frames of each sample.
    """

    units: Tensor
    lengths: Tensor


class UnitHead(nn.Module):
    """A projection and a codebook.

    Args:
        features: C, the size of the encoder's frames.
        size: D, of a projected frame.
        codes: K.

    Shapes: frames (..., C) to units (...), int64.
    """

    def __init__(self, features: int, size: int, codes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, size)
        self.codebook = nn.Parameter(torch.zeros(codes, size))

    @property
    def codes(self) -> int:
        """K, how many units there are."""
        return len(self.codebook)

    def similarities(self, frames: Tensor) -> Tensor:
        """(..., C) to (..., K): cosines of projected frames and codes."""
        projected = self.projection(frames.to(self.codebook.dtype))
        unit = torch_functional.normalize(projected, dim=-1)
        cosines: Tensor = unit @ torch_functional.normalize(self.codebook, dim=-1).T
        return cosines

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """The unit of each frame."""
        return self.similarities(frames).argmax(-1)


class UnitModel(nn.Module):
    """An encoder and its unit head: waveforms to units. Made by :func:`load_units`.

    Args:
        encoder: whose last hidden states have units.
        head: what gives them.
    """

    def __init__(self, encoder: Encoder, head: UnitHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    @property
    def codes(self) -> int:
        """K, how many units there are."""
        return self.head.codes

    @property
    def sample_rate(self) -> int:
        """Of waveforms, Hz."""
        return self.encoder.sample_rate

    @property
    def minimum_samples(self) -> int:
        """The shortest waveform that makes one frame."""
        return self.encoder.minimum_samples

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> Units:
        """The unit of each frame, which depends on its utterance alone.

        Args and errors: those of :class:`speechft.models.Encoder`.
        """
        output: EncoderOutput = self.encoder(waveforms, lengths)
        found = self.head(output.last_hidden_state)
        valid = valid_mask(output.lengths, found.shape[1])
        return Units(found.masked_fill(~valid, -1), output.lengths)


class UnitFrames(nn.Module):
    """A :class:`UnitModel` with the call of an encoder, as evaluation takes it.

    Attributes:
        unit_head: what gives the units of its last layer.
    """

    def __init__(self, model: UnitModel) -> None:
        super().__init__()
        self.encoder, self.unit_head = model.encoder, model.head
        self.sample_rate, self.minimum_samples = model.sample_rate, model.minimum_samples
        self.num_layers, self.hidden_size = model.encoder.num_layers, model.encoder.hidden_size

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """See :class:`speechft.models.Encoder`."""
        return self.encoder.frame_lengths(sample_lengths)

    def forward(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> EncoderOutput:
        """Likewise."""
        output: EncoderOutput = self.encoder(waveforms, lengths)
        return output
