"""What the trainer trains."""

from __future__ import annotations

from torch import nn

from speechft.training.stopwatch import Stopwatch


class Trainable(nn.Module):
    """A module that makes of ``(waveforms, lengths, keys)`` an output with a ``loss``.

    It times its phases with :attr:`stopwatch`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopwatch = Stopwatch()
