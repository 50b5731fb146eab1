"""Rooms: convolution with room impulse responses, recorded or simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from speechft.augment.bank import Resident, load_folder
from speechft.augment.parameters import Parameters
from speechft.augment.ranges import draw_whole
from speechft.augment.rooms import simulate_rooms
from speechft.augment.stages import Filter, Response
from speechft.errors import ArgumentError, ArgumentTypeError
from speechft.functional._checks import check_positive

_BEFORE_DIRECT = 0.002  # seconds kept before the direct sound's peak, where it rises


class RoomBank(Resident):
    """Room impulse responses in one tensor, sampled by index.

    Each is cut to ``seconds`` after its direct sound and scaled to an energy of 1, which keeps the
    level of noise. It is no part of a model's ``state_dict``.

    The direct sound comes before all else, but reflections that meet may be louder. Where it is not
    said, it is the first peak of at least half the height of the highest.

    Args:
        responses: one-dimensional floating-point tensors.
        direct: the sample of each at which the direct sound is; None: found as above.
        seconds: what is kept after the direct sound.
        sample_rate: of the responses.
        names: of the responses, for errors.

    Raises:
        ArgumentError: no responses; one that is empty, silent or not finite.
        ArgumentTypeError: one that is not one-dimensional floating point.
    """

    responses: Tensor
    delays: Tensor

    def __init__(
        self,
        responses: Sequence[Tensor],
        *,
        direct: Sequence[int] | None = None,
        seconds: float = 0.5,
        sample_rate: int = 16000,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if len(responses) == 0:
            raise ArgumentError("responses", "is empty; a bank wants at least one room")
        self.names = tuple(map(str, range(len(responses)) if names is None else names))
        if len(self.names) != len(responses):
            raise ArgumentError("names", f"wants {len(responses)}, got {len(self.names)}")
        after = max(1, round(check_positive(seconds, "seconds") * sample_rate))
        before = round(_BEFORE_DIRECT * sample_rate)
        cut, delays = [], []
        for number, (response, name) in enumerate(zip(responses, self.names, strict=True)):
            one = _checked(response, name)
            at = _first_peak(one, before) if direct is None else direct[number]
            if not 0 <= at < len(one):
                raise ArgumentError("direct", f"room {name} has no sample {at}")
            first = max(0, at - before)
            one = one[first : at + after]
            cut.append(one / one.square().sum().sqrt())
            delays.append(at - first)
        padded = torch.zeros(len(cut), max(map(len, cut)))
        for row, one in enumerate(cut):
            padded[row, : len(one)] = one
        self.register_buffer("responses", padded, persistent=False)
        self.register_buffer("delays", torch.tensor(delays), persistent=False)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        seconds: float = 0.5,
        sample_rate: int = 16000,
        progress: bool | None = None,
    ) -> RoomBank:
        """All responses below a folder, such as OpenSLR-28's, in the order of their paths.

        Raises:
            ArgumentError: no such folder, or no audio in it.
            AudioError: a file that cannot be read.
        """
        paths, responses = load_folder(folder, sample_rate, progress)
        names = [str(path) for path in paths]
        return cls(list(responses), seconds=seconds, sample_rate=sample_rate, names=names)

    @classmethod
    def simulated(
        cls, count: int = 16, *, seed: int = 0, seconds: float = 0.5, sample_rate: int = 16000
    ) -> RoomBank:
        """Shoebox rooms from 3 to 10 m; see :func:`speechft.augment.rooms.simulate_rooms`."""
        rooms, direct = simulate_rooms(count, seed=seed, seconds=seconds, sample_rate=sample_rate)
        return cls(rooms, direct=direct, seconds=seconds, sample_rate=sample_rate)

    def __len__(self) -> int:
        """Rooms."""
        return len(self.delays)

    def extra_repr(self) -> str:
        """How much there is."""
        return f"{len(self)} rooms, {self.responses.shape[1]} samples"


class Reverb(Filter):
    """Put each sample into a room of the bank.

    The direct sound stays where it was and the clip as long as it was: what rings on after its end
    is cut. A response that is longer than the clip is cut likewise.

    Args:
        bank: a :class:`RoomBank`; None: :meth:`RoomBank.simulated`.
        p: the probability of a sample to be changed at all.
    """

    def __init__(self, bank: RoomBank | None = None, *, p: float = 1.0) -> None:
        super().__init__(p=p)
        if bank is not None and not isinstance(bank, RoomBank):
            raise ArgumentTypeError(
                "bank",
                f"wants a RoomBank, got {type(bank).__name__}; RoomBank.from_folder reads a folder",
            )
        self.bank = RoomBank.simulated() if bank is None else bank

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """``room`` (B,): its position in the bank."""
        return {"room": draw_whole(keys, 0, (0, len(self.bank) - 1))[:, 0]}

    def responses(self, drawn: Parameters, dtype: torch.dtype) -> list[Response]:
        """See :class:`~speechft.augment.stages.Filter`."""
        room = drawn["room"]
        return [(self.bank.responses[room].to(dtype), self.bank.delays[room])]


def _first_peak(response: Tensor, width: int) -> int:
    magnitude = response.abs()
    first = int((magnitude >= 0.5 * magnitude.max()).nonzero()[0, 0])
    return first + int(magnitude[first : first + width].argmax())


def _checked(response: Tensor, name: str) -> Tensor:
    if not isinstance(response, Tensor) or not response.is_floating_point() or response.dim() != 1:
        got = tuple(response.shape) if isinstance(response, Tensor) else type(response).__name__
        raise ArgumentTypeError("responses", f"room {name} wants floats of shape (n,), got {got}")
    response = response.detach().cpu().float()
    peak = float(response.abs().max()) if len(response) else 0.0
    if not (0 < peak < float("inf")):
        what = "is empty" if not len(response) else "is silent" if peak == 0 else "is not finite"
        raise ArgumentError("responses", f"room {name} {what}")
    return response
