"""Distillation: one clock for all speeds, targets of a known scale, stopped runs that go on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from distributed_ranks import run_on_ranks
from torch import nn

from recipes.hubert_mini import distil as module
from recipes.hubert_mini.distil import (
    Distillation,
    Student,
    average_over_speeds,
    batch_of,
    distil,
    errors,
    hear,
    new_student,
    principal,
)
from recipes.hubert_mini.loop import sum_over_ranks
from recipes.hubert_mini.pretrain import NO_DROPOUT
from recipes.hubert_mini.stream import read_stream
from recipes.hubert_mini.targets import stack
from speechft.models import tiny
from tests.evaluation.levels import write_corpus

STAGE = Distillation(
    "wide", layer=2, steps=6, speeds=(90, 100, 125), context=1, components=12, warmup=2, batch=2,
    frames=29, span=5, save_every=2, bfloat16=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return read_stream(write_corpus(tmp_path_factory.mktemp("speech"), utterances=6))


@pytest.fixture(scope="module")
def teacher():
    return tiny(size="demo", seed=3, config=NO_DROPOUT)


@pytest.fixture(scope="module")
def heard(stream, teacher, tmp_path_factory):
    return hear(stream, STAGE, teacher, tmp_path_factory.mktemp("heard"))


class Power(nn.Module):
    """The mean power of each frame, as if it were a layer."""

    hidden_size = 1

    def frame_lengths(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples - 400) // 320 + 1

    def forward(self, waveforms, lengths, *, up_to_layer):
        frames = waveforms.unfold(1, 400, 320).square().mean(-1, keepdim=True)
        assert frames.shape[1] == int(self.frame_lengths(lengths)[0])
        return SimpleNamespace(hidden_states=[None] * up_to_layer + [frames])


@pytest.mark.parametrize("speeds", [(80,), (100,), (125,), (85, 92, 100, 108, 117)])
def test_frames_of_all_speeds_are_on_the_clock_of_the_first(speeds):
    """A tone that begins in the middle begins in the middle, at every speed."""
    time = torch.arange(32_000) / 16_000
    waveform = torch.sin(2 * torch.pi * 440 * time) * (time >= 1)
    stage = Distillation("clock", layer=2, steps=1, speeds=speeds)
    power = average_over_speeds(Power(), waveform, stage)[:, 0]
    assert power.shape == (99,)
    assert power[:48].abs().max() < 0.01  # frame 48 has samples [15360, 15760)
    assert (power[52:97] - 0.5).abs().max() < 0.02
    assert power[49] + power[50] == pytest.approx(0.5, abs=0.25)


def test_speech_is_resampled_in_float32():
    waveform = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    exact, half = (
        average_over_speeds(Power(), waveform, Distillation("a", 1, 1, (90, 110), bfloat16=asked))
        for asked in (False, True)
    )
    assert torch.equal(exact, half)


def test_at_one_speed_it_is_the_layer(stream, teacher):
    waveform = stream.waveform(0)
    stage = Distillation("one", layer=2, steps=1, speeds=(100,))
    with torch.no_grad():
        found = average_over_speeds(teacher, waveform, stage)
        layer = teacher(waveform[None], torch.tensor([len(waveform)])).hidden_states[2][0]
    torch.testing.assert_close(found, layer)


def test_the_shortest_of_utterances_has_a_frame_at_every_speed(teacher):
    stage = Distillation("short", layer=1, steps=1)
    with torch.no_grad():
        assert average_over_speeds(teacher, torch.randn(640) / 9, stage).shape == (1, 256)


def test_neighbours_are_of_the_same_utterance(stream, heard):
    for row, start in enumerate(stream.starts):
        places = torch.arange(start, start + stream.frames[row])
        assert torch.equal(heard.stacked(places, 3), stack(heard.taught[places].float(), 3))
    gaps = heard.first < 0
    assert int((~gaps).sum()) == sum(stream.frames)
    assert not heard.taught[gaps].any()


def test_targets_are_uncorrelated_and_of_known_variance(heard):
    """And to predict nothing costs 1."""
    projection = principal(heard, STAGE)
    known = (heard.first >= 0).nonzero()[:, 0]
    targets = projection(heard.stacked(known, STAGE.context)).double()
    covariance = targets.T @ targets / len(targets)
    variances = covariance.diagonal()
    assert (covariance - variances.diag()).abs().max() < 1e-3 * variances.max()
    assert torch.equal(variances.sort(descending=True).indices, torch.arange(12))
    standard = heard.stacked(known, STAGE.context).double()
    standard = (standard - standard.mean(0)) / standard.std(0, correction=0)
    natural = torch.linalg.svdvals(standard)[:12] ** 2 / len(standard)
    torch.testing.assert_close(variances, natural**STAGE.power, rtol=1e-3, atol=0)
    nothing = errors(
        torch.zeros_like(targets)[None], targets[None], torch.ones(1, len(targets)) > 0,
        projection.total,
    )  # fmt: skip
    assert float(nothing) / len(targets) == pytest.approx(1, rel=1e-3)


def test_gaps_do_not_count():
    predicted, targets = torch.randn(2, 1, 5, 3).unbind(0)
    counted = torch.tensor([[True, True, False, True, False]])
    found = errors(
        predicted, targets.masked_fill(~counted[..., None], 1e6), counted, torch.ones(())
    )
    kept = counted[0]
    assert float(found) == pytest.approx(
        float((predicted - targets)[0, kept].square().sum()), rel=1e-5
    )


def test_a_crop_is_as_its_places_say_and_reaches_both_ends(heard):
    places, mask = batch_of(heard, STAGE, 3)
    assert torch.equal(places - places[:, :1], torch.arange(29).expand(2, 29))
    assert 5 <= int(mask[0].sum()) <= 10
    assert torch.equal(places, batch_of(heard, STAGE, 3)[0])
    starts = {int(start) for step in range(900) for start in batch_of(heard, STAGE, step)[0][:, 0]}
    assert (min(starts), max(starts)) == (0, len(heard.first) - 29)


def test_the_student_starts_with_the_convolutions_of_the_teacher_and_keeps_them(
    stream, teacher, tmp_path
):
    first = {name: tensor.clone() for name, tensor in new_student(teacher).state_dict().items()}
    student = distil(stream, STAGE, teacher, tmp_path)
    convolutions = teacher.hf_model.feature_extractor.state_dict()
    for name, tensor in student.hf_model.feature_extractor.state_dict().items():
        assert torch.equal(tensor, convolutions[name])
    assert student.hidden_size == 384
    assert student.num_layers == 4
    changed = {
        name
        for name, tensor in student.state_dict().items()
        if not torch.equal(tensor, first[name])
    }
    assert all("feature_extractor" not in name for name in changed)
    assert any("layers.0.attention" in name for name in changed)


def test_it_learns_what_the_teacher_says(heard, teacher):
    """Of one batch, over and over, the error falls far below that of nothing."""
    torch.manual_seed(0)
    model = Student(new_student(teacher), 12).train()
    projection = principal(heard, STAGE)
    places, mask = batch_of(heard, STAGE, 0)
    targets = projection(heard.stacked(places, STAGE.context))
    known = heard.first[places] >= 0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(25):
        predicted = model(heard.convolved[places].float(), mask)
        error = errors(predicted, targets, known, projection.total) / known.sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert float(error.detach()) < 0.4


def test_masked_frames_are_not_heard(teacher):
    model = Student(new_student(teacher), 12).eval()
    convolved = torch.randn(1, 20, 256)
    mask = torch.ones(1, 20, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model(convolved, mask), model(convolved.flip(1), mask))
        assert not torch.allclose(model(convolved, ~mask), model(convolved.flip(1), ~mask))


def gradients_of_a_batch(rank: int, ranks: int) -> list[torch.Tensor]:
    """Errors and gradients of a batch of four, of which a rank has its rows."""
    generator = torch.Generator().manual_seed(0)
    convolved = torch.randn(4, 20, 256, generator=generator)
    targets = torch.randn(4, 20, 12, generator=generator)
    known = torch.rand(4, 20, generator=generator) < 0.7
    known[0, :15] = False  # so that ranks have different numbers of frames that count
    torch.manual_seed(0)
    model = Student(new_student(tiny(size="demo", config=NO_DROPOUT)), 12).train()
    mine = slice(rank, None, ranks)
    predicted = model(convolved[mine], ~known[mine])
    error = errors(predicted, targets[mine], known[mine], torch.tensor(12.0)) / known.sum()
    error.backward()
    total = error.detach()[None]
    sum_over_ranks(list(model.parameters()), total)
    return [total, *(p.grad for p in model.parameters() if p.grad is not None)]


def test_ranks_share_a_batch_to_the_same_gradient():
    whole = gradients_of_a_batch(0, 1)
    for found in run_on_ranks(gradients_of_a_batch, 2):
        for got, want in zip(found, whole, strict=True):
            assert (got - want).abs().max() <= 1e-4 * want.abs().max().clamp_min(1e-2)


def test_a_stopped_run_goes_on_to_the_same_bits(stream, teacher, tmp_path, monkeypatch):
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole = distil(stream, STAGE, teacher, tmp_path / "whole")

    def stop(heard, stage, step):
        if step == 3:
            raise KeyboardInterrupt
        return batch_of(heard, stage, step)

    with monkeypatch.context() as patch:
        patch.setattr(module, "batch_of", stop)
        with pytest.raises(KeyboardInterrupt):
            distil(stream, STAGE, teacher, tmp_path / "stopped")
    resumed = distil(stream, STAGE, teacher, tmp_path / "stopped")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
