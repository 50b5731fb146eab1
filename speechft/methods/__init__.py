"""The refinement methods: what is trained on what."""

from __future__ import annotations

import difflib

from speechft.errors import ConfigError
from speechft.methods.base import Method, MethodConfig, MethodOutput
from speechft.methods.classification import Classification
from speechft.methods.classification_config import ClassificationConfig
from speechft.methods.combined import Combined
from speechft.methods.combined_config import CombinedConfig
from speechft.methods.dino import Dino
from speechft.methods.dino_config import DinoConfig
from speechft.methods.interventional import Interventional, InterventionalConfig
from speechft.methods.laser import Laser, LaserConfig
from speechft.methods.mixture import Mixture, MixtureConfig
from speechft.methods.score import Score, ScoreConfig
from speechft.methods.spin import Spin
from speechft.methods.spin_config import SpinConfig

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        Score,
        Laser,
        Spin,
        Dino,
        Combined,
        Interventional,
        Mixture,
        Classification,
    )
}


def get(name: str) -> type[Method]:
    """The method of this name.

    >>> get("score").source
    'Meghanani & Hain, SCORE, ICASSP 2024'

    Raises:
        ConfigError: no such method; the message has the nearest name.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"method: no {name!r}{hint} There are: {', '.join(METHODS)}")


__all__ = [
    "METHODS",
    "Classification",
    "ClassificationConfig",
    "Combined",
    "CombinedConfig",
    "Dino",
    "DinoConfig",
    "Interventional",
    "InterventionalConfig",
    "Laser",
    "LaserConfig",
    "Method",
    "MethodConfig",
    "MethodOutput",
    "Mixture",
    "MixtureConfig",
    "Score",
    "ScoreConfig",
    "Spin",
    "SpinConfig",
    "get",
]
