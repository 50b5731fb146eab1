"""Conditions of a grid: what is done to what was said, as a factor beside voice and text.

A condition is a chain of :mod:`speechft.augment` under a name: a noise, a room, a channel, another
vocal tract. What it draws is a function of the grid's seed and of names, so it is the same on every
run, in any order and with any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from speechft import __version__
from speechft.augment import Augmentation, Babble, load_chain, make_keys
from speechft.augment.bank import Resident
from speechft.data.manifest import utterance_key
from speechft.errors import ArgumentError, SpeechftError
from speechft.grid.engines import EngineError

RATE = 16000
Chain = Union[str, Path, Sequence[Any], Augmentation, None]
Samples = npt.NDArray[np.float32]
_OF_ALL_MODULES = frozenset(vars(nn.Module()))


class Condition:
    """A value of a factor: a chain, and the keys that it draws from.

    Args:
        factor: such as ``noise``.
        value: its name, such as ``street``.
        chain: what is done.
        each: whether it is drawn for each cell, or once for all.

    Attributes:
        content: a digest of all that the chain is made of, its banks' samples included.
    """

    def __init__(self, factor: str, value: str, chain: Augmentation, *, each: bool = False) -> None:
        self.factor, self.value, self.chain, self.each = factor, value, chain, each
        self.content = content_digest(chain)
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"{self.factor}={self.value}"

    def key(self, seed: int, said: Sequence[Any]) -> int:
        """Of the factor's and the value's names, and of what is said where each cell is drawn.

        Args:
            seed: of the grid.
            said: voice, text and controls of the cell, as values that JSON has.
        """
        known = [self.factor, self.value, *([list(said)] if self.each else [])]
        name = json.dumps(known, ensure_ascii=False)
        return int(make_keys(seed, 0, torch.tensor([utterance_key(name)]))[0])

    def apply(self, samples: Samples, key: int) -> Samples:
        """The samples (n,) at 16 kHz as the key has them: (m,), of any level.

        Raises:
            EngineError: the chain cannot be run on them, or passes them as they are because noise
                or speech is silent there: the cell would not be what its label says.
        """
        # One at a time: what was skipped is counted on the module, for all who use it. Next to what
        # saying a text takes it is nothing.
        with self._lock:
            before = self._skipped()
            try:
                changed, lengths = self.chain(
                    torch.from_numpy(samples)[None], None, torch.tensor([key])
                )
            except SpeechftError as error:
                raise EngineError(f"{self}: {error}") from error
            if self._skipped() > before:
                raise EngineError(f"{self}: could not be done; the noise, or the clip, is silent")
        result: Samples = changed[0, : int(lengths[0])].numpy()
        if not np.isfinite(result).all():
            raise EngineError(f"{self}: gives NaN or infinity")
        return result

    def _skipped(self) -> int:
        parts = (part for part in self.chain.modules() if isinstance(part, Augmentation))
        return sum(int(part.skipped) for part in parts)


def check_conditions(
    conditions: Mapping[str, Mapping[str, Chain]],
    draw_each: Sequence[str],
    controls: Collection[str],
) -> None:
    """Raise ArgumentError for names that clash or are none, and for factors without values."""
    for name, values in conditions.items():
        if not re.fullmatch(r"\w+", name):
            raise ArgumentError(
                "conditions", f"wants names of letters, digits and _, as of columns; got {name!r}"
            )
        if name in ("voice", "text") or name in controls:
            other = "a control" if name in controls else "a factor of every grid"
            raise ArgumentError("conditions", f"{name} is {other} already; give it another name")
        if not isinstance(values, Mapping) or not values:
            raise ArgumentError(
                "conditions",
                f"{name} wants at least one value by name, such as {{'clean': None, 'street': "
                f"'street.yaml'}}; got {values!r}",
            )
    if isinstance(draw_each, str):
        raise ArgumentError("draw_each", f"wants a list of conditions, got {draw_each!r}")
    for name in draw_each:
        if name not in conditions:
            known = ", ".join(conditions) or "none"
            raise ArgumentError("draw_each", f"{name!r} is no condition of this grid: {known}")


def load_conditions(
    conditions: Mapping[str, Mapping[str, Chain]], draw_each: Sequence[str] = ()
) -> dict[str, dict[str, Condition | None]]:
    """All chains by factor and value, made for 16 kHz; None where nothing is done.

    Raises:
        ConfigError: a chain that cannot be made; see :func:`speechft.augment.load_chain`.
        ArgumentError: a chain with :class:`~speechft.augment.Babble` in it.
    """
    found: dict[str, dict[str, Condition | None]] = {}
    for factor, values in conditions.items():
        found[factor] = {}
        for value, given in values.items():
            if given is None:
                found[factor][value] = None
                continue
            chain: Augmentation = (
                given if isinstance(given, Augmentation) else load_chain(given, sample_rate=RATE)
            )
            if any(isinstance(part, Babble) for part in chain.modules()):
                raise ArgumentError(
                    "conditions",
                    f"{factor}={value} has Babble in it, which is made of the other clips of a "
                    "batch, and a cell is alone; take AddNoise with voices of a bank of speech",
                )
            found[factor][value] = Condition(factor, value, chain, each=factor in draw_each)
    return found


def content_digest(chain: nn.Module) -> str:
    """Of all that decides what a chain does: classes, arguments, and the samples of banks.

    Not of names of files: a bank that was moved is the same bank.
    """
    digest = hashlib.sha256(__version__.encode())
    for place, part in chain.named_modules():
        own = {name: value for name, value in vars(part).items() if name not in _OF_ALL_MODULES}
        if isinstance(part, Resident):
            own.pop("names", None)
        tensors = {name: x for name, x in part.named_buffers(recurse=False) if name != "skipped"}
        tensors.update(part.named_parameters(recurse=False))
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        digest.update(repr((place, kind, _plain(own), _plain(tensors))).encode())
    return digest.hexdigest()[:20]


def _plain(value: Any) -> Any:
    """Something whose repr is the same in every process, and says all."""
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        samples = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return (str(array.dtype), array.shape, samples)
    if isinstance(value, Mapping):
        return [(repr(key), _plain(value[key])) for key in sorted(value, key=repr)]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if " at 0x" not in repr(value):
        return repr(value)
    # What has an address in its repr: a function by its name, an object by what is in it.
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return (name, _plain(getattr(value, "__dict__", {})))
