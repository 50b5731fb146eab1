"""Flags from dataclasses: a field is a flag is a key of a YAML file.

jsonargparse makes the parser; this adds what it does not have: ``--batch-size`` and
``--batch_size`` are one flag, and an unknown flag or key is met with the nearest name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from speechft.cli.names import nearest


class UsageError(Exception):
    """The command line cannot be understood."""


def make_parser(command: str, description: str) -> Any:
    """A parser that takes ``--config FILE.yaml`` and ``--print_config``.

    Raises:
        UsageError: jsonargparse is not installed.
    """
    try:
        from jsonargparse import ActionConfigFile, ArgumentParser
    except ImportError as error:
        raise UsageError(
            "the command line needs jsonargparse: pip install 'speechft[refine]'"
        ) from error
    parser = ArgumentParser(
        prog=f"speechft {command}", description=description, exit_on_error=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with these keys")
    return parser


def parse(parser: Any, arguments: Sequence[str]) -> Any:
    """Parse, with ``-`` and ``_`` the same inside a flag.

    Raises:
        UsageError: an unknown flag or key, with the nearest one; a value that does not fit.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    given = [_with_underscores(argument) for argument in arguments]
    for position, argument in enumerate(given):
        if not argument.startswith("--") or argument == "--":
            continue
        flag = argument.split("=", 1)[0]
        if flag not in known:
            names = [name.replace("_", "-") for name in known if name.startswith("--")]
            raise UsageError(f"no flag {arguments[position]}{nearest(flag, names)}")
        if flag == "--config":
            value = argument.split("=", 1)[1:] or given[position + 1 : position + 2]
            for file in value:
                _check_keys(Path(file), {name[2:] for name in known if name.startswith("--")})
    try:
        return parser.parse_args(_lists(parser, given))
    except Exception as error:  # jsonargparse raises several kinds
        raise UsageError(" ".join(str(error).split())) from error


def _lists(parser: Any, given: Sequence[str]) -> list[str]:
    """Values of a flag that takes several, ``--objectives score dino``, as one list."""
    kinds = {
        option: _alternatives(getattr(action, "_typehint", None))
        for action in parser._actions
        for option in action.option_strings
    }
    found: list[str] = []
    position = 0
    while position < len(given):
        flag = given[position]
        position += 1
        found.append(flag)
        kind = kinds.get(flag, ())
        if not any(get_origin(part) is tuple for part in kind):
            continue
        last = position
        while last < len(given) and not given[last].startswith("--"):
            last += 1
        values, position = given[position:last], last
        alone = any(get_origin(part) is not tuple and part is not type(None) for part in kind)
        as_it_is = len(values) == 1 and (
            alone or values[0].startswith(("[", "(")) or values[0] in ("null", "None")
        )
        if not values or as_it_is:
            found += values
        else:
            found[-1] = f"{flag}=[{', '.join(json.dumps(_plain(value)) for value in values)}]"
    return found


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types that a type hint allows."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _plain(value: str) -> Any:
    """A number where it is one."""
    try:
        number = json.loads(value)
    except ValueError:
        return value
    return number if isinstance(number, (int, float)) else value


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _check_keys(path: Path, known: set[str]) -> None:
    import yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise UsageError(f"--config: there is no file {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: wants keys and values, got a {type(content).__name__}")
    for key in _flat(content, known):
        if key not in known:
            raise UsageError(f"{path}: no key {key!r}{nearest(str(key), known)}")


def _flat(content: dict[Any, Any], known: set[str], prefix: str = "") -> Iterator[str]:
    """Keys, those of a group of settings as GROUP.KEY."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        group = any(other.startswith(f"{name}.") for other in known)
        if isinstance(value, dict) and group:
            yield from _flat(value, known, f"{name}.")
        else:
            yield name
