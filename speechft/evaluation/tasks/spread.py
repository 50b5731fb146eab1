"""What can be said of features without any label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import normalize

from speechft.evaluation.conditions import UNCHANGED
from speechft.evaluation.metrics import rank_me, unit_std
from speechft.evaluation.result import TaskResult, figures_of_layers
from speechft.evaluation.tasks.base import Context, Task, chosen_layers, whole


@dataclass(frozen=True)
class Spread(Task):
    r"""Label-free: RankMe, deviation a dimension, and distance from frame to frame.

    Of frames drawn by the seed, evenly over all of the speech: RankMe
    (:func:`speechft.evaluation.metrics.rank_me`), between 1 and the number of dimensions, low where
    the space has collapsed; the mean over dimensions of the standard deviation of unit vectors
    (:func:`speechft.evaluation.metrics.unit_std`), :math:`1 / \sqrt{D}` where they fill the
    sphere. Over all frames: the mean of 1 - cosine of a frame and the next, low where features
    hardly move.

    Attributes:
        layers: None: all.
        max_frames: to draw.
    """

    name: ClassVar[str] = "spread"

    layers: tuple[int, ...] | None = None
    max_frames: int = 10_000

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        manifest = whole(context.data)
        layers = chosen_layers(self.layers, context.embeddings)
        frames = context.embeddings.frames(manifest, layers=layers)
        names = ("RankMe", "unit std", "frame step")
        values: dict[str, dict[tuple[int, str], list[float]]] = {name: {} for name in names}
        for layer in layers:
            key = (layer, UNCHANGED)
            rows = frames.layer(layer)
            steps = torch.cat([1 - (u[1:] * u[:-1]).sum(1) for u in map(normalize, rows)])
            if len(steps):
                values["frame step"][key] = [float(steps.mean())]
            together = torch.cat(rows)
            drawn = context.seeds if len(together) > self.max_frames else context.seeds[:1]
            for name in names[:2]:
                values[name][key] = []
            for seed in drawn:
                order = np.random.default_rng(seed).permutation(len(together))[: self.max_frames]
                some = together[torch.from_numpy(np.sort(order))]
                values["RankMe"][key].append(rank_me(some))
                values["unit std"][key].append(float(unit_std(some)))
        result = self.result(context, "frames of unchanged speech")
        for name in names:
            result.figures += figures_of_layers(name, values[name], higher_is_better=None)
        result.counts = {"utterances": len(manifest), "frames": len(together)}
        return result
