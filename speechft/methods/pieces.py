"""Acoustic pieces: runs of units that often stand together, as R-Spin predicts them.

Units of an utterance, repeated ones merged, are a word of letters; byte-pair encoding puts the
commonest pair of neighbours together, over and over, until there are so many pieces. A piece spans
some tens of milliseconds, and tells more of a phone than a unit does.

Source: Ren et al., "Speech Pre-training with Acoustic Piece", Interspeech 2022; Chang & Glass,
"R-Spin", NAACL 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechft.errors import ArgumentError

_FIRST = 0xF0000  # of Unicode's private use: letters that no normalisation knows
MOST_CODES = 0xFFFE
"""How many units there are letters for."""


class Pieces:
    """Units to pieces. Made by :func:`train_pieces`, or read from its file.

    Args:
        tokenizer: of the library ``tokenizers``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        """How many pieces there are."""
        return int(self.tokenizer.get_vocab_size())

    def labels(self, units: Tensor) -> Tensor:
        """The piece that each frame is of.

        Args:
            units: (T,) integers.

        Returns:
            Tensor: (T,) int32.
        """
        merged, durations = torch.unique_consecutive(units, return_counts=True)
        encoding = self.tokenizer.encode(_word(merged))
        ids = torch.tensor(encoding.ids, dtype=torch.int32)
        letters = torch.tensor([end - start for start, end in encoding.offsets])
        return ids.repeat_interleave(letters).repeat_interleave(durations)

    def save(self, path: Path) -> None:
        """Write a file of JSON, as ``tokenizers`` has it."""
        self.tokenizer.save(str(path))

    @classmethod
    def load(cls, path: Path) -> Pieces:
        """From such a file."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(path)))


def train_pieces(units: Iterable[Tensor], count: int) -> Pieces:
    """Byte-pair encoding of the units of many utterances.

    Args:
        units: (T,) integers of each.
        count: of pieces, at most: with little speech no pair is left that occurs twice before.

    Raises:
        ArgumentError: fewer pieces than there are units, or units without a letter.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    words = [_word(torch.unique_consecutive(row)) for row in units]
    alphabet = sorted({letter for word in words for letter in word})
    if count < len(alphabet):
        raise ArgumentError("count", f"{count} pieces cannot stand for {len(alphabet)} units")
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=count, min_frequency=2, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(words, trainer)
    return Pieces(tokenizer)


def _word(units: Tensor) -> str:
    numbers = units.tolist()
    if numbers and max(numbers) >= MOST_CODES:
        raise ArgumentError("units", f"wants units below {MOST_CODES}, got {max(numbers)}")
    return "".join(chr(_FIRST + unit) for unit in numbers)
