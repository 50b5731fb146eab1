"""Augmentations put together: one after another, one of several, some of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechft.augment.base import Augmentation
from speechft.augment.keys import MEMBER, check_keys, fold_in, uniform
from speechft.augment.parameters import Parameters
from speechft.augment.stages import run_stages
from speechft.errors import ArgumentError, ArgumentTypeError


class Composition(Augmentation):
    """Base of those that are made of others.

    Member ``i`` gets keys folded with ``i``, so the same augmentation twice draws twice, and adding
    one at the end changes nothing before it.

    All members, and theirs, become one list of what is done to each sample, which is run in as few
    passes as there are kinds: what is done sample by sample is done at once
    (:mod:`speechft.functional.pointwise`), filters in a row are one filter
    (:mod:`speechft.functional.convolve`). Taken apart, the result is the same (1e-6), but that what
    one filter rings beyond the ends of a clip is still there for the next.
    """

    def __init__(self, augmentations: Sequence[Augmentation] = (), *, p: float = 1.0) -> None:
        super().__init__(p=p)
        if isinstance(augmentations, Augmentation) or not isinstance(augmentations, Sequence):
            raise ArgumentTypeError(
                "augmentations", f"wants a list of them, got {type(augmentations).__name__}"
            )
        for position, member in enumerate(augmentations):
            if not isinstance(member, Augmentation):
                raise ArgumentTypeError(
                    "augmentations",
                    f"wants speechft.augment.Augmentation modules, got {type(member).__name__} "
                    f"at position {position}",
                )
        self.augmentations = nn.ModuleList(augmentations)
        self.changes = frozenset().union(*(member.changes for member in self.members))

    @property
    def members(self) -> list[Augmentation]:
        """The augmentations that this one is made of."""
        return [member for member in self.augmentations if isinstance(member, Augmentation)]

    def parameters_for(self, keys: Tensor) -> Parameters:
        """What each member draws, in order, and which of them are applied."""
        members = tuple(
            member.parameters_for(fold_in(keys, position, use=MEMBER))
            for position, member in enumerate(self.members)
        )
        own = super().parameters_for(keys)
        applied = own.values.pop("applied")
        chosen = own.values.pop("chosen", None)
        if self.p == 1 and chosen is None:
            return Parameters(own.values, members)
        kept = tuple(
            member.only_where(applied if chosen is None else applied & chosen[:, position])
            for position, member in enumerate(members)
        )
        return Parameters(own.values, kept)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``chosen``: which members are, (B, M); nothing where all are."""
        return {}

    def flatten(self, parameters: Parameters) -> list[tuple[Augmentation, Parameters]]:
        """See :class:`Augmentation`."""
        return [
            step
            for member, drawn in zip(self.members, parameters.members, strict=True)
            for step in member.flatten(drawn)
        ]

    def perturb(
        self, waveforms: Tensor, lengths: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        return run_stages(self.flatten(parameters), waveforms, lengths)

    def __repr__(self) -> str:
        lines = "".join(
            "  " + line + "\n"
            for member in self.augmentations
            for line in (repr(member) + ",").splitlines()
        )
        more = self.extra_repr()
        return f"{type(self).__name__}([\n{lines}]{', ' + more if more else ''})"


class Compose(Composition):
    """Apply ``augmentations`` in order, each with randomness of its own.

    See :class:`~speechft.augment.compose.Composition` for what is drawn and how it is run. Without
    members, only padding is zeroed.

    Args:
        augmentations: :class:`Augmentation` modules; a :class:`Compose` may be one of them.
        p: the probability of a sample to be changed at all.

    Raises:
        ArgumentTypeError: a member is not an :class:`Augmentation`.

    >>> from speechft.augment import Pitch, Speed
    >>> Compose([Speed(), Pitch()])
    Compose([
      Speed(factors=(0.9, 1.0, 1.1), zero_crossings=80),
      Pitch(semitones=(-2.0, 2.0)),
    ])
    """


class SomeOf(Composition):
    """Apply some of ``augmentations`` to each sample, in the order given.

    Every subset of a size is as likely, and every size in the range is.

    Args:
        augmentations: :class:`Augmentation` modules.
        count: how many, or the least and the most.
        p: the probability of a sample to be changed at all.

    Raises:
        ArgumentTypeError: a member is not an :class:`Augmentation`, or ``count`` no integers.
        ArgumentError: ``count`` is not within 0 and the number of members.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        count: int | Sequence[int] = 1,
        *,
        p: float = 1.0,
    ) -> None:
        super().__init__(augmentations, p=p)
        bounds = tuple(count) if isinstance(count, (tuple, list)) else (count, count)
        if len(bounds) != 2 or not all(type(bound) is int for bound in bounds):
            raise ArgumentTypeError("count", f"wants an integer or two, got {count!r}")
        if not 0 <= bounds[0] <= bounds[1] <= len(self.augmentations):
            raise ArgumentError(
                "count", f"wants 0 to {len(self.augmentations)}, the least first, got {count!r}"
            )
        self.least, self.most = bounds

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``chosen`` (B, M)."""
        members = len(self.augmentations)
        drawn = uniform(keys, 0, members + 1, dtype=torch.float64)
        count = self.least + (drawn[:, 0] * (self.most - self.least + 1)).floor()
        rank = drawn[:, 1:].argsort(dim=1, stable=True).argsort(dim=1)
        return {"chosen": rank < count[:, None]}

    def extra_repr(self) -> str:
        """The arguments."""
        count = self.least if self.least == self.most else (self.least, self.most)
        return ", ".join(filter(None, (f"count={count}", super().extra_repr())))


class OneOf(Composition):
    """Apply one of ``augmentations`` to each sample.

    Args:
        augmentations: :class:`Augmentation` modules, at least one.
        weights: how likely each is, relative to the others; None: equally.
        p: the probability of a sample to be changed at all.

    Raises:
        ArgumentTypeError: a member is not an :class:`Augmentation`.
        ArgumentError: no members, or weights that are not as many, negative or all zero.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        *,
        weights: Sequence[float] | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(augmentations, p=p)
        count = len(self.augmentations)
        if not count:
            raise ArgumentError("augmentations", "is empty; wants at least one")
        self.weights = (1.0,) * count if weights is None else tuple(map(float, weights))
        if len(self.weights) != count:
            raise ArgumentError("weights", f"wants {count} numbers, got {len(self.weights)}")
        total = sum(self.weights)
        if not (min(self.weights) >= 0 and 0 < total < float("inf")):
            raise ArgumentError("weights", f"wants numbers from 0, not all 0; got {weights!r}")

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``chosen`` (B, M)."""
        check_keys(keys, "keys")
        level = uniform(keys, 0, 1, dtype=torch.float64)[:, 0] * sum(self.weights)
        columns, below = [], 0.0
        for weight in self.weights:
            columns.append((below <= level) & (level < below + weight))
            below += weight
        return {"chosen": torch.stack(columns, dim=1)}

    def extra_repr(self) -> str:
        """The arguments."""
        even = len(set(self.weights)) == 1
        return ", ".join(filter(None, ("" if even else f"weights={self.weights}",
                                       super().extra_repr())))  # fmt: skip
