"""What every op promises, as assertions that every op's test file calls.

The oracle is the field's best: the error of an op against a float64 truth is at most twice the
error of the same-dtype reference, plus rounding. No tolerance is picked by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

import speechft
from speechft import backends

Op = Callable[..., Tensor]


def available(op: str) -> list[str]:
    """Backends of the op that run on this machine, the reference apart."""
    known = backends.OPS[op]
    return [name for name, why in known.why_not.items() if name != "reference" and why() is None]


def instruction_sets() -> list[str]:
    """What the CPU kernels can be told to run on here."""
    module = backends.compiled_module()
    found = []
    for name in ("avx512", "avx2", "baseline") if module is not None else ():
        try:
            module.set_instruction_set(name)
        except ValueError:
            continue
        found.append(name)
        module.set_instruction_set("")
    return found


def providers(op: str) -> list[tuple[str, str]]:
    """Each backend of the op that runs here, and on the CPU each instruction set."""
    others = [(name, "") for name in available(op) if name != "cpu"]
    return [("cpu", name) for name in instruction_sets()] + others


def name_of(provider: tuple[str, str]) -> str:
    return "-".join(part for part in provider if part)


@contextmanager
def running_on(provider: tuple[str, str]) -> Iterator[str]:
    """Inside the block, ops run on this backend (and instruction set); gives the backend."""
    name, instruction_set = provider
    module = backends.compiled_module()
    if name == "cpu":
        module.set_instruction_set(instruction_set)
    try:
        with speechft.use_backend(name):
            yield name
    finally:
        if name == "cpu":
            module.set_instruction_set("")


def device_of(backend: str) -> str:
    return "cuda" if backend in ("cuda", "triton") else "cpu"


def value_and_gradients(
    op: Op, inputs: Sequence[Tensor], weights: Tensor | None = None
) -> list[Tensor]:
    """The op's output, then its gradient by each input, for an incoming gradient ``weights``."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    # clone() keeps dense strides, not the holes of a view: slice anew where the input had them
    output = op(*leaves)
    weights = torch.ones_like(output) if weights is None else weights.to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, weights)]


def assert_as_accurate(
    op: Op,
    reference: Op,
    inputs: Sequence[Tensor],
    *,
    device: str = "cpu",
    weights: Tensor | None = None,
    factor: float = 2.0,
    message: str = "",
) -> None:
    """Promise 3: errors of value and gradients within ``factor`` of the reference's, plus eps."""
    truth = value_and_gradients(reference, [t.double() for t in inputs], weights)
    same = value_and_gradients(reference, inputs, weights)
    on_device = [t.to(device) for t in inputs]
    ours = value_and_gradients(op, on_device, None if weights is None else weights.to(device))
    for k, (got, eager, exact) in enumerate(zip(ours, same, truth, strict=True)):
        got, eager = got.cpu().double(), eager.double()
        assert torch.isfinite(got).all() or not torch.isfinite(exact).all(), (
            f"{message}: not finite"
        )
        scale = exact.abs().max()
        eps = torch.finfo(torch.float32 if k == 0 else inputs[0].dtype).eps
        error, allowed = (got - exact).abs().max(), factor * (eager - exact).abs().max()
        assert error <= allowed + 4 * eps * scale, (
            f"{message}: {'value' if k == 0 else f'gradient {k}'} is off by {error:.3g} of "
            f"{scale:.3g}; the reference by {allowed / factor:.3g}"
        )


def assert_padding_invariant(
    op: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    inputs: Sequence[Tensor],
    lengths: Sequence[Tensor],
    *,
    grow: int = 7,
    fill: float = float("nan"),
    tolerance: float = 1e-6,
) -> None:
    """Promise 4: more padding, whatever it holds, changes neither values nor gradients."""

    def pad(tensor: Tensor) -> Tensor:
        extra = tensor.new_full((tensor.shape[0], grow, *tensor.shape[2:]), fill)
        return torch.cat([tensor, extra], dim=1)

    plain = value_and_gradients(lambda *xs: op(xs, lengths), inputs)
    padded = value_and_gradients(lambda *xs: op(xs, lengths), [pad(t) for t in inputs])
    torch.testing.assert_close(padded[0], plain[0], rtol=tolerance, atol=tolerance)
    for tensor, grown, before, length in zip(inputs, padded[1:], plain[1:], lengths, strict=True):
        steps = tensor.shape[1]
        torch.testing.assert_close(grown[:, :steps], before, rtol=tolerance, atol=tolerance)
        assert (grown[:, steps:] == 0).all(), "padding has a gradient"
        beyond = torch.arange(steps) >= length[:, None]
        assert (before[beyond] == 0).all(), "padding has a gradient"


def assert_alone_as_in_batch(
    op: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    inputs: Sequence[Tensor],
    lengths: Sequence[Tensor],
    *,
    tolerance: float = 1e-6,
) -> None:
    """Promise 4: a sample's value is the same alone, cut to its length, as with batch-mates."""
    together = op(inputs, lengths)
    for b in range(len(inputs[0])):
        alone = [t[b : b + 1, : n[b]] for t, n in zip(inputs, lengths, strict=True)]
        value = op(alone, [n[b : b + 1] for n in lengths])
        torch.testing.assert_close(value[0], together[b], rtol=tolerance, atol=tolerance)


def assert_deterministic(op: Op, inputs: Sequence[Tensor]) -> None:
    """Promise 6: the same inputs give the same bits, twice, whatever the number of threads."""
    threads = torch.get_num_threads()
    first = value_and_gradients(op, inputs)
    try:
        torch.set_num_threads(1)
        again = value_and_gradients(op, inputs)
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(first, value_and_gradients(op, inputs), strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(first[0], again[0], rtol=1e-6, atol=0)
