"""What DINO for utterances is put together from: branches, crops, monitors."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from speechft.augment.base import values_are_at_hand
from speechft.errors import ConfigError
from speechft.models import DINOHead, EmbeddingModel


class Branch(nn.Module):
    """A model and its head: what there is twice, as student and as teacher."""

    def __init__(self, model: EmbeddingModel, head: DINOHead) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vectors (N, D), and what the head makes of them before its last layer."""
        vectors = self.model(waveforms, lengths, keys)
        return vectors, self.head.bottleneck(vectors)


def freeze(model: EmbeddingModel, tuned_layers: int | None) -> None:
    """Of a speech foundation model: all but the top layers, and what no loss can reach.

    Raises:
        ConfigError: more layers than are used, or ``tuned_layers`` of another backbone.
    """
    encoder = model.encoder
    if encoder is None:
        if tuned_layers is not None:
            raise ConfigError(f"tuned_layers: {model.spec.backbone!r} has none")
        return
    used = encoder.num_layers if model.spec.layer is None else model.spec.layer
    if tuned_layers is not None and tuned_layers > used:
        raise ConfigError(f"tuned_layers: {used} layers are used, got {tuned_layers}")
    encoder.hf_model.requires_grad_(False)
    count = used if tuned_layers is None else tuned_layers
    if used == encoder.num_layers:
        encoder.freeze_all_but_top(count)
    else:
        for layer in encoder.layers[used - count : used]:
            layer.requires_grad_(True)


def stack(crops: list[tuple[Tensor, Tensor]], *, full: bool) -> tuple[Tensor, Tensor | None]:
    """Crops one below the other, (V B, T), and their lengths; None where all are as long.

    Args:
        crops: V of them, (B, T) and (B,).
        full: whether that is known beforehand; on the CPU it is looked at.
    """
    longest = max(waveforms.shape[1] for waveforms, _ in crops)
    padded = [torch_functional.pad(w, (0, longest - w.shape[1])) for w, _ in crops]
    waveforms, lengths = torch.cat(padded), torch.cat([lengths for _, lengths in crops])
    if full or (values_are_at_hand(lengths) and bool((lengths == longest).all())):
        return waveforms, None
    return waveforms, lengths


def by_crop(rows: Tensor, batch: int) -> Tensor:
    """(V B, D), crops one below the other, as (V, B, D)."""
    return rows.view(-1, batch, rows.shape[1])


def cosine_distance(ours: Tensor, theirs: Tensor, *, skip_same: bool) -> Tensor:
    """The mean of 1 - cosine over pairs of crops: (V, B, D) and (U, B, D).

    Args:
        ours: vectors of the student.
        theirs: vectors of the teacher.
        skip_same: view i of both is the same crop, and no pair.
    """
    ours = torch_functional.normalize(ours.float(), dim=-1)
    theirs = torch_functional.normalize(theirs.float(), dim=-1)
    cosines = torch.einsum("vbd,ubd->vu", ours, theirs) / ours.shape[1]
    pairs = torch.ones_like(cosines)
    if skip_same:
        pairs.fill_diagonal_(0)
    return 1 - (cosines * pairs).sum() / pairs.sum()


def spread(vectors: Tensor) -> dict[str, Tensor]:
    r"""How much of their space vectors (B, D) use, brought to unit length; on their device.

    ``deviation``: the root of the mean squared distance from their mean, 1 where directions are
    random and 0 where all vectors are one. ``rank``: RankMe of the centred vectors, the exponential
    of the entropy of their singular values, divided by :math:`\min(B - 1, D)`, the most it can be.
    """
    unit = torch_functional.normalize(vectors.float(), dim=1)
    centred = unit - unit.mean(0)
    singular = torch.linalg.svdvals(centred.nan_to_num(0.0))  # it raises where there is NaN
    share = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny)
    most = max(1, min(len(unit) - 1, unit.shape[1]))
    return {
        "deviation": centred.square().sum(1).mean().sqrt(),
        "rank": torch.special.entr(share).sum().exp() / most,
    }


def told(logits: Tensor) -> dict[str, Tensor]:
    r"""What codes tell of utterances, for logits (B, K) over temperature; on their device.

    ``information``: that of code and utterance on each other, in nats,

    .. math:: I = H\Bigl(\frac 1B \sum_b P_b\Bigr) - \frac 1B \sum_b H(P_b),

    log B where each utterance has codes of its own, and 0 where all have the same, be that one code
    or all alike. ``codes``: how many codes are the first of some utterance.
    """
    log_shares = logits.float().log_softmax(-1)
    shares = log_shares.exp()
    # As a divergence from the mean, in which nothing is lost by cancellation.
    ratio = log_shares - shares.mean(0).clamp(min=torch.finfo(torch.float32).tiny).log()
    ordered = logits.argmax(-1).sort().values
    return {
        "information": (shares * ratio).sum(-1).mean(),
        "codes": 1 + (ordered[1:] != ordered[:-1]).sum(),
    }
