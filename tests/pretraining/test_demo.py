"""The demonstration: its verdicts, and all of it in small."""

from __future__ import annotations

import json
import sys

import pytest

from recipes import demo
from recipes.demo import Row, merge
from speechft.data import Manifest, embedded_corpus
from speechft.evaluation import Figure, TaskResult
from speechft.evaluation.tasks import Phones


@pytest.mark.parametrize(
    ("before", "after", "higher", "verdict"),
    [
        ((0.5, 0.6, 0.7), (0.6, 0.7, 0.8), True, "better"),
        ((0.5, 0.6, 0.7), (0.4, 0.5, 0.6), True, "worse"),
        ((0.5, 0.6, 0.7), (0.4, 0.5, 0.6), False, "better"),
        ((0.5, 0.6, 0.7), (0.51, 0.59, 0.70), True, "within the spread"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True, "within the spread"),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), (0.6, 0.6, 0.6, 0.6, 0.6, 0.49), True, "seeds disagree"),
        ((0.5,), (0.9,), True, "within the spread"),
    ],
)
def test_a_gain_is_called_one_only_if_the_seeds_agree(before, after, higher, verdict):
    row = Row("t", Figure("x", before, higher_is_better=higher), Figure("x", after))
    assert row.verdict == verdict


def test_one_result_a_seed_is_one_result_of_all():
    results = [TaskResult("t", "p", "d", [Figure("x", (value,), 5)]) for value in (0.1, 0.3)]
    merged = merge(results).figure("x", layer=5)
    assert merged.values == (0.1, 0.3)
    assert merged.mean == pytest.approx(0.2)


def test_all_of_it_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TASKS", (Phones(layers=(4,), penalties=(1e-2,)),))
    whole = embedded_corpus()
    spoken = sorted((row for row in whole if row.phones is None), key=lambda row: row.duration)[:6]
    judged = [row for row in whole if row.phones is not None][::3]
    monkeypatch.setattr(demo, "embedded_corpus", lambda: Manifest([*spoken, *judged]))
    arguments = ["--seeds", "2", "--steps", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    demo.main()
    printed = capsys.readouterr().out
    assert "refined on 6 clips, judged on 11 others" in printed
    (row,) = json.loads((tmp_path / "demo.json").read_text())
    assert row["figure"] == "accuracy"
    assert len(row["before"]) == len(row["after"]) == 2
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    for seed in range(2):
        assert (tmp_path / f"seed{seed}" / "model.safetensors").is_file()
