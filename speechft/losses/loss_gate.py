"""Loss gate: leave out of the batch what its loss says is labelled wrong."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechft.distributed import Gather, all_gather, group_of
from speechft.errors import ArgumentError, TrainingError
from speechft.functional._checks import check_floating, check_positive

# A loss below this share of the large ones is learnt, however well: it is taken as the share. Else
# a few logarithms far below, or of 0, are a hump of their own.
_LEARNT = 1e-3
# A valley between two humps is lower than both by this share, and by so many deviations of a count.
_SHALLOW = 0.25
_DEVIATIONS = 3.0


class LossGate(nn.Module):
    r"""Weights of samples: 1 where the loss is at most a threshold, else 0.

    Of samples with wrong labels, such as pseudo-labels are in part, the loss stays high while that
    of the others falls: its logarithms make two humps. At the end of an epoch :meth:`fit` fits two
    Gaussians to the logarithms of the epoch's losses, by expectation maximisation, and puts the
    threshold where, between the means, the weighted densities cross:

    .. math:: w_1 N(\log\theta; \mu_1, \sigma_1^2) = w_2 N(\log\theta; \mu_2, \sigma_2^2).

    **One hump** is no reason to leave anything out: then the threshold is infinity, and everything
    is kept. There are two humps if the densities cross between the means, and around the crossing
    there are fewer losses than around either mean: by a quarter, and by three standard deviations
    of such counts. Windows reach half the way from the crossing to the nearer mean. Losses below a
    thousandth of the 99th percentile count as that thousandth.

    Before the first fit everything is kept. Losses, place and threshold are buffers, so a
    checkpoint has them; in eval mode none are taken in. The gate waits for no device, ``fit`` does.

    Args:
        size: how many of the latest losses are held; at least those of an epoch.
        threshold: a fixed one, which :meth:`fit` leaves alone; None for that of the Gaussians.
        gather: fit the losses of all ranks, so that their thresholds are one.

    Shape:
        losses (B,); weights (B,) of their dtype, without a gradient.

    Source: Tao et al., "Self-supervised speaker recognition with loss-gated learning", ICASSP 2022
    (fixed); Han et al., "Self-supervised speaker verification using dynamic loss-gate and label
    correction", Interspeech 2022 (Gaussians).

    >>> import torch
    >>> losses, gate = torch.tensor([0.1, 0.3, 5.0], requires_grad=True), LossGate(threshold=1.0)
    >>> weights = gate(losses)
    >>> weights, ((weights * losses).sum() / weights.sum().clamp(min=1)).detach()
    (tensor([1., 1., 0.]), tensor(0.2000))
    """

    losses: Tensor
    place: Tensor
    threshold: Tensor

    def __init__(
        self, size: int = 65_536, *, threshold: float | None = None, gather: Gather = False
    ) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ArgumentError("size", f"wants a whole number from 1, got {size!r}")
        self.fixed = threshold is not None
        self.gather = gather
        start = math.inf if threshold is None else check_positive(threshold, "threshold")
        self.register_buffer("losses", torch.full((size,), torch.nan))  # NaN: not filled
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("threshold", torch.tensor(start))

    def forward(self, losses: Tensor) -> Tensor:
        """The weights of a batch, whose losses are taken in. A loss that is NaN has weight 0.

        Raises:
            ArgumentTypeError: losses that are not floating point.
            ArgumentError: losses of another shape than (B,), or on another device than the gate.
        """
        check_floating(losses, "losses", "(B)")
        if losses.device != self.losses.device:
            raise ArgumentError(
                "losses",
                f"are on {losses.device} and the gate on {self.losses.device}; move the gate there",
            )
        found = losses.detach().to(self.losses.dtype)
        if self.training and not self.fixed:
            size = len(self.losses)
            latest = found[-size:]
            places = self.place + torch.arange(len(latest), device=found.device)
            self.losses.index_copy_(0, places % size, latest)
            self.place.add_(len(latest)).remainder_(size)
        return (found <= self.threshold).to(losses.dtype)

    @torch.no_grad()
    def fit(self) -> float:
        """Set the threshold by the losses taken in since the last fit, and forget them.

        With ``gather``, every rank has to call it.

        Returns:
            the threshold; infinity where everything is kept.

        Raises:
            TrainingError: no loss was taken in.
        """
        if self.fixed:
            return float(self.threshold)
        held = all_gather(self.losses, group_of(self.gather)).double().cpu()
        held = held[held.isfinite()]
        if not len(held):
            raise TrainingError(
                "loss gate: no finite loss was taken in since the last fit; call the gate on the "
                "losses of the batches, in training mode, before fit()"
            )
        large = held.kthvalue(math.ceil(0.99 * len(held))).values
        least = max(_LEARNT * float(large), torch.finfo(torch.float32).tiny)
        self.threshold.fill_(math.exp(valley(held.clamp(min=least).log())))
        self.losses.fill_(torch.nan)
        self.place.zero_()
        return float(self.threshold)

    def extra_repr(self) -> str:
        fixed = f"threshold={float(self.threshold):g}, " if self.fixed else ""
        return f"size={len(self.losses)}, {fixed}gather={self.gather}"


class TwoGaussians(NamedTuple):
    """A mixture of two Gaussians on a line; (2,) each, the lower mean first."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def log_densities(self, x: Tensor) -> Tensor:
        """Of x (N,), weighted: (N, 2)."""
        squares = (x[:, None] - self.means).square() / self.variances
        return self.weights.log() - 0.5 * (squares + (2 * math.pi * self.variances).log())


def two_gaussians(x: Tensor, *, steps: int = 1000, enough: float = 1e-7) -> TwoGaussians:
    """Expectation maximisation on x (N,), float64, from the split of least squared error.

    Args:
        x: at least two values that differ.
        steps: at most.
        enough: gain of the mean log-likelihood below which it stops.
    """
    # Of all splits of the sorted values the one with the most variance between the sides.
    values = x.sort().values
    n = torch.arange(1, len(x), dtype=x.dtype)
    sums = values.cumsum(0)
    left, right = sums[:-1] / n, (sums[-1] - sums[:-1]) / (len(x) - n)
    upper = (values > values[int((n * (len(x) - n) * (left - right).square()).argmax())]).to(x)
    shares = torch.stack([1 - upper, upper], 1)
    least = 1e-6 * max(float(x.var(correction=0)), 1e-12)
    before = -math.inf
    for _ in range(steps):
        counts = shares.sum(0).clamp(min=1e-12)
        means = (shares * x[:, None]).sum(0) / counts
        spread = (shares * (x[:, None] - means).square()).sum(0) / counts
        found = TwoGaussians(counts / len(x), means, spread.clamp(min=least))
        log = found.log_densities(x)
        total = log.logsumexp(1)
        shares = (log - total[:, None]).exp()
        now = float(total.mean())
        if now - before < enough:
            break
        before = now
    order = found.means.argsort()
    return TwoGaussians(*(part[order] for part in found))


def valley(x: Tensor) -> float:
    """Where x (N,), float64, falls into two humps; infinity if it has but one."""
    if float(x.max()) == float(x.min()):
        return math.inf
    found = two_gaussians(x)
    low, high = found.means.tolist()

    def lead(at: float) -> float:
        of = found.log_densities(torch.tensor([at], dtype=x.dtype))[0]
        return float(of[0] - of[1])

    if not (lead(low) > 0.0 > lead(high)):
        return math.inf
    left, right = low, high
    for _ in range(100):  # the lead is quadratic, so between the means there is one crossing
        middle = 0.5 * (left + right)
        left, right = (middle, right) if lead(middle) > 0.0 else (left, middle)
    width = 0.5 * min(left - low, high - left)

    def near(at: float) -> int:
        return int(((x - at).abs() <= width).sum())

    among, around = near(left), min(near(low), near(high))
    wanted = max(_SHALLOW * around, _DEVIATIONS * math.sqrt(among + around))
    return left if around - among > wanted else math.inf
