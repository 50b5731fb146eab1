"""R-Spin: pseudo-labels of frames, acoustic pieces, and what a crop keeps of them."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from speechft import models
from speechft.augment import fold_in, make_keys
from speechft.data import Manifest, SpeechDataset, embedded_corpus
from speechft.errors import ArgumentError, ConfigError, InterruptedRun
from speechft.evaluation.units import extract_units
from speechft.methods import Spin, SpinConfig
from speechft.methods.pieces import Pieces, train_pieces
from speechft.methods.refine import refine
from speechft.training import TrainingSettings


def units_of(text: str) -> torch.Tensor:
    return torch.tensor([ord(letter) - ord("a") for letter in text])


class TestPieces:
    def test_the_commonest_neighbours_are_put_together(self):
        pieces = train_pieces([units_of(text) for text in ("abcab", "cabab", "abba")], 4)
        assert len(pieces) == 4
        labels = pieces.labels(units_of("aabcb"))
        # a b is one piece now, whatever each lasts; c and b alone are two others
        assert labels[0] == labels[1] == labels[2]
        assert len({int(label) for label in labels}) == 3

    def test_labels_are_of_the_runs_and_as_long_as_the_frames(self):
        generator = torch.Generator().manual_seed(0)
        speech = [
            torch.randint(5, (40,), generator=generator).repeat_interleave(
                torch.randint(1, 4, (40,), generator=generator)
            )
            for _ in range(30)
        ]
        pieces = train_pieces(speech, 40)
        assert len(pieces) == 40
        for units in speech:
            labels = pieces.labels(units)
            assert len(labels) == len(units)
            assert labels.min() >= 0
            assert labels.max() < 40
            inside = units[1:] == units[:-1]
            assert (labels[1:] == labels[:-1])[inside].all()
        # The same piece always spells the same units.
        spelt: dict[int, set[tuple[int, ...]]] = {}
        for units in speech:
            encoding = pieces.tokenizer.encode(
                "".join(chr(0xF0000 + int(u)) for u in torch.unique_consecutive(units))
            )
            for number, token in zip(encoding.ids, encoding.tokens, strict=True):
                spelt.setdefault(number, set()).add(tuple(map(ord, token)))
        assert all(len(spellings) == 1 for spellings in spelt.values())

    def test_training_is_the_same_each_time_and_kept(self, tmp_path):
        generator = torch.Generator().manual_seed(1)
        speech = [torch.randint(6, (80,), generator=generator) for _ in range(20)]
        one, two = train_pieces(speech, 60), train_pieces(speech, 60)
        one.save(tmp_path / "pieces.json")
        read = Pieces.load(tmp_path / "pieces.json")
        for units in speech:
            assert torch.equal(one.labels(units), two.labels(units))
            assert torch.equal(one.labels(units), read.labels(units))

    def test_fewer_pieces_than_units(self):
        with pytest.raises(ArgumentError, match="2 pieces cannot stand for 3 units"):
            train_pieces([units_of("abc")], 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("spin")
    Spin(models.tiny(), SpinConfig(codes=12, size=6)).save(path)
    return path


@pytest.fixture(scope="module")
def speech():
    return Manifest(u for u in embedded_corpus().filter(language="en") if u.duration < 4)


def config(folder, **changes):
    given = {
        "codes": 8, "size": 6, "min_seconds": 1.0, "crop_seconds": 1.5, "tuned_layers": None,
        "pseudo_labels": str(folder), **changes,
    }  # fmt: skip
    return SpinConfig(**given)


@pytest.mark.parametrize("pieces", [None, 20])
def test_labels_of_a_crop_are_those_of_its_frames_in_the_whole(folder, speech, tmp_path, pieces):
    spin = Spin(models.tiny(), config(folder, pieces=pieces))
    dataset = SpeechDataset(speech, progress=False)
    data = spin.training_data(dataset, TrainingSettings(batch_size=4), tmp_path)
    whole = extract_units(models.load_units(folder), dataset)
    if pieces is not None:
        trained = train_pieces(whole, pieces)
        whole = [trained.labels(units) for units in whole]
    seen = []

    def watch(logits, labels, ignore_index):
        seen.append(labels)
        assert ignore_index == -1
        assert logits.shape[1] == (pieces or 12)
        return logits.sum() * 0

    count, batch = next(iter(data.evaluation()))
    inputs = {name: batch[name] for name in spin.inputs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", watch)
        spin(**inputs)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    labels = seen[0].view(count, -1)
    views = spin.views(inputs)
    cut, lengths = views["plain"]
    frames = spin.encoder.frame_lengths(lengths)
    for row in range(count):
        n = int(frames[row])
        assert (labels[row, n:] == -1).all()
        # where the crop lies, from the samples themselves
        waveform = dataset[int(batch["indices"][row])]["waveform"]
        windows = waveform.unfold(0, int(lengths[row]), 320)
        start = int((windows == cut[row, : int(lengths[row])]).all(1).nonzero()[0, 0])
        of_whole = whole[int(batch["indices"][row])]
        assert torch.equal(labels[row, :n], of_whole[start : start + n].long())


def test_the_loss_is_the_sum_of_the_two(folder):
    spin = Spin(models.tiny(), config(folder, auxiliary_weight=5.0)).eval()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([30_000, 20_000])
    waveforms = 0.1 * torch.randn(2, 30_000, generator=generator)
    keys = make_keys(0, 0, torch.tensor([1, 2]))
    labels = torch.randint(12, (2, 93), generator=generator)
    given = {"waveforms": waveforms, "lengths": lengths, "keys": keys, "frame_labels": labels}
    with torch.no_grad():
        views = spin.views(given)
        frames = {name: spin.encoder(*view) for name, view in views.items()}
        found = spin.objective(given, views, frames)
        alone = Spin(models.tiny(), config(folder, pseudo_labels=None)).eval()
        alone.connector, alone.loss = spin.connector, spin.loss
        without = alone.objective(given, views, frames)
        drawn = spin.crop.parameters_for(fold_in(keys, 0))
        starts = spin.crop.place(lengths, drawn)[0] // 320
        terms = []
        for view in frames.values():
            log_p = spin.predictor(view.last_hidden_state).log_softmax(-1)
            each = [
                -log_p[b, t, labels[b, int(starts[b]) + t]]
                for b in range(2)
                for t in range(int(view.lengths[b]))
            ]
            terms.append(torch.stack(each).mean())
    expected = without.loss + 5 * torch.stack(terms).mean()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=0)
    monitors = spin.monitors()
    assert float(monitors["spin"]) == pytest.approx(float(without.loss), rel=1e-5)
    assert float(monitors["auxiliary"]) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def run(output, folder, speech, *, resume=False):
    return refine(
        model=models.tiny("hubert", config={"hidden_dropout": 0.1}),
        method="spin",
        data=speech,
        output=output,
        config=config(folder, pieces=20),
        training=TrainingSettings(
            steps=4, batch_size=3, log_every=2, learning_rate=1e-3, device="cpu", workers=1,
            evaluate_utterances=3,
        ),
        resume=resume,
    )  # fmt: skip


def test_stopped_and_resumed_is_the_same_run(tmp_path, folder, speech, monkeypatch):
    run(tmp_path / "straight", folder, speech)
    calls = 0
    forward = Spin.forward

    def stop(self, **inputs):
        nonlocal calls
        calls += 1
        if calls == 3:  # one batch measures the loss before
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Spin, "forward", stop)
        with pytest.raises(InterruptedRun):
            run(tmp_path / "stopped", folder, speech)
    torch.manual_seed(999)
    with monkeypatch.context() as patch:
        made = "speechft.evaluation.units._of_batch"
        patch.setattr(made, lambda *_: pytest.fail("pseudo-labels are made again"))
        run(tmp_path / "stopped", folder, speech, resume=True)
    for name in ("model.safetensors", "units.safetensors"):
        one, two = (load_file(tmp_path / run / name) for run in ("straight", "stopped"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_folders_that_cannot_give_labels(tmp_path, folder, speech):
    models.tiny().save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"pseudo_labels: .* no unit head"):
        Spin(models.tiny(), config(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="pieces: wants at least the 12 units"):
        Spin(models.tiny(), config(folder, pieces=11))
    other = models.tiny(config={"conv_stride": (5, 2, 2, 2, 2, 2, 1)})
    spin = Spin(other, config(folder))
    dataset = SpeechDataset(speech, progress=False)
    with pytest.raises(ConfigError, match="400 samples every 320 at 16000 Hz, and the encoder's"):
        spin.training_data(dataset, TrainingSettings(batch_size=4), tmp_path)
