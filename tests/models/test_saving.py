"""Loading, and saving as the plain folder that transformers loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechft import errors, models

from .twins import VARIANTS, noise, plain_twin


@pytest.mark.parametrize(("kind", "config"), VARIANTS)
def test_round_trip_is_bitwise(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    config = {**config, "layerdrop": 0.25, "apply_spec_augment": True}
    encoder = models.tiny(kind, do_normalize=True, config=config)
    speech = noise(2, 5000)
    with torch.no_grad():
        before = encoder(speech, [5000, 3000])
        encoder.save_pretrained(tmp_path)
        loaded = models.load(tmp_path)
        again = loaded(speech, [5000, 3000])
        for mine, theirs in zip(before.hidden_states, again.hidden_states, strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(before.last_hidden_state, again.last_hidden_state)
        assert torch.equal(before.lengths, again.lengths)

        plain = type(encoder.hf_model).from_pretrained(tmp_path)
        twin = plain_twin(encoder)
        twin.set_attn_implementation(plain.config._attn_implementation)
        assert torch.equal(plain(speech).last_hidden_state, twin(speech).last_hidden_state)
    assert plain.config.layerdrop == 0.25
    assert plain.config.apply_spec_augment is True
    assert not loaded.training
    assert loaded.do_normalize


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_names_are_those_of_the_plain_model(kind: str, tmp_path: Path) -> None:
    encoder = models.tiny(kind)
    plain = plain_twin(encoder)
    assert list(encoder.hf_model.state_dict()) == list(plain.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    encoder.save_pretrained(tmp_path / "ours")
    contents = []
    for folder in ("plain", "ours"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            contents.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert contents[0].keys() == contents[1].keys()
    assert all(torch.equal(contents[0][name], contents[1][name]) for name in contents[0])
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("plain", "ours")]
    assert configs[0] == configs[1]


def test_the_preprocessor_config_is_read_and_handed_on(tmp_path: Path) -> None:
    models.tiny().hf_model.save_pretrained(tmp_path)
    assert models.load(tmp_path).do_normalize is False
    assert models.load(tmp_path, do_normalize=True).do_normalize is True
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"do_normalize": True, "sampling_rate": 8000, "extra": [1]}))
    encoder = models.load(tmp_path)
    assert (encoder.do_normalize, encoder.sample_rate) == (True, 8000)
    assert models.load(tmp_path, do_normalize=False).do_normalize is False
    encoder.save_pretrained(tmp_path / "again")
    content = json.loads((tmp_path / "again" / file.name).read_text())
    assert (content["do_normalize"], content["sampling_rate"], content["extra"]) == (
        True, 8000, [1],
    )  # fmt: skip
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "again")
    assert extractor.do_normalize is True
    file.write_text("{not json")
    with pytest.raises(errors.ArgumentError, match=r"preprocessor_config\.json is not JSON"):
        models.load(tmp_path)


def test_without_a_file_the_preprocessor_config_says_what_was_done(tmp_path: Path) -> None:
    models.tiny().save_pretrained(tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert extractor.do_normalize is False
    assert extractor.sampling_rate == 16_000


def test_a_model_with_a_head(tmp_path: Path) -> None:
    encoder = models.tiny("wav2vec2")
    settings = copy.deepcopy(encoder.config)
    settings.vocab_size = 5
    with_head = transformers.Wav2Vec2ForCTC(settings).eval()
    with_head.save_pretrained(tmp_path)
    speech = noise(1, 4000)
    with torch.no_grad():
        expected = with_head.wav2vec2(speech).last_hidden_state
        wrapped = models.wrap(with_head)(speech).last_hidden_state
        assert torch.equal(models.load(tmp_path)(speech).last_hidden_state, wrapped)
    torch.testing.assert_close(wrapped, expected, rtol=1e-5, atol=1e-5)


def test_dtype_and_device(tmp_path: Path) -> None:
    models.tiny().save_pretrained(tmp_path)
    encoder = models.load(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    encoder.save_pretrained(tmp_path / "half")
    assert {p.dtype for p in models.load(tmp_path / "half").parameters()} == {torch.float32}


def test_unmerged_adapters_are_not_saved_under_other_names(tmp_path: Path) -> None:
    encoder = models.tiny("wavlm")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(encoder.hf_model, config)
    with pytest.raises(errors.ArgumentError, match=r"q_proj that is not merged.*merge_and_unload"):
        encoder.save_pretrained(tmp_path)
    speech = noise(1, 4000)
    with torch.no_grad():
        before = encoder(speech).last_hidden_state
        adapted.merge_and_unload()
        encoder.save_pretrained(tmp_path)
        torch.testing.assert_close(
            models.load(tmp_path)(speech).last_hidden_state, before, rtol=1e-4, atol=1e-5
        )


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    def fails(source: str | Path, message: str) -> None:
        with pytest.raises(errors.ArgumentError, match=message) as caught:
            models.load(source, local_files_only=True)
        assert caught.value.argument == "name_or_path"

    fails(tmp_path / "absent", "absent does not exist")
    fails("./absent/model", "does not exist")
    fails(str(tmp_path), "has no config.json")
    fails("nobody/no-such-model", "nobody/no-such-model cannot be loaded: ")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    fails(tmp_path, "'bert'; supported: hubert, wav2vec2, wavlm")
    fails(tmp_path / "config.json", "is a file")
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    fails(tmp_path, "cannot be loaded")
    (tmp_path / "config.json").write_text("{")
    fails(tmp_path, "cannot be loaded")
    models.tiny().save_pretrained(tmp_path / "no-weights")
    (tmp_path / "no-weights" / "model.safetensors").unlink()
    fails(tmp_path / "no-weights", "cannot be loaded")


def test_a_checkpoint_that_lacks_weights(tmp_path: Path) -> None:
    models.tiny().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layers.1.attention.q_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(errors.ArgumentError, match=r"lacks 1 weights .*layers\.1\.attention\.q"):
        models.load(tmp_path)
    # This one is not used.
    models.tiny().save_pretrained(tmp_path)
    weights = load_file(file)
    del weights["masked_spec_embed"]
    save_file(weights, file, metadata={"format": "pt"})
    models.load(tmp_path)


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_copies_are_independent(kind: str) -> None:
    """A frozen copy serves as a teacher."""
    encoder = models.tiny(kind)
    speech = noise(2, 4000)
    with torch.no_grad():
        expected = encoder(speech, [4000, 2000]).last_hidden_state
        twin = copy.deepcopy(encoder)
        assert torch.equal(twin(speech, [4000, 2000]).last_hidden_state, expected)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(encoder(speech, [4000, 2000]).last_hidden_state, expected)
