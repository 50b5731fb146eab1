"""Phones and frames on one clock."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechft.data import Manifest, Phone, Utterance, read_phones
from speechft.evaluation.embeddings import Frames

PAUSES = frozenset({"pau", "sil", "SIL", "#", "sp", "spn", "h#", "ssil", "brth", "<eps>", ""})
"""Labels of silence in common phone sets."""


class Segment(NamedTuple):
    """Some phones of an utterance, in seconds from its start."""

    utterance: int
    phones: tuple[str, ...]
    start: float
    end: float


def phones_of(row: Utterance) -> list[Phone]:
    """The phones of an utterance, in seconds from its start (not from that of its file)."""
    assert row.phones is not None
    phones = read_phones(row.phones)
    if row.start == 0 and row.end is None:
        return phones
    end = float("inf") if row.end is None else row.end
    return [
        Phone(max(phone.start, row.start) - row.start, min(phone.end, end) - row.start, phone.label)
        for phone in phones
        if phone.end > row.start and phone.start < end
    ]


def frame_labels(phones: list[Phone], times: Tensor, codes: dict[str, int]) -> Tensor:
    """The phone at each time: (T,) int64, -1 where there is none."""
    ends = torch.tensor([phone.end for phone in phones], dtype=torch.float64)
    numbers = torch.tensor([*(codes[phone.label] for phone in phones), -1])
    return numbers[torch.searchsorted(ends, times, right=True)]


def cut(frames: Frames, layer: int, segment: Segment) -> Tensor:
    """Frames whose middle lies in a segment, at least one: (n, C)."""
    times = frames.times(segment.utterance)
    values = frames.values[segment.utterance][:, frames.layers.index(layer)]
    inside = (times >= segment.start) & (times < segment.end)
    if not bool(inside.any()):
        middle = (segment.start + segment.end) / 2
        return values[(times - middle).abs().argmin()][None]
    return values[inside]


def runs(manifest: Manifest) -> list[list[Segment]]:
    """Stretches of speech between pauses, each as its phones one by one."""
    found: list[list[Segment]] = []
    for index, row in enumerate(manifest):
        run: list[Segment] = []
        for phone in phones_of(row):
            if phone.label in PAUSES:
                if run:
                    found.append(run)
                run = []
            else:
                run.append(Segment(index, (phone.label,), phone.start, phone.end))
        if run:
            found.append(run)
    return found


def join(segments: list[Segment]) -> Segment:
    """Neighbouring segments as one."""
    phones = tuple(phone for segment in segments for phone in segment.phones)
    return Segment(segments[0].utterance, phones, segments[0].start, segments[-1].end)
