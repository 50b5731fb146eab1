"""Masks over spans of time and of frequency, on features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from speechft.augment.base import values_are_at_hand
from speechft.augment.crop import check_fraction
from speechft.augment.keys import MASK, check_keys, fold_in, uniform
from speechft.augment.parameters import Parameters
from speechft.augment.ranges import check_whole_range, draw, draw_whole, shown
from speechft.errors import ArgumentError
from speechft.functional._checks import check_finite, check_floating
from speechft.lengths import LengthsLike, check_lengths

_MOST_MASKS = 64
_MOST_STEPS = 2**20


class SpecAugment(nn.Module):
    r"""Mask spans of frames and of frequency bins: ``module(features, lengths, keys)``.

    For each sample of :math:`n` frames, a time mask is :math:`w` frames wide, and a frequency mask
    :math:`w` bins of all frames. The widths and the shares :math:`u` in [0, 1) are drawn:

    .. math:: w_t = \min(w, \lfloor q n \rfloor), \quad a_t = \lfloor u (n - w_t + 1) \rfloor,
              \qquad a_f = \lfloor u (F - w_f + 1) \rfloor

    with :math:`q` = ``max_time_share``. Masks may overlap. Source: Park et al., "SpecAugment: a
    simple data augmentation method for automatic speech recognition", Interspeech 2019. The
    defaults are the masks of its policy LD for LibriSpeech, for 80 bins (LB: one mask of each
    kind). Time warping, by which the authors gained least, is not built.

    As for every :class:`~speechft.augment.Augmentation`: the same key gives the same masks in any
    batch; padding is not read, and is zero in the result; the host never waits for a GPU; train
    and eval mode are the same. But gradients flow: that of a masked entry and of padding is zero,
    that of any other passes, and the mean that is filled in counts as a constant.

    Args:
        time_masks: how many time masks, or the least and the most, 0 to 64.
        time_width: frames of each, likewise.
        frequency_masks: how many frequency masks, 0 to 64.
        frequency_width: bins of each, at most as many as there are.
        max_time_share: no time mask is wider than this share of the true length, 0 to 1. It holds
            for each mask, not for all together.
        fill: what masked entries become. ``"mean"``: the mean of the sample over its valid frames
            and all bins, before masking; ``"zero"``: the same where features are normalised.
        p: the probability of a sample to be masked at all.

    Shapes: features (B, T, F) to the same.

    Raises:
        ArgumentTypeError: a range is not one or two whole numbers.
        ArgumentError: an argument is out of range.

    What a DINO student for utterances sees is masked by much less:

    >>> student = SpecAugment(
    ...     time_masks=1, time_width=(0, 5), frequency_masks=1, frequency_width=(0, 8)
    ... )
    >>> features, lengths = student(torch.randn(2, 200, 80), [200, 150], torch.tensor([1, 2]))
    >>> features.shape
    torch.Size([2, 200, 80])
    """

    def __init__(
        self,
        time_masks: int | Sequence[int] = 2,
        time_width: int | Sequence[int] = (0, 100),
        frequency_masks: int | Sequence[int] = 2,
        frequency_width: int | Sequence[int] = (0, 27),
        *,
        max_time_share: float = 1.0,
        fill: Literal["mean", "zero"] = "mean",
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.time_masks = check_whole_range(time_masks, "time_masks", 0, _MOST_MASKS)
        self.time_width = check_whole_range(time_width, "time_width", 0, _MOST_STEPS)
        self.frequency_masks = check_whole_range(frequency_masks, "frequency_masks", 0, _MOST_MASKS)
        self.frequency_width = check_whole_range(frequency_width, "frequency_width", 0, _MOST_STEPS)
        self.max_time_share = check_fraction(max_time_share, "max_time_share")
        if fill not in ("mean", "zero"):
            raise ArgumentError("fill", f'wants "mean" or "zero", got {fill!r}')
        self.fill = fill
        self.p = check_fraction(p, "p")

    def forward(
        self, features: Tensor, lengths: LengthsLike | None, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask each sample as its key says.

        Args:
            features: floats of shape (B, T, F).
            lengths: valid frames of each, of shape (B,); None where all T are.
            keys: int64 of shape (B,), one a sample; see :func:`~speechft.augment.make_keys`. They
                may be on the host while features are on a GPU, which is fastest.

        Returns:
            Masked features (B, T, F) of the dtype of ``features``, and the lengths, int64 (B,).

        Raises:
            ArgumentTypeError: features are not floats, lengths not integers, keys not int64.
            ArgumentError: a wrong shape, fewer bins than the widest frequency mask, or NaN or
                infinity in the valid part (looked for on the CPU, and on a GPU inside
                :func:`speechft.checked`).
            LengthError: a length outside 1..T.
        """
        valid_lengths = self._check(features, lengths)
        check_keys(keys, "keys")
        if keys.shape != (len(features),):
            raise ArgumentError("keys", f"wants shape ({len(features)},), got {tuple(keys.shape)}")
        drawn = self.parameters_for(keys).to(features.device)
        return self._run(features, valid_lengths, drawn), valid_lengths

    def replay(
        self, features: Tensor, lengths: LengthsLike | None, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """Mask each sample as ``parameters`` say: of :meth:`parameters_for`, or changed.

        ``module.replay(x, lengths, module.parameters_for(keys))`` is ``module(x, lengths, keys)``.
        """
        valid_lengths = self._check(features, lengths)
        if len(parameters) != len(features):
            raise ArgumentError(
                "parameters",
                f"wants those of {len(features)} samples, got those of {len(parameters)}",
            )
        return self._run(features, valid_lengths, parameters.to(features.device)), valid_lengths

    def parameters_for(self, keys: Tensor) -> Parameters:
        """What these keys (B,) draw, on their device.

        For ``time`` and ``frequency``: ``time_count`` (B,), ``time_width`` (B, M) in frames before
        the bound of ``max_time_share``, ``time_start`` (B, M) as a share of the places there are.
        """
        check_keys(keys, "keys")
        keys = fold_in(keys, 0, use=MASK)
        values = {"applied": uniform(keys, 0, 1, dtype=torch.float64)[:, 0] < self.p}
        for stream, name, masks, width in (
            (1, "time", self.time_masks, self.time_width),
            (4, "frequency", self.frequency_masks, self.frequency_width),
        ):
            most = max(masks[1], 1)
            values[f"{name}_count"] = draw_whole(keys, stream, masks)[:, 0]
            values[f"{name}_width"] = draw_whole(keys, stream + 1, width, most)
            values[f"{name}_start"] = draw(keys, stream + 2, (0.0, 1.0), most)
        return Parameters(values)

    def _check(self, features: Tensor, lengths: LengthsLike | None) -> Tensor:
        check_floating(features, "features", "(B, T, F)")
        batch, steps, bins = features.shape
        valid_lengths = check_lengths(
            lengths, batch=batch, steps=steps, device=features.device, argument="lengths"
        )
        if valid_lengths is None:
            valid_lengths = torch.full((batch,), steps, device=features.device)
        if self.frequency_masks[1] and self.frequency_width[1] > bins:
            raise ArgumentError(
                "frequency_width",
                f"goes up to {self.frequency_width[1]} bins, and the features have {bins}",
            )
        check_finite(features, "features", valid_lengths)
        return valid_lengths

    def _run(self, features: Tensor, lengths: Tensor, parameters: Parameters) -> Tensor:
        _, steps, bins = features.shape
        valid = torch.arange(steps, device=features.device) < lengths[:, None]
        in_time = _masked(parameters, "time", lengths, steps, share=self.max_time_share)
        in_frequency = _masked(parameters, "frequency", torch.full_like(lengths, bins), bins)
        kept = (valid & ~in_time)[:, :, None] & ~in_frequency[:, None, :]
        if self.fill == "zero":
            return features.masked_fill(~kept, 0.0)
        # What is not kept is the mean in a valid frame, and zero in padding.
        mean = _means(features.detach(), lengths, valid).to(features.dtype)
        filling = torch.where(valid, mean[:, None], torch.zeros_like(mean[:, None]))
        return torch.where(kept, features, filling[:, :, None])

    def extra_repr(self) -> str:
        """The arguments."""
        parts = [
            f"time_masks={shown(self.time_masks)}",
            f"time_width={shown(self.time_width)}",
            f"frequency_masks={shown(self.frequency_masks)}",
            f"frequency_width={shown(self.frequency_width)}",
        ]
        if self.max_time_share < 1:
            parts.append(f"max_time_share={self.max_time_share:g}")
        parts.append(f'fill="{self.fill}"')
        return ", ".join(parts + ([f"p={self.p:g}"] if self.p < 1 else []))


def _masked(
    parameters: Parameters, name: str, sizes: Tensor, steps: int, *, share: float = 1.0
) -> Tensor:
    """Which of ``steps`` places lie under a mask, (B, steps), for masks within ``sizes`` (B,)."""
    widest = (sizes.to(torch.float64) * share).floor().to(torch.int64)
    width = torch.minimum(parameters[f"{name}_width"], widest[:, None])
    room = sizes[:, None] - width
    first = (parameters[f"{name}_start"] * (room + 1)).floor().to(torch.int64)
    first = torch.minimum(first.clamp(min=0), room)
    number = torch.arange(first.shape[1], device=first.device)
    wanted = parameters["applied"][:, None] & (number < parameters[f"{name}_count"][:, None])
    end = torch.where(wanted, first + width, 0)
    place = torch.arange(steps, device=first.device)[:, None]
    return ((place >= first[:, None]) & (place < end[:, None])).any(dim=2)


def _means(features: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid frames and all bins, float64 (B,).

    Frame by frame first: what is in the padding stays in the sums of padding, which are left out.
    """
    frames = features.sum(dim=2, dtype=torch.float64)
    if values_are_at_hand(frames):  # the same order, and so the same bits, whatever the padding is
        counts = lengths.tolist()
        sums = torch.stack([row[:n].sum() for row, n in zip(frames, counts, strict=True)])
    else:
        sums = frames.masked_fill(~valid, 0.0).sum(dim=1)
    return sums / (lengths * features.shape[2])
