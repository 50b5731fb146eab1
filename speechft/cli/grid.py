"""What ``speechft grid`` reads: texts in a file, values of controls and conditions as flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechft.errors import ConfigError


def read_texts(path: str) -> list[str]:
    """A text a line; empty lines and those that begin with # are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--texts: {path} cannot be read: {error}") from error
    texts = [line.strip() for line in lines]
    texts = [text for text in texts if text and not text.startswith("#")]
    if not texts:
        raise ConfigError(f"--texts: {path} has no text in it; it wants one a line")
    return texts


def parse_controls(given: Sequence[str]) -> dict[str, list[float | int | str]]:
    """``pitch=20,50,80`` as a name and its values: numbers where they are."""
    controls: dict[str, list[float | int | str]] = {}
    for one in given:
        name, equals, values = one.partition("=")
        if not equals or not name or not values:
            raise ConfigError(f"--control: wants NAME=VALUE,VALUE,..., got {one!r}")
        if name in controls:
            raise ConfigError(f"--control: {name} is there twice")
        controls[name] = [_number(value.strip()) for value in values.split(",")]
    return controls


def parse_conditions(given: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """``noise=clean,street.yaml`` as a name and its chains: files by their stems, or nothing."""
    conditions: dict[str, dict[str, str | None]] = {}
    for one in given:
        name, equals, values = one.partition("=")
        if not equals or not name or not values:
            raise ConfigError(f"--condition: wants NAME=clean,CHAIN.yaml,..., got {one!r}")
        if name in conditions:
            raise ConfigError(f"--condition: {name} is there twice")
        conditions[name] = {}
        for value in map(str.strip, values.split(",")):
            if not value:
                raise ConfigError(f"--condition: {name} has an empty value in {one!r}")
            stem = Path(value).stem
            if stem in conditions[name]:
                raise ConfigError(
                    f"--condition: {name} has two values {stem!r}; a file goes by its name without "
                    "folder and ending, so rename one"
                )
            conditions[name][stem] = None if value == "clean" else value
    return conditions


def _number(value: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
