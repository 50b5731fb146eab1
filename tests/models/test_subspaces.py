"""Subspace models: what they compute, how they are saved, and what evaluation sees of them."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechft import models
from speechft.errors import ArgumentError, ConfigError
from speechft.models import SubspaceModel, load_subspaces
from speechft.models.subspaces_saving import export_onnx, is_subspace_folder
from speechft.models.utterances import UtteranceEncoder

from .twins import noise

SIZES = {"speaker": 4, "content": 3, "rest": 2}
LENGTHS = [6000, 3500, 5000]


def made(kind: str = "hubert", **settings: Any) -> SubspaceModel:
    settings = {"hidden_sizes": (8,), **settings}
    model = SubspaceModel(models.tiny(kind), SIZES, **settings).eval()
    if model.layer_weights is not None:
        torch.nn.init.normal_(model.layer_weights, generator=torch.Generator().manual_seed(3))
    return model


@torch.no_grad()
def vectors(model: Any, waveforms: Tensor, lengths: Any = None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model(waveforms, lengths)
    return found


KINDS: list[dict[str, Any]] = [{}, {"layer": 1}, {"weighted_layers": True}, {"hidden_sizes": ()}]


@pytest.mark.parametrize("settings", KINDS)
def test_vectors_are_the_formula(settings: dict[str, Any]) -> None:
    model = made(**settings)
    speech = noise(3, 6000)
    together = vectors(model, speech, LENGTHS)
    for row, length in enumerate(LENGTHS):
        with torch.no_grad():
            output = model.encoder(speech[row : row + 1, :length])
        layers = [*output.hidden_states[:-1], output.last_hidden_state]
        means = torch.stack([frames[0].mean(0) for frames in layers])
        if model.layer_weights is not None:
            shares = model.layer_weights.detach().exp()
            h = (shares / shares.sum()) @ means
        else:
            h = means[settings.get("layer", 3)]
        linear = [m for m in model.transform if isinstance(m, torch.nn.Linear)]
        for number, layer in enumerate(linear):
            h = layer.weight.detach() @ (h.clamp(min=0) if number else h) + layer.bias.detach()
        z = torch.cat([together[name][row] for name in SIZES])
        torch.testing.assert_close(z, h, rtol=1e-4, atol=1e-5)
    assert {name: tensor.shape[1] for name, tensor in together.items()} == SIZES


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_padding_and_batch_mates_change_nothing(kind: str) -> None:
    model = made(kind, weighted_layers=True)
    speech = noise(3, 6000)
    together = vectors(model, speech, LENGTHS)
    longer = vectors(model, torch.nn.functional.pad(speech, (0, 4000), value=0.5), LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone = vectors(model, speech[row : row + 1, :length])
        for name in SIZES:
            for other in (alone[name][0], longer[name][row]):
                error = (other - together[name][row]).norm() / together[name][row].norm()
                assert error < 1e-6


def test_the_transform_is_that_of_its_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = made(seed=3), made(seed=3), made(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.transform[0].weight, same.transform[0].weight)
    assert not torch.equal(one.transform[0].weight, other.transform[0].weight)


@pytest.mark.parametrize("settings", KINDS)
def test_round_trip_with_the_encoder_along_is_bitwise(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = made("wavlm", **settings)
    model.encoder.do_normalize = True
    model.save_pretrained(tmp_path)
    assert is_subspace_folder(tmp_path)
    assert (tmp_path / "encoder" / "model.safetensors").exists()
    assert json.loads((tmp_path / "config.json").read_text())["encoder"] is None
    loaded = load_subspaces(tmp_path)
    assert not loaded.training
    assert (loaded.layer, loaded.hidden_sizes) == (model.layer, model.hidden_sizes)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in loaded.state_dict().items())
    speech = noise(3, 6000)
    before, after = vectors(model, speech, LENGTHS), vectors(loaded, speech, LENGTHS)
    assert list(after) == list(SIZES)
    assert all(torch.equal(before[name], after[name]) for name in SIZES)


@pytest.fixture(scope="module")
def mini() -> models.Encoder:
    return models.load("speechft/hubert-mini")


def test_a_named_encoder_is_saved_by_reference(tmp_path: Path, mini: models.Encoder) -> None:
    model = SubspaceModel(mini, {"speaker": 8}, layer=2, encoder_name="speechft/hubert-mini").eval()
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    loaded = load_subspaces(tmp_path)
    assert loaded.encoder_name == "speechft/hubert-mini"
    speech = noise(2, 6000)
    assert torch.equal(vectors(model, speech)["speaker"], vectors(loaded, speech)["speaker"])
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (again / file).read_bytes() == (tmp_path / file).read_bytes()


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    """Of one weight, by the last bit."""
    encoder = models.load("speechft/hubert-mini")
    weight = encoder.layers[0].final_layer_norm.bias
    with torch.no_grad():
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    SubspaceModel(encoder, {"a": 2}, encoder_name="speechft/hubert-mini").save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"'speechft/hubert-mini' of other weights"):
        load_subspaces(tmp_path)


def test_a_folder_that_is_no_subspace_model_is_refused(tmp_path: Path) -> None:
    models.tiny().save_pretrained(tmp_path / "encoder")
    (tmp_path / "empty").mkdir()
    for name in ("encoder", "empty"):
        assert not is_subspace_folder(tmp_path / name)
        with pytest.raises(ArgumentError, match="holds no subspace model"):
            load_subspaces(tmp_path / name)
    with pytest.raises(ArgumentError, match="cannot be loaded"):
        load_subspaces("nobody/nothing", local_files_only=True)


def test_weights_of_another_model_do_not_fit(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_sizes": []}))
    with pytest.raises(ArgumentError, match="does not fit at"):
        load_subspaces(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"layer": 2}, {"weighted_layers": True}])
def test_frames_of_a_linear_transform_have_the_vector_as_their_mean(
    settings: dict[str, Any],
) -> None:
    model = made(hidden_sizes=(), **settings)
    speech = noise(3, 6000)
    want = vectors(model, speech, LENGTHS)
    for names in ((), ("content",), ("rest", "speaker")):
        folded = model.folded(*names)
        with torch.no_grad():
            output = folded(speech, LENGTHS)
        chosen = torch.cat([want[name] for name in names or SIZES], 1)
        assert folded.hidden_size == chosen.shape[1] == output.last_hidden_state.shape[2]
        means = output.last_hidden_state.sum(1) / output.lengths[:, None]
        torch.testing.assert_close(means, chosen, rtol=1e-5, atol=1e-5)
        for frames, count in zip(output.last_hidden_state, output.lengths, strict=True):
            assert not frames[count:].any()
            assert frames[:count].any(1).all()
    assert torch.equal(output.lengths, folded.frame_lengths(torch.tensor(LENGTHS)))
    assert torch.equal(output.hidden_states[0], output.last_hidden_state)
    assert folded.sample_rate == 16_000
    assert folded.minimum_samples == model.encoder.minimum_samples


def test_utterances_as_evaluation_takes_them() -> None:
    model = made()
    encoder = UtteranceEncoder(model)
    assert encoder.spaces == {
        "pooled": (0, 16), "speaker": (16, 20), "content": (20, 23), "rest": (23, 25)
    }  # fmt: skip
    speech = noise(3, 6000)
    with torch.no_grad():
        output = encoder(speech, LENGTHS)
        pooled = model.pool(speech, LENGTHS)
    assert output.last_hidden_state.shape == (3, 1, encoder.hidden_size)
    assert output.lengths.tolist() == encoder.frame_lengths(torch.tensor(LENGTHS)).tolist()
    want = {"pooled": pooled, **vectors(model, speech, LENGTHS)}
    for name, (first, end) in encoder.spaces.items():
        assert torch.equal(output.last_hidden_state[:, 0, first:end], want[name])


@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ({}, {}, "subspaces: is empty"),
        ({"a": 0}, {}, "a wants a size of at least 1, got 0"),
        ({"a": 2.0}, {}, "a wants a size"),
        ({"a": True}, {}, "a wants a size"),
        ({"pooled": 2}, {}, "'pooled' cannot be the name"),
        ({"a/b": 2}, {}, "'a/b' cannot be the name"),
        ({"": 2}, {}, "'' cannot be the name"),
        ({"a": 2}, {"hidden_sizes": (4, 0)}, "hidden_sizes: wants sizes of at least 1"),
        ({"a": 2}, {"layer": 4}, "layer: wants 0 to 3, got 4"),
        ({"a": 2}, {"layer": -1}, "layer: wants 0 to 3, got -1"),
        ({"a": 2}, {"layer": 0, "weighted_layers": True}, "layer: is 0 beside weighted_layers"),
    ],
)
def test_errors_name_the_argument(
    sizes: dict[str, int], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        SubspaceModel(models.tiny(), sizes, **settings)


def test_a_subspace_that_is_not_there() -> None:
    with pytest.raises(ArgumentError, match="no subspace 'emotion'; there are: speaker, content"):
        made().folded("speaker", "emotion")


def test_what_is_exported_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short twin of the test below: all but torch's exporter, which takes a while."""
    model = made().train()
    calls: list[Any] = []

    class Program:
        def save(self, path: str) -> None:
            Path(path).write_bytes(b"onnx")

    def export(module: Any, arguments: Any, **settings: Any) -> Program:
        calls.append(settings)
        assert not any(part.training for part in module.modules())
        outputs = module(*arguments)
        for mine, want in zip(outputs, vectors(model, *arguments).values(), strict=True):
            assert torch.equal(mine, want)
        return Program()

    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest: None if name in ("onnx", "onnxscript") else real(name, *rest),
    )
    monkeypatch.setattr(torch.onnx, "export", export)
    export_onnx(model, tmp_path / "deep" / "model.onnx")
    assert model.training
    assert (tmp_path / "deep" / "model.onnx").read_bytes() == b"onnx"
    assert calls[0]["input_names"] == ["waveforms", "lengths"]
    assert calls[0]["output_names"] == list(SIZES)
    assert {k: list(v) for k, v in calls[0]["dynamic_shapes"].items()} == {
        "waveforms": [0, 1], "lengths": [0]
    }  # fmt: skip


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a WavLM cannot be written as ONNX"):
        export_onnx(made("wavlm"), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
def test_onnx_gives_the_same_vectors(tmp_path: Path, kind: str) -> None:
    """At another batch size and other lengths than it was exported with."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = made(kind)
    path = tmp_path / "deep" / "model.onnx"
    export_onnx(model, path)
    assert not model.training
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == list(SIZES)
    for batch, samples in ((3, 20_000), (1, 9000), (5, 41_111)):
        speech = noise(batch, samples)
        lengths = torch.linspace(5000, samples, batch).long()
        found = session.run(None, {"waveforms": speech.numpy(), "lengths": lengths.numpy()})
        for mine, want in zip(found, vectors(model, speech, lengths).values(), strict=True):
            np.testing.assert_allclose(mine, want.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_export_without_its_packages_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest) if name != "onnx" else None

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=f"{package} is not installed; pip install"):
        export_onnx(made(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
