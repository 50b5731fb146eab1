"""Chunks of utterances and what is done to them: of DINO, classification and combined losses."""

from __future__ import annotations

from pathlib import Path

from speechft.augment import (
    AddNoise,
    Augmentation,
    Babble,
    ClipBank,
    Compose,
    OneOf,
    RandomCrop,
    Reverb,
    RoomBank,
    load_chain,
)
from speechft.errors import ConfigError, SpeechftError

# Probability of reverb, and the least and the most decibels of noise and of babble: hyperion's
# reverb_noise_aug.yaml, and its milder one for teachers.
_AUGMENTATIONS = {
    "student": (0.45, (0.0, 18.0), (3.0, 18.0)),
    "teacher": (0.3, (10.0, 28.0), (13.0, 28.0)),
}
AUGMENTATIONS = ("none", *_AUGMENTATIONS)
"""What :func:`crop_augmentation` takes besides a file."""
_NOISE = 0.7  # the probability of noise or babble, in both


def check_chunk_seconds(seconds: float | tuple[float, float] | None) -> None:
    """Whether chunks can be cut so.

    Raises:
        ConfigError: a length that is not above 0, or from more to less.
    """
    if seconds is None:
        return
    try:
        RandomCrop(seconds)
    except SpeechftError as error:
        raise ConfigError(f"chunk_{error}") from error


def check_augmentation(setting: str, name: str) -> None:
    """Whether :func:`crop_augmentation` can take it.

    Raises:
        ConfigError: neither a known name nor a file.
    """
    if name not in AUGMENTATIONS and not Path(name).is_file():
        raise ConfigError(f"{setting}: {name!r} is no file, and none of {', '.join(AUGMENTATIONS)}")


def crop_augmentation(
    name: str, noise: str | None, rooms: str | None, sample_rate: int
) -> Augmentation | None:
    """What a setting says: ``"none"``, ``"student"``, ``"teacher"`` or a YAML chain.

    Raises:
        ConfigError: a file that is none of ours, or one that needs another sample rate.
    """
    if name == "none":
        return None
    if name not in _AUGMENTATIONS:
        return load_chain(name)
    reverb, loudness, babble = _AUGMENTATIONS[name]
    noises = None if noise is None else ClipBank.from_folder(noise, sample_rate=sample_rate)
    responses = None if rooms is None else RoomBank.from_folder(rooms, sample_rate=sample_rate)
    return Compose(
        [
            Reverb(responses, p=reverb),
            OneOf([AddNoise(noises, loudness), Babble(babble)], p=_NOISE),
        ]
    )
