"""What an augmentation draws: named values, a row a sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from speechft.errors import ArgumentError, ArgumentTypeError


class Parameters:
    """What keys draw: to follow with labels, to log, to change, to replay.

    ``parameters["snr"]`` is a tensor with a row for each sample. ``parameters["applied"]`` (B,) is
    there for all but compositions: a sample where it is False passes unchanged.
    ``parameters.members`` are those of the members of a composition, in order; what is not chosen
    is not applied.

    Positions in time are drawn as shares of what is possible, so that parameters depend on keys
    alone and not on the waveforms.

    Args:
        values: tensors of shape (B, ...), by name.
        members: of a composition.
    """

    def __init__(self, values: Mapping[str, Tensor], members: tuple[Parameters, ...] = ()) -> None:
        self.values = dict(values)
        self.members = members

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __len__(self) -> int:
        """Samples."""
        for tensor in self.values.values():
            return len(tensor)
        return max(map(len, self.members), default=0)

    def replace(self, **values: Tensor) -> Parameters:
        """The same with other values under some names: those of :meth:`flat`.

        >>> from speechft.augment import Compose, Gain
        >>> drawn = Compose([Gain()]).parameters_for(torch.tensor([1, 2]))
        >>> silent = drawn.replace(**{"0.decibels": torch.full((2,), -120.0).double()})

        Raises:
            ArgumentError: a name that is not there, or another shape.
            ArgumentTypeError: another dtype.
        """
        known = self.flat()
        for name, tensor in values.items():
            if name not in known:
                raise ArgumentError(name, f"is not drawn here; there are {', '.join(known)}")
            if tensor.shape != known[name].shape:
                raise ArgumentError(
                    name, f"wants shape {tuple(known[name].shape)}, got {tuple(tensor.shape)}"
                )
            if tensor.dtype != known[name].dtype:
                raise ArgumentTypeError(name, f"wants {known[name].dtype}, got {tensor.dtype}")
        return self._replaced(values, "")

    def _replaced(self, values: Mapping[str, Tensor], prefix: str) -> Parameters:
        return Parameters(
            {name: values.get(prefix + name, tensor) for name, tensor in self.values.items()},
            tuple(
                member._replaced(values, f"{prefix}{position}.")
                for position, member in enumerate(self.members)
            ),
        )

    def rows(self, index: Tensor | slice) -> Parameters:
        """Those of some samples: a slice, or int64 positions."""
        return Parameters(
            {name: tensor[index] for name, tensor in self.values.items()},
            tuple(member.rows(index) for member in self.members),
        )

    def to(self, device: torch.device | str) -> Parameters:
        """The same on a device; a GPU is not waited for."""
        # Towards the host it is: what has not arrived there yet could be read.
        free = torch.device(device).type != "cpu"
        return Parameters(
            {name: tensor.to(device, non_blocking=free) for name, tensor in self.values.items()},
            tuple(member.to(device) for member in self.members),
        )

    def only_where(self, mask: Tensor) -> Parameters:
        """Not applied outside of ``mask`` (B,)."""
        values = self.values
        if "applied" in values:
            values = {**values, "applied": values["applied"] & mask}
        return Parameters(values, tuple(member.only_where(mask) for member in self.members))

    def flat(self, prefix: str = "") -> dict[str, Tensor]:
        """All values by dotted names, such as ``1.snr`` for the second member's."""
        found = {prefix + name: tensor for name, tensor in self.values.items()}
        for position, member in enumerate(self.members):
            found.update(member.flat(f"{prefix}{position}."))
        return found

    def __repr__(self) -> str:
        return f"Parameters({', '.join(f'{k}={tuple(v.shape)}' for k, v in self.flat().items())})"
