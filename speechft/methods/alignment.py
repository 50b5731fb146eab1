"""Where each frame of a text is in every voice that says it."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechft.errors import ConfigError
from speechft.evaluation._dtw import compiled
from speechft.training.features import FeatureStore

Frames = npt.NDArray[np.float32]


class Alignment:
    """The utterances of each text, aligned to one of them by dynamic time warping.

    The one is that of median duration. Distances are cosines of the stored frames, steps are
    (1, 0), (0, 1) and (1, 1).

    Args:
        store: with frames.
        texts: (N,) integers; -1: unknown, aligned to nothing but itself.
        progress: show a bar; None: on a terminal.

    Raises:
        ConfigError: numba is not installed.
    """

    def __init__(
        self,
        store: FeatureStore,
        texts: Tensor,
        *,
        progress: bool | None = None,
    ) -> None:
        assert store.frames is not None
        from tqdm import tqdm

        search = path_search()
        counts = np.diff(store.starts)
        self._counts = counts
        self._paths: list[npt.NDArray[np.int32]] = [
            np.arange(count, dtype=np.int32) for count in counts
        ]
        members: dict[int, list[int]] = defaultdict(list)
        for index, text in enumerate(texts.tolist()):
            if text >= 0:
                members[text].append(index)
        show = sys.stderr.isatty() if progress is None else progress
        for mine in tqdm(members.values(), desc="aligning", unit="text", disable=not show):
            reference = sorted(mine, key=lambda index: (counts[index], index))[len(mine) // 2]
            units = {index: _unit(store, index) for index in mine}
            for index in mine:
                distances = 1 - units[reference] @ units[index].T
                self._paths[index] = search(distances)

    def path(self, index: int) -> npt.NDArray[np.int32]:
        """The first frame of the utterance that goes with each frame of the reference."""
        return self._paths[index]

    def frames_of(self, index: int) -> int:
        """How many the utterance has."""
        return int(self._counts[index])


def first_columns(distances: Frames) -> npt.NDArray[np.int32]:
    """Of the path of the least sum through (n, m), the first column in each row; for numba."""
    n, m = distances.shape
    sums = np.empty((n, m), np.float32)
    for i in range(n):
        for j in range(m):
            least = np.float32(np.inf)
            if i == 0 and j == 0:
                least = np.float32(0)
            if i > 0 and j > 0 and sums[i - 1, j - 1] < least:
                least = sums[i - 1, j - 1]
            if i > 0 and sums[i - 1, j] < least:
                least = sums[i - 1, j]
            if j > 0 and sums[i, j - 1] < least:
                least = sums[i, j - 1]
            sums[i, j] = least + distances[i, j]
    columns = np.zeros(n, np.int32)
    i, j = n - 1, m - 1
    columns[i] = j
    while i > 0 or j > 0:
        if i == 0:
            j -= 1
        elif j == 0:
            i -= 1
        elif sums[i - 1, j - 1] <= sums[i - 1, j] and sums[i - 1, j - 1] <= sums[i, j - 1]:
            i, j = i - 1, j - 1
        elif sums[i - 1, j] <= sums[i, j - 1]:
            i -= 1
        else:
            j -= 1
        columns[i] = j
    return columns


def path_search() -> Any:
    """:func:`first_columns`, compiled.

    Raises:
        ConfigError: numba is not installed.
    """
    try:
        return compiled(first_columns)
    except ImportError as error:
        raise ConfigError(
            "segment_frames: aligning needs numba; pip install 'speechft[evaluate]'"
        ) from error


def _unit(store: FeatureStore, index: int) -> Frames:
    assert store.frames is not None
    raw = store.frames[store.starts[index] : store.starts[index + 1]].astype(np.float32)
    frames = torch.nn.functional.normalize(torch.from_numpy(raw), dim=1)
    unit: Frames = frames.numpy()
    return unit
