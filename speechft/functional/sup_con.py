"""Supervised contrastive loss on pairwise log-sum-exp: no matrix of logits or masks."""

from __future__ import annotations

import torch
from torch import Tensor

from speechft.distributed import Gather, all_reduce, group_of, place_of, shared
from speechft.errors import ArgumentError
from speechft.functional._checks import (
    check_finite,
    check_floating,
    check_labels,
    check_reduction,
    check_scale,
)
from speechft.functional._contrastive import (
    check_margins,
    check_some_negative,
    gather_labels,
    pairs_over_ranks,
)
from speechft.reference._embeddings import DENOMINATORS, normalized
from speechft.reference._gathered import count_positives


def sup_con(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    denominator: str = "all",
    margin: float = 0.0,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Supervised contrastive loss: embeddings of one label together, those of others apart.

    With cosines :math:`c_{ij}`, the positives :math:`\mathcal P_i` of embedding i (others of its
    label) and the negatives :math:`\mathcal N_i` (those of other labels),

    .. math::

        \ell_i = -\frac{1}{|\mathcal P_i|} \sum_{p \in \mathcal P_i}
                 \log \frac{e^{c_{ip} / \tau}}{\sum_{j \in \mathcal D_{ip}} e^{c_{ij} / \tau}},

    with the mean over embeddings that have a positive. :math:`\mathcal D_{ip}` is, by
    ``denominator``:

    * ``"all"``: :math:`\mathcal P_i \cup \mathcal N_i`, the loss of the paper;
    * ``"own"``: :math:`\{p\} \cup \mathcal N_i`: positives do not push each other away (NT-Xent);
    * ``"none"``: :math:`\mathcal N_i` (decoupled).

    Args:
        embeddings: (N, D), or (N, V, D) of V views a sample; floating point.
        labels: (N,) integers; -1 is unknown: neither positive nor negative of any.
        temperature: above 0; a tensor of one number gets a gradient.
        normalize: make rows of length 1.
        denominator: ``"all"``, ``"own"`` or ``"none"``.
        margin: subtracted from the cosines of positive pairs (CosFace); not with ``"own"``.
        gather: the embeddings of all ranks are one batch; True, ``"ring"`` or a process group.
        reduction: ``"mean"`` over embeddings with a positive, ``"sum"``, or ``"none"``: (N,), or
            (N V,) in the order of ``embeddings.flatten(0, 1)``, zero where there is no positive.

    Returns:
        Tensor: a scalar, or a vector with ``reduction="none"``; float32 (float64 for float64
        inputs). Zero, with a graph, where no pair is positive.

    Raises:
        ArgumentError: a wrong rank or size, labels below -1, ``temperature <= 0``, NaN, one
            embedding, an unknown denominator, no negative pair for ``"own"`` and ``"none"``,
            ``gather`` without a process group.
        ArgumentTypeError: embeddings that are not floating point, labels that are.
        BackendError: the backend asked for cannot run here.

    About ranks and memory, see :func:`info_nce`.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (outside the
    logarithm, without its factor of temperature over base temperature); ``"none"``: Yeh et al.,
    "Decoupled Contrastive Learning", ECCV 2022.

    >>> import torch
    >>> two = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round(float(sup_con(two, torch.tensor([0, 0, 1, 1]), temperature=1.0)), 4)  # log(1 + 2/e)
    0.5514
    """
    return sup_con_and_count(
        embeddings, labels, temperature, normalize, denominator, margin, gather, reduction
    )[0]


def sup_con_and_count(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    normalize: bool,
    denominator: str,
    margin: float,
    gather: Gather,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and over how many embeddings (of all ranks) it is the mean; on the device."""
    views = isinstance(embeddings, Tensor) and embeddings.dim() == 3
    check_floating(embeddings, "embeddings", "(N, V, D)" if views else "(N, D)")
    if labels is None:
        raise ArgumentError("labels", "are missing")
    check_labels(labels, "labels", embeddings, "embeddings")
    if denominator not in DENOMINATORS:
        raise ArgumentError(
            "denominator", f"wants one of {', '.join(DENOMINATORS)}; got {denominator!r}"
        )
    check_margins(margin, 0.0, normalize)
    if margin and denominator == "own":
        raise ArgumentError("margin", 'goes with the denominators "all" and "none"')
    check_reduction(reduction)
    check_finite(embeddings, "embeddings")
    group = group_of(gather)
    _, ranks = place_of(group)
    tau = shared(check_scale(temperature, "temperature", embeddings), group)
    if views:
        labels = labels.repeat_interleave(embeddings.shape[1])
        embeddings = embeddings.flatten(0, 1)
    if len(embeddings) * ranks == 1:
        raise ArgumentError("embeddings", "holds one: there is no other to compare it with")

    z = normalized(embeddings, normalize)
    ids = gather_labels(labels, group)
    if denominator != "all":
        check_some_negative(ids, f'denominator="{denominator}" wants')
    found = pairs_over_ranks(
        z,
        None,
        scale=tau.reciprocal(),
        labels=labels,
        all_labels=ids,
        gather=gather,
        own=denominator == "own",
    )
    counts = count_positives(labels, ids)
    valid = counts > 0
    mean = found.positive_sum / counts.clamp_min(1)  # of the logits of positive pairs
    if denominator == "own":
        values = -mean
    else:
        lse = found.negatives
        if denominator == "none":
            valid = valid & torch.isfinite(lse)
        else:
            positives = torch.where(valid, found.positives, 0.0)
            lse = torch.logaddexp(lse, positives - margin / tau if margin else positives)
        values = torch.where(valid, lse, 0.0) - (mean - margin / tau if margin else mean)
    values = torch.where(valid, values, 0.0)
    counted = all_reduce(valid.sum(), group)
    if reduction == "none":
        return values, counted
    total = all_reduce(values.sum(), group)
    return (total / counted.clamp_min(1) if reduction == "mean" else total), counted
