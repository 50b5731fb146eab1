"""Pre-training: frames and targets on one clock; a stopped run goes on as if it had not been."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from distributed_ranks import run_on_ranks

from recipes.hubert_mini import pretrain
from recipes.hubert_mini.loop import made_by_first, sum_over_ranks
from recipes.hubert_mini.pretrain import NO_DROPOUT, Masked, Stage, counts, crops, losses, train
from recipes.hubert_mini.speech import SPLIT
from recipes.hubert_mini.stream import read_stream
from recipes.hubert_mini.targets import assign, cluster, mfcc, stack
from speechft.models import tiny
from tests.evaluation.levels import write_corpus

STAGE = Stage(
    "mfcc", None, clusters=8, steps=6, warmup=2, batch=2, frames=29, spans=2, span=5,
    seen_weight=(1.0, 0.1), save_every=2,
)  # fmt: skip
NEIGHBOURS = Stage(
    "neighbours", 2, clusters=8, steps=6, warmup=2, batch=2, frames=29, spans=2, span=5,
    seen_weight=(1.0, 1.0), save_every=2, context=1, offsets=(-2, 0, 3), bfloat16=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return read_stream(write_corpus(tmp_path_factory.mktemp("speech"), utterances=6))


def test_a_frame_of_the_stream_is_a_frame_of_the_encoder(stream):
    encoder = tiny()
    for row in range(len(stream.starts)):
        waveform = stream.waveform(row)
        frames = int(encoder.frame_lengths(torch.tensor(len(waveform))))
        assert frames == stream.frames[row] == len(mfcc(waveform))
    assert stream.total_frames == sum(stream.frames) + len(stream.frames)


def test_mfcc_are_those_of_their_definition():
    """The cosine transform of log-mel, from numpy's; slopes of a straight line are its slope."""
    import numpy as np
    from scipy.fft import dct

    from speechft.evaluation.log_mel import mel_filters

    waveform = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    frames = np.stack([waveform[320 * t : 320 * t + 400].numpy() for t in range(12)])
    window = np.hanning(401)[:400]
    mel = np.log(np.abs(np.fft.rfft(frames * window, 512)) ** 2 @ mel_filters().numpy())
    expected = dct(mel, norm="ortho")[:, :13]
    expected[:, 0] *= np.sqrt(2)
    np.testing.assert_allclose(mfcc(waveform)[:, :13], expected, rtol=1e-3, atol=1e-3)
    from recipes.hubert_mini.targets import _slope

    line = torch.arange(10.0)[:, None] * torch.tensor([2.0, -1.0])
    torch.testing.assert_close(_slope(line)[2:-2], torch.tensor([2.0, -1.0]).expand(6, 2))


def test_clusters_are_found_and_assigned():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    labels = torch.arange(600) % 3
    points = centres[labels] + torch.randn(600, 2, generator=generator)
    found, inertia = cluster(points.numpy(), 3)
    assigned = assign(points, torch.from_numpy(found))
    assert len(set(zip(labels.tolist(), assigned.tolist(), strict=True))) == 3
    assert inertia == pytest.approx(2.0, rel=0.15)


def test_crops_are_a_function_of_the_step(stream, tmp_path):
    targets, _ = pretrain.make_targets(stream, STAGE, tiny(), tmp_path)
    waveforms, labels, mask = crops(stream, targets, STAGE, 3)
    again = crops(stream, targets, STAGE, 3)
    assert all(map(torch.equal, (waveforms, labels, mask), again))
    assert not torch.equal(waveforms, crops(stream, targets, STAGE, 4)[0])
    assert waveforms.shape == (2, 28 * 320 + 400)
    assert labels.shape == (2, 29, 1)
    assert mask.shape == (2, 29)
    assert 5 <= int(mask[0].sum()) <= 10
    windows = stream.samples.unfold(0, waveforms.shape[1], 320)
    (start,) = (windows == (waveforms[1] * 32768).to(torch.int16)).all(1).nonzero()[:, 0].tolist()
    assert torch.equal(labels[1, :, 0], targets[start : start + 29].long())


def test_targets_of_neighbours_are_those_of_frames_before_and_after(stream):
    """Even of crops at either end of the stream."""
    targets = torch.arange(stream.total_frames, dtype=torch.int16)
    starts = set()
    for step in range(400):
        _, labels, _ = crops(stream, targets, NEIGHBOURS, step)
        assert torch.equal(labels - labels[..., 1:2], torch.tensor([-2, 0, 3]).expand(2, 29, 3))
        assert torch.equal(labels[:, 1:] - labels[:, :-1], torch.ones(2, 28, 3, dtype=torch.int64))
        starts |= set(labels[:, 0, 0].tolist())
    assert min(starts) == 0


def test_frames_are_stacked_with_their_neighbours():
    frames = torch.arange(8.0).view(4, 2)
    assert torch.equal(stack(frames, 0), frames)
    expected = [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 6, 7]]
    assert torch.equal(stack(frames, 1), torch.tensor(expected, dtype=torch.float32))
    assert stack(frames[:1], 2).tolist() == [[0, 1] * 5]


def test_targets_lie_under_their_frames(stream, tmp_path):
    """A crop's own MFCC give the crop's targets, wherever in the stream it was cut."""
    targets, centres = pretrain.make_targets(stream, STAGE, tiny(), tmp_path)
    means = {}
    for speaker in set(stream.speakers):
        rows = [row for row, other in enumerate(stream.speakers) if other == speaker]
        means[speaker] = torch.cat([mfcc(stream.waveform(row)) for row in rows]).mean(0)
    start = stream.starts[2] + 10
    waveform = stream.samples[start * 320 : start * 320 + 28 * 320 + 400].float() / 32768
    own = (mfcc(waveform) - means[stream.speakers[2]]) * pretrain.LOUDNESS
    # Slopes at the ends of the crop do not know its surroundings.
    assert torch.equal(assign(own, centres)[4:-4], targets[start : start + 29][4:-4])


def test_losses_count_masked_frames_others_and_gaps_apart():
    logits = torch.randn(2, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    one = torch.tensor([[0, 1, 2, 3, -100], [1, 1, 1, -100, 0]])
    labels = torch.stack([one, one.roll(1, 1)], -1)
    mask = torch.tensor([[True, True, False, False, True], [False, False, True, True, False]])
    masked, seen, accuracy = losses(logits, labels, mask) / counts(labels, mask)
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    hidden, heard = (labels >= 0) & mask[..., None], (labels >= 0) & ~mask[..., None]
    assert float(masked) == pytest.approx(-float(chosen[hidden].mean()), rel=1e-5)
    assert float(seen) == pytest.approx(-float(chosen[heard].mean()), rel=1e-5)
    right = (logits.argmax(-1) == labels) & mask[..., None]
    assert float(accuracy) == pytest.approx(int(right.sum()) / int(hidden.sum()))


def gradients_of_a_batch(rank: int, ranks: int) -> list[torch.Tensor]:
    """Losses and gradients of one batch of four, of which a rank has its rows."""
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(4, 400 + 19 * 320, generator=generator)
    labels = torch.randint(0, 8, (4, 20, 1), generator=generator)
    labels[0, :9] = -100  # so that ranks have different numbers of frames that count
    mask = torch.rand(4, 20, generator=generator) < 0.4
    torch.manual_seed(0)
    model = Masked(tiny(config=NO_DROPOUT), 8).train()
    mine = slice(rank, None, ranks)
    sums = losses(model(waveforms[mine], mask[mine]), labels[mine], mask[mine])
    masked, seen, _ = sums / counts(labels, mask)
    (masked + 0.5 * seen).backward()
    total = sums.detach()
    sum_over_ranks(list(model.parameters()), total)
    return [total, *(p.grad for p in model.parameters() if p.grad is not None)]


def test_ranks_share_a_batch_to_the_same_gradient():
    whole = gradients_of_a_batch(0, 1)
    for found in run_on_ranks(gradients_of_a_batch, 2):
        for got, want in zip(found, whole, strict=True):
            assert (got - want).abs().max() <= 1e-5 * want.abs().max().clamp_min(1e-2)


def written_once(rank: int, ranks: int, folder: str) -> str:
    """The rank that wrote the file which all have."""
    path = Path(folder) / f"of-{ranks}"

    def make() -> str:
        if not path.exists():
            time.sleep(0.2)  # so that a rank that did not wait would write as well
            path.write_text(str(rank))
        return path.read_text() + str(rank)

    return made_by_first(make)


def test_the_first_rank_makes_what_the_others_read(tmp_path):
    assert run_on_ranks(written_once, 2, str(tmp_path)) == ["00", "01"]


def test_masked_frames_are_not_heard():
    """What is predicted under a mask does not depend on that frame's own sound."""
    model = Masked(tiny(config=NO_DROPOUT), 8).eval()
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(1, 400 + 19 * 320, generator=generator)
    mask = torch.ones(1, 20, dtype=torch.bool)
    with torch.no_grad():
        one, two = model(waveforms, mask), model(waveforms.flip(1) * 0.5, mask)
        heard = model(waveforms, ~mask), model(waveforms.flip(1) * 0.5, ~mask)
    assert torch.equal(one, two)
    assert not torch.allclose(*heard)


@pytest.mark.parametrize("stage", [STAGE, NEIGHBOURS], ids=lambda stage: stage.name)
def test_a_stopped_run_goes_on_to_the_same_bits(stream, tmp_path, monkeypatch, stage):
    def encoder():
        return tiny(seed=3, config=NO_DROPOUT)

    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole = train(stream, stage, encoder(), tmp_path / "whole")
    original = pretrain.crops

    def stop(*batch):
        if batch[-1] == 3:
            raise KeyboardInterrupt
        return original(*batch)

    monkeypatch.setattr(pretrain, "crops", stop)
    with pytest.raises(KeyboardInterrupt):
        train(stream, stage, encoder(), tmp_path / "stopped")
    monkeypatch.setattr(pretrain, "crops", original)
    resumed = train(stream, stage, encoder(), tmp_path / "stopped")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_second_stage_clusters_a_layer(stream, tmp_path):
    stage = Stage("layer2", 2, clusters=4, steps=1)
    targets, centres = pretrain.make_targets(stream, stage, tiny(), tmp_path)
    assert centres.shape == (4, 16)
    assert int((targets >= 0).sum()) == sum(stream.frames)
    assert set(targets.tolist()) == {-100, 0, 1, 2, 3}


def test_neighbours_are_clustered_with_a_frame(stream, tmp_path):
    """Targets are the nearest centres of a layer's frames, stacked within their utterance."""
    encoder = tiny()
    targets, centres = pretrain.make_targets(stream, NEIGHBOURS, encoder, tmp_path)
    assert centres.shape == (8, 3 * 16)
    start, waveform = stream.starts[2], stream.waveform(2)[None]
    with torch.no_grad():
        frames = encoder(waveform, torch.tensor([waveform.shape[1]])).hidden_states[2][0]
    before, after = frames[[0, *range(len(frames) - 1)]], frames[[*range(1, len(frames)), -1]]
    stacked = torch.cat([before, frames, after], -1)
    assert torch.equal(targets[start : start + len(frames)], assign(stacked, centres))


def test_the_split_holds_out_the_probed_sentences():
    split = json.loads(SPLIT.read_text("utf-8"))
    assert set(split["probe"]["festvox-ru"]) <= set(split["held_out"]["festvox-ru"])
    assert len(split["probe"]["festvox-ru"]) == 120
    assert {"carlo-flora", "ivrvoice-ru"} <= set(split["held_out"]["speakers"])


def test_files_of_other_settings_are_refused(stream, tmp_path):
    from dataclasses import replace

    train(stream, STAGE, tiny(seed=3, config=NO_DROPOUT), tmp_path)
    with pytest.raises(ValueError, match="other settings of the stage 'mfcc'"):
        train(stream, replace(STAGE, learning_rate=1e-4), tiny(seed=3), tmp_path)
