"""InfoNCE on pairwise log-sum-exp: no matrix of logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from speechft.distributed import Gather, group_of, place_of, shared
from speechft.errors import ArgumentError
from speechft.functional._checks import (
    check_finite,
    check_floating,
    check_labels,
    check_reduction,
    check_same,
    check_scale,
)
from speechft.functional._contrastive import check_margins, gather_labels, pairs_over_ranks
from speechft.functional.pairwise_lse import pairwise_lse
from speechft.reference._embeddings import normalized, wide, with_margin
from speechft.reference._gathered import reduce_rows


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    symmetric: bool = False,
    normalize: bool = True,
    labels: Tensor | None = None,
    queue: Tensor | None = None,
    queue_labels: Tensor | None = None,
    in_batch: bool = True,
    margin: float = 0.0,
    angular_margin: float = 0.0,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    r"""InfoNCE: each query is to find its own key among all keys.

    With cosines :math:`c_{ij}` of query i and key j,

    .. math::

        \ell_i = -\log \frac{e^{c_{ii} / \tau}}{e^{c_{ii} / \tau}
                 + \sum_{j \in \mathcal N_i} e^{c_{ij} / \tau}},

    where :math:`\mathcal N_i` are the other keys of the batch and those of the queue. The loss of
    CLIP is ``symmetric=True``; that of wav2vec 2.0 and CPC is this with their keys.

    Args:
        query: (N, D), floating point.
        key: (N, D), of the dtype and device of ``query``; ``key[i]`` is the positive of query i.
        temperature: above 0; a tensor of one number gets a gradient.
        symmetric: the mean of this loss and of that with queries and keys exchanged.
        normalize: make rows of length 1; else the logits are dot products over the temperature.
        labels: (N,) integers of the samples: other keys of the same label are no negatives (false
            negatives are left out, not pushed away). -1 is unknown: no negative of any.
        queue: (Q, D) further negative keys, without gradient or with.
        queue_labels: (Q,) their labels; with ``labels``.
        in_batch: other keys of the batch are negatives; False leaves those of the queue, as MoCo.
        margin: subtracted from the cosine of the positive pair (CosFace).
        angular_margin: added to its angle, in radians (ArcFace). Within 1e-6 of a cosine of 1
            the margin is a constant: the angle has no derivative there.
        gather: keys of all ranks are negatives, and the loss is that of the batch of all ranks;
            True, or a process group. ``"ring"`` for all ranks without a copy of all keys on each:
            blocks of keys go round. Batches are of one size.
        reduction: ``"none"`` (of this rank's queries), ``"mean"`` or ``"sum"``.

    Returns:
        Tensor: a scalar, or (N,) with ``reduction="none"``; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: a wrong rank or size, ``temperature <= 0``, NaN, one sample and so no
            negatives, ``gather`` without a process group, batches of several sizes.
        ArgumentTypeError: inputs that are not floating point or differ in dtype, labels that are.
        BackendError: the backend asked for cannot run here.

    With ``gather`` every rank returns the same loss, and DistributedDataParallel's average of the
    gradients is that of one process with the whole batch. Memory beyond inputs and outputs: that of
    :func:`pairwise_lse`, the unit rows, and with ``gather`` the keys of all ranks (with
    ``"ring"`` those of two).

    Source: van den Oord et al., "CPC", 2018, equation 4; Radford et al., "CLIP", 2021.

    >>> import torch
    >>> unit = torch.eye(4)
    >>> round(float(info_nce(unit, unit, temperature=1.0)), 4)    # log(1 + 3 / e)
    0.7437
    """
    check_floating(query, "query", "(N, D)")
    check_floating(key, "key", "(N, D)")
    check_same(query, key, "key", "query", {0: "batch size", 1: "feature size"})
    check_labels(labels, "labels", query, "query")
    if queue is not None:
        check_floating(queue, "queue", "(Q, D)")
        check_same(query, queue, "queue", "query", {1: "feature size"})
        check_labels(queue_labels, "queue_labels", queue, "queue")
        if symmetric:
            raise ArgumentError("queue", "is of keys: it has no queries for symmetric=True")
        if (labels is None) != (queue_labels is None):
            missing = "labels" if labels is None else "queue_labels"
            raise ArgumentError(missing, "are missing: the other side has labels")
    elif queue_labels is not None:
        raise ArgumentError("queue_labels", "wants a queue")
    if symmetric and not in_batch:
        raise ArgumentError("symmetric", "wants in_batch=True: keys have no other queries")
    check_margins(margin, angular_margin, normalize)
    check_reduction(reduction)
    check_finite(query, "query")
    check_finite(key, "key")
    group = group_of(gather)
    _, ranks = place_of(group)
    N = len(query)
    if queue is None and (N * ranks == 1 or not in_batch):
        raise ArgumentError(
            "key", f"holds {N * ranks} of the batch and there is no queue: no query has a negative"
        )
    tau = shared(check_scale(temperature, "temperature", query), group)

    query, key = normalized(query, normalize), normalized(key, normalize)
    positive = (wide(query) * wide(key)).sum(-1) / tau  # vecdot would be autocast
    positive = with_margin(positive, tau, margin, angular_margin)
    scale = tau.reciprocal()
    parts = []
    of_keys = None
    if in_batch:
        found = pairs_over_ranks(
            query,
            key,
            scale=scale,
            labels=labels,
            gather=gather,
            columns=symmetric,
            all_labels=None if labels is None else gather_labels(labels, group),
        )
        parts.append(found.negatives)
        of_keys = found.column_negatives
    if queue is not None:
        check_finite(queue, "queue")
        parts.append(
            pairwise_lse(
                query, normalized(queue, normalize), scale=scale, query_labels=labels,
                key_labels=queue_labels,
            ).negatives
        )  # fmt: skip
    # log(e^t + e^n) - t, without the difference of two large numbers
    values = softplus(_log_of_sum(parts) - positive)
    if of_keys is not None:
        values = (values + softplus(of_keys - positive)) / 2
    return reduce_rows(values, reduction, group)


def _log_of_sum(parts: list[Tensor]) -> Tensor:
    """Log of the sum of exponentials; where all are ``-inf``, that, with gradient 0."""
    if len(parts) == 1:
        return parts[0]
    a, b = parts
    nothing = torch.isinf(a) & torch.isinf(b)
    both = torch.logaddexp(torch.where(nothing, 0.0, a), b)
    return torch.where(nothing, a, both)
