"""What the trainer trains."""

from __future__ import annotations

from torch import nn

from speechft.training.stopwatch import Stopwatch


class Trainable(nn.Module):
    """A module that makes an output with a ``loss`` of what it names in :attr:`inputs`.

    It times its phases with :attr:`stopwatch`.

    Attributes:
        inputs: which parts of a batch its ``forward`` takes, by keyword.
    """

    inputs: tuple[str, ...] = ("waveforms", "lengths", "keys")

    def __init__(self) -> None:
        super().__init__()
        self.stopwatch = Stopwatch()
