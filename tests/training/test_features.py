"""Stored features are the encoder's own, and resumed; alignment against all paths there are."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniature_grid import write_grid

from speechft import models
from speechft.data import SpeechDataset, load_audio, read_manifest
from speechft.errors import ConfigError, NonFiniteError
from speechft.evaluation._dtw import compiled
from speechft.methods.alignment import Alignment, first_columns, path_search
from speechft.models import SubspaceModel
from speechft.training import features
from speechft.training.features import FeatureStore

SIZES = {"speaker": 2, "content": 2}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return SpeechDataset(
        read_manifest(write_grid(tmp_path_factory.mktemp("grid"), voices=3, texts=4)),
        factors=("speaker", "text"),
    )


def model(seed: int = 0, **settings) -> SubspaceModel:
    return SubspaceModel(models.tiny("hubert", seed=seed), SIZES, hidden_sizes=(), **settings)


def states(subspaces: SubspaceModel, speech: SpeechDataset, index: int) -> list[torch.Tensor]:
    """Every layer of an utterance alone, the last after what follows it."""
    waveform = torch.from_numpy(load_audio(speech.manifest[index]))[None]
    with torch.no_grad():
        output = subspaces.encoder(waveform)
    return [h[0] for h in (*output.hidden_states[:-1], output.last_hidden_state)]


@pytest.mark.parametrize("settings", [{}, {"layer": 0}, {"layer": 2}, {"weighted_layers": True}])
@pytest.mark.parametrize("batch_seconds", [64.0, 0.1])
def test_features_are_those_of_each_utterance_alone(tmp_path, speech, settings, batch_seconds):
    subspaces = model(**settings)
    store = FeatureStore(subspaces, speech, tmp_path, batch_seconds=batch_seconds)
    assert store.frames is None
    assert store.pooled.dtype == np.float32
    assert store.pooled.shape == (len(speech), 4 if "weighted_layers" in settings else 1, 16)
    for index in range(len(speech)):
        alone = states(subspaces, speech, index)
        want = torch.stack([alone[layer].mean(0) for layer in subspaces.layers])
        np.testing.assert_allclose(store.pooled[index], want.numpy(), atol=1e-5)


@pytest.mark.parametrize("layer", [1, None])
def test_frames_are_kept_in_half_precision(tmp_path, speech, layer):
    subspaces = model(layer=layer)
    store = FeatureStore(subspaces, speech, tmp_path, frames=True)
    assert store.frames.dtype == np.float16
    assert store.starts[-1] == len(store.frames)
    for index in range(len(speech)):
        frames = store.frames[store.starts[index] : store.starts[index + 1]]
        want = states(subspaces, speech, index)[subspaces.layers[0]].numpy()
        assert frames.shape == want.shape
        np.testing.assert_allclose(frames.astype(np.float32), want, rtol=2**-10, atol=1e-4)
        np.testing.assert_allclose(store.pooled[index, 0], want.mean(0), atol=1e-5)


def test_what_is_there_is_not_computed_again(tmp_path, speech, monkeypatch):
    first = FeatureStore(model(), speech, tmp_path, frames=True)

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(FeatureStore, "_batch", never)
    again = FeatureStore(model(), speech, tmp_path, frames=True)
    assert again.folder == first.folder
    np.testing.assert_array_equal(again.pooled, first.pooled)
    np.testing.assert_array_equal(again.frames, first.frames)
    # The weights of the transform are nobody's business here.
    assert FeatureStore(model(), speech, tmp_path, frames=True).folder == first.folder


def test_other_weights_layers_or_data_are_another_folder(tmp_path, speech):
    other = SpeechDataset(speech.manifest[:5], factors=("speaker", "text"))
    stores = [
        FeatureStore(model(), speech, tmp_path),
        FeatureStore(model(), speech, tmp_path, frames=True),
        FeatureStore(model(seed=1), speech, tmp_path),
        FeatureStore(model(layer=1), speech, tmp_path),
        FeatureStore(model(weighted_layers=True), speech, tmp_path),
        FeatureStore(model(), other, tmp_path),
    ]
    assert len({store.folder for store in stores}) == len(stores)
    assert FeatureStore(model(layer=3), speech, tmp_path).folder == stores[0].folder


@pytest.mark.parametrize("commit", [0.0, 1e9])
def test_an_interruption_is_resumed(tmp_path, speech, monkeypatch, commit):
    """Batches of one; the sixth is interrupted. What was committed is not computed again."""
    batch = FeatureStore._batch
    computed: list[int] = []

    def interrupted(self, subspaces, dataset, indices):
        if len(computed) == 5:
            raise KeyboardInterrupt
        computed.extend(indices)
        batch(self, subspaces, dataset, indices)

    def counted(self, subspaces, dataset, indices):
        computed.extend(indices)
        batch(self, subspaces, dataset, indices)

    monkeypatch.setattr(features, "_COMMIT_SECONDS", commit)
    settings = {"frames": True, "batch_seconds": 0.1}
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            FeatureStore(model(), speech, tmp_path / "stopped", **settings)
    before, computed = set(computed), []
    assert len(before) == 5
    monkeypatch.setattr(FeatureStore, "_batch", counted)
    resumed = FeatureStore(model(), speech, tmp_path / "stopped", **settings)
    everything = set(range(len(speech)))
    assert sorted(computed) == sorted(everything - before if commit == 0 else everything)
    straight = FeatureStore(model(), speech, tmp_path / "straight", **settings)
    np.testing.assert_array_equal(resumed.pooled, straight.pooled)
    np.testing.assert_array_equal(resumed.frames, straight.frames)


def test_weights_that_are_not_finite_name_the_utterance(tmp_path, speech):
    subspaces = model()
    with torch.no_grad():
        subspaces.encoder.layers[2].feed_forward.output_dense.weight[0, 0] = float("nan")
    longest = speech.manifest[int(speech.lengths.argmax())].id
    with pytest.raises(NonFiniteError, match=f"NaN or infinity for utterance '{longest}'"):
        FeatureStore(subspaces, speech, tmp_path)


def test_frames_beyond_half_precision_name_the_utterance(tmp_path, speech):
    subspaces = model()
    with torch.no_grad():
        subspaces.encoder.layers[2].final_layer_norm.weight.mul_(1e6)
    with pytest.raises(NonFiniteError, match=r"beyond float16 in 'v\dt\d'"):
        FeatureStore(subspaces, speech, tmp_path, frames=True)
    FeatureStore(subspaces, speech, tmp_path)  # of single precision it is


def test_frames_of_all_layers_are_refused(tmp_path, speech):
    with pytest.raises(ConfigError, match="segment_frames: wants one layer"):
        FeatureStore(model(weighted_layers=True), speech, tmp_path, frames=True)


def test_the_encoder_is_left_in_its_mode(tmp_path, speech):
    """And dropout is off, whatever that is."""
    encoder = models.tiny("hubert", config={"hidden_dropout": 0.5})
    subspaces = SubspaceModel(encoder, SIZES, hidden_sizes=())
    calm = FeatureStore(subspaces, speech, tmp_path / "eval")
    encoder.train()
    lively = FeatureStore(subspaces, speech, tmp_path / "train")
    assert encoder.training
    np.testing.assert_array_equal(lively.pooled, calm.pooled)


def paths(rows: int, columns: int):
    """All paths from (0, 0) to (rows - 1, columns - 1)."""
    if rows == 1 and columns == 1:
        yield [(0, 0)]
    for step in ((1, 0), (0, 1), (1, 1)):
        if rows > step[0] and columns > step[1]:
            for path in paths(rows - step[0], columns - step[1]):
                yield [*path, (rows - 1, columns - 1)]


def first_of(path) -> list[int]:
    return [min(j for i, j in path if i == row) for row in range(path[-1][0] + 1)]


@pytest.mark.parametrize("shape", list(itertools.product((1, 2, 4, 5), repeat=2)))
def test_the_path_is_the_one_of_the_least_sum(shape):
    generator = np.random.default_rng(shape)
    every = list(paths(*shape))
    search = path_search()
    for _ in range(20):
        distances = generator.random(shape).astype(np.float32)
        best = min(every, key=lambda path: sum(float(distances[cell]) for cell in path))
        columns = first_columns(distances)
        assert columns.tolist() == first_of(best)
        assert search(distances).tolist() == columns.tolist()
        assert columns[0] == 0
        assert (np.diff(columns) >= 0).all()
    # It ends in the last column, whatever that costs.
    expensive = np.zeros(shape, np.float32)
    expensive[:, -1] = 9
    assert first_columns(expensive)[-1] <= shape[1] - 1


def aligned(lengths: list[int], texts: list[int], seed: int = 0, same: bool = False) -> Alignment:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    generator = np.random.default_rng(seed)
    frames = generator.standard_normal((starts[-1], 8)).astype(np.float16)
    if same:
        frames[:] = np.concatenate([frames[:n] for n in lengths])
    store = SimpleNamespace(starts=starts, frames=frames)
    return Alignment(store, torch.tensor(texts), progress=False)


def test_equal_utterances_are_aligned_to_themselves():
    alignment = aligned([9, 9, 9], [0, 0, 0], same=True)
    for index in range(3):
        assert alignment.path(index).tolist() == list(range(9))
        assert alignment.frames_of(index) == 9


def test_a_text_is_aligned_to_its_utterance_of_median_length():
    lengths = [5, 9, 7, 4, 6, 8]
    alignment = aligned(lengths, [0, 0, 0, 1, -1, -1])
    for index, reference in enumerate([7, 7, 7, 4, 6, 8]):
        path = alignment.path(index)
        assert len(path) == reference
        assert path[0] == 0
        assert path[-1] <= lengths[index] - 1
        assert alignment.frames_of(index) == lengths[index]
    for index in (2, 3, 4, 5):  # the reference itself, one alone, and those without a text
        assert alignment.path(index).tolist() == list(range(lengths[index]))


def test_a_slow_voice_is_found_frame_by_frame():
    generator = np.random.default_rng(4)
    base = generator.standard_normal((6, 8)).astype(np.float16)
    slow = base.repeat([1, 3, 1, 2, 1, 2], 0)
    fast = base[[0, 1, 3, 4, 5]]
    frames = np.concatenate([base, slow, fast])
    store = SimpleNamespace(starts=np.array([0, 6, 16, 21]), frames=frames)
    alignment = Alignment(store, torch.zeros(3, dtype=torch.int64))
    assert alignment.path(0).tolist() == [0, 1, 2, 3, 4, 5]
    assert alignment.path(1).tolist() == [0, 1, 4, 5, 7, 8]
    path = alignment.path(2).tolist()
    assert [path[i] for i in (0, 1, 3, 4, 5)] == [0, 1, 2, 3, 4]


def test_aligning_without_numba_says_what_to_install(monkeypatch):
    compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ConfigError, match="numba"):
        path_search()


def test_the_path_of_files(tmp_path: Path, speech: SpeechDataset) -> None:
    """Of real features: every text has one reference, and paths stay inside their utterance."""
    store = FeatureStore(model(), speech, tmp_path, frames=True)
    alignment = Alignment(store, speech.factors[:, 1])
    for text in speech.factors[:, 1].unique():
        members = (speech.factors[:, 1] == text).nonzero()[:, 0].tolist()
        assert len({len(alignment.path(index)) for index in members}) == 1
        for index in members:
            path = alignment.path(index)
            assert (np.diff(path) >= 0).all()
            assert 0 == path[0] <= path[-1] < alignment.frames_of(index)
