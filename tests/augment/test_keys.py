from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft import backends
from speechft.augment import fold_in, make_keys, randint, uniform
from speechft.augment import keys as keys_module
from speechft.augment.keys import philox, random_words
from speechft.errors import ArgumentError, ArgumentTypeError

# The known answers published with Random123 for philox4x32-10: counter, key, words.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

int64 = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([c]) for c in counter)
    k0, k1 = (torch.tensor([k]) for k in key)
    assert tuple(int(w) for w in philox((c0, c1, c2, c3), (k0, k1))) == words


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """The definition in Python's unbounded integers."""
    for _ in range(10):
        a, b = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (b >> 32) ^ counter[1] ^ key[0],
            b % 2**32,
            (a >> 32) ^ counter[3] ^ key[1],
            a % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@settings(deadline=None, max_examples=50)
@given(key=int64, stream=st.integers(0, 2**32 - 1), count=st.integers(1, 9))
def test_words_are_philox_of_block_and_stream(key: int, stream: int, count: int) -> None:
    halves = [key % 2**32, (key >> 32) % 2**32]
    expected: list[int] = []
    for block in range(3):
        expected += plain_philox([block, stream, 0, 0], list(halves))
    assert random_words(torch.tensor([key]), stream, count).tolist() == [expected[:count]]


@settings(deadline=None, max_examples=50)
@given(seed=int64, epoch=st.integers(0, 2**40), utterance=int64)
def test_a_key_is_philox_of_seed_epoch_and_utterance(seed: int, epoch: int, utterance: int) -> None:
    words = plain_philox(
        [utterance % 2**32, (utterance >> 32) % 2**32, epoch % 2**32, epoch >> 32],
        [seed % 2**32, (seed >> 32) % 2**32],
    )
    key = int(make_keys(seed, epoch, torch.tensor([utterance]))[0])
    assert key % 2**64 == words[1] << 32 | words[0]


def test_every_part_of_a_key_counts() -> None:
    utterances = torch.arange(1000)
    keys = torch.cat(
        [make_keys(seed, epoch, utterances) for seed in (0, 1, 2**32) for epoch in (0, 1, 2**32)]
    )
    assert keys.unique().numel() == 9000
    assert torch.cat([keys] + [fold_in(keys, n) for n in range(3)]).unique().numel() == 36000


def test_a_sample_s_numbers_do_not_depend_on_its_batch() -> None:
    keys = make_keys(3, 1, torch.arange(64))
    whole = uniform(keys, 5, 10)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(keys[order], 5, 10), whole[order])
    assert torch.equal(uniform(keys[7:8], 5, 10), whole[7:8])
    assert torch.equal(uniform(keys, 5, 3), whole[:, :3])
    assert not torch.equal(uniform(keys, 6, 10), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_uniform(dtype: torch.dtype) -> None:
    drawn = uniform(make_keys(0, 0, torch.arange(5000)), 0, 8, dtype=dtype)
    assert drawn.dtype == dtype
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    counts = torch.histc(drawn.flatten().float(), bins=100, min=0, max=1)
    # 99 degrees of freedom: 148.2 is passed once in a thousand times.
    assert float(((counts - 400) ** 2 / 400).sum()) < 148.2
    correlation = torch.corrcoef(drawn.T.double()) - torch.eye(8, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / 5000**0.5


def test_uniform_never_rounds_to_one() -> None:
    words = torch.tensor([[2**32 - 1]])
    assert float((words >> 8).float() * 2.0**-24) < 1
    drawn = uniform(torch.arange(1000), 0, 100)
    assert torch.equal(drawn * 2**24, (drawn * 2**24).round())


@pytest.mark.parametrize("high", [1, 2, 7, 2**31])
def test_randint_keeps_to_its_range(high: int) -> None:
    drawn = randint(torch.arange(2000), 0, 2, high=high)
    assert drawn.dtype == torch.int64
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < high
    if high <= 7:
        assert drawn.unique().numel() == high


def test_bad_arguments_are_named() -> None:
    keys = torch.arange(3)
    with pytest.raises(ArgumentTypeError, match=r"keys: wants int64, got torch\.int32"):
        uniform(keys.int(), 0, 1)
    with pytest.raises(ArgumentTypeError, match="utterances: wants an int64 tensor, got list"):
        make_keys(0, 0, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="keys: wants shape"):
        uniform(keys[None], 0, 1)
    with pytest.raises(ArgumentError, match="stream: wants 0 to"):
        uniform(keys, -1, 1)
    with pytest.raises(ArgumentError, match="count: wants at least 1"):
        uniform(keys, 0, 0)
    with pytest.raises(ArgumentError, match="high: wants 1 to"):
        randint(keys, 0, 1, high=0)
    with pytest.raises(ArgumentError, match="number: wants 0 to"):
        fold_in(keys, 2**32)
    with pytest.raises(ArgumentTypeError, match="dtype: wants"):
        uniform(keys, 0, 1, dtype=torch.float16)


@pytest.mark.skipif(backends.compiled_module() is None, reason="the compiled module is not here")
def test_one_call_gives_the_words_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = make_keys(3, 1, torch.arange(40))[::2]

    def drawn() -> list[torch.Tensor]:
        return [random_words(keys, 2**32 - 1, 9), random_words(keys, 0, 1), fold_in(keys, 2**31)]

    at_once = drawn()
    monkeypatch.setattr(keys_module, "compiled_module", lambda: None)
    for one, other in zip(at_once, drawn(), strict=True):
        assert torch.equal(one, other)
