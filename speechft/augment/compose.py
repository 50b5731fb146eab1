"""One augmentation after another."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from speechft.augment.base import Augmentation, Parameters
from speechft.augment.keys import fold_in
from speechft.errors import ArgumentTypeError


class Compose(Augmentation):
    """Apply ``augmentations`` in order, each with randomness of its own.

    Member ``i`` gets ``fold_in(keys, i)``, so the same augmentation twice draws twice, and adding
    one at the end changes nothing before it. Without members, only padding is zeroed.

    Args:
        augmentations: :class:`Augmentation` modules; a :class:`Compose` may be one of them.

    Raises:
        ArgumentTypeError: a member is not an :class:`Augmentation`.

    >>> from speechft.augment import Pitch, Speed
    >>> Compose([Speed(), Pitch()])
    Compose([
      Speed(factors=(0.9, 1.0, 1.1), zero_crossings=32),
      Pitch(semitones=(-2.0, 2.0)),
    ])
    """

    def __init__(self, augmentations: Sequence[Augmentation] = ()) -> None:
        super().__init__()
        for position, member in enumerate(augmentations):
            if not isinstance(member, Augmentation):
                raise ArgumentTypeError(
                    "augmentations",
                    f"wants speechft.augment.Augmentation modules, got {type(member).__name__} "
                    f"at position {position}",
                )
        self.augmentations = nn.ModuleList(augmentations)

    def perturb(self, waveforms: Tensor, lengths: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Augmentation`."""
        for position, member in enumerate(self._members()):
            waveforms, lengths = member(waveforms, lengths, fold_in(keys, position))
        return waveforms, lengths

    def parameters_for(self, keys: Tensor) -> tuple[Parameters, ...]:
        """What each member draws, in order."""
        return tuple(
            member.parameters_for(fold_in(keys, position))
            for position, member in enumerate(self._members())
        )

    def _members(self) -> list[Augmentation]:
        return [member for member in self.augmentations if isinstance(member, Augmentation)]

    def __repr__(self) -> str:
        lines = "".join(
            "  " + line + "\n"
            for member in self.augmentations
            for line in (repr(member) + ",").splitlines()
        )
        return f"Compose([\n{lines}])"
