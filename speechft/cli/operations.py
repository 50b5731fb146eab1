"""The augmentations that a chain can name, listed."""

from __future__ import annotations

import inspect
from typing import Any

from speechft.augment.chain import operations


def list_operations() -> str:
    """A line for each augmentation: an entry of a chain with its defaults, and what it does."""
    lines = []
    for name, kind in operations().items():
        arguments = ", ".join(
            f"{argument}: {_as_yaml(parameter)}"
            for argument, parameter in inspect.signature(kind).parameters.items()
        )
        changes = f"; changes {' and '.join(sorted(kind.changes))}" if kind.changes else ""
        lines.append(f"- {name}: {{{arguments}}}  # {_summary(kind)}{changes}")
    return "\n".join(lines)


def operations_as_dict() -> dict[str, Any]:
    """What :func:`list_operations` says, as plain values; required arguments are left out."""
    return {
        name: {
            "summary": _summary(kind),
            "changes": sorted(kind.changes),
            "arguments": {
                argument: parameter.default
                for argument, parameter in inspect.signature(kind).parameters.items()
                if parameter.default is not parameter.empty
            },
        }
        for name, kind in operations().items()
    }


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("``", "")


def _as_yaml(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is parameter.empty:
        return "..."
    if isinstance(default, tuple):
        return f"[{', '.join(f'{value:g}' for value in default)}]"
    if isinstance(default, bool) or default is None:
        return {None: "null", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, (int, float)) else str(default)
