"""How much recordings of people count in the closed form of the speaker subspace.

People are in five groups: for each, directions are found with the other four and verification is
tried on it. Of the shares and weights that leave synthesized voices an error three tenths below
that of the pooled features, and keywords as :mod:`recipes.interventional.choose` has it, those with
the least mean error over the groups. Nobody of the test is in it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from recipes.interventional.choose import SEEDS, SIZES, _probe, _split
from speechft.data import SpeechDataset, read_manifest
from speechft.evaluation.metrics import Trials
from speechft.evaluation.tasks.base import codes
from speechft.methods.discriminant import directions
from speechft.models import SubspaceModel, load
from speechft.training.features import FeatureStore

SHARES = (0.1, 0.2, 0.3, 0.5)
WEIGHTS = (1.0, 3.0, 10.0, 30.0)
GROUPS = 5
TESTED_SECONDS, TESTED = 1.5, 40  # the shortest, and the most of one person
LOWER = 0.7


def choose_recorded(
    model: str, layer: int, grids: dict[str, Path], folder: Path, limit: float
) -> dict[str, Any]:
    """Share, weight and size, and what each gave; ``limit`` is of keywords."""
    encoder = SubspaceModel(load(model), {"any": 1}, layer=layer)
    names = ("train", "choose", "choose-words", "recorded")
    data = {
        name: SpeechDataset(
            read_manifest(grids[name]), factors=("speaker", "text")[: 1 + (name != "recorded")]
        )
        for name in names
    }
    features = {
        name: torch.tensor(FeatureStore(encoder, part, folder).pooled[:, 0])
        for name, part in data.items()
    }
    words = data["choose-words"].manifest
    numbers = torch.from_numpy(codes([str(row.label("keyword")) for row in words])[0])
    splits = [_split(words, "keyword", numbers, seed) for seed in SEEDS]
    people = data["recorded"].factors[:, 0]
    grid = data["train"].factors
    # People are speakers of their own, who say no text of the grid.
    recorded = torch.stack([people + int(grid[:, 0].max()) + 1, torch.full_like(people, -1)], 1)
    voices = data["choose"].factors[:, 0]
    pooled = eer(features["choose"], voices)
    long = data["recorded"].lengths >= TESTED_SECONDS * data["recorded"].sample_rate
    tried = []
    for share in SHARES:
        for weight in WEIGHTS:

            def fitted(
                kept: Tensor, share: float = share, weight: float = weight
            ) -> tuple[Tensor, Tensor]:
                return directions(
                    torch.cat([features["train"], features["recorded"][kept]]),
                    torch.cat([grid, recorded[kept]]), 0, max(SIZES),
                    recorded_share=share, noise_weight=weight,
                )  # fmt: skip

            w, bias = fitted(torch.ones(len(people), dtype=torch.bool))
            fit = (
                size
                for size in sorted(SIZES, reverse=True)
                if _probe(features["choose-words"] @ w[:size].T + bias[:size], numbers, splits)
                <= 0.9 * limit
            )
            size = next(fit, min(SIZES))
            voice = eer(features["choose"] @ w[:size].T + bias[:size], voices)
            errors = []
            for group in range(GROUPS):
                own = people % GROUPS == group
                w, bias = fitted(~own)
                rows = _some(own & long, people)
                z = features["recorded"][rows] @ w[:size].T + bias[:size]
                errors.append(eer(z, people[rows]))
            tried.append(
                {"share": share, "weight": weight, "size": size, "voices": voice,
                 "people": sum(errors) / GROUPS}
            )  # fmt: skip
    usable = [row for row in tried if row["voices"] <= LOWER * pooled] or tried
    rows_of = [_some((people % GROUPS == group) & long, people) for group in range(GROUPS)]
    start = sum(eer(features["recorded"][rows], people[rows]) for rows in rows_of) / GROUPS
    return {
        "chosen": min(usable, key=lambda row: row["people"]),
        "pooled": {"voices": pooled, "people": start}, "tried": tried,
    }  # fmt: skip


def eer(z: Tensor, speakers: Tensor) -> float:
    """Of cosines, every pair a trial."""
    z = normalize(z.double(), dim=1)
    left, right = torch.triu_indices(len(z), len(z), 1)
    trials = Trials()
    trials.update(
        (z @ z.T)[left, right].float().numpy(), (speakers[left] == speakers[right]).numpy()
    )
    return float(trials.eer())


def _some(rows: Tensor, people: Tensor) -> Tensor:
    """Indices of so many rows of each person, the same ones again."""
    chosen: list[int] = []
    for person in np.unique(people[rows].numpy()).tolist():
        own = (rows & (people == person)).nonzero()[:, 0].tolist()
        chosen += random.Random(person).sample(own, min(TESTED, len(own)))
    return torch.tensor(chosen)
