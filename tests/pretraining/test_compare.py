"""The comparison of all methods: what is called a change, the table, the picture."""

from __future__ import annotations

import pytest

from recipes.compare.report import COLUMNS, draw, rows_of, table
from recipes.compare.ways import WAYS
from speechft.methods import METHODS


def runs(**changes: list[float]) -> list[dict[str, float]]:
    """Three seeds; columns that are not named stay as they were."""
    return [
        {key: 0.5 + 0.01 * seed + changes.get(key, [0.0] * 3)[seed] for key in COLUMNS}
        for seed in range(3)
    ]


def test_a_change_is_one_where_seeds_agree_and_it_exceeds_their_spread():
    found = runs(
        phones=[0.03, 0.02, 0.03], query=[0.03, -0.01, 0.08], retrieval=[-0.03, -0.02, -0.03],
        EER=[-0.03, -0.02, -0.03], **{"EER from frames": [0.2, 0.2, 0.2]},
    )  # fmt: skip
    untuned, row = rows_of({"untuned": runs(), "a way": found}, "untuned")
    marks = {key: row.mark(key).strip() for key in COLUMNS}
    assert marks == {
        "phones": "▲", "phones, changed": "", "query": "", "retrieval": "▼", "EER": "▲",
        "EER from frames": "", "probe from frames": "",
    }  # fmt: skip
    assert not untuned.changes
    assert row.changes["phones"].mean == pytest.approx(0.08 / 3)


def test_one_seed_says_nothing():
    every = {"untuned": runs()[:1], "a way": runs(phones=[0.3] * 3)[:1]}
    assert rows_of(every, "untuned")[1].mark("phones") == ""


def test_table_and_picture(tmp_path):
    rows = rows_of({"untuned": runs(), "SCORE": runs(phones=[0.03, 0.02, 0.03])}, "untuned")
    lines = table(rows, {"SCORE": "nothing"}).splitlines()
    assert len(lines) == 4
    assert lines[3].startswith("| SCORE | nothing | 3 | 53.7 ± ")
    assert "▲" in lines[3]
    draw(rows, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_every_way_makes_its_method():
    from speechft.models import load

    for way in WAYS.values():
        kind = METHODS[way.method]
        assert isinstance(way.config, kind.Config)
        way.settings(3)
        if way.method in ("score", "laser", "spin", "mixture"):
            method = kind(load("speechft/hubert-mini"), way.config, seed=0)
            assert sum(p.requires_grad for p in method.encoder.parameters()) > 0
