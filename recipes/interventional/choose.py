"""Sizes of the subspaces in closed form, chosen on voices and texts of their own.

The largest subspace whose probe for the other factor is below half-way between chance and the probe
of the pooled features, by a tenth, as other voices will differ: the larger a subspace, the more it
keeps of its own factor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechft.data import Manifest, SpeechDataset, read_manifest
from speechft.evaluation.metrics import accuracy
from speechft.evaluation.probes import fit_linear
from speechft.evaluation.splits import Split, random_split, stratified_split
from speechft.evaluation.tasks.base import codes
from speechft.methods.discriminant import directions
from speechft.models import SubspaceModel, load
from speechft.training.features import FeatureStore

SIZES = (8, 12, 16, 20, 24, 28, 32, 40, 48)
SEEDS = (0, 1, 2)


def choose(model: str, layer: int, grids: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Sizes by subspace, and what each size gave."""
    encoder = SubspaceModel(load(model), {"any": 1}, layer=layer)
    features: dict[str, Tensor] = {}
    rows: dict[str, Manifest] = {}
    for name in ("train", "choose", "choose-words"):
        data = SpeechDataset(read_manifest(grids[name]), factors=("speaker", "text"))
        features[name] = torch.tensor(FeatureStore(encoder, data, folder).pooled[:, 0])
        rows[name] = data.manifest
        if name == "train":
            factors = data.factors
    found: dict[str, Any] = {"chosen": {}}
    for space, column, part, label in (
        ("speaker", 0, "choose-words", "keyword"),
        ("content", 1, "choose", "speaker"),
    ):
        labels = [str(row.label(label)) for row in rows[part]]
        numbers = torch.from_numpy(codes(labels)[0])
        splits = [_split(rows[part], label, numbers, seed) for seed in SEEDS]
        pooled = _probe(features[part], numbers, splits)
        chance = 1 / len(set(labels))
        limit = (chance + pooled) / 2
        weight, bias = directions(features["train"], factors, column, max(SIZES))
        tried = {
            size: _probe(features[part] @ weight[:size].T + bias[:size], numbers, splits)
            for size in SIZES
        }
        fit = [size for size, value in tried.items() if value <= 0.9 * limit]
        found["chosen"][space] = max(fit) if fit else min(SIZES)
        found[f"{label} from {space}"] = {"pooled": pooled, "limit": limit, "sizes": tried}
    return found


def _split(rows: Manifest, label: str, numbers: Tensor, seed: int) -> Split:
    """Keywords on other voices than those that the probe was fitted on."""
    if label == "keyword":
        return random_split([str(row.speaker) for row in rows], seed)
    return stratified_split(numbers.tolist(), seed)


def _probe(features: Tensor, labels: Tensor, splits: list[Split]) -> float:
    values = []
    for split in splits:
        probe = fit_linear(
            features[split.fit], labels[split.fit], classes=int(labels.max()) + 1,
            validation=(features[split.validation], labels[split.validation]),
        )  # fmt: skip
        values.append(accuracy(labels[split.test], probe.predict(features[split.test])))
    return sum(values) / len(values)
