"""Units: what a frame's unit is, padding, folders, and the file of ``speechft units``."""

from __future__ import annotations

import json

import pytest
import torch

from speechft import models
from speechft.cli import main
from speechft.data import Manifest, SpeechDataset, embedded_corpus
from speechft.errors import ArgumentError
from speechft.evaluation.units import extract_units, merge_units
from speechft.methods import Spin, SpinConfig
from speechft.models.units_saving import save_units


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a run of Spin leaves it, without a run."""
    path = tmp_path_factory.mktemp("spin")
    Spin(models.tiny(), SpinConfig(codes=12, size=6)).save(path)
    return path


@pytest.fixture(scope="module")
def speech():
    return Manifest(u for u in embedded_corpus().filter(language="en") if u.duration < 3)


def test_a_unit_is_the_nearest_code(folder):
    model = models.load_units(folder)
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    units, lengths = model(waveforms, [8000, 6000])
    assert units.dtype == torch.int64
    assert lengths.tolist() == [24, 18]
    spin = Spin(models.tiny(), SpinConfig(codes=12, size=6))
    frames = spin.encoder(waveforms, [8000, 6000]).last_hidden_state
    projected = spin.connector(frames)
    distance = torch.cdist(
        torch.nn.functional.normalize(projected, dim=-1), spin.loss.codebook[None]
    )
    expected = distance.argmin(-1)
    expected[1, 18:] = -1
    assert torch.equal(units, expected)
    assert len(units[0].unique()) > 1


def test_padding_and_batch_mates_change_no_unit(folder):
    model = models.load_units(folder)
    waveforms = 0.1 * torch.randn(3, 9000, generator=torch.Generator().manual_seed(1))
    together, _ = model(waveforms, [9000, 5000, 7000])
    alone, _ = model(waveforms[1:2, :5000])
    assert torch.equal(together[1, : alone.shape[1]], alone[0])


def test_the_encoder_beside_it_is_a_plain_one(folder):
    from transformers import HubertModel

    assert type(HubertModel.from_pretrained(folder)) is HubertModel
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json", "units.json",
        "units.safetensors",
    ]  # fmt: skip
    assert json.loads((folder / "units.json").read_text()) == {
        "codes": 12, "size": 6, "features": 16,
    }  # fmt: skip


def test_folders_that_do_not_hold_units(folder, tmp_path):
    models.tiny().save_pretrained(tmp_path / "plain")
    with pytest.raises(ArgumentError, match=r"has no units\.json, so no unit head"):
        models.load_units(tmp_path / "plain")
    save_units(models.UnitHead(17, 6, 12), tmp_path / "plain")
    with pytest.raises(ArgumentError, match="frames of 17, and the encoder's have 16"):
        models.load_units(tmp_path / "plain")
    save_units(models.UnitHead(16, 6, 12), tmp_path / "plain")
    (tmp_path / "plain" / "units.json").write_text('{"codes": 13, "size": 6, "features": 16}')
    with pytest.raises(ArgumentError, match=r"codebook wants \(codes, size\), got \(12, 6\)"):
        models.load_units(tmp_path / "plain")
    (tmp_path / "plain" / "units.json").write_text("[]")
    with pytest.raises(ArgumentError, match="wants whole numbers codes, size, features"):
        models.load_units(tmp_path / "plain")


def test_units_of_a_data_set_are_kept_and_gone_on_with(folder, speech, tmp_path, monkeypatch):
    monkeypatch.setattr("speechft.evaluation.units._SHARD_SECONDS", 5)
    model = models.load_units(folder)
    dataset = SpeechDataset(speech, progress=False)
    found = extract_units(model, dataset, cache=tmp_path, batch_seconds=6.0)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1
    for index, units in enumerate(found):
        alone, _ = model(dataset[index]["waveform"][None])
        assert torch.equal(units.long(), alone[0])
    files[0].unlink()
    calls = []
    forward = models.UnitModel.forward
    monkeypatch.setattr(
        models.UnitModel, "forward", lambda *args: calls.append(len(args[1])) or forward(*args)
    )
    again = extract_units(model, dataset, cache=tmp_path)
    assert 0 < sum(calls) < len(dataset)
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))


@pytest.mark.parametrize("merge", [False, True])
def test_command(folder, speech, tmp_path, merge, capsys):
    manifest = tmp_path / "data.jsonl"
    rows = [{"audio": str(u.audio), "id": u.id} for u in speech]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "units.jsonl"
    arguments = ["--model", str(folder), "--data", str(manifest), "--output", str(output)]
    assert main(["units", *arguments, *(["--merge"] if merge else [])]) == 0
    assert f"{len(speech)} utterances" in capsys.readouterr().out
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == [u.id for u in speech]
    plain = extract_units(models.load_units(folder), SpeechDataset(speech, progress=False))
    for line, units in zip(lines, plain, strict=True):
        if merge:
            whole = torch.tensor(line["units"]).repeat_interleave(torch.tensor(line["durations"]))
            assert torch.equal(whole, units.long())
            assert torch.equal(merge_units(units)[0].long(), torch.tensor(line["units"]))
        else:
            assert line["units"] == units.tolist()


def test_command_of_a_model_without_units(tmp_path, capsys):
    models.tiny().save_pretrained(tmp_path / "plain")
    arguments = ["--model", str(tmp_path / "plain"), "--data", "embedded"]
    assert main(["units", *arguments, "--output", str(tmp_path / "units.jsonl")]) != 0
    assert "no unit head" in capsys.readouterr().err
