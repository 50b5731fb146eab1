"""A model that splits the space of an encoder into named subspaces: speaker, content, ...

    waveforms → encoder → one layer, or a weighting → mean over frames → transform → subspaces

Made by the method ``interventional``; :func:`load_subspaces` reads one back.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError
from speechft.lengths import LengthsLike
from speechft.models.encoder import Encoder, EncoderOutput


class SubspaceModel(nn.Module):
    r"""Utterances as vectors in named subspaces.

    With :math:`h_t` the frames of a layer and T the number of valid ones,

    .. math:: [z^{(1)}, z^{(2)}, \dots] = f\Bigl(\frac 1 T \sum_t h_t\Bigr)

    where f is an MLP with ReLU between its layers, or linear where there are no hidden layers.
    Vectors are meant to be compared by cosine.

    Args:
        encoder: from :func:`speechft.models.load`.
        subspaces: size of each by name, in the order in which f's output is cut.
        layer: 0 to the number of layers; None: the last.
        weighted_layers: a learnt weighting of all layers (softmax of ``layer_weights``) in place
            of one.
        hidden_sizes: of the MLP; empty for a linear transform.
        seed: of f's weights.
        encoder_name: what :func:`speechft.models.load` takes for this encoder, so that a saved
            model need not hold it; None: it is saved along.

    Raises:
        ArgumentError: no subspace, a size below 1, a layer that does not exist, or one beside
            ``weighted_layers``.
    """

    def __init__(
        self,
        encoder: Encoder,
        subspaces: Mapping[str, int],
        *,
        layer: int | None = None,
        weighted_layers: bool = False,
        hidden_sizes: tuple[int, ...] = (768, 768),
        seed: int = 0,
        encoder_name: str | None = None,
    ) -> None:
        super().__init__()
        check_subspaces(subspaces)
        if any(size < 1 for size in hidden_sizes):
            raise ArgumentError("hidden_sizes", f"wants sizes of at least 1, got {hidden_sizes}")
        if weighted_layers and layer is not None:
            raise ArgumentError("layer", f"is {layer} beside weighted_layers; choose one")
        if layer is not None and not 0 <= layer <= encoder.num_layers:
            raise ArgumentError("layer", f"wants 0 to {encoder.num_layers}, got {layer}")
        self.encoder = encoder
        self.subspaces = dict(subspaces)
        self.layer = None if weighted_layers else (encoder.num_layers if layer is None else layer)
        self.hidden_sizes = tuple(hidden_sizes)
        self.encoder_name = encoder_name
        self.layer_weights = (
            nn.Parameter(torch.zeros(encoder.num_layers + 1)) if weighted_layers else None
        )
        self.transform = make_transform(
            (encoder.hidden_size, *hidden_sizes, sum(subspaces.values())), seed=seed
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are used."""
        return tuple(range(self.encoder.num_layers + 1)) if self.layer is None else (self.layer,)

    def forward(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> dict[str, Tensor]:
        """Vectors of utterances.

        Args:
            waveforms: (B, T) at the encoder's rate.
            lengths: (B,) valid samples; None: all.

        Returns:
            (B, D) for each subspace, by name.

        Raises:
            As :class:`speechft.models.Encoder`.
        """
        return self.split(self.transform(self.pool(waveforms, lengths)))

    def pool(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """The mean over valid frames before the transform: (B, C), layers weighted."""
        return self.mix(self.pool_layers(waveforms, lengths))

    def pool_layers(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """The mean over valid frames of every layer used: (B, K, C)."""
        output = self._encode(waveforms, lengths)
        counts = output.lengths[:, None]
        # Padded frames are zeros.
        means = [frames.sum(1) / counts for frames in self._chosen(output)]
        return torch.stack(means, 1)

    def mix(self, features: Tensor) -> Tensor:
        """(..., K, C) of the layers used -> (..., C)."""
        if self.layer_weights is None:
            return features.squeeze(-2)
        return (self.layer_weights.softmax(0)[:, None] * features).sum(-2)

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """(..., sum of sizes) -> (..., D) by name."""
        parts = torch.split(z, list(self.subspaces.values()), -1)
        return dict(zip(self.subspaces, parts, strict=True))

    @property
    def spaces(self) -> dict[str, tuple[int, int]]:
        """Where each lies in :meth:`vectors`; ``pooled``, before the transform, comes first."""
        found: dict[str, tuple[int, int]] = {}
        first = 0
        for name, size in {"pooled": self.encoder.hidden_size, **self.subspaces}.items():
            found[name] = (first, first + size)
            first += size
        return found

    def vectors(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """(B, D): pooled features and the subspaces, side by side."""
        pooled = self.pool(waveforms, lengths)
        return torch.cat([pooled, self.transform(pooled)], 1)

    def folded(self, *names: str) -> FoldedEncoder:
        """An encoder with the transform in it, which gives frames of some subspaces.

        Args:
            names: of subspaces, side by side in this order; none: all.
        """
        return FoldedEncoder(self, names or tuple(self.subspaces))

    def save_pretrained(self, path: str | Path) -> None:
        """Write config, weights, and the encoder if it has no name; see :func:`load_subspaces`."""
        from speechft.models.subspaces_saving import save_subspaces

        save_subspaces(self, Path(path))

    def _encode(self, waveforms: Tensor, lengths: LengthsLike | None) -> EncoderOutput:
        last = self.encoder.num_layers
        # Up to the last layer is another thing than all of it: the final layer norm is left out.
        depth = None if self.layer in (None, last) else self.layer
        output: EncoderOutput = self.encoder(waveforms, lengths, up_to_layer=depth)
        return output

    def _chosen(self, output: EncoderOutput) -> tuple[Tensor, ...]:
        if self.layer is not None:
            return (output.last_hidden_state,)
        return (*output.hidden_states[:-1], output.last_hidden_state)

    def extra_repr(self) -> str:
        """What the submodules do not show."""
        return f"subspaces={self.subspaces}, layer={self.layer}, encoder_name={self.encoder_name!r}"


class FoldedEncoder(nn.Module):
    """An encoder whose features are frames in subspaces: the transform at every frame.

    It has what :class:`speechft.models.Encoder` has for those who use it frozen: ``sample_rate``,
    ``minimum_samples``, ``frame_lengths``, ``hidden_size``, and a call that gives an
    :class:`~speechft.models.EncoderOutput`. Its only layer is 0. The mean of its frames is the
    vector of :class:`SubspaceModel` where the transform is linear, and close to it where it is not.

    Args:
        model: with the encoder and the transform.
        names: of subspaces, side by side.

    Raises:
        ArgumentError: no such subspace.
    """

    num_layers = 0

    def __init__(self, model: SubspaceModel, names: tuple[str, ...]) -> None:
        super().__init__()
        unknown = [name for name in names if name not in model.subspaces]
        if unknown:
            known = ", ".join(model.subspaces)
            raise ArgumentError("names", f"no subspace {unknown[0]!r}; there are: {known}")
        self.model = model
        self.names = names
        self.sample_rate = model.encoder.sample_rate
        self.minimum_samples = model.encoder.minimum_samples
        self.hidden_size = sum(model.subspaces[name] for name in names)

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """See :meth:`speechft.models.Encoder.frame_lengths`."""
        return self.model.encoder.frame_lengths(sample_lengths)

    def forward(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> EncoderOutput:
        """See :meth:`speechft.models.Encoder.forward`."""
        output = self.model._encode(waveforms, lengths)
        mixed = self.model.mix(torch.stack(self.model._chosen(output), 2))
        parts = self.model.split(self.model.transform(mixed))
        frames = torch.cat([parts[name] for name in self.names], -1)
        steps = torch.arange(frames.shape[1], device=frames.device)
        frames = frames * (steps < output.lengths[:, None])[..., None]
        return EncoderOutput((frames,), frames, output.lengths)


def check_subspaces(subspaces: Mapping[str, int]) -> None:
    """Raise unless there is one at least, and each has a name and a size.

    Raises:
        ArgumentError: naming the first that is not.
    """
    if not subspaces:
        raise ArgumentError("subspaces", "is empty; it wants a size for each name")
    for name, size in subspaces.items():
        if not name or name == "pooled" or set(name) & set("/\\\0"):
            raise ArgumentError("subspaces", f"{name!r} cannot be the name of one")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ArgumentError("subspaces", f"{name} wants a size of at least 1, got {size!r}")


def make_transform(sizes: tuple[int, ...], *, seed: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them, the same for the same seed."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def load_subspaces(name_or_path: str | Path, **settings: Any) -> SubspaceModel:
    """Load what :meth:`SubspaceModel.save_pretrained` wrote, in eval mode.

    Args:
        name_or_path: a folder, or a name on the Hugging Face Hub.
        settings: ``device``, ``revision`` and ``local_files_only``, as
            :func:`speechft.models.load` takes them.

    Raises:
        ArgumentError: no such folder, not a subspace model, or an encoder that is another than
            the one it was made with.
    """
    from speechft.models.subspaces_saving import read_subspaces

    return read_subspaces(name_or_path, **settings)
