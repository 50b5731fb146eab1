r"""Shoebox rooms by the image-source method.

A wall is a mirror: each reflection of the source at the walls is a source of its own, at

.. math:: (1 - 2 q_i)\, s_i + 2 r_i L_i, \qquad q_i \in \{0, 1\},\ r_i \in \mathbb{Z},

seen :math:`n = \sum_i |2 r_i - q_i|` walls deep. With walls that reflect a share :math:`\beta` of
the pressure, the response is

.. math:: h(t) = \sum \frac{\beta^n}{4 \pi d}\, \delta(t - d / c).

:math:`\beta` follows from the reverberation time by Eyring's formula. Each impulse is put between
samples by a windowed sinc. All impulses are positive, so a constant would come out some 30 dB
louder; no room does that, and as Allen and Berkley do, what is below the lowest speech is removed,
by a second-order Butterworth high-pass at 50 Hz. Source: Allen and Berkley, "Image method for
efficiently simulating small-room acoustics", JASA 1979.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from speechft.augment.keys import make_keys
from speechft.augment.ranges import draw
from speechft.errors import ArgumentError

SPEED_OF_SOUND = 343.0
_HALF_SINC = 8
_RUMBLE = 50.0  # Hz
_FAINTEST = 1e-3  # of the direct sound: 60 dB, past which no image is worth its while


def simulate_room(
    dimensions: Sequence[float],
    source: Sequence[float],
    microphone: Sequence[float],
    *,
    reverberation: float,
    seconds: float,
    sample_rate: int = 16000,
) -> Tensor:
    """The response of a shoebox room.

    Args:
        dimensions: of the room in metres, three.
        source: where the speaker is, three metres from the corner.
        microphone: likewise.
        reverberation: seconds in which sound falls by 60 dB.
        seconds: of the response.
        sample_rate: samples in a second.

    Returns:
        float64 of shape (n,).

    Raises:
        ArgumentError: a place outside of the room, or a reverberation that walls cannot have.
    """
    impulses = _impulses(dimensions, source, microphone, reverberation, seconds, sample_rate)
    return _without_rumble(impulses, sample_rate)


def _impulses(
    dimensions: Sequence[float],
    source: Sequence[float],
    microphone: Sequence[float],
    reverberation: float,
    seconds: float,
    sample_rate: int,
) -> Tensor:
    size, place, ear = (
        torch.tensor(list(map(float, point)), dtype=torch.float64)
        for point in (dimensions, source, microphone)
    )
    for argument, point in (("source", place), ("microphone", ear)):
        if not bool(((point > 0) & (point < size)).all()):
            raise ArgumentError(argument, f"wants a place inside of the room, got {point.tolist()}")
    reflected = reflection(size.tolist(), reverberation)
    reach = SPEED_OF_SOUND * seconds
    distance2 = torch.zeros(1, dtype=torch.float64)
    depth = torch.zeros(1, dtype=torch.int64)
    for axis in range(3):
        most = math.ceil(reach / (2 * float(size[axis]))) + 1
        turns = torch.arange(-most, most + 1)
        offsets, walls = [], []
        for mirrored in (0, 1):
            at = (1 - 2 * mirrored) * place[axis] + 2 * turns * size[axis]
            offsets.append((at - ear[axis]) ** 2)
            walls.append((2 * turns - mirrored).abs())
        distance2 = (distance2[:, None] + torch.cat(offsets)).flatten()
        depth = (depth[:, None] + torch.cat(walls)).flatten()
        near = distance2 < reach**2
        distance2, depth = distance2[near], depth[near]
    distance = distance2.sqrt()
    gain = reflected ** depth.double() / (4 * math.pi * distance.clamp(min=0.01))
    heard = gain > _FAINTEST * gain.max()
    time = distance[heard] * (sample_rate / SPEED_OF_SOUND)
    count = max(1, round(seconds * sample_rate))
    response = torch.zeros(count + 2 * _HALF_SINC, dtype=torch.float64)
    below = time.floor().to(torch.int64)
    for tap in range(1 - _HALF_SINC, _HALF_SINC + 1):
        offset = below + tap - time
        window = (math.pi * offset / (2 * _HALF_SINC)).cos() ** 2
        at = below + tap + _HALF_SINC
        inside = at < len(response)
        response.index_add_(0, at[inside], (gain[heard] * torch.sinc(offset) * window)[inside])
    return response[_HALF_SINC : _HALF_SINC + count]


def _without_rumble(response: Tensor, sample_rate: int) -> Tensor:
    """The high-pass, on a grid of frequencies long enough for its ringing to die out in."""
    size = 2 * (len(response) + sample_rate // 4)
    z = torch.exp(torch.arange(size // 2 + 1) * (-2j * math.pi / size)).to(torch.complex128)
    k = math.tan(math.pi * _RUMBLE / sample_rate)
    numerator = (1 - z) ** 2
    denominator = (
        (1 + math.sqrt(2) * k + k * k) + 2 * (k * k - 1) * z + (1 - math.sqrt(2) * k + k * k) * z**2
    )
    # In twos: the last bit of a long transform alone changes with the number of threads.
    spectrum = torch.fft.rfft(response.repeat(2, 1), n=size) * (numerator / denominator)
    filtered: Tensor = torch.fft.irfft(spectrum, n=size)
    return filtered[0, : len(response)]


def reflection(dimensions: Sequence[float], reverberation: float) -> float:
    """The share of the pressure that walls reflect, by Eyring's formula.

    Raises:
        ArgumentError: a reverberation time that is not positive.
    """
    if not reverberation > 0:
        raise ArgumentError("reverberation", f"wants seconds above 0, got {reverberation}")
    x, y, z = dimensions
    volume, surface = x * y * z, 2 * (x * y + y * z + x * z)
    kept = math.exp(-24 * math.log(10) * volume / (SPEED_OF_SOUND * surface * reverberation))
    return math.sqrt(kept)


@functools.lru_cache(maxsize=4)
def simulate_rooms(
    count: int, *, seed: int = 0, seconds: float = 0.5, sample_rate: int = 16000
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Responses of rooms drawn from a seed, and the sample of the direct sound in each.

    Rooms of 3 to 10 by 3 to 10 by 2.5 to 4 metres, 0.15 to 0.6 s of reverberation; speaker and
    microphone anywhere half a metre from the walls.

    Raises:
        ArgumentError: ``count`` is below 1.
    """
    if count < 1:
        raise ArgumentError("count", f"wants at least 1 room, got {count}")
    drawn = draw(make_keys(seed, 0, torch.arange(count)), 0, (0.0, 1.0), 10)
    rooms, direct = [], []
    for x in drawn.tolist():
        size = [3 + 7 * x[0], 3 + 7 * x[1], 2.5 + 1.5 * x[2]]
        places = [
            [0.5 + (length - 1) * share for length, share in zip(size, part, strict=True)]
            for part in (x[3:6], x[6:9])
        ]
        rooms.append(
            simulate_room(size, *places, reverberation=0.15 + 0.45 * x[9],
                          seconds=seconds + 0.05, sample_rate=sample_rate)
        )  # fmt: skip
        direct.append(round(math.dist(*places) * sample_rate / SPEED_OF_SOUND))
    return tuple(rooms), tuple(direct)
