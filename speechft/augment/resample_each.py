"""Playback of each clip at a speed of its own, where speeds are values that cannot be read.

The matrices of :mod:`speechft.augment.resample` for all speeds there can be lie in one table,
padded to one size. Each clip is cut into the rows that its speed wants by gathering, multiplied
with its own matrix, and put together by gathering again. Nothing waits for a value.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from speechft.augment.resample import filter_bank


class SpeedTable(NamedTuple):
    """Speeds ``numerator / denominator`` (G,), and the matrices that play at them.

    ``matrices`` is (G, inputs, outputs); of these a speed uses ``block_out`` outputs, moves on by
    ``block_in`` inputs for each block, and begins ``reach`` inputs before the first.
    """

    numerator: Tensor
    denominator: Tensor
    matrices: Tensor
    block_in: Tensor
    block_out: Tensor
    reach: Tensor
    shortest: int
    farthest: int


@functools.lru_cache(maxsize=8)
def speed_table(
    speeds: tuple[Fraction, ...], zero_crossings: int, dtype: torch.dtype, device: torch.device
) -> SpeedTable:
    """The table of some speeds on a device; in float64 on a GPU, for the reason given there."""
    exact = torch.float64 if device.type == "cuda" else dtype
    cpu = torch.device("cpu")
    banks = [filter_bank(speed, zero_crossings, torch.float64, cpu) for speed in speeds]
    inputs = max(2 * first.shape[0] for first, _, _ in banks)
    outputs = max(first.shape[1] for first, _, _ in banks)
    with torch.inference_mode(False):
        matrices = torch.zeros(len(speeds), inputs, outputs, dtype=exact)
        for matrix, speed, (first, second, reach) in zip(matrices, speeds, banks, strict=True):
            block_in, block_out = first.shape
            matrix[: 2 * block_in, :block_out] = torch.cat([first, second])
            if speed == 1:  # what is not resampled is not filtered
                matrix[:] = 0.0
                matrix[reach : reach + block_out, :block_out].fill_diagonal_(1.0)

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        return SpeedTable(
            column([speed.numerator for speed in speeds]),
            column([speed.denominator for speed in speeds]),
            matrices.to(device),
            column([first.shape[0] for first, _, _ in banks]),
            column([first.shape[1] for first, _, _ in banks]),
            column([reach for _, _, reach in banks]),
            min(first.shape[1] for first, _, _ in banks),
            max(reach for _, _, reach in banks),
        )


def resample_each(waveforms: Tensor, choices: Tensor, table: SpeedTable, steps: int) -> Tensor:
    """Play each row at the speed of its choice: :func:`~speechft.augment.resample.resample`.

    Args:
        waveforms: float32 or float64 of shape (B, T), zero where there is padding.
        choices: rows of the table, int64 (B,).
        table: of :func:`speed_table`.
        steps: samples of the result that are wanted.

    Returns:
        Tensor of shape (B, steps).
    """
    batch = len(waveforms)
    inputs, outputs = table.matrices.shape[1:]
    device = waveforms.device
    block_in, block_out, reach = (
        column.index_select(0, choices)[:, None]
        for column in (table.block_in, table.block_out, table.reach)
    )
    count = -(-steps // table.shortest)
    padded = torch_functional.pad(waveforms.to(table.matrices.dtype), (table.farthest, 1))
    start = torch.arange(count, device=device) * block_in - reach + table.farthest
    # What is read beyond the clip is the zero put behind it.
    index = start[..., None] + torch.arange(inputs, device=device)
    blocks = padded.gather(1, index.flatten(1).clamp(max=padded.shape[1] - 1))
    played = torch.bmm(
        blocks.view(batch, count, inputs), table.matrices.index_select(0, choices)
    ).flatten(1)
    time = torch.arange(steps, device=device)
    return played.gather(1, time // block_out * outputs + time % block_out).to(waveforms.dtype)
