"""Data as a grid: its values, its holes, and what is there twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from speechft.data import Manifest, Utterance
from speechft.errors import ArgumentError, ManifestError
from speechft.grid import Grid, GridBlockSampler, read_grid


def row(id: str, speaker: str | None, text: str | None, **factors: str | int) -> Utterance:
    return Utterance(id=id, audio=Path(f"{id}.wav"), speaker=speaker, text=text, factors=factors)


ROWS = [
    row("a", "ben", "yes", take=10),
    row("b", "anna", "no", take=9),
    row("c", "ben", "no", take=9),
    row("d", "ben", "yes", take=10),
    row("e", "carl", "maybe", take=9),
    row("f", None, "yes", take=9),
    row("g", None, "yes", take=9),  # unknown is no value: not one cell with the last
]


def test_a_grid_of_recordings() -> None:
    grid = read_grid(Manifest(ROWS))
    assert grid.names == ("speaker", "text")
    assert grid.values == (("anna", "ben", "carl"), ("maybe", "no", "yes"))
    assert grid.factors.tolist() == [[1, 2], [0, 1], [1, 1], [1, 2], [2, 0], *[[-1, 2]] * 2]
    assert grid.shape == (3, 3)
    assert grid.holes == [
        ("anna", "maybe"), ("anna", "yes"), ("ben", "maybe"), ("carl", "no"), ("carl", "yes"),
    ]  # fmt: skip
    assert grid.filled == pytest.approx(4 / 9)
    assert grid.duplicates == [("a", "d")]
    assert str(grid) == (
        "grid of 3 of speaker × 3 of text: 7 utterances, 5 holes, 1 cells with several, "
        "2 without a speaker"
    )
    # A third factor tells cells apart, and makes no holes; numbers are in their own order.
    longer = Manifest([*ROWS, row("h", "ben", "yes", take=11)])
    more = read_grid(longer, factors=("text", "speaker", "take"))
    assert more.values[2] == (9, 10, 11)
    assert more.shape == (3, 3, 3)
    assert more.duplicates == [("a", "d")]
    assert len(more.holes) == 5
    assert ("yes", "anna") in more.holes


def test_a_full_grid_has_no_holes() -> None:
    rows = [row(f"{s}{t}", s, None, prompt=t) for s in "abcde" for t in range(485)]
    full = read_grid(Manifest(rows), factors=("speaker", "prompt"))
    assert (full.holes, full.duplicates, full.filled) == ([], [], 1.0)
    lacking = read_grid(Manifest(rows[124:]), factors=["speaker", "prompt"])
    assert str(lacking) == (
        "grid of 5 of speaker × 485 of prompt: 2,301 utterances, 124 holes, 0 cells with several"
    )
    assert lacking.holes == [("a", t) for t in range(124)]
    sampler = GridBlockSampler(lacking.factors)
    sampler.check(lacking.names)
    assert len(sampler) == 5


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    for one in rows:
        (path.parent / one["audio"]).touch()
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_from_a_folder_or_a_file(tmp_path: Path) -> None:
    rows = [
        {"id": f"{s}-{t}", "audio": f"{s}{t}.wav", "speaker": s, "text": t}
        for s in ("anna", "ben")
        for t in ("no", "yes")
    ]
    file = write(tmp_path / "made" / "manifest.jsonl", rows)
    grids = [read_grid(source) for source in (file, file.parent, str(file.parent))]
    for grid in grids:
        assert isinstance(grid, Grid)
        assert len(grid.manifest) == 4
        assert torch.equal(grid.factors, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))


def test_what_is_no_grid_is_named(tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}", "audio": "x.wav", "speaker": "ben", "prompt": n, "factors": {"take": n}}
        for n in range(3)
    ]
    file = write(tmp_path / "data" / "rows.jsonl", rows)
    for factors, match in (
        (("take", "text"), f"{file}: no row has a factor 'text'; there are speaker, take"),
        (("take", "prompt"), f"{file}: no row has a factor 'prompt'; it is a column"),
        (("speaker", "take"), f"{file}: the factor 'speaker' has one value, 'ben'"),
    ):
        with pytest.raises(ManifestError, match=re.escape(match)):
            read_grid(file, factors=factors)
    with pytest.raises(ManifestError, match=r"has no manifest\.jsonl in it"):
        read_grid(file.parent)
    with pytest.raises(ManifestError, match="there is no such file"):
        read_grid(tmp_path / "nowhere.jsonl")
    with pytest.raises(ArgumentError, match="factors: no row has a factor 'tempo'"):
        read_grid(Manifest(ROWS), factors=("speaker", "tempo"))
    for wrong in ("speaker", ["speaker"], ["speaker", "speaker"]):
        with pytest.raises(ArgumentError, match="factors: wants at least two different names"):
            read_grid(Manifest(ROWS), factors=wrong)
