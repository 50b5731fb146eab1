"""How codes are used: a regulariser and monitors. None of them makes the host wait for a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechft.distributed import Gather, all_reduce, group_of
from speechft.errors import ArgumentError
from speechft.functional._checks import check_finite, check_floating, check_scale
from speechft.functional._rows import valid_rows
from speechft.lengths import LengthsLike, check_lengths


def me_max(
    logits: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    lengths: LengthsLike | None = None,
    gather: Gather = False,
) -> Tensor:
    r"""Mean-entropy maximisation: 0 where all codes are used alike, log K where one is.

    .. math::

        L = \log K - H(\bar p), \qquad
        \bar p = \frac 1 N \sum_b \mathrm{softmax}(x_b / \tau)

    Args:
        logits: (B, K), or (B, T, K) with frames; floating point.
        temperature: above 0; a tensor of one number gets a gradient.
        lengths: (B,) valid frames; those beyond have no part.
        gather: the mean is over the rows of all ranks: True, or a process group.

    Returns:
        Tensor: a scalar; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank, ``temperature <= 0``, NaN.
        ArgumentTypeError: logits that are not floating point.
        LengthError: a length of 0 or beyond T.

    Source: Assran et al., "MSN", ECCV 2022, equation 2.

    >>> import torch
    >>> float(me_max(torch.eye(4)))
    0.0
    """
    rows, counted = _rows(logits, lengths)
    group = group_of(gather)
    tau = check_scale(temperature, "temperature", logits)
    share = _mean((rows / tau).softmax(-1), counted, group)
    return math.log(rows.shape[1]) - _entropy(share)


@torch.no_grad()
def code_perplexity(
    logits: Tensor,
    *,
    temperature: float | Tensor | None = None,
    lengths: LengthsLike | None = None,
    gather: Gather = False,
) -> Tensor:
    r"""How many codes are in use, :math:`e^{H(\bar p)}`: from 1 to K.

    Args:
        logits: (B, K), or (B, T, K) with frames; floating point.
        temperature: of the softmax that is averaged; None: each row uses its largest code.
        lengths: (B,) valid frames.
        gather: over the rows of all ranks: True, or a process group.

    Returns:
        Tensor: a scalar on the device, without gradient.

    Raises:
        ArgumentError: a wrong rank, ``temperature <= 0``, NaN.
        ArgumentTypeError: logits that are not floating point.
        LengthError: a length of 0 or beyond T.

    >>> import torch
    >>> round(float(code_perplexity(torch.eye(4))), 3)
    4.0
    """
    rows, counted = _rows(logits, lengths)
    group = group_of(gather)
    if temperature is None:
        used = torch.zeros(rows.shape[1], dtype=rows.dtype, device=rows.device)
        used.index_add_(0, rows.argmax(-1), counted.to(rows.dtype))
        share = all_reduce(used, group) / all_reduce(counted.sum().to(rows.dtype), group)
    else:
        tau = check_scale(temperature, "temperature", logits)
        share = _mean((rows / tau).softmax(-1), counted, group)
    return _entropy(share).exp()


@torch.no_grad()
def mean_entropy(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    lengths: LengthsLike | None = None,
) -> Tensor:
    r"""The mean over rows of :math:`H(\mathrm{softmax}(x_b / \tau))`, in nats.

    Near 0 the rows are sure of their code; near log K they are the same for all, and a teacher of
    such targets teaches nothing.

    Args:
        logits: (B, K), or (B, T, K) with frames; floating point.
        temperature: above 0.
        lengths: (B,) valid frames.

    Returns:
        Tensor: a scalar on the device, without gradient.

    Raises:
        ArgumentError: a wrong rank, ``temperature <= 0``, NaN.
        ArgumentTypeError: logits that are not floating point.
        LengthError: a length of 0 or beyond T.

    >>> import torch
    >>> round(float(mean_entropy(torch.zeros(3, 8))), 4)    # log(8)
    2.0794
    """
    rows, counted = _rows(logits, lengths)
    log_p = (rows / check_scale(temperature, "temperature", logits)).log_softmax(-1)
    each = -(log_p.exp() * log_p).sum(-1)
    return torch.where(counted, each, 0.0).sum() / counted.sum()


def _entropy(share: Tensor) -> Tensor:
    """In nats; of codes without a share, where log has no derivative, it has a finite one."""
    return -(share * share.clamp_min(torch.finfo(share.dtype).tiny).log()).sum()


def _rows(logits: Tensor, lengths: LengthsLike | None) -> tuple[Tensor, Tensor]:
    """(N, K) in float32 at least, 0 in rows that do not count, and which do."""
    frames = isinstance(logits, Tensor) and logits.dim() == 3
    check_floating(logits, "logits", "(B, T, K)" if frames else "(B, K)")
    if lengths is not None and not frames:
        raise ArgumentError("lengths", f"wants logits (B, T, K), got {tuple(logits.shape)}")
    found = None
    if lengths is not None:
        found = check_lengths(
            lengths, batch=logits.shape[0], steps=logits.shape[1], device=logits.device,
            argument="lengths",
        )  # fmt: skip
    check_finite(logits, "logits", found)
    rows = logits.reshape(-1, logits.shape[-1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    counted = valid_rows(found, logits.shape, logits.device)
    if counted is None:
        return rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    return torch.where(counted[:, None], rows, 0.0), counted


def _mean(rows: Tensor, counted: Tensor, group: object) -> Tensor:
    """(K,) over the rows that count, of all ranks."""
    total = all_reduce(torch.where(counted[:, None], rows, 0.0).sum(0), group)
    return total / all_reduce(counted.sum().to(rows.dtype), group)
