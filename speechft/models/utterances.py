"""What gives a vector an utterance, as evaluation takes it: as one frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechft.lengths import LengthsLike
from speechft.models.embedding import EmbeddingModel
from speechft.models.encoder import EncoderOutput
from speechft.models.subspaces import SubspaceModel


class UtteranceEncoder(nn.Module):
    """A model of utterances with the call of an encoder: one layer, one frame an utterance.

    Attributes:
        spaces: (first, last + 1) dimensions by name, of a subspace model; empty: there is one.
    """

    num_layers = 0

    def __init__(self, model: SubspaceModel | EmbeddingModel) -> None:
        super().__init__()
        self.model = model
        self.spaces: dict[str, tuple[int, int]] = {}
        if isinstance(model, SubspaceModel):
            self.spaces = model.spaces
            self.sample_rate = model.encoder.sample_rate
            self.minimum_samples = model.encoder.minimum_samples
            self.hidden_size = max(last for _, last in self.spaces.values())
        else:
            self.sample_rate = model.sample_rate
            self.minimum_samples = model.minimum_samples
            self.hidden_size = model.size

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """One for every utterance."""
        return torch.ones_like(sample_lengths, dtype=torch.int64)

    def forward(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> EncoderOutput:
        """(B, 1, D)."""
        if isinstance(self.model, SubspaceModel):
            vectors = self.model.vectors(waveforms, lengths)
        else:
            vectors = self.model(waveforms, lengths)
        ones = torch.ones(len(vectors), dtype=torch.int64, device=vectors.device)
        return EncoderOutput((vectors[:, None],), vectors[:, None], ones)
