"""What an op's benchmark file registers: cases, and who is timed on each.

A file of an op, ``bench/soft_dtw.py``, calls :func:`register` for each of its cases when it is
imported, and :data:`OPS` names the files.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speechft.errors import ConfigError

from .machine import Machine

OPS = (
    "soft_dtw",
    "info_nce",
    "nt_xent",
    "sup_con",
    "barlow_twins",
    "dino",
    "sinkhorn",
    "statistics_pooling",
    "attentive_statistics_pooling",
    "temporal_idm",
    "augment",
)

FORWARD, BACKWARD, BOTH = MODES = ("forward", "backward", "forward+backward")


@dataclass(frozen=True)
class Inputs:
    """Inputs of a case: tensors that get a gradient, integers (lengths, labels), and floating-point
    tensors that get none (a teacher's).

    All have the batch first.
    """

    leaves: tuple[Tensor, ...]
    integers: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()

    def samples(self, start: int, stop: int) -> Inputs:
        """Samples ``start`` to ``stop`` of the batch, as views."""
        return Inputs(
            tuple(leaf[start:stop] for leaf in self.leaves),
            tuple(integer[start:stop] for integer in self.integers),
            tuple(constant[start:stop] for constant in self.constants),
        )

    def to(self, device: str, dtype: torch.dtype | None = None) -> Inputs:
        """A copy on a device; ``dtype`` is of all but the integers."""
        return Inputs(
            tuple(leaf.to(device=device, dtype=dtype) for leaf in self.leaves),
            tuple(integer.to(device) for integer in self.integers),
            tuple(constant.to(device=device, dtype=dtype) for constant in self.constants),
        )

    def __len__(self) -> int:
        return len((*self.leaves, *self.constants)[0])


@dataclass(frozen=True)
class Provider:
    """One implementation of a case.

    Attributes:
        op: from inputs to values (B,), or a scalar.
        at_once: samples it is given at a time, all if None. Forward and backward of one lot are
            done before the next, as a training loop that accumulates gradients does.
        needs: a module it cannot do without; without it the row says so.
        max_repeats: for one that takes seconds; 0 to take its error and not its time.
        compared: with float64, before it is timed; False for one that draws for itself.
        graph: capture the call in a CUDA graph and time its replay: the GPU alone, no host.
    """

    op: Callable[[Inputs], Tensor]
    at_once: int | None = None
    needs: str | None = None
    max_repeats: int | None = None
    compared: bool = True
    graph: bool = False


@dataclass(frozen=True)
class Floor:
    """A time that no implementation can beat, and how it comes about."""

    milliseconds: float
    arithmetic: str


@dataclass(frozen=True)
class Case:
    """Sizes and settings, with the providers timed on them.

    Attributes:
        op: the op's name.
        name: what the command line and the tables call it.
        device: ``cpu`` or ``cuda``.
        make: seeded inputs on the CPU; tiny ones of the same kind for True, to warm up on.
        providers: by name; ``speechft`` is what the others are compared with.
        truth: the definition, fit for float64.
        floor: for a mode, from the figures of the machine; None if none is stated.
        truth_samples: the error is taken on the first so many samples (where samples do not touch
            each other), as float64 through autograd is slow; None for all.
        tolerance: largest relative error of any provider, value or gradient, that may be timed.
        modes: of :data:`FORWARD`, :data:`BACKWARD`, :data:`BOTH`; none to measure errors only.
        quick: part of ``--quick``.
    """

    op: str
    name: str
    device: str
    make: Callable[[bool], Inputs]
    providers: Mapping[str, Provider]
    truth: Callable[[Inputs], Tensor]
    floor: Callable[[Machine, str], Floor | None]
    truth_samples: int | None = None
    tolerance: float = 1e-2
    modes: Sequence[str] = (FORWARD, BOTH)
    quick: bool = False


_cases: dict[str, dict[str, Case]] = {}


def register(case: Case) -> Case:
    """Add a case to its op's."""
    known = _cases.setdefault(case.op, {})
    if case.name in known:
        raise ConfigError(f"{case.op} has two benchmark cases named {case.name!r}")
    known[case.name] = case
    return case


def cases(
    op: str,
    names: Sequence[str] | None = None,
    *,
    providers: Sequence[str] | None = None,
    device: str | None = None,
    quick: bool = False,
) -> list[Case]:
    """Cases of an op, in the order of its file.

    Args:
        op: one of :data:`OPS`.
        names: these cases only; a part of a name takes every case that has it.
        providers: these providers only; a case without any of them is left out.
        device: ``cpu`` or ``cuda`` only.
        quick: the short list, unless ``names`` says which.

    Raises:
        ConfigError: an op, case or provider that does not exist; the nearest name is offered.
    """
    if op not in OPS:
        raise ConfigError(unknown("op", op, OPS))
    importlib.import_module(f".{op}", __package__)
    known = _cases[op]
    for name in names or ():
        if not any(name in case for case in known):
            raise ConfigError(unknown("case", name, known))
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(unknown("device", str(device), ("cpu", "cuda")))
    everyone = {provider for case in known.values() for provider in case.providers}
    for provider in providers or ():
        if provider not in everyone:
            raise ConfigError(unknown("provider", provider, sorted(everyone)))

    chosen = []
    for case in known.values():
        wanted = any(name in case.name for name in names) if names else case.quick or not quick
        kept = {
            name: provider
            for name, provider in case.providers.items()
            if not providers or name in providers
        }
        if wanted and kept and device in (None, case.device):
            chosen.append(replace(case, providers=kept))
    return chosen


def unknown(kind: str, name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """Say that a name is unknown, with the nearest that is not."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {kind} {name!r}.{hint} There are: {', '.join(known)}"
