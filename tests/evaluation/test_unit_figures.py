"""PNMI and its company against their definitions, and the task that gives them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from speechft import models
from speechft.data import Manifest, SpeechDataset, embedded_corpus
from speechft.errors import ArgumentError, ArgumentTypeError, ManifestError
from speechft.evaluation import evaluate
from speechft.evaluation.metrics import perplexity, pnmi, purity
from speechft.evaluation.tasks import Units
from speechft.evaluation.tasks.alignment import frame_labels, phones_of
from speechft.methods import Spin, SpinConfig
from speechft.models.units import UnitFrames
from tests.evaluation.levels import LEVELS, Loudness, corpus


def slow(units: list[int], phones: list[int]) -> dict[str, float]:
    """Frame by frame, from the definitions; -1 is left out."""
    pairs = [(u, p) for u, p in zip(units, phones, strict=True) if u >= 0 and p >= 0]
    n = len(pairs)
    joint, of_unit, of_phone = Counter(pairs), Counter(), Counter()
    for unit, phone in pairs:
        of_unit[unit] += 1
        of_phone[phone] += 1
    information = sum(
        c / n * math.log((c / n) / (of_unit[u] / n * of_phone[p] / n))
        for (u, p), c in joint.items()
    )
    entropy = -sum(c / n * math.log(c / n) for c in of_phone.values())
    best_phone = sum(max(joint[u, p] for p in of_phone) for u in of_unit) / n
    best_unit = sum(max(joint[u, p] for u in of_unit) for p in of_phone) / n
    used = math.exp(-sum(c / n * math.log(c / n) for c in of_unit.values()))
    return {
        "PNMI": information / entropy, "phone purity": best_phone, "cluster purity": best_unit,
        "code perplexity": used, "active codes": float(len(of_unit)),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_against_the_definitions(seed):
    draw = np.random.default_rng(seed)
    count = int(draw.integers(10, 300))
    phones = draw.integers(0, draw.integers(2, 12), count)
    noise = draw.integers(0, 40, count)
    units = np.where(draw.random(count) < draw.choice((0.0, 0.5, 1.0)), 7 * phones, noise)
    units[draw.random(count) < 0.1] = -1
    phones[draw.random(count) < 0.1] = -1
    phones[:2], units[:2] = (0, 1), (3, 4)  # two phones that count
    expected = slow(units.tolist(), phones.tolist())
    known = units[(units >= 0) & (phones >= 0)]
    assert pnmi(units, phones) == pytest.approx(expected["PNMI"], abs=1e-9)
    assert purity(units, phones) == pytest.approx(expected["phone purity"], abs=1e-9)
    assert purity(phones, units) == pytest.approx(expected["cluster purity"], abs=1e-9)
    assert perplexity(known) == pytest.approx(expected["code perplexity"], rel=1e-9)


def test_bad_input():
    with pytest.raises(ArgumentError, match="phones: wants two or more, got one"):
        pnmi([1, 2, 3], [4, 4, -1])
    with pytest.raises(ArgumentError, match="phones: wants one a unit, 2, got 1"):
        pnmi([1, 2], [4])
    with pytest.raises(ArgumentTypeError, match="units: wants integers"):
        pnmi([0.5, 2.0], [4, 5])
    with pytest.raises(ArgumentError, match="units: wants an item with a cluster"):
        pnmi([-1, 0], [0, -1])
    with pytest.raises(ArgumentError, match="labels: wants an item with a cluster, got none"):
        perplexity([-1, -1])


class LoudUnits(Loudness):
    """Its units are levels of loudness, which are the phones of the corpus."""

    def __init__(self) -> None:
        super().__init__()
        levels = len(LEVELS)
        self.unit_head = models.UnitHead(levels, levels, levels + 2)
        with torch.no_grad():
            self.unit_head.projection.weight.copy_(torch.eye(levels))
            self.unit_head.projection.bias.zero_()
            self.unit_head.codebook[:levels] = torch.eye(levels)
            self.unit_head.codebook[levels:] = -1


def test_units_that_are_phones(tmp_path):
    manifest = corpus(tmp_path)
    conditions = ("unchanged", "speed 0.8", "pitch +3")
    found = evaluate(
        model=LoudUnits(), tasks=[Units(conditions=conditions)], data=manifest, progress=False
    )["units"]
    for condition in conditions:
        # All but frames on the border of two phones, of which every fifth to tenth frame is near.
        assert found.figure("PNMI", condition=condition).mean > 0.8
        assert found.figure("phone purity", condition=condition).mean > 0.9
        assert found.figure("cluster purity", condition=condition).mean > 0.9
        assert found.figure("active codes", condition=condition).mean == len(LEVELS)
    assert found.figure("PNMI").values == (found.figure("PNMI").mean,)
    assert found.counts["phones"] == len(LEVELS)


def test_a_folder_of_a_run(tmp_path):
    Spin(models.tiny(), SpinConfig(codes=12, size=6)).save(tmp_path / "spin")
    spoken = [row for row in embedded_corpus() if row.phones is not None][:3]
    report = evaluate(model=tmp_path / "spin", tasks=["units", "spread"], data=Manifest(spoken))
    units, phones = [], []
    model = models.load_units(tmp_path / "spin")
    names = sorted({phone.label for row in spoken for phone in phones_of(row)})
    dataset = SpeechDataset(Manifest(spoken), progress=False)
    for index, row in enumerate(spoken):
        found, lengths = model(dataset[index]["waveform"][None])
        times = (torch.arange(int(lengths[0]), dtype=torch.float64) * 320 + 200) / 16_000
        labels = frame_labels(phones_of(row), times, {n: i for i, n in enumerate(names)})
        units += found[0].tolist()
        phones += labels.tolist()
    for name, value in slow(units, phones).items():
        assert report["units"].figure(name).mean == pytest.approx(value, rel=1e-9, abs=1e-9), name
    in_memory = evaluate(model=model, tasks="units", data=Manifest(spoken))
    assert in_memory["units"].figure("PNMI") == report["units"].figure("PNMI")


def test_what_cannot_be_judged(tmp_path):
    with pytest.raises(ArgumentError, match="model: has no unit head"):
        evaluate(model=models.tiny(), tasks="units", data="embedded")
    Spin(models.tiny(), SpinConfig(codes=12, size=6)).save(tmp_path / "spin")
    silent = Manifest([row for row in embedded_corpus() if row.phones is None][:3])
    with pytest.raises(ManifestError, match="no utterance has phones"):
        evaluate(model=tmp_path / "spin", tasks="units", data=silent)
    with pytest.raises(ArgumentError, match="conditions"):
        Units(conditions=("louder",))


def test_an_encoder_with_units_is_judged_as_any_other(tmp_path):
    encoder = models.tiny()
    Spin(encoder, SpinConfig(codes=12, size=6)).save(tmp_path / "spin")
    frames = UnitFrames(models.load_units(tmp_path / "spin"))
    waveforms = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    one, two = frames(waveforms, [4000, 3000]), encoder(waveforms, [4000, 3000])
    assert torch.equal(one.last_hidden_state, two.last_hidden_state)
    assert torch.equal(frames.frame_lengths(torch.tensor([4000])), torch.tensor([12]))
