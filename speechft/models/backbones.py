"""Getting an embedding model by one name: from scratch, around an encoder, or trained before."""

from __future__ import annotations

from pathlib import Path

from speechft.augment import SpecAugment
from speechft.models.embedding import (
    BACKBONES,
    Affine,
    EmbeddingModel,
    EmbeddingSpec,
    FilterbankFrames,
    Pooling,
    load_embedding,
    make_embedding,
)
from speechft.models.embedding_saving import is_embedding_folder
from speechft.models.loading import load


def load_backbone(
    name_or_path: str | Path,
    *,
    size: int = 256,
    pooling: Pooling | None = None,
    layer: int | None = None,
    affine: Affine = "linear",
    spec_augment: SpecAugment | None = None,
    seed: int = 0,
) -> EmbeddingModel:
    """An embedding model, in eval mode.

    Args:
        name_or_path: ``"xvector"``, ``"ecapa-512"``, ``"ecapa-1024"``, ``"resnet34"`` (or another
            number of channels) from scratch; what :func:`speechft.models.load` takes, for a speech
            foundation model under a new pooling; or a folder that
            :meth:`EmbeddingModel.save_pretrained` wrote, which has size, pooling, layer and affine
            part of its own.
        size: D, of a new one.
        pooling: of a new one; see :class:`EmbeddingSpec`.
        layer: of an encoder; likewise.
        affine: of a new one; likewise.
        spec_augment: of log-mel features; left out for an encoder.
        seed: of new weights.

    Raises:
        ArgumentError: as :class:`EmbeddingSpec` and :func:`speechft.models.load`.
    """
    name = str(name_or_path)
    if is_embedding_folder(name_or_path):
        model = load_embedding(name_or_path)
        if isinstance(model.frames, FilterbankFrames):
            model.frames.spec_augment = spec_augment
        return model
    if name.partition("-")[0] in BACKBONES and not Path(name).exists():
        spec = EmbeddingSpec(name, size=size, pooling=pooling, affine=affine)
        return make_embedding(spec, spec_augment=spec_augment, seed=seed).eval()
    encoder = load(name_or_path)
    spec = EmbeddingSpec("encoder", size=size, pooling=pooling, layer=layer, affine=affine)
    return make_embedding(spec, encoder=encoder, seed=seed).eval()
