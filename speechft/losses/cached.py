"""Batches larger than memory, for any loss on embeddings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError, ArgumentTypeError, TrainingError

Encoder = Callable[..., Tensor]


class Cached(nn.Module):
    r"""Gradient caching: any loss on embeddings, on a batch whose graph does not fit in memory.

    The batch is encoded in mini-batches without a graph; the loss and its gradient by the
    embeddings are computed at once, as that takes little; in the backward pass each mini-batch is
    encoded again, with a graph and with the random state it had, and the gradient of its embeddings
    is carried through it. The loss and the gradients are those of the whole batch,

    .. math::

        \frac{dL}{d\theta} = \sum_b \frac{\partial L}{\partial z_b} \frac{d z_b}{d\theta},

    for the price of a second forward pass, at the memory of one mini-batch.

    Args:
        loss: of embeddings, returning a scalar: any loss of speechft, or yours.
        mini_batch_size: samples that are encoded at a time.

    Call it with the encoder, what goes into it (of each argument of the loss one batch), and, by
    name, what else the loss takes::

        cached = Cached(InfoNCELoss(0.05, gather=True), mini_batch_size=32)
        cached(encoder, waveforms, other_waveforms).backward()
        Cached(SupConLoss())(encoder, {"input_values": x, "attention_mask": mask}, labels=labels)

    A batch is a tensor, a tuple of positional or a dict of keyword arguments; tensors in it have
    the sample first, what is no tensor goes in as it is. The encoder returns (B, D); a sequence of
    encoders has one a batch. An encoder in DistributedDataParallel talks to the other ranks once a
    step, at the last mini-batch.

    The random states of torch (on the CPU and the devices of the batch), numpy and Python are
    replayed bit for bit, autocast is as it was, and buffers (the running means of batch norm) move
    once. On the CPU, an encoder that gives other embeddings the second time is an error. Batch norm
    itself sees mini-batches. A second derivative is not there.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
    (GradCache), RepL4NLP 2021.

    >>> import torch
    >>> from speechft.losses import InfoNCELoss
    >>> encoder, x = torch.nn.Linear(4, 3), torch.randn(6, 4)
    >>> plain = InfoNCELoss()(encoder(x), encoder(x.roll(1, 1)))
    >>> cached = Cached(InfoNCELoss(), mini_batch_size=2)(encoder, x, x.roll(1, 1))
    >>> torch.allclose(cached, plain)
    True
    """

    def __init__(self, loss: nn.Module, mini_batch_size: int = 32) -> None:
        super().__init__()
        if (
            isinstance(mini_batch_size, bool)
            or not isinstance(mini_batch_size, int)
            or mini_batch_size < 1
        ):
            raise ArgumentError(
                "mini_batch_size", f"wants a whole number from 1, got {mini_batch_size!r}"
            )
        self.loss = loss
        self.mini_batch_size = mini_batch_size

    def forward(
        self, encoder: Encoder | Sequence[Encoder], *batches: Any, **arguments: Any
    ) -> Tensor:
        """The loss; its backward encodes again.

        Raises:
            ArgumentError: no batch, tensors of several sizes in one, as many encoders as batches
                are not there, a loss that is no scalar.
            ArgumentTypeError: an encoder that does not return a tensor.
        """
        if not batches:
            raise ArgumentError("batches", "are missing: give what goes into the encoder")
        encoders: list[Any] = [encoder] * len(batches)
        if isinstance(encoder, (list, tuple)):
            encoders = list(encoder)
        if len(encoders) != len(batches):
            raise ArgumentError(
                "encoder", f"wants one, or one a batch ({len(batches)}); got {len(encoders)}"
            )
        graph = torch.is_grad_enabled()
        jobs_of = [
            [_Job(encode, chunk) for chunk in _chunks(batch, self.mini_batch_size)]
            for encode, batch in zip(encoders, batches, strict=True)
        ]
        jobs = [job for mine in jobs_of for job in mine]
        with torch.no_grad(), _kept_buffers(encoders) if graph else nullcontext():
            for job in jobs:
                job.encode_first()
        embeddings = [
            torch.cat([job.embeddings for job in mine]).requires_grad_(graph) for mine in jobs_of
        ]
        value = self.loss(*embeddings, **arguments)
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise ArgumentError("loss", "wants to return a scalar: reduction mean or sum")
        if not graph:
            return value
        weights = [p for p in self.loss.parameters() if p.requires_grad]
        found = torch.autograd.grad(value, [*embeddings, *weights], allow_unused=True)
        for job, gradient in zip(jobs, _split(found, embeddings, jobs), strict=True):
            job.gradient = gradient
        anchor = torch.zeros((), requires_grad=True)
        result: Tensor = _Replay.apply(  # type: ignore[no-untyped-call]
            value.detach(), jobs, found[len(embeddings) :], anchor, *weights
        )
        return result

    def extra_repr(self) -> str:
        return f"mini_batch_size={self.mini_batch_size}"


class _Job:
    """One mini-batch: what goes in, what came out, and the state of the world as it went in."""

    def __init__(self, encode: Encoder, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self.encode, (self.positional, self.named) = encode, inputs
        self.gradient: Tensor | None = None
        tensors = [t for t in (*self.positional, *self.named.values()) if isinstance(t, Tensor)]
        self.device = tensors[0].device

    def encode_first(self) -> None:
        self.random_state = _RandomState.now(self.device)
        kind = self.device.type
        self.autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        self.embeddings = self.encode(*self.positional, **self.named)
        if not isinstance(self.embeddings, Tensor):
            raise ArgumentTypeError(
                "encoder",
                f"wants to return embeddings (B, D), got {type(self.embeddings).__name__}; pool "
                "the frames in a function of your own",
            )

    def carry_gradient(self, incoming: Tensor) -> None:
        """Encode again, with a graph, and go back through it."""
        if self.gradient is None:
            return
        enabled, dtype = self.autocast
        with self.random_state.replayed(), torch.enable_grad():
            with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
                again = self.encode(*self.positional, **self.named)
        if self.device.type == "cpu" and not torch.allclose(
            again.detach(), self.embeddings, rtol=1e-4, atol=1e-5, equal_nan=True
        ):
            raise TrainingError(
                "the encoder gave other embeddings when it was called again, so the cached "
                "gradient is not theirs; it draws from a generator of its own, or keeps a state "
                "that is no buffer"
            )
        if again.requires_grad:
            torch.autograd.backward(again, self.gradient * incoming)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        jobs: list[_Job],
        of_weights: Sequence[Tensor | None],
        anchor: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.jobs, ctx.of_weights = jobs, of_weights
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        jobs: list[_Job] = ctx.jobs
        if None in jobs:
            raise TrainingError("the cached loss goes backward once; call it again for another")
        last = {id(job.encode): k for k, job in enumerate(jobs) if job.gradient is not None}
        for k, job in enumerate(jobs):
            with _without_sync(job.encode) if k != last.get(id(job.encode)) else nullcontext():
                job.carry_gradient(incoming)
            jobs[k] = None  # type: ignore[call-overload]
        of_weights = (None if g is None else g * incoming for g in ctx.of_weights)
        return None, None, None, None, *of_weights


def _chunks(batch: Any, size: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Positional and keyword arguments of the encoder, ``size`` samples at a time."""
    named = dict(batch) if isinstance(batch, Mapping) else {}
    positional: tuple[Any, ...] = ()
    if not named:
        positional = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    everything = [*positional, *named.values()]
    sizes = {len(item) for item in everything if isinstance(item, Tensor) and item.dim()}
    if len(sizes) != 1:
        raise ArgumentError(
            "batches",
            "want tensors of one first dimension, the samples; "
            + (f"got {sorted(sizes)}" if sizes else "got no tensor"),
        )
    (samples,) = sizes
    for start in range(0, samples, size):

        def part(item: Any, where: slice = slice(start, start + size)) -> Any:
            return item[where] if isinstance(item, Tensor) and item.dim() else item

        yield tuple(map(part, positional)), {name: part(item) for name, item in named.items()}


def _split(
    found: Sequence[Tensor | None], embeddings: Sequence[Tensor], jobs: Sequence[_Job]
) -> Iterator[Tensor | None]:
    """The gradients of the embeddings, a mini-batch at a time."""
    sizes = iter([len(job.embeddings) for job in jobs])
    for gradient, whole in zip(found, embeddings, strict=False):
        start = 0
        while start < len(whole):
            size = next(sizes)
            yield None if gradient is None else gradient[start : start + size]
            start += size


@dataclass
class _RandomState:
    """Of torch on the CPU and on one device, of numpy and of Python."""

    cpu: Tensor
    device: Tensor | None
    where: torch.device
    numpy: Any
    python: Any

    @classmethod
    def now(cls, device: torch.device) -> _RandomState:
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(
            torch.get_rng_state(), on_device, device, np.random.get_state(), random.getstate()
        )

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, self.where)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """As it was, and afterwards as if nothing had been drawn."""
        now = _RandomState.now(self.where)
        self.restore()
        try:
            yield
        finally:
            now.restore()


@contextmanager
def _kept_buffers(encoders: Sequence[Encoder]) -> Iterator[None]:
    """Put buffers back as they were: the second pass is the one that counts."""
    modules = {id(encoder): encoder for encoder in encoders if isinstance(encoder, nn.Module)}
    buffers = [buffer for module in modules.values() for buffer in module.buffers()]
    before = [buffer.detach().clone() for buffer in buffers]
    yield
    for buffer, value in zip(buffers, before, strict=True):
        buffer.detach().copy_(value)


def _without_sync(encode: Encoder) -> AbstractContextManager[None]:
    no_sync = getattr(encode, "no_sync", None)  # DistributedDataParallel's
    context: AbstractContextManager[None] = no_sync() if callable(no_sync) else nullcontext()
    return context
