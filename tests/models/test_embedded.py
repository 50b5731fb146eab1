"""The encoder that ships with speechft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import speechft
from speechft.data import embedded_corpus
from speechft.errors import ArgumentError
from speechft.evaluation import EvaluationData, evaluate
from speechft.evaluation.tasks import Phones
from speechft.models import load
from speechft.models.loading import EMBEDDED

FOLDER = EMBEDDED["speechft/hubert-mini"]
UNTRAINED = "speechft/hubert-mini-untrained"
SPLIT = Path(__file__).parents[2] / "recipes" / "hubert_mini" / "split.json"


def test_it_loads_without_a_network_in_float32():
    encoder = load("speechft/hubert-mini")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert 3e6 <= sum(parameter.numel() for parameter in encoder.parameters()) <= 5e6
    assert encoder(torch.randn(1, 16_000)).last_hidden_state.shape == (1, 49, 384)


def test_it_is_a_plain_folder_of_float16_within_10_megabytes():
    from safetensors import safe_open
    from transformers import HubertModel

    assert (FOLDER / "model.safetensors").stat().st_size <= 10_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    plain = HubertModel.from_pretrained(FOLDER, dtype=torch.float32)
    waveform = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.eval()(waveform).last_hidden_state
        torch.testing.assert_close(
            load("speechft/hubert-mini")(waveform).last_hidden_state, expected, atol=1e-4, rtol=1e-4
        )


def test_the_card_names_every_source_and_licence():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("festvox-ru", "CC-BY-SA-3.0", "Allison Smith", "espeak-ng", "flite", "BSD"):
        assert word in card


def test_untrained_is_the_same_architecture_and_is_reproducible():
    one, two = load("speechft/hubert-mini-untrained"), load("speechft/hubert-mini-untrained")
    trained = load("speechft/hubert-mini")
    assert one.config.conv_dim == trained.config.conv_dim
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    assert not torch.allclose(
        one.layers[0].attention.q_proj.weight, trained.layers[0].attention.q_proj.weight
    )


@pytest.mark.parametrize("name", ["speechft/hubert-maxi", "speechft/hubert-mini-trained"])
def test_other_names_of_ours_are_errors_that_list_them(name):
    with pytest.raises(ArgumentError, match="speechft/hubert-mini-untrained do"):
        load(name)


def test_nothing_of_the_embedded_corpus_was_heard_in_pretraining():
    held = json.loads(SPLIT.read_text("utf-8"))["held_out"]
    for row in embedded_corpus():
        name = row.id.removeprefix("festvox-ru/")
        assert row.speaker in held["speakers"] or name in held["festvox-ru"]


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_it_has_learnt_phones(every):
    """On sentences it never heard: far above log-mel and above its own first weights."""
    both = ("unchanged", "speed 0.8")
    found = {
        name: evaluate(
            model=name,
            tasks=[Phones((layer,), conditions=conditions, penalties=(3e-3,))],
            data=sentences_with_phones(every),
            seeds=1,
        )["phones"]
        for name, layer, conditions in (
            ("log-mel", 0, both),
            (UNTRAINED, 4, both[:1]),
            ("speechft/hubert-mini", 4, both),
        )
    }
    accuracy = {name: result.figure("accuracy").mean for name, result in found.items()}
    assert accuracy["speechft/hubert-mini"] > accuracy["log-mel"] + 0.02
    assert accuracy["speechft/hubert-mini"] > accuracy[UNTRAINED] + 0.2
    slower = {
        name: found[name].figure("accuracy", condition="speed 0.8").mean
        for name in ("log-mel", "speechft/hubert-mini")
    }
    assert slower["speechft/hubert-mini"] > slower["log-mel"] + 0.1


def sentences_with_phones(every: int) -> EvaluationData:
    rows = speechft.data.Manifest([row for row in embedded_corpus() if row.phones][::every])
    return EvaluationData("festvox-ru", {"all": rows})
