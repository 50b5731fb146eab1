"""What is held out, and the best state of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from speechft.data import Manifest, Utterance
from speechft.errors import ConfigError
from speechft.methods.held_out import hold_out
from speechft.methods.selection import Best, SelectionConfig


def manifest(*rows) -> Manifest:
    """Of (speaker, mood) pairs."""
    return Manifest(
        Utterance(
            f"u{number}", Path(f"{number}.wav"), speaker=speaker,
            factors={} if mood is None else {"mood": mood},
        )
        for number, (speaker, mood) in enumerate(rows)
    )  # fmt: skip


CROSSED = manifest(*[(f"s{s}", mood) for s in range(6) for mood in ("dark", "bright") * 2])


class TestHoldOut:
    @pytest.mark.parametrize("seed", range(5))
    def test_whole_groups_with_every_class(self, seed):
        parts = hold_out(CROSSED, "mood", share=0.3, groups="speaker", seed=seed)
        fit, held = ({CROSSED[row].speaker for row in rows} for rows in parts)
        assert not fit & held
        assert len(held) == 2
        assert sorted([*parts.fit, *parts.held]) == list(range(len(CROSSED)))
        assert parts == hold_out(CROSSED, "mood", share=0.3, groups="speaker", seed=seed)

    @pytest.mark.parametrize("seed", range(8))
    def test_a_class_of_few_groups_is_on_both_sides(self, seed):
        rows = [("a", "rare"), ("b", "rare"), *[(f"s{n}", "often") for n in range(20)]]
        parts = hold_out(manifest(*rows), "mood", share=0.1, groups="speaker", seed=seed)
        for side in parts:
            assert {rows[row][1] for row in side} == {"rare", "often"}

    def test_a_share_of_each_class(self):
        rows = [("s", "dark")] * 20 + [("s", "bright")] * 10 + [("s", None)] * 3
        parts = hold_out(manifest(*rows), "mood", share=0.2)
        moods = [rows[row][1] for row in parts.held]
        assert (moods.count("dark"), moods.count("bright"), len(moods)) == (4, 2, 6)
        assert {30, 31, 32} <= set(parts.fit)

    def test_seeds_differ(self):
        found = {tuple(hold_out(CROSSED, "mood", share=0.2, seed=s).held) for s in range(6)}
        assert len(found) > 3

    def test_without_classes(self):
        parts = hold_out(CROSSED, None, share=0.25)
        assert len(parts.held) == 6

    def test_nothing(self):
        assert hold_out(CROSSED, "mood", share=0) == (list(range(len(CROSSED))), [])

    def test_a_part_that_is_named(self):
        rows = list(CROSSED)
        named = Manifest(
            Utterance(
                row.id, row.audio, speaker=row.speaker,
                factors={**row.factors, "part": "validation" if row.speaker == "s4" else "train"},
            )
            for row in rows
        )  # fmt: skip
        parts = hold_out(named, "mood", share=0.0, part="part")
        assert {rows[row].speaker for row in parts.held} == {"s4"}
        with pytest.raises(ConfigError, match="part: no utterance has 'fold' 'validation'"):
            hold_out(named, "mood", share=0.0, part="fold")

    def test_a_class_of_one_group_cannot_be(self):
        rows = [("a", "rare"), ("a", "rare"), *[(f"s{n}", "often") for n in range(9)]]
        with pytest.raises(ConfigError) as caught:
            hold_out(manifest(*rows), "mood", share=0.1, groups="speaker")
        assert "validation: no utterance of mood 'rare' can be held out" in str(caught.value)
        assert "another speaker" in str(caught.value)

    def test_so_many_are_left_to_train_on(self):
        rows = [("a", "dark")] * 3 + [("a", "bright")] * 2
        hold_out(manifest(*rows), "mood", share=0.1, least=1)
        with pytest.raises(ConfigError, match="mood 'bright' can be held out and 2 be left"):
            hold_out(manifest(*rows), "mood", share=0.1, least=2)
        named = Manifest(
            Utterance(row.id, row.audio, factors={**row.factors, "part": "validation"})
            for row in manifest(*rows)
        )
        with pytest.raises(ConfigError, match="of mood 'bright' 0 are left to train on"):
            hold_out(named, "mood", share=0.1, part="part")
        rows = [("a", "dark"), ("b", "bright"), ("c", "dark")]
        named = Manifest(
            replace(
                row, factors={**row.factors, "part": "validation"} if number == 2 else row.factors
            )
            for number, row in enumerate(manifest(*rows))
        )
        with pytest.raises(ConfigError, match="no utterance of mood 'bright' is in the validation"):
            hold_out(named, "mood", share=0.1, part="part")

    def test_a_group_that_is_not_known(self):
        rows = manifest(("a", "dark"), (None, "dark"))
        with pytest.raises(ConfigError, match="groups: utterance 'u1' has no 'speaker'"):
            hold_out(rows, "mood", share=0.5, groups="speaker")


class TestBest:
    def test_keeps_the_highest_and_of_equals_the_latest(self):
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        module[0].bias.requires_grad_(False)
        best = Best(module)
        states = []
        for step, figure in enumerate((0.2, 0.7, 0.7, 0.5), 1):
            with torch.no_grad():
                module[0].weight.fill_(step)
                module[1].running_mean.fill_(-step)
            states.append(module[0].bias.clone())
            best.offer(module, figure, step)
        assert (float(best.figure), int(best.step)) == (0.7, 3)
        best.restore(module)
        assert (module[0].weight == 3).all()
        assert (module[1].running_mean == -3).all()

    def test_goes_through_a_checkpoint(self):
        module = nn.Linear(3, 2)
        best, again = Best(module), Best(nn.Linear(3, 2))
        best.offer(module, 0.25, 7)
        again.load_state_dict(best.state_dict())
        other = nn.Linear(3, 2)
        again.restore(other)
        assert torch.equal(other.weight, module.weight)
        assert (float(again.figure), int(again.step)) == (0.25, 7)
        again.offer(other, 0.2, 9)
        assert int(again.step) == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": 1.0}, "validation: wants 0 to below 1, got 1.0"),
        ({"validation": -0.1}, "validation: wants 0 to below 1"),
        ({"validate_every": 0}, "validate_every: wants at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ConfigError, match=words):
        SelectionConfig(**changes)
