"""The losses as modules, with the names people know."""

from speechft.losses.soft_dtw import SoftDTWLoss

__all__ = ["SoftDTWLoss"]
