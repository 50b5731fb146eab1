r"""Error rate: how many edits lie between what was said and what was recognised?

.. math:: \frac{S + D + I}{N}

with the fewest substitutions S, deletions D and insertions I that turn the references into the
hypotheses, and N tokens in the references, all sequences together: the word error rate where
tokens are words, the phone error rate where they are phones. It may exceed 1.

The alignment is jiwer's. Where several are equally short, the split into S, D and I is the one it
finds; the rate is the same for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from speechft.errors import ArgumentError, ArgumentTypeError


class ErrorRate(NamedTuple):
    """What :func:`error_rate` found.

    Attributes:
        rate: edits over reference tokens, 0 or more.
        substitutions: tokens taken for another.
        deletions: tokens of a reference that were missed.
        insertions: tokens of a hypothesis that nobody said.
        reference_length: tokens of all references.
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    reference_length: int


def error_rate(
    references: Sequence[Sequence[Hashable]], hypotheses: Sequence[Sequence[Hashable]]
) -> ErrorRate:
    """Substitutions, deletions and insertions over the length of the references.

    Args:
        references: what was said: sequences of tokens, strings or integers. Not a string: split
            words first.
        hypotheses: what was recognised, in the same order; may be empty sequences.

    Raises:
        ArgumentTypeError: a string in place of a sequence of tokens.
        ArgumentError: no references, an empty reference, counts that differ.

    >>> error_rate([["a", "b", "c"], ["d"]], [["a", "x", "c", "e"], []])
    ErrorRate(rate=0.75, substitutions=1, deletions=1, insertions=1, reference_length=4)
    """
    from jiwer import process_words

    _check(references, hypotheses)
    # A token may hold a space, so each becomes the number of its kind.
    known: dict[Hashable, str] = {}

    def as_numbers(tokens: Sequence[Hashable]) -> str:
        return " ".join(known.setdefault(token, str(len(known))) for token in tokens)

    found = process_words([*map(as_numbers, references)], [*map(as_numbers, hypotheses)])
    edits = found.substitutions, found.deletions, found.insertions
    length = sum(map(len, references))
    return ErrorRate(sum(edits) / length, *edits, length)


def _check(
    references: Sequence[Sequence[Hashable]], hypotheses: Sequence[Sequence[Hashable]]
) -> None:
    if not len(references):
        raise ArgumentError("references", "wants at least one sequence, got none")
    if len(hypotheses) != len(references):
        raise ArgumentError(
            "hypotheses", f"wants one a reference, {len(references)}, got {len(hypotheses)}"
        )
    for name, sequences in (("references", references), ("hypotheses", hypotheses)):
        for index, tokens in enumerate([sequences] if isinstance(sequences, str) else sequences):
            if isinstance(tokens, (str, bytes)):
                raise ArgumentTypeError(
                    name, f"wants sequences of tokens, got a string at {index}: split it first"
                )
    for index, tokens in enumerate(references):
        if not len(tokens):
            raise ArgumentError(
                "references", f"the one at {index} is empty, and has no error rate: leave it out"
            )
