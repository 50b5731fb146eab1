"""Chains as data: a list of augmentations in a YAML file, by the names and arguments of Python.

An entry is the name of an augmentation, alone or with its arguments. A ``bank`` is a folder of
audio, relative to the file's own folder, and a list stands for a tuple::

    - Speed: {factors: [0.9, 1.0, 1.1]}
    - OneOf:
        p: 0.7
        augmentations:
          - AddNoise: {bank: musan/noise, snr: [0, 18]}
          - Babble
    - MuLaw

JSON is YAML, so a chain may be JSON as well.
"""

from __future__ import annotations

import collections.abc
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from speechft.augment.bank import ClipBank
from speechft.augment.base import Augmentation
from speechft.augment.compose import Compose
from speechft.augment.reverb import RoomBank
from speechft.errors import ArgumentError, ArgumentTypeError, AudioError, ConfigError
from speechft.functional._checks import check_positive

_WANTED = (
    "wants the name of an augmentation, alone or with its arguments, such as "
    "'- Speed' or '- Speed: {p: 0.5}'"
)

# Where a value lies: positions in lists, names of augmentations and of arguments.
_Place = tuple[Any, ...]


def load_chain(source: str | Path | Sequence[Any], *, sample_rate: int = 16000) -> Compose:
    """Make the augmentations that a YAML file lists; see :mod:`speechft.augment.chain`.

    Every public augmentation of :mod:`speechft.augment` can be named. A folder that is named twice
    is read once.

    Args:
        source: a file, the text of one, or the list that is in it. A string is a text if it has a
            line break in it or begins with ``-`` or ``[``. Folders in a text or a list are relative
            to the working directory.
        sample_rate: of the waveforms, for banks and for all augmentations that want to know.

    Returns:
        The augmentations one after another.

    Raises:
        ConfigError: no such file, no YAML in it, an unknown name or argument, a value that cannot
            be used, no such folder. It names the file, the line and the entry: the second member
            of the first entry is ``0.OneOf.augmentations.1``, counted from 0 as in
            :meth:`Parameters.flat`.
        AudioError: a file of a bank that cannot be read.

    >>> load_chain("[Polarity, {Speed: {factors: [0.9, 1.1]}}]")
    Compose([
      Polarity(p=0.5),
      Speed(factors=(0.9, 1.1), zero_crossings=80),
    ])
    """
    check_positive(sample_rate, "sample_rate")
    if isinstance(source, (str, Path)):
        text, path = _text_of(source)
        value, lines = _parse(text, path)
        return _Maker(path, lines, sample_rate).chain(value)
    value = list(source) if isinstance(source, (list, tuple)) else source
    return _Maker(None, {}, sample_rate).chain(value)


def operations() -> dict[str, type[Augmentation]]:
    """Every augmentation that a chain can name: the public ones of :mod:`speechft.augment`."""
    # Imported when called: speechft.augment imports this module.
    augment = importlib.import_module("speechft.augment")
    found = {name: getattr(augment, name) for name in sorted(augment.__all__)}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Augmentation) and kind is not Augmentation
    }


class _Maker:
    """Makes modules of plain values, and knows where each value stood."""

    def __init__(self, path: Path | None, lines: Mapping[_Place, int], sample_rate: int) -> None:
        self.path, self.lines, self.sample_rate = path, lines, sample_rate
        self.folder = Path() if path is None else path.parent
        self.operations = operations()
        self.banks: dict[tuple[type, Path | None], Any] = {}

    def chain(self, value: Any) -> Compose:
        if value is None or value == []:
            raise self.error((), "is empty; wants a list of augmentations")
        return Compose(self.several(value, ()))

    def several(self, value: Any, place: _Place) -> list[Augmentation]:
        if not isinstance(value, (list, tuple)):
            raise self.error(
                place,
                f"wants a list of augmentations, each behind a '- ', got {_shown(value)}",
            )
        return [self.one(entry, (*place, number)) for number, entry in enumerate(value)]

    def one(self, entry: Any, place: _Place) -> Augmentation:
        if isinstance(entry, Augmentation):  # a list of Python's may hold modules
            return entry
        name, given = entry, None
        if isinstance(entry, dict):
            if len(entry) != 1:
                names = ", ".join(map(str, entry)) or "nothing"
                raise self.error(
                    place,
                    f"wants one augmentation an entry, got {names}; its arguments stand below its "
                    "name, further to the right",
                )
            [(name, given)] = entry.items()
        if not isinstance(name, str):
            raise self.error(place, f"{_WANTED}, got {_shown(name)}")
        kind = self.operations.get(name)
        if kind is None:
            raise self.error(place, f"no augmentation {name!r}{_nearest(name, self.operations)}")
        place = (*place, name)
        if given is not None and not isinstance(given, dict):
            raise self.error(
                place, f"wants its arguments by name, such as {{p: 0.5}}, got {_shown(given)}"
            )
        return self.make(kind, given or {}, place)

    def make(self, kind: type[Augmentation], given: dict[Any, Any], place: _Place) -> Augmentation:
        parameters = inspect.signature(kind, eval_str=True).parameters
        for name in given:
            if name not in parameters:
                raise self.error(
                    (*place, name), f"no argument {name!r}{_nearest(str(name), parameters)}", -1
                )
        arguments = {}
        for name, parameter in parameters.items():
            if given.get(name, parameter.default) is None:
                arguments[name] = self.bank_of_none(parameter.annotation)
            elif name in given:
                arguments[name] = self.value(given[name], parameter.annotation, (*place, name))
            elif parameter.default is parameter.empty:
                raise self.error(place, f"wants the argument {name!r}")
            elif name == "sample_rate":
                arguments[name] = self.sample_rate
        try:
            return kind(**arguments)
        except (ArgumentError, ArgumentTypeError) as error:
            message = str(error).removeprefix(f"{error.argument}: ")
            raise self.error((*place, error.argument), message) from error
        except (TypeError, ValueError) as error:  # of an argument that the constructor trusts
            raise self.error(place, f"cannot be made with {_shown(given)}: {error}") from error

    def value(self, value: Any, hint: Any, place: _Place) -> Any:
        classes = _classes(hint)
        if any(issubclass(kind, Augmentation) for kind in classes):
            return self.several(value, place) if _is_sequence(hint) else self.one(value, place)
        for kind in classes:
            if hasattr(kind, "from_folder") and not isinstance(value, kind):
                return self.bank(kind, value, place)
        return _as_tuple(value)

    def bank(self, kind: Any, value: Any, place: _Place) -> Any:
        if not isinstance(value, (str, Path)):
            raise self.error(place, f"wants a folder of audio, got {_shown(value)}")
        folder = self.folder / Path(value).expanduser()
        if (kind, folder) not in self.banks:
            try:
                self.banks[kind, folder] = kind.from_folder(folder, sample_rate=self.sample_rate)
            except AudioError:  # bad data, which names its file
                raise
            except ArgumentError as error:
                message = str(error).removeprefix(f"{error.argument}: ")
                raise self.error(place, message) from error
        return self.banks[kind, folder]

    def bank_of_none(self, hint: Any) -> Any:
        """What an augmentation takes where no bank is named, at the rate of this chain."""
        makers: tuple[tuple[type, Callable[..., Any]], ...] = (
            (ClipBank, ClipBank.coloured),
            (RoomBank, RoomBank.simulated),
        )
        for kind, make in makers:
            if kind in _classes(hint):
                if (kind, None) not in self.banks:
                    self.banks[kind, None] = make(sample_rate=self.sample_rate)
                return self.banks[kind, None]
        return None

    def error(self, place: _Place, message: str, shown: int | None = None) -> ConfigError:
        """An error at a place, of which ``place[:shown]`` is named and all of it has the line."""
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known)
        parts = (
            _name(self.path),
            None if line is None or not place else f"line {line}",
            ".".join(map(str, place[:shown])),
        )
        return ConfigError(f"{', '.join(filter(None, parts))}: {message}")


def _text_of(source: str | Path) -> tuple[str, Path | None]:
    if isinstance(source, str) and ("\n" in source or source.lstrip()[:1] in ("-", "[", "")):
        return source, None
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8"), path
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"chain: there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text, and so no YAML ({error.reason})") from error


def _parse(text: str, path: Path | None) -> tuple[Any, dict[_Place, int]]:
    """The value of a YAML text, and the line of each place in it, from 1."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "a chain in a file needs PyYAML: pip install 'speechft[refine]', or pyyaml alone"
        ) from error
    lines: dict[_Place, int] = {}
    name = _name(path)

    def visit(node: Any, place: _Place, above: tuple[Any, ...]) -> None:
        line = node.start_mark.line + 1
        lines.setdefault(place, line)
        if any(node is other for other in above):
            raise ConfigError(f"{name}, line {line}: an alias within what it stands for")
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                visit(item, (*place, number), above)
        elif isinstance(node, yaml.MappingNode):
            for key, item in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise ConfigError(f"{name}, line {line}: wants a name before the colon")
                inner = (*place, key.value)
                if inner in lines:  # YAML would let the last one win
                    raise ConfigError(f"{name}, line {line}: {key.value!r} stands there twice")
                lines[inner] = line
                visit(item, inner, above)

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        visit(node, (), ())
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = name if mark is None else f"{name}, line {mark.line + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where}: is not YAML: {problem}") from error


def _name(path: Path | None) -> str:
    return "chain" if path is None else str(path)


def _classes(hint: Any) -> list[type]:
    """The classes that an annotation is made of."""
    inner = get_args(hint)
    if inner:
        return [kind for part in inner for kind in _classes(part)]
    return [hint] if isinstance(hint, type) else []


def _is_sequence(hint: Any) -> bool:
    if get_origin(hint) in (collections.abc.Sequence, list, tuple):
        return True
    return any(_is_sequence(part) for part in get_args(hint))


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(name: str, known: Iterable[str]) -> str:
    names = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), names, 1, cutoff=0.5)
    if found:
        return f"; did you mean {names[found[0]]}?"
    return f"; there are {', '.join(names.values())}"
