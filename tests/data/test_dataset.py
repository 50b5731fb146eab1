"""Datasets and batches: every utterance once, in batches that only the seed and epoch decide."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from speechft.data import (
    LengthBatchSampler,
    Manifest,
    SpeechDataset,
    Utterance,
    collate,
    read_manifest,
    scan,
    write_manifest,
)
from speechft.errors import ArgumentError, AudioError, LengthError

lengths_lists = st.lists(st.integers(1, 100_000), min_size=1, max_size=300)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = []
    for index in range(9):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, np.full(1_000 + 100 * index, index / 16), 16_000)
        rows.append(Utterance(f"u{index}", path, speaker="ab"[index % 2]))
    (tmp_path / "3.wav").write_text("broken")
    return Manifest(rows)


def test_items_and_batches(manifest: Manifest) -> None:
    dataset = SpeechDataset(manifest, on_bad_audio="skip", factors=("speaker",))
    assert len(dataset) == 8
    assert [skip.id for skip in dataset.ledger.skipped] == ["u3"]
    item = dataset[3]
    assert (item["id"], item["index"], item["key"]) == ("u4", 3, manifest[4].key)
    assert item["waveform"].dtype == torch.float32
    assert torch.equal(item["waveform"], torch.full((1_400,), 0.25))
    assert dataset[-1]["index"] == 7

    batch = collate([dataset[0], dataset[3]])
    assert batch["waveforms"].shape == (2, 1_400)
    assert batch["lengths"].tolist() == [1_000, 1_400]
    assert not batch["waveforms"][0, 1_000:].any()
    assert batch["indices"].tolist() == [0, 3]
    assert batch["keys"].tolist() == [manifest[0].key, manifest[4].key]
    assert batch["keys"].dtype == torch.int64
    assert batch["factors"].tolist() == [[0], [0]]
    assert batch["ids"] == ["u0", "u4"]
    with pytest.raises(ArgumentError, match="samples: is empty"):
        collate([])


def test_bad_audio_stops_or_is_skipped_before_the_first_item(manifest: Manifest) -> None:
    with pytest.raises(AudioError, match=r"3\.wav \(utterance 'u3'\)"):
        SpeechDataset(manifest)


def test_a_file_that_changes_is_noticed(manifest: Manifest) -> None:
    dataset = SpeechDataset(scan(manifest[:3]))
    soundfile.write(manifest[1].audio, np.zeros(1_101), 16_000)
    with pytest.raises(AudioError, match="changed while in use: 1101 samples, 1100"):
        dataset[1]
    soundfile.write(manifest[1].audio, np.zeros(2_000), 16_000)
    with pytest.raises(AudioError, match="the file or the manifest has changed"):
        dataset[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_with_workers(manifest: Manifest, workers: int) -> None:
    dataset = SpeechDataset(manifest, on_bad_audio="skip")
    sampler = LengthBatchSampler(dataset.lengths, batch_size=3, seed=5)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    found = [batch["indices"].tolist() for batch in loader]
    assert found == sampler.batches(0)
    assert sorted(index for batch in found for index in batch) == list(range(8))


@given(
    lengths=lengths_lists,
    batch_size=st.integers(1, 20),
    bound=st.none() | st.integers(0, 300_000),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10**6),
    buckets=st.integers(1, 30),
)
def test_every_utterance_once_within_the_bounds(
    lengths: list[int], batch_size: int, bound: int | None, seed: int, epoch: int, buckets: int
) -> None:
    if bound is not None:
        bound += max(lengths)
    sampler = LengthBatchSampler(
        lengths, batch_size=batch_size, max_samples=bound, seed=seed, num_buckets=buckets
    )
    batches = sampler.batches(epoch)
    assert len(batches) == len(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        if bound is not None:
            assert len(batch) * max(lengths[index] for index in batch) <= bound
    if bound is None:
        assert len(sampler) == -(-len(lengths) // batch_size)


@settings(max_examples=50)
@given(lengths=lengths_lists, seed=st.integers(0, 2**32), steps=st.randoms(use_true_random=False))
def test_a_batch_is_a_function_of_its_step(
    lengths: list[int], seed: int, steps: random.Random
) -> None:
    def make() -> LengthBatchSampler:
        return LengthBatchSampler(lengths, batch_size=4, max_samples=400_000, seed=seed)

    sampler = make()
    straight = [batch for epoch in range(3) for batch in make().batches(epoch)]
    order = list(range(len(straight)))
    steps.shuffle(order)
    for step in order[:20]:
        assert sampler.batch_at(step) == straight[step]
    sampler.set_epoch(2)
    assert list(sampler) == list(sampler) == straight[2 * len(sampler) :]


def test_epochs_and_seeds_differ_and_batches_mix() -> None:
    lengths = list(range(1_000, 3_000, 10))
    sampler = LengthBatchSampler(lengths, batch_size=8, seed=1)
    epochs = [sampler.batches(epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert LengthBatchSampler(lengths, batch_size=8, seed=2).batches(0) != epochs[0]
    together = [{frozenset(batch) for batch in batches} for batches in epochs]
    assert not together[0] & together[1]
    # Batches come in random order, not from long to short.
    mean = [np.mean([lengths[i] for i in batch]) for batch in epochs[0]]
    assert abs(np.corrcoef(mean, np.arange(len(mean)))[0, 1]) < 0.6


def test_first_batches_are_what_they_were() -> None:
    # To change them is to change every run that is resumed.
    sampler = LengthBatchSampler([5, 9, 1, 7, 3, 8, 2, 6, 4], batch_size=2, seed=7)
    assert sampler.batches(0) == [[0, 3], [2], [1, 4], [5, 8], [6, 7]]
    assert sampler.batches(1) == [[5, 3], [1, 0], [8, 6], [7], [2, 4]]


def test_positions_are_mixed_evenly() -> None:
    """Over many epochs each utterance comes first equally often (chi-square, 31 degrees)."""
    sampler = LengthBatchSampler([1] * 32, batch_size=1, num_buckets=1)
    first = np.bincount([sampler.batches(epoch)[0][0] for epoch in range(3_200)], minlength=32)
    assert ((first - 100.0) ** 2 / 100).sum() < 70


def test_similar_lengths_go_together() -> None:
    lengths = np.random.default_rng(0).lognormal(11, 0.7, 20_000).astype(int).tolist()
    padding = LengthBatchSampler(lengths, batch_size=16, num_buckets=16).padding()
    shuffled = LengthBatchSampler(lengths, batch_size=16, num_buckets=1).padding()
    assert padding < 0.2 < 0.45 < shuffled


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lengths": []}, LengthError, "lengths: wants shape"),
        ({"lengths": [4, 0]}, LengthError, "utterance 1 is empty"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"num_buckets": 0}, ArgumentError, "num_buckets"),
        ({"seed": -1}, ArgumentError, "seed"),
        ({"max_samples": 8}, LengthError, "max_samples: 8 is less than the 9 samples of utt.* 1"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"lengths": [4, 9], "batch_size": 2}
    with pytest.raises(error, match=message):
        LengthBatchSampler(**(arguments | change))  # type: ignore[arg-type]
    sampler = LengthBatchSampler([4, 9], batch_size=2)
    with pytest.raises(ArgumentError, match="step"):
        sampler.batch_at(-1)
    with pytest.raises(ArgumentError, match="epoch"):
        sampler.set_epoch(-1)


class TestOnShort:
    """Nine files of 1,000 to 1,800 samples, the fourth of them broken: four are below 1,400."""

    def test_drop_leaves_out_and_accounts(self, manifest: Manifest) -> None:
        dataset = SpeechDataset(
            manifest, on_bad_audio="skip", wanted_samples=1_400, on_short="drop"
        )
        assert dataset.lengths.tolist() == [1_400, 1_500, 1_600, 1_700, 1_800]
        assert [utterance.id for utterance in dataset.manifest] == ["u4", "u5", "u6", "u7", "u8"]
        assert dataset.repeated == 0
        ledger = dataset.ledger
        assert (ledger.rows, ledger.seen) == (9, 5)
        reasons = {skip.id: skip.reason for skip in ledger.skipped}
        assert set(reasons) == {"u0", "u1", "u2", "u3"}
        assert reasons["u2"] == "shorter than a crop: 0.07 s, and 0.0875 s are wanted"
        assert "crop" not in reasons["u3"]
        assert ledger.seconds == pytest.approx((1_400 + 1_500 + 1_600 + 1_700 + 1_800) / 16_000)
        assert dataset[0]["id"] == "u4"

    def test_the_ledger_is_in_the_order_of_the_manifest(
        self, manifest: Manifest, tmp_path: Path
    ) -> None:
        path = tmp_path / "rows.jsonl"
        write_manifest(manifest, path)
        dataset = SpeechDataset(
            read_manifest(path), on_bad_audio="skip", wanted_samples=1_500, on_short="drop"
        )
        assert [skip.id for skip in dataset.ledger.skipped] == ["u0", "u1", "u2", "u3", "u4"]

    def test_repeat_says_it_again_to_the_length_and_counts(self, manifest: Manifest) -> None:
        for index, u in enumerate(manifest[:3]):
            ramp = np.arange(1_000 + 100 * index) / 2_048
            soundfile.write(u.audio, ramp, 16_000, subtype="FLOAT")
        dataset = SpeechDataset(
            manifest, on_bad_audio="skip", wanted_samples=2_150, on_short="repeat"
        )
        assert dataset.repeated == 8
        assert len(dataset.ledger.skipped) == 1
        assert dataset.lengths.tolist() == [2_150] * 8
        waveform = dataset[0]["waveform"]
        whole = torch.arange(1_000) / 2_048
        assert torch.equal(waveform, torch.cat([whole, whole, whole[:150]]))
        # What the audio lasts is not changed by saying it again.
        assert dataset.ledger.seconds == pytest.approx(
            sum(1_000 + 100 * k for k in range(9) if k != 3) / 16_000
        )

    def test_repeat_leaves_what_is_long_enough(self, manifest: Manifest) -> None:
        dataset = SpeechDataset(
            manifest, on_bad_audio="skip", wanted_samples=1_400, on_short="repeat"
        )
        assert dataset.repeated == 3
        assert dataset.lengths.tolist() == [1_400] * 4 + [1_500, 1_600, 1_700, 1_800]
        assert [len(dataset[i]["waveform"]) for i in range(8)] == dataset.lengths.tolist()
        assert dataset[-1]["index"] == 7

    def test_a_file_that_changes_is_noticed_though_it_is_repeated(self, manifest: Manifest) -> None:
        dataset = SpeechDataset(manifest[:3], wanted_samples=1_200, on_short="repeat")
        soundfile.write(manifest[0].audio, np.zeros(1_001), 16_000)
        with pytest.raises(AudioError, match="changed while in use: 1001 samples, 1000"):
            dataset[0]

    def test_fail_names_the_first(self, manifest: Manifest) -> None:
        with pytest.raises(AudioError, match=r"1\.wav \(utterance 'u1'\): shorter than a crop"):
            SpeechDataset(manifest[1:3], wanted_samples=1_300, on_short="fail")
        assert len(SpeechDataset(manifest[1:3], wanted_samples=1_100, on_short="fail")) == 2

    def test_none_left_is_an_error(self, manifest: Manifest) -> None:
        with pytest.raises(AudioError, match=r"all 3 utterances are shorter than the 0\.25 s"):
            SpeechDataset(manifest[:3], wanted_samples=4_000, on_short="drop")

    def test_another_word_is_an_error(self, manifest: Manifest) -> None:
        with pytest.raises(ArgumentError, match="on_short"):
            SpeechDataset(manifest[:3], wanted_samples=4_000, on_short="pad")  # type: ignore[arg-type]
