"""What a classifier says: chunks that leave nothing out, and means over them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_corpus import toys

from speechft.data import Manifest
from speechft.data.audio import load_audio
from speechft.errors import ConfigError
from speechft.methods import prediction
from speechft.methods.prediction import predict
from speechft.models import EmbeddingSpec, make_embedding
from speechft.models.classifier import Classifier, LinearHead

RATE = 16_000


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return toys(tmp_path_factory.mktemp("speech"), 3, 4)


@pytest.fixture(scope="module")
def classifier():
    """Logits of some size, so that the mean of logarithms is not that of probabilities."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = LinearHead(16, 2)
    torch.nn.init.normal_(head.linear.weight, std=20.0, generator=torch.Generator().manual_seed(3))
    model = make_embedding(EmbeddingSpec("xvector-8", size=16))
    return Classifier(model, head, "mood", ("bright", "dark")).eval()


class Lengths:
    """As much of a data set as is looked at."""

    def __init__(self, lengths):
        self.lengths = torch.tensor(lengths)


def chunks_of(lengths, size, most):
    batches = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "_read", lambda _, batch: list(batch))
        batches = list(prediction._batches(Lengths(lengths), size, most))
    return batches


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.one_of(st.none(), st.integers(1, 120)),
    st.integers(1, 500),
)
def test_chunks_cover_every_sample_evenly(lengths, size, most):
    batches = chunks_of(lengths, size, most)
    for batch in batches:
        widest = max(width for _, _, width in batch)
        assert len(batch) == 1 or len(batch) * widest <= most
    found = [chunk for batch in batches for chunk in batch]
    assert len(set(found)) == len(found)
    for row, length in enumerate(lengths):
        mine = sorted((start, width) for own, start, width in found if own == row)
        wanted = length if size is None else min(size, length)
        assert {width for _, width in mine} == {wanted}
        assert len(mine) == -(-length // wanted)
        heard = set().union(*(range(start, start + width) for start, width in mine))
        assert heard == set(range(length))
        steps = [b - a for (a, _), (b, _) in pairwise(mine)]
        assert not steps or max(steps) - min(steps) <= 1


def by_hand(classifier, utterance, size):
    """One chunk after the other, alone."""
    wave = torch.from_numpy(load_audio(utterance, sample_rate=RATE))
    size = min(size or len(wave), len(wave))
    count = -(-len(wave) // size)
    starts = [(len(wave) - size) * i // max(1, count - 1) for i in range(count)]
    with torch.no_grad():
        rows = [classifier(wave[None, s : s + size])[0].double().log_softmax(0) for s in starts]
    return torch.stack(rows)


@pytest.mark.parametrize("seconds", [None, 0.17, 0.3, 5.0])
def test_it_is_the_mean_of_log_probabilities(classifier, speech, seconds):
    found = predict(classifier, speech, chunk_seconds=seconds)
    size = None if seconds is None else round(seconds * RATE)
    rows = [by_hand(classifier, utterance, size) for utterance in speech]
    if seconds == 0.17:
        assert {len(row) for row in rows} == {2, 3}
    wanted = torch.stack([row.mean(0) for row in rows])
    torch.testing.assert_close(found.log_probabilities, wanted, atol=1e-5, rtol=1e-5)
    assert found.names == [utterance.id for utterance in speech]
    moods = {"bright": 0, "dark": 1}
    assert found.truth.tolist() == [moods[utterance.label("mood")] for utterance in speech]


def test_a_chunk_shorter_than_a_frame_is_made_one(classifier, speech):
    few = Manifest(list(speech)[:2])
    least = classifier.model.minimum_samples
    found = predict(classifier, few, chunk_seconds=0.001)
    wanted = torch.stack([by_hand(classifier, utterance, least).mean(0) for utterance in few])
    torch.testing.assert_close(found.log_probabilities, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_seconds", [0.01, 0.7])
def test_batches_and_batch_mates_change_nothing(classifier, speech, batch_seconds):
    at_once = predict(classifier, speech, chunk_seconds=0.2)
    other = predict(classifier, speech, chunk_seconds=0.2, batch_seconds=batch_seconds)
    torch.testing.assert_close(at_once.log_probabilities, other.log_probabilities, atol=1e-5,
                               rtol=1e-5)  # fmt: skip
    backwards = predict(classifier, Manifest(list(speech)[::-2]), chunk_seconds=0.2)
    torch.testing.assert_close(
        at_once.log_probabilities.flip(0)[::2], backwards.log_probabilities, atol=1e-5, rtol=1e-5
    )
    assert not at_once.log_probabilities.requires_grad


def test_a_speaker_has_the_mean_over_all_chunks(tmp_path, classifier):
    """Over chunks, not over utterances: a long one says more."""
    classifier = Classifier(classifier.model, classifier.head, "health", ("ill", "well"))
    speech = toys(tmp_path, 3, 3, seconds=(0.2, 0.8))
    rows = list(speech)
    mixed = Manifest(rows[::2] + rows[1::2])
    found = predict(classifier, mixed, chunk_seconds=0.25, aggregate="speaker")
    order = list(dict.fromkeys(row.speaker for row in mixed))
    assert found.names == order
    assert found.truth.tolist() == [{"s0": 1, "s1": 0, "s2": 1}[name] for name in order]
    for name, got in zip(order, found.log_probabilities, strict=True):
        mine = [by_hand(classifier, row, 4000) for row in mixed if row.speaker == name]
        assert len({len(row) for row in mine}) > 1 or name != "s0"
        torch.testing.assert_close(got, torch.cat(mine).mean(0), atol=1e-5, rtol=1e-5)


def test_together_only_where_there_is_one_answer(classifier, speech):
    with pytest.raises(ConfigError, match="aggregate: utterances of speaker 's0' differ in 'mood'"):
        predict(classifier, speech, aggregate="speaker")
    rows = [replace(row, speaker=None) if row.id == "s1-2" else row for row in speech]
    with pytest.raises(ConfigError, match="aggregate: utterance 's1-2' has no 'speaker'"):
        predict(classifier, Manifest(rows), aggregate="speaker")


def test_what_is_of_no_class_is_minus_one(classifier, speech):
    rows = list(speech)[:3]
    rows[0] = replace(rows[0], factors={"mood": "grey"})
    rows[1] = replace(rows[1], factors={})
    assert predict(classifier, Manifest(rows)).truth.tolist() == [-1, -1, 0]
