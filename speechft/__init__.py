"""speechft: refine speech foundation models, on fused losses, augmentations and pooling.

Importing it costs little beyond torch. What needs transformers, soundfile or Triton imports them
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from speechft import functional, losses, pooling, reference
from speechft.backends import atomics, checked, use_backend
from speechft.lengths import Lengths

if TYPE_CHECKING:
    from speechft import augment, data, evaluation, grid, methods, models, training
    from speechft.evaluation.run import evaluate
    from speechft.methods.refine import refine

__version__ = "0.1.0"

_LAZY_MODULES = (
    "augment",
    "data",
    "evaluation",
    "grid",
    "kernels",
    "methods",
    "models",
    "training",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"speechft.{name}")
    if name == "refine":
        from speechft.methods.refine import refine

        return refine
    if name == "evaluate":
        from speechft.evaluation.run import evaluate

        return evaluate
    raise AttributeError(f"module 'speechft' has no attribute {name!r}")


__all__ = [
    "Lengths",
    "__version__",
    "atomics",
    "augment",
    "checked",
    "data",
    "evaluate",
    "evaluation",
    "functional",
    "grid",
    "losses",
    "methods",
    "models",
    "pooling",
    "reference",
    "refine",
    "training",
    "use_backend",
]
