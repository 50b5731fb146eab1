"""What the documentation says runs, runs: doctests, the README's Python, its commands' flags."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import speechft
from speechft.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def modules() -> list[str]:
    """Every module of the package with an example in it."""
    package = Path(speechft.__file__).parent
    return sorted(
        ".".join(("speechft", *path.relative_to(package).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in package.rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


def blocks(language: str) -> list:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)):
            found.append(pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.mark.parametrize("block", blocks("python"))
def test_python_in_pages(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "page", "exec"), {})


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_in_pages_have_their_flags(block, capsys):
    """Each ``speechft`` command of a page exists, and so does each flag it is shown with."""
    for line in block.replace("\\\n", " ").splitlines():
        words = line.partition("#")[0].split()
        if words[:1] != ["speechft"] or len(words) < 2:
            continue
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        names = [word for word in words[1:3] if not word.startswith("-")]
        assert main([*(names if names[0] == "refine" else names[:1]), "--help"]) == 0, line
        shown = capsys.readouterr().out.replace("_", "-")
        for flag in flags:
            assert f"{flag.replace('_', '-')}" in shown, line
