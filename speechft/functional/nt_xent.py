"""NT-Xent on pairwise log-sum-exp: no matrix of logits, no list of pairs."""

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
from speechft.functional._contrastive import (
    check_margins,
    check_some_negative,
    gather_labels,
    pairs_over_ranks,
)
from speechft.reference._embeddings import normalized, with_margin
from speechft.reference._gathered import count_positives, reduce_counted


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    margin: float = 0.0,
    angular_margin: float = 0.0,
    gather: Gather = False,
    reduction: str = "mean",
) -> Tensor:
    r"""NT-Xent: of the 2N views of N samples, each is to find the other view of its sample.

    With cosines :math:`c_{ij}` of the views, and i and p two views of a sample,

    .. math::

        \ell_{ip} = -\log \frac{e^{c_{ip} / \tau}}
                    {e^{c_{ip} / \tau} + \sum_{j \in \mathcal N_i} e^{c_{ij} / \tau}},

    where :math:`\mathcal N_i` are the views of other samples: with two views, the loss of SimCLR.
    With ``labels``, every two views of one label are a positive pair, and each pair's denominator
    holds that pair and the views of other labels; the mean is over pairs.

    Args:
        z1: (N, D), a view of each sample; floating point.
        z2: (N, D), the other view, of the dtype and device of ``z1``.
        labels: (N,) integers of the samples; -1 is unknown: in no pair. None: each its own.
        temperature: above 0; a tensor of one number gets a gradient.
        normalize: make rows of length 1.
        margin: subtracted from the cosine of a positive pair (CosFace); not with ``labels``.
        angular_margin: added to its angle, in radians (ArcFace); not with ``labels``.
        gather: the views of all ranks are one batch; True, ``"ring"`` or a process group.
        reduction: ``"mean"`` over positive pairs, ``"sum"`` over them, or ``"none"``: (2N,), of
            each of this rank's views, first those of ``z1``, the sum over its positive pairs.

    Returns:
        Tensor: a scalar, or (2N,) with ``reduction="none"``; float32 (float64 for float64 inputs).
        Zero, with a graph, where no pair is positive.

    Raises:
        ArgumentError: a wrong rank or size, ``temperature <= 0``, NaN, one sample and so no
            negatives, labels that are all the same, ``gather`` without a process group.
        ArgumentTypeError: inputs that are not floating point or differ in dtype, labels that are.
        BackendError: the backend asked for cannot run here.

    About ranks and memory, see :func:`info_nce`.

    Source: Chen et al., "SimCLR", ICML 2020, equation 1; with labels, as the NTXentLoss of
    pytorch-metric-learning, which lists all (positive, negative) pairs of pairs.

    >>> import torch
    >>> unit = torch.eye(4)
    >>> round(float(nt_xent(unit, unit, temperature=1.0)), 4)    # log(1 + 6 / e)
    1.1654
    """
    check_floating(z1, "z1", "(N, D)")
    check_floating(z2, "z2", "(N, D)")
    check_same(z1, z2, "z2", "z1", {0: "batch size", 1: "feature size"})
    check_labels(labels, "labels", z1, "z1")
    check_margins(margin, angular_margin, normalize)
    check_reduction(reduction)
    check_finite(z1, "z1")
    check_finite(z2, "z2")
    if labels is not None and (margin or angular_margin):
        name = "margin" if margin else "angular_margin"
        raise ArgumentError(name, "is for one positive pair a view; with labels, sup_con has one")
    group = group_of(gather)
    rank, ranks = place_of(group)
    if len(z1) * ranks == 1:
        raise ArgumentError("z1", "holds one sample: there is no other to tell it from")
    tau = shared(check_scale(temperature, "temperature", z1), group)

    z = torch.cat([normalized(z1, normalize), normalized(z2, normalize)])
    many = labels is not None
    if labels is None:
        labels = torch.arange(len(z1), device=z.device) + rank * len(z1)
    mine = torch.cat([labels, labels])
    ids = gather_labels(mine, group)
    if many:
        check_some_negative(ids, "NT-Xent tells the positive ones from")
    found = pairs_over_ranks(
        z, None, scale=tau.reciprocal(), labels=mine, all_labels=ids, gather=gather, own=many
    )
    counts = count_positives(mine, ids)
    if many:
        values = -found.positive_sum
    else:  # the sum over one pair is its logit
        pulled = with_margin(found.positive_sum, tau, margin, angular_margin)
        values = softplus(found.negatives - pulled)
    return reduce_counted(values, counts, reduction, group)
