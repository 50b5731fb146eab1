"""Random crops: one of each clip, or several for a teacher and a student."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from speechft.augment.base import (
    Augmentation,
    check_finite,
    check_waveforms,
    values_are_at_hand,
    without_autocast,
)
from speechft.augment.keys import VIEW, check_keys, fold_in, uniform
from speechft.augment.parameters import Parameters
from speechft.augment.ranges import Range, check_range, draw, shown
from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional._checks import check_positive
from speechft.lengths import LengthsLike

_LONGEST = 3600.0
_MOST_VIEWS = 64
# The draws of which the outermost two are taken, where the two long crops are to be far apart.
_SPREAD_DRAWS = 5


class RandomCrop(Augmentation):
    r"""Cut each sample to a few seconds, at a random place.

    A sample of length :math:`n` becomes that from :math:`a` on, :math:`m` long:

    .. math:: m = \min(n, \max(1, \lfloor s r \rceil)), \qquad
              a = \lfloor u (n - m + 1) \rfloor, \qquad y_t = x_{a + t}

    with the seconds :math:`s` and the share :math:`u` in [0, 1) drawn, and :math:`r` the sample
    rate: every place is as likely, and a sample that is not longer passes whole. On a grid of
    :math:`g` samples :math:`a = g \lfloor u (\lfloor (n - m) / g \rfloor + 1) \rfloor`.

    Args:
        seconds: of the crop, or the least and the most, drawn for each sample: from one sample to
            an hour.
        grid: a crop begins at a multiple of so many samples: with an encoder's hop, frames of the
            crop are frames of the whole.
        sample_rate: samples in a second.
        p: the probability of a sample to be cut at all.

    Shapes: waveforms (B, T) to (B, T'), where T' is the longest valid length on the CPU. On a GPU
    it is ``min(T, longest crop)``, and T where a sample may pass uncut: with ``p`` below 1, or
    where a composition may leave this out.

    Raises:
        ArgumentTypeError: ``seconds`` is neither a number nor two.
        ArgumentError: an argument is out of range.

    >>> import torch
    >>> crop = RandomCrop(0.5, sample_rate=100)
    >>> waveforms, lengths = crop(torch.zeros(2, 90), [90, 20], torch.tensor([1, 2]))
    >>> waveforms.shape, lengths
    (torch.Size([2, 50]), tensor([50, 20]))
    """

    changes = frozenset({"timing", "content"})

    def __init__(
        self,
        seconds: float | Range,
        *,
        grid: int = 1,
        sample_rate: int = 16000,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.sample_rate = check_positive(sample_rate, "sample_rate")
        self.seconds = check_range(seconds, "seconds", 1 / self.sample_rate, _LONGEST)
        if isinstance(grid, bool) or not isinstance(grid, int):
            raise ArgumentTypeError("grid", f"wants an integer, got {grid!r}")
        if grid < 1:
            raise ArgumentError("grid", f"wants 1 sample or more, got {grid}")
        self.grid = grid

    def parameters_for(self, keys: Tensor) -> Parameters:
        """What these keys (B,) draw, on their device."""
        drawn = super().parameters_for(keys)
        return _Throughout(drawn.values) if self.p == 1 else drawn

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``seconds`` and ``start`` (B,): the start as a share of the places that there are."""
        return {
            "seconds": draw(keys, 0, self.seconds)[:, 0],
            "start": draw(keys, 1, (0.0, 1.0))[:, 0],
        }

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        first, after = self.place(lengths, parameters)
        longest = waveforms.shape[1]
        if isinstance(parameters, _Throughout):
            longest = min(longest, _steps(self.seconds[1], self.sample_rate))
        return _cut(waveforms, first, after, longest), after

    def place(self, lengths: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Where crops of samples of these lengths (B,) begin, and how long they are: (B,) each."""
        steps = (parameters["seconds"] * self.sample_rate).round().to(torch.int64).clamp(min=1)
        after = torch.where(parameters["applied"], torch.minimum(lengths, steps), lengths)
        return _place(parameters["start"], (lengths - after) // self.grid) * self.grid, after

    def extra_repr(self) -> str:
        """The arguments."""
        grid = "" if self.grid == 1 else f"grid={self.grid}"
        parts = (f"seconds={shown(self.seconds)}", grid, super().extra_repr())
        return ", ".join(filter(None, parts))


class MultiCrop(nn.Module):
    r"""Several crops of each utterance, long ones for a teacher and short ones for a student.

    ``module(waveforms, lengths, keys)`` gives a list of ``(waveforms, lengths)``: first the long
    crops, then the short ones. They are the views of DINO for utterances (Cho et al.,
    "Non-contrastive self-supervised learning for utterance-level information extraction from
    speech", IEEE JSTSP 2022), whose two crops of 4 s and four of 2 s are the defaults: the teacher
    sees the long ones, the student all of them. See :class:`speechft.losses.DINOLoss`.

    View ``i`` draws from keys folded with ``i``: its place, and what its augmentation does. So
    views are independent, and one more at the end changes none before it. As for any
    :class:`Augmentation`, batch-mates, padding and order mean nothing, the host never waits for a
    GPU, and no gradient flows to the input.

    Regions, for an utterance of :math:`n` samples and crops of :math:`L` and :math:`S`:

    * ``"shared"``: every crop lies anywhere in the utterance. A shorter one is taken whole.
    * ``"disjoint"``: long and short crops come from two parts, which share no sample, in either
      order, by a fair coin. The part of the long crops has

      .. math:: n_L = L + \lfloor u (n - L - S + 1) \rfloor \;\text{ if } n \ge L + S, \qquad
                n_L = \lfloor n L / (L + S) \rceil \;\text{ if not,}

      samples, with :math:`u` in [0, 1) drawn for the utterance, and at least one; the short crops
      have the others. A crop that is longer than its part is all of it. (An utterance of a single
      sample cannot be parted, and is in all crops.)

    Args:
        long: how many long crops, 1 to 64.
        short: how many short crops, 0 to 64.
        long_seconds: of a long crop, up to an hour.
        short_seconds: of a short crop; not more than a long one.
        regions: ``"shared"`` or ``"disjoint"``.
        spread: the probability that the two long crops of an utterance overlap less: they lie at
            the first and the last of five random places, either of them first. For ``long=2``.
        augment_long: an :class:`Augmentation` for each long crop, or None.
        augment_short: likewise of each short crop; it may be the same one.
        sample_rate: samples in a second.

    Shapes: waveforms (B, T) to (B, T') for each crop. Long crops are all of the same shape and
    lengths, before an augmentation that changes lengths, and so are short ones: they can be
    stacked. T' is the longest valid length on the CPU and ``min(T, crop)`` on a GPU.

    Raises:
        ArgumentTypeError: an augmentation is not an :class:`Augmentation`, or a count no integer.
        ArgumentError: an argument is out of range.

    >>> import torch
    >>> crops = MultiCrop(sample_rate=10)(torch.zeros(2, 60), [60, 30], torch.tensor([1, 2]))
    >>> [tuple(waveforms.shape) for waveforms, _ in crops]
    [(2, 40), (2, 40), (2, 20), (2, 20), (2, 20), (2, 20)]
    >>> crops[0][1]
    tensor([40, 30])
    """

    def __init__(
        self,
        long: int = 2,
        short: int = 4,
        long_seconds: float = 4.0,
        short_seconds: float = 2.0,
        *,
        regions: Literal["shared", "disjoint"] = "shared",
        spread: float = 0.0,
        augment_long: Augmentation | None = None,
        augment_short: Augmentation | None = None,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        self.long = _check_count(long, "long", 1)
        self.short = _check_count(short, "short", 0)
        self.sample_rate = check_positive(sample_rate, "sample_rate")
        self.long_seconds = self._check_seconds(long_seconds, "long_seconds", _LONGEST)
        self.short_seconds = self._check_seconds(short_seconds, "short_seconds", self.long_seconds)
        if regions not in ("shared", "disjoint"):
            raise ArgumentError("regions", f'wants "shared" or "disjoint", got {regions!r}')
        if regions == "disjoint" and not self.short:
            raise ArgumentError("regions", 'is "disjoint", which wants short crops too: short=0')
        self.regions = regions
        self.spread = check_fraction(spread, "spread")
        if self.spread and self.long != 2:
            raise ArgumentError("spread", f"is for two long crops, got long={self.long}")
        for augment, argument in (
            (augment_long, "augment_long"),
            (augment_short, "augment_short"),
        ):
            if augment is not None and not isinstance(augment, Augmentation):
                raise ArgumentTypeError(
                    argument,
                    f"wants a speechft.augment.Augmentation or None, got {type(augment).__name__}",
                )
        self.augment_long, self.augment_short = augment_long, augment_short

    def forward(
        self, waveforms: Tensor, lengths: LengthsLike | None, keys: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The crops of each sample, as its key says.

        Args:
            waveforms: floats of shape (B, T).
            lengths: valid samples of each, of shape (B,); None where all T are.
            keys: int64 of shape (B,), one a sample; see :func:`~speechft.augment.make_keys`. They
                may be on the host while waveforms are on a GPU, which is fastest.

        Returns:
            For each long crop, then for each short one: waveforms (B, T'), zero after their
            lengths, int64 of shape (B,).

        Raises:
            ArgumentTypeError: waveforms are not floats, lengths not integers, keys not int64.
            ArgumentError: a wrong shape, or NaN or infinity in the valid part (looked for on the
                CPU, and on a GPU inside :func:`speechft.checked`).
            LengthError: a length outside 1..T.
        """
        valid_lengths = check_waveforms(waveforms, lengths)
        check_keys(keys, "keys")
        if keys.shape != (len(waveforms),):
            raise ArgumentError("keys", f"wants shape ({len(waveforms)},), got {tuple(keys.shape)}")
        drawn = self.parameters_for(keys).to(waveforms.device)
        return self._run(waveforms, valid_lengths, drawn)

    def replay(
        self, waveforms: Tensor, lengths: LengthsLike | None, parameters: Parameters
    ) -> list[tuple[Tensor, Tensor]]:
        """The crops that ``parameters`` say: of :meth:`parameters_for`, or changed.

        ``module.replay(x, lengths, module.parameters_for(keys))`` is ``module(x, lengths, keys)``.
        """
        valid_lengths = check_waveforms(waveforms, lengths)
        views = self.long + self.short
        if len(parameters) != len(waveforms) or len(parameters.members) != views:
            raise ArgumentError(
                "parameters",
                f"wants those of {len(waveforms)} samples and {views} crops, "
                f"got those of {len(parameters)} and {len(parameters.members)}",
            )
        return self._run(waveforms, valid_lengths, parameters.to(waveforms.device))

    def parameters_for(self, keys: Tensor) -> Parameters:
        """What these keys (B,) draw, on their device.

        Member ``i`` has crop ``i``'s: ``start`` (B,), a share of the places that there are in its
        region, and as its only member what its augmentation draws, if there is one. With disjoint
        regions ``split`` (B,) is the share of what is free that the long crops have, and
        ``long_first`` (B,) whether their part is the first.
        """
        check_keys(keys, "keys")
        views = [fold_in(keys, 1 + view, use=VIEW) for view in range(self.long + self.short)]
        keys = fold_in(keys, 0, use=VIEW)
        values = {}
        if self.regions == "disjoint":
            values["split"] = draw(keys, 0, (0.0, 1.0))[:, 0]
            values["long_first"] = _coin(keys, 1, 0.5)
        starts = [draw(view, 0, (0.0, 1.0))[:, 0] for view in views]
        if self.spread:
            starts[:2] = self._far_apart(keys, starts[0], starts[1])
        members = []
        for number, (view, start) in enumerate(zip(views, starts, strict=True)):
            augment = self._augment_of(number)
            drawn = () if augment is None else (augment.parameters_for(fold_in(view, 0)),)
            members.append(Parameters({"start": start}, drawn))
        return Parameters(values, tuple(members))

    def _far_apart(self, keys: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        places = draw(keys, 2, (0.0, 1.0), _SPREAD_DRAWS)
        first, last = places.amin(dim=1), places.amax(dim=1)
        in_order, wanted = _coin(keys, 3, 0.5), _coin(keys, 4, self.spread)
        return (
            torch.where(wanted, torch.where(in_order, first, last), one),
            torch.where(wanted, torch.where(in_order, last, first), other),
        )

    def _run(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> list[tuple[Tensor, Tensor]]:
        crops = []
        with torch.no_grad(), without_autocast(waveforms.device):
            if values_are_checked(waveforms):
                check_finite(waveforms, lengths)
            regions = self._regions(lengths, parameters)
            for number, drawn in enumerate(parameters.members):
                first, size = regions[number >= self.long]
                seconds = self.long_seconds if number < self.long else self.short_seconds
                steps = _steps(seconds, self.sample_rate)
                after = size.clamp(max=steps)
                start = first + _place(drawn["start"], size - after)
                crop = _cut(waveforms, start, after, min(waveforms.shape[1], steps))
                augment = self._augment_of(number)
                if augment is not None:
                    crop, after = augment.replay(crop, after, drawn.members[0])
                crops.append((crop, after))
        return crops

    def _regions(self, lengths: Tensor, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """Where the long crops' part begins and how long it is, and the same of the short ones'."""
        if self.regions == "shared":
            return [(torch.zeros_like(lengths), lengths)] * 2
        long = _steps(self.long_seconds, self.sample_rate)
        both = long + _steps(self.short_seconds, self.sample_rate)
        free = lengths - both
        of_long = torch.where(
            free >= 0,
            long + _place(parameters["split"], free.clamp(min=0)),
            (lengths * long + both // 2) // both,
        )
        # At least one sample for either, and of a single one the same one for both.
        of_long = torch.minimum(of_long, lengths - 1).clamp(min=1)
        of_short = (lengths - of_long).clamp(min=1)
        long_first = parameters["long_first"]
        return [
            (torch.where(long_first, 0, lengths - of_long), of_long),
            (torch.where(long_first, lengths - of_short, 0), of_short),
        ]

    def _augment_of(self, number: int) -> Augmentation | None:
        return self.augment_long if number < self.long else self.augment_short

    def _check_seconds(self, seconds: float, argument: str, most: float) -> float:
        seconds, least = check_positive(seconds, argument), 1 / self.sample_rate
        if not least <= seconds <= most:
            raise ArgumentError(argument, f"wants {least:g} to {most:g}, got {seconds:g}")
        return seconds

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"long={self.long}, short={self.short}, long_seconds={self.long_seconds:g}, "
            f'short_seconds={self.short_seconds:g}, regions="{self.regions}", '
            f"spread={self.spread:g}"
        )


class _Throughout(Parameters):
    """Those of a crop that is applied to every sample, so that no result is longer than it.

    Whether a tensor is True throughout can be seen on the CPU only. What changes ``applied`` or
    the seconds (:meth:`only_where`, :meth:`replace`) gives plain parameters, and the bound is off.
    """

    def rows(self, index: Tensor | slice) -> Parameters:
        return _Throughout(super().rows(index).values)

    def to(self, device: torch.device | str) -> Parameters:
        return _Throughout(super().to(device).values)


def check_fraction(value: float, argument: str) -> float:
    """A number from 0 to 1.

    Raises:
        ArgumentError: another one, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ArgumentError(argument, f"wants a number from 0 to 1, got {value!r}")
    return float(value)


def _check_count(value: int, argument: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(argument, f"wants an integer, got {value!r}")
    if not least <= value <= _MOST_VIEWS:
        raise ArgumentError(argument, f"wants {least} to {_MOST_VIEWS}, got {value}")
    return value


def _coin(keys: Tensor, stream: int, p: float) -> Tensor:
    return uniform(keys, stream, 1, dtype=torch.float64)[:, 0] < p


def _steps(seconds: float, sample_rate: float) -> int:
    return max(1, round(seconds * sample_rate))


def _place(share: Tensor, room: Tensor) -> Tensor:
    """0 to ``room``, each as likely for a share that is drawn from [0, 1)."""
    place = (share * (room + 1)).floor().to(torch.int64).clamp(min=0)
    return torch.minimum(place, room)  # a share of 1, which is never drawn but may be replayed


def _cut(waveforms: Tensor, first: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """``lengths`` (B,) samples of each waveform from ``first`` (B,) on, then zeros.

    As wide as the longest of them on the CPU, and ``longest`` where they are not looked at.
    """
    if values_are_at_hand(waveforms):
        counts = lengths.tolist()
        result = waveforms.new_empty(len(counts), max(counts))
        for row, (start, count) in enumerate(zip(first.tolist(), counts, strict=True)):
            result[row, :count] = waveforms[row, start : start + count]
            result[row, count:] = 0.0
        return result
    step = torch.arange(longest, device=waveforms.device)
    index = (first[:, None] + step).clamp(max=waveforms.shape[1] - 1)
    return waveforms.gather(1, index).masked_fill(step >= lengths[:, None], 0.0)
