"""What the losses on embeddings share: unit rows and margins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechft.reference._unit import unit

DENOMINATORS = ("all", "own", "none")


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, in which it is summed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalized(x: Tensor, normalize: bool) -> Tensor:
    """Rows of length 1, computed in float32 and rounded to the dtype of ``x``."""
    return unit(wide(x)).to(x.dtype) if normalize else x


def with_margin(
    logits: Tensor, temperature: float | Tensor, margin: float, angular_margin: float
) -> Tensor:
    r"""Positive logits :math:`c / \tau` as :math:`(\cos(\arccos c + m_a) - m) / \tau`.

    Where the angle and its margin are beyond :math:`\pi`, the cosine would rise again: there it is
    continued by the line :math:`c - m_a \sin m_a`, as ArcFace does. At c = 1 the derivative of the
    angle is infinite; within 1e-6 of it counts as constant.
    """
    if angular_margin:
        cosine = logits * temperature
        sine = (1 - cosine.square()).clamp_min(1e-6).sqrt()
        rotated = cosine * math.cos(angular_margin) - sine * math.sin(angular_margin)
        line = cosine - angular_margin * math.sin(angular_margin)
        logits = torch.where(cosine > -math.cos(angular_margin), rotated, line) / temperature
    return logits - margin / temperature if margin else logits
