"""Clips that noise is taken from, side by side in memory, on the device of the waveforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from speechft.augment.keys import uniform
from speechft.errors import ArgumentError, ArgumentTypeError, AudioError

_FULL_SCALE = 32767


class Resident(nn.Module):
    """A module whose tensors move to a device and never change their dtype.

    ``module.bfloat16()`` is for weights; it must not round what augmentations read.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Resident:
        for name, tensor in self._buffers.items():
            if tensor is not None:
                # Integers are moved and shared by such a function, and are not cast: the bits of
                # floats go as integers.
                if tensor.is_floating_point():
                    self._buffers[name] = fn(tensor.view(torch.int32)).view(tensor.dtype)
                else:
                    self._buffers[name] = fn(tensor)
        return self


class ClipBank(Resident):
    """Clips of any lengths in one tensor of 16-bit integers, sampled by index.

    A clip is scaled to full scale, as noise is added at a ratio of levels; what is 90 dB below its
    loudest sample is lost. An hour at 16 kHz is 115 MB. It is no part of a model's ``state_dict``.

    Args:
        clips: one-dimensional floating-point tensors.
        names: of the clips, for errors.

    Raises:
        ArgumentError: no clips; one that is empty, silent or not finite.
        ArgumentTypeError: a clip that is not one-dimensional floating point.
    """

    samples: Tensor
    offsets: Tensor
    counts: Tensor
    levels: Tensor

    def __init__(self, clips: Sequence[Tensor], *, names: Sequence[str] | None = None) -> None:
        if len(clips) == 0:
            raise ArgumentError("clips", "is empty; a bank wants at least one clip")
        names = tuple(map(str, range(len(clips)) if names is None else names))
        if len(names) != len(clips):
            raise ArgumentError("names", f"wants {len(clips)}, got {len(names)}")
        self._store(map(_as_stored, clips, names), names)

    def _store(self, clips: Iterable[Tensor], names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        stored = list(clips)
        counts = torch.tensor([len(clip) for clip in stored])
        levels = [float(clip.double().square().mean().sqrt()) for clip in stored]
        for name, value in (
            ("samples", torch.cat(stored)),
            ("offsets", counts.cumsum(0) - counts),
            ("counts", counts),
            ("levels", torch.tensor(levels)),
        ):
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        sample_rate: int = 16000,
        progress: bool | None = None,
    ) -> ClipBank:
        """All audio files below a folder, in the order of their paths.

        MUSAN's folders (``noise``, ``music``, ``speech``) are such folders. Channels are averaged
        and other rates resampled.

        Args:
            folder: searched with all folders in it.
            sample_rate: of the waveforms that the noise is for.
            progress: whether to show a bar; None: where somebody sees it.

        Raises:
            ArgumentError: no such folder, or no audio in it.
            AudioError: a file that cannot be read, or is silent.
        """
        paths, clips = load_folder(folder, sample_rate, progress)

        def stored() -> Iterator[Tensor]:
            for path, clip in zip(paths, clips, strict=True):
                if not bool((clip != 0).any()):
                    raise AudioError(path, "is silent, and cannot be noise at any ratio; remove it")
                yield _as_stored(clip, str(path))

        bank = cls.__new__(cls)
        bank._store(stored(), tuple(map(str, paths)))
        return bank

    @classmethod
    def coloured(cls, *, seconds: float = 20.0, sample_rate: int = 16000) -> ClipBank:
        """White, pink and brown noise (power as 1, 1/f and 1/f^2), two clips of each.

        Gaussian, from fixed keys: the same on every machine, but for rounding.
        """
        count = max(2, round(seconds * sample_rate))
        clips, names = [], []
        for number in range(6):
            exponent = number // 2
            # Box and Muller's pairs.
            drawn = uniform(torch.tensor([number]), 0, 2 * count, dtype=torch.float64)[0]
            radius = (-2 * (1 - drawn[:count]).log()).sqrt()
            spectrum = torch.fft.rfft(radius * (2 * math.pi * drawn[count:]).cos())
            # Flat below 20 Hz, where power that grows without end is not heard.
            frequency = torch.fft.rfftfreq(count, 1 / sample_rate, dtype=torch.float64)
            spectrum *= frequency.clamp(min=20) ** (-exponent / 2)
            spectrum[0] = 0
            clips.append(torch.fft.irfft(spectrum, n=count))
            names.append(f"{('white', 'pink', 'brown')[exponent]} {number % 2}")
        return cls(clips, names=names)

    def __len__(self) -> int:
        """Clips."""
        return len(self.counts)

    def extra_repr(self) -> str:
        """How much there is."""
        return f"{len(self)} clips, {len(self.samples)} samples"


def load_folder(
    folder: str | Path, sample_rate: int, progress: bool | None
) -> tuple[list[Path], Iterator[Tensor]]:
    """The audio files below a folder, sorted, and their samples, one file at a time."""
    from speechft.data import load_audio
    from speechft.data.audio import SUFFIXES

    folder = Path(folder)
    if not folder.is_dir():
        raise ArgumentError("folder", f"{folder} is no folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ArgumentError("folder", f"{folder} has no audio ({', '.join(SUFFIXES)}) in it")
    from tqdm import tqdm

    bar = tqdm(paths, desc=str(folder), unit="file", disable=None if progress is None
               else not progress)  # fmt: skip
    return paths, (torch.from_numpy(load_audio(path, sample_rate=sample_rate)) for path in bar)


def _as_stored(clip: Tensor, name: str) -> Tensor:
    if not isinstance(clip, Tensor) or not clip.is_floating_point() or clip.dim() != 1:
        got = f"{clip.dtype} {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip)
        raise ArgumentTypeError("clips", f"clip {name} wants floats of shape (n,), got {got}")
    clip = clip.detach().cpu().double()
    peak = float(clip.abs().max()) if len(clip) else 0.0
    if not (0 < peak < float("inf")):
        what = "is empty" if not len(clip) else "is silent" if peak == 0 else "is not finite"
        raise ArgumentError("clips", f"clip {name} {what}")
    return (clip * (_FULL_SCALE / peak)).round().to(torch.int16)
