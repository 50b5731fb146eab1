"""Cases of ``speechft.augment``: what an epoch of perturbed speech costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import speechft
from speechft.augment import (
    AddNoise,
    Augmentation,
    Clip,
    ClipBank,
    Compose,
    Gain,
    Pitch,
    Polarity,
    Quantise,
    Reverb,
    RoomBank,
    Speed,
    TimeDrop,
    make_keys,
)

from .machine import Machine
from .peers import augmentation as peers
from .registry import FORWARD, Case, Floor, Inputs, Provider, register

OP = "augment"
RATE = 16000

Op = Callable[[Inputs], Tensor]


def clips(number: int, seconds: float) -> Callable[[bool], Inputs]:
    """Make noise with the level of speech, (B, T), and a key each."""

    def make(tiny: bool) -> Inputs:
        B, T = (2, 4000) if tiny else (number, round(seconds * RATE))
        x = 0.1 * torch.randn(B, T, generator=torch.Generator().manual_seed(0))
        return Inputs((), (make_keys(0, 0, torch.arange(B)),), (x,))

    return make


def floor(number: int, seconds: float, reads: int) -> Callable[[Machine, str], Floor]:
    """Samples are read, with what is as long as they are, and written."""

    def state(machine: Machine, mode: str) -> Floor:
        moved = 4.0 * number * seconds * RATE * (reads + 1)
        return Floor(
            1e3 * moved / machine.bandwidth,
            f"{moved / 1e6:.4g} MB / {machine.bandwidth / 1e9:.4g} GB/s, rate {machine.source}",
        )

    return state


def six(bank: ClipBank) -> Compose:
    """Six ops of which each sample knows nothing of its neighbours."""
    return Compose(
        [
            Gain((-6, 6)),
            Polarity(),
            AddNoise(bank),
            Clip((0.3, 0.9)),
            TimeDrop(),
            Quantise((12, 16)),
        ]
    )


def of(make: Callable[[], Augmentation]) -> Op:
    """The augmentation by its face; its banks are where the waveforms are."""
    module = functools.cache(make)

    def run(inputs: Inputs) -> Tensor:
        (x,), (keys,) = inputs.constants, inputs.integers
        result: Tensor = module().to(x.device)(x, None, keys)[0]
        return result

    return run


def definition(make: Callable[[], Augmentation]) -> Op:
    """The same by the reference."""
    run = of(make)

    def by_reference(inputs: Inputs) -> Tensor:
        with speechft.use_backend("reference"):
            return run(inputs)

    return by_reference


def add(
    name: str,
    device: str,
    number: int,
    seconds: float,
    make: Callable[[], Augmentation],
    others: dict[str, Provider],
    *,
    reads: int = 1,
    **options: Any,
) -> None:
    """Register a case of so many clips of so many seconds."""
    providers = {"speechft": Provider(of(make)), **others}
    if device == "cuda":
        providers["speechft-graph"] = Provider(of(make), graph=True)
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=clips(number, seconds),
            providers=providers,
            truth=definition(make),
            truth_samples=2,
            floor=floor(number, seconds, reads),
            modes=(FORWARD,),
            **options,
        )
    )


noises = functools.cache(ClipBank.coloured)
rooms = functools.cache(RoomBank.simulated)


def eager_six(compiled: bool) -> Op:
    """:func:`peers.six_in_torch` on what the chain draws."""
    op = torch.compile(peers.six_in_torch, dynamic=False) if compiled else peers.six_in_torch
    slices = functools.cache(lambda: peers.noise_of(noises()))

    def run(inputs: Inputs) -> Tensor:
        (x,), (keys,) = inputs.constants, inputs.integers
        drawn = six(noises()).parameters_for(keys).members
        return op(x, slices()(drawn[2], x.shape[1]), drawn)

    return run


def library(make: Callable[[], Callable[[Tensor], Tensor]], needs: str) -> Provider:
    """A library that draws for itself."""
    chain = functools.cache(make)
    return Provider(lambda inputs: chain()(inputs.constants[0]), needs=needs, compared=False)


def convolved(inputs: Inputs) -> Tensor:
    """Rooms by torchaudio."""
    (x,), (keys,) = inputs.constants, inputs.integers
    room = Reverb(rooms()).parameters_for(keys)["room"]
    return peers.torchaudio_room(x, rooms().responses[room], rooms().delays[room])


def of_torchaudio(
    drawing: Callable[[], Augmentation], op: Callable[[Tensor, Tensor], Tensor], drawn: str
) -> Op:
    """Torchaudio's on what the augmentation draws."""

    def run(inputs: Inputs) -> Tensor:
        (x,), (keys,) = inputs.constants, inputs.integers
        return op(x, drawing().parameters_for(keys)[drawn])

    return run


def speed_and_pitch(inputs: Inputs) -> Tensor:
    """SCORE's perturbation by torchaudio."""
    (x,), (keys,) = inputs.constants, inputs.integers
    speed, pitch = Compose([Speed(), Pitch()]).parameters_for(keys).members
    return peers.torchaudio_pitch(peers.torchaudio_speed(x, speed["factor"]), pitch["semitones"])


def torchaudio(op: Op, *, compared: bool = False, repeats: int = 1) -> Provider:
    """A provider by torchaudio, whose filters differ from ours; its pitch takes a minute."""
    return Provider(op, needs="torchaudio", compared=compared, max_repeats=repeats)


pointwise_peers = {
    "eager": Provider(eager_six(compiled=False)),
    "torch.compile": Provider(eager_six(compiled=True)),
    "torch-audiomentations": library(peers.torch_audiomentations, "torch_audiomentations"),
}
add("six pointwise ops, 64 x 10 s", "cpu", 64, 10, lambda: six(noises()),
    {**pointwise_peers, "audiomentations": library(peers.audiomentations, "audiomentations")},
    reads=2, quick=True)  # fmt: skip
add("rooms of 0.5 s, 64 x 10 s", "cpu", 64, 10, lambda: Reverb(rooms()),
    {"torchaudio": torchaudio(convolved, compared=True, repeats=9)}, quick=True)  # fmt: skip
add("speed 0.9/1.0/1.1, 4 x 12 s", "cpu", 4, 12, Speed,
    {"torchaudio": torchaudio(
        of_torchaudio(Speed, peers.torchaudio_speed, "factor"), repeats=5)})  # fmt: skip
add("pitch ±2, 4 x 12 s", "cpu", 4, 12, Pitch, {
    "torchaudio": torchaudio(of_torchaudio(Pitch, peers.torchaudio_pitch, "semitones")),
})  # fmt: skip
add("speed and pitch, 4 x 12 s", "cpu", 4, 12, lambda: Compose([Speed(), Pitch()]),
    {"torchaudio": torchaudio(speed_and_pitch)}, quick=True)  # fmt: skip
add("GPU six pointwise ops, 64 x 10 s", "cuda", 64, 10, lambda: six(noises()), pointwise_peers,
    reads=2, quick=True)  # fmt: skip
add("GPU six pointwise ops, speed and rooms, 64 x 10 s", "cuda", 64, 10,
    lambda: Compose([Speed(), six(noises()), Reverb(rooms())]), {}, reads=2, quick=True,
    tolerance=2e-2)  # fmt: skip
