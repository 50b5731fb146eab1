"""Flags from dataclasses: lists without brackets, groups of settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from speechft.cli import main
from speechft.cli.commands import _pick
from speechft.cli.flags import UsageError, make_parser, parse


@dataclass(frozen=True)
class Inner:
    """Of a group.

    Args:
        rate: a number.
        names: several.
    """

    rate: float = 1.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """Of all.

    Args:
        words: several.
        speeds: several, or none.
        seconds: one, or from and to.
        count: one.
        inner: a group.
    """

    words: tuple[str, ...] = ("a",)
    speeds: tuple[float, ...] | None = None
    seconds: float | tuple[float, float] | None = 4.0
    count: int = 1
    inner: Inner = field(default_factory=Inner)


def read(*arguments: str) -> Outer:
    parser = make_parser("test", "A test.")
    parser.add_class_arguments(Outer)
    return _pick(Outer, vars(parse(parser, arguments)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Outer()),
        (["--words", "b:1.0", "c:0.1"], Outer(words=("b:1.0", "c:0.1"))),
        (["--words", "b"], Outer(words=("b",))),
        (["--words=[b, c]", "--count", "2"], Outer(words=("b", "c"), count=2)),
        (["--words", "[b, c]"], Outer(words=("b", "c"))),
        (["--words", "b", "--count", "3"], Outer(words=("b",), count=3)),
        (["--speeds", "0.9", "1.1"], Outer(speeds=(0.9, 1.1))),
        (["--speeds", "0.9"], Outer(speeds=(0.9,))),
        (["--speeds", "null"], Outer()),
        (["--seconds", "2"], Outer(seconds=2.0)),
        (["--seconds", "2", "3"], Outer(seconds=(2.0, 3.0))),
        (["--seconds", "null"], Outer(seconds=None)),
        (["--inner.rate", "2"], Outer(inner=Inner(2.0))),
        (["--inner.names", "x", "y", "--count", "2"], Outer(count=2, inner=Inner(1.0, ("x", "y")))),
    ],
)
def test_values(arguments, expected):
    assert read(*arguments) == expected


def test_an_unknown_flag_of_a_group_is_met_with_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean --inner\.rate"):
        read("--inner.rates", "2")


def test_a_group_is_a_group_in_yaml_too(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("words: [b, c]\ninner: {rate: 2, names: [x]}\n")
    assert read("--config", str(file)) == Outer(words=("b", "c"), inner=Inner(2.0, ("x",)))
    file.write_text("inner: {rats: 2}\n")
    with pytest.raises(UsageError, match=r"no key 'inner.rats'.*inner.rate"):
        read("--config", str(file))


def test_a_mixture_from_the_command_line(tmp_path, capsys):
    from speechft import models
    from tests.toy_corpus import toys

    toys(tmp_path / "speech", 4, 2, seconds=(0.35, 0.5))
    models.tiny().save_pretrained(tmp_path / "model")
    arguments = [
        "refine", "mixture", "--model", str(tmp_path / "model"), "--data",
        str(tmp_path / "speech" / "manifest.jsonl"), "--steps", "2", "--batch_size", "4",
        "--evaluate_utterances", "4", "--dino.codes", "64", "--dino.long_seconds", "0.3",
        "--dino.short-seconds", "0.2",
    ]  # fmt: skip
    output = tmp_path / "run"
    asked = ["--objectives", "score:1.0", "dino:0.1", "--output", str(output)]
    assert main([*arguments, *asked]) == 0
    settings = json.loads((output / "report.json").read_text())["settings"]
    assert settings["objectives"] == ["score:1.0", "dino:0.1"]
    assert settings["dino"]["codes"] == 64
    capsys.readouterr()
    assert main([*arguments, "--objectives", "score", "--output", str(tmp_path / "other")]) == 2
    assert "dino: has settings, but is no objective" in capsys.readouterr().err
