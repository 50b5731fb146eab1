"""What the trainer trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from speechft.training.stopwatch import Stopwatch


class Bounds(NamedTuple):
    """Between which a monitor lies as long as all is well; None: no bound."""

    least: float | None
    most: float | None

    def hold(self, value: float) -> bool:
        """Whether a value lies between them; NaN does not."""
        above = self.least is None or value >= self.least
        below = self.most is None or value <= self.most
        return above and below and value == value


class Trainable(nn.Module):
    """A module that makes an output with a ``loss`` of what it names in :attr:`inputs`.

    It times its phases with :attr:`stopwatch`.

    Attributes:
        inputs: which parts of a batch its ``forward`` takes, by keyword.
        remedy: what to do about a collapse, for the error that says so.
    """

    inputs: tuple[str, ...] = ("waveforms", "lengths", "keys")
    remedy: str = "lower the learning rate"

    def __init__(self) -> None:
        super().__init__()
        self.stopwatch = Stopwatch()

    def at_step(self, step: int, steps: int) -> None:
        """Called before the first batch of an update: how many were done, and are to be done.

        What depends on the step is to be a function of it, so that a resumed run is the same run.
        """

    def before_update(self) -> None:
        """Called between backward and the update of the weights."""

    def after_update(self) -> None:
        """Called after the update of the weights: here a teacher follows."""

    def monitors(self) -> dict[str, Tensor]:
        """Scalars on the device that tell how the last batch went; they are logged."""
        return {}

    def bounds(self) -> Mapping[str, Bounds]:
        """Between which some monitors lie unless the run has collapsed."""
        return {}
