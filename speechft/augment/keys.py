"""Randomness that is a function of a key: no state, so no worker, rank or restart can change it.

Every random value comes from Philox-4x32-10, a counter-based generator (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011): four 32-bit words from a 128-bit counter and a
64-bit key. The key is the sample's; the counter says which of its values is meant. The arithmetic
is on integers, so the words are the same bits on every device.

>>> import torch
>>> keys = make_keys(seed=7, epoch=0, utterances=torch.tensor([10, 11]))
>>> torch.equal(uniform(keys, 0, 3)[1:], uniform(keys[1:], 0, 3))
True
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechft.backends import compiled_module
from speechft.errors import ArgumentError, ArgumentTypeError

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# The counter's last word says what a key is used for, so that folding never meets drawing, and what
# a composition, several views and a mask make of one key never meet each other.
_DRAW, _FOLD = 0, 1
MEMBER, VIEW, MASK = 2, 3, 4


def make_keys(seed: int, epoch: int, utterances: Tensor) -> Tensor:
    """One key a sample, from the run's seed, the epoch and the utterance.

    Args:
        seed: any integer; its low 64 bits count.
        epoch: any integer; its low 64 bits count.
        utterances: int64 of any shape, for instance from :func:`speechft.data.utterance_key`.

    Returns:
        int64 keys of the shape and on the device of ``utterances``.

    Raises:
        ArgumentTypeError: ``utterances`` is not int64.
    """
    check_keys(utterances, "utterances")
    low, high = _halves(utterances)
    words = philox(
        (low, high, torch.full_like(low, epoch & _WORD), torch.full_like(low, epoch >> 32 & _WORD)),
        (torch.full_like(low, seed & _WORD), torch.full_like(low, seed >> 32 & _WORD)),
    )
    return _join(words[0], words[1])


def fold_in(keys: Tensor, number: int, *, use: int = _FOLD) -> Tensor:
    """New keys, one from each of ``keys``, that differ for every ``number`` in 0..2**32 - 1.

    This is how a part of a whole (a second view of the same utterance, say) gets randomness of its
    own. A key is for one call: two augmentations that are given the same one draw the same numbers.
    What compositions and crops fold in by themselves is apart from this; ``use`` is theirs.

    Raises:
        ArgumentTypeError: ``keys`` is not int64.
        ArgumentError: ``number`` is out of range.
    """
    check_keys(keys, "keys")
    _check_word(number, "number")
    at_once = _words_on_cpu(keys, number, 1, 0, use)
    if at_once is not None:
        return _join(at_once[:, 0], at_once[:, 1]).view_as(keys)
    zero = torch.zeros_like(keys)
    words = philox((zero + number, zero, zero, zero + use), _halves(keys))
    return _join(words[0], words[1])


def uniform(keys: Tensor, stream: int, count: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """``count`` numbers in [0, 1) a key, evenly spread on a grid.

    Args:
        keys: int64 of shape (B,).
        stream: which of the key's streams, 0..2**32 - 1; a module that draws several kinds of
            values takes a stream for each.
        count: how many numbers a key; the first ones do not depend on it.
        dtype: float32 (multiples of 2**-24) or float64 (of 2**-32).

    Returns:
        Tensor of shape (B, count), the same bits on every device.

    Raises:
        ArgumentTypeError: ``keys`` is not int64, or ``dtype`` is another.
        ArgumentError: ``stream`` or ``count`` is out of range.
    """
    words = random_words(keys, stream, count)
    if dtype == torch.float64:
        return words.to(dtype) * 2.0**-32
    if dtype == torch.float32:
        return (words >> 8).to(dtype) * 2.0**-24
    raise ArgumentTypeError("dtype", f"wants torch.float32 or torch.float64, got {dtype}")


def randint(keys: Tensor, stream: int, count: int, *, high: int) -> Tensor:
    """``count`` integers in 0..high - 1 a key: the high word of ``word * high``.

    The bias of this map is below ``high / 2**32`` of a probability.

    Args:
        keys: int64 of shape (B,).
        stream: as for :func:`uniform`.
        count: how many integers a key.
        high: 1 to 2**31.

    Returns:
        int64 of shape (B, count).

    Raises:
        ArgumentTypeError: ``keys`` is not int64.
        ArgumentError: ``stream``, ``count`` or ``high`` is out of range.
    """
    if not 1 <= high <= 2**31:
        raise ArgumentError("high", f"wants 1 to 2**31, got {high}")
    return random_words(keys, stream, count) * high >> 32


def random_words(keys: Tensor, stream: int, count: int) -> Tensor:
    """``count`` words of 32 random bits a key, as int64 of shape (B, count).

    Word ``4 i + j`` is word ``j`` of Philox at counter ``(i, stream, 0, 0)``.
    """
    check_keys(keys, "keys")
    if keys.dim() != 1:
        raise ArgumentError("keys", f"wants shape (B,), got {tuple(keys.shape)}")
    _check_word(stream, "stream")
    if count < 1:
        raise ArgumentError("count", f"wants at least 1, got {count}")
    at_once = _words_on_cpu(keys, 0, (count + 3) // 4, stream, _DRAW)
    if at_once is not None:
        return at_once[:, :count]
    low, high = _halves(keys[:, None])
    block = torch.arange((count + 3) // 4, device=keys.device).expand(keys.shape[0], -1)
    zero = torch.zeros_like(block)
    words = philox((block, zero + stream, zero, zero + _DRAW), (low, high))
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 on words of 32 bits held in int64 tensors that broadcast together.

    The product of two words may pass 2**63. That is no matter: int64 arithmetic in torch is modulo
    2**64 on every device, and only the bits of the product are used.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (
            (product1 >> 32 & _WORD) ^ c1 ^ k0,
            (product0 >> 32 & _WORD) ^ c3 ^ k1,
        )
        c1, c3 = product1 & _WORD, product0 & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def _words_on_cpu(keys: Tensor, first: int, blocks: int, stream: int, use: int) -> Tensor | None:
    """The words (B, 4 blocks) at counters ``(first + i, stream, 0, use)``, in one call.

    None where they are to be made by :func:`philox`, in some two hundred small ops.
    """
    module: Any = compiled_module()
    if (
        keys.device.type != "cpu"
        or torch.compiler.is_compiling()
        or type(keys) is not Tensor  # a tracer's, which has no memory
        or not hasattr(module, "philox")
    ):
        return None
    keys = keys.contiguous()
    words = torch.empty((keys.numel(), 4 * blocks), dtype=torch.int64)
    module.philox(keys.data_ptr(), len(words), first, blocks, stream, use, words.data_ptr())
    return words


def check_keys(keys: Tensor, argument: str) -> None:
    """Raise unless ``keys`` is an int64 tensor."""
    if not isinstance(keys, Tensor):
        raise ArgumentTypeError(
            argument, f"wants an int64 tensor, got {type(keys).__name__}; see make_keys"
        )
    if keys.dtype != torch.int64:
        raise ArgumentTypeError(argument, f"wants int64, got {keys.dtype}; see make_keys")


def _check_word(value: int, argument: str) -> None:
    if not 0 <= value <= _WORD:
        raise ArgumentError(argument, f"wants 0 to 2**32 - 1, got {value}")


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    return values & _WORD, values >> 32 & _WORD


def _join(low: Tensor, high: Tensor) -> Tensor:
    return high << 32 | low
