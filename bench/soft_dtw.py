"""Cases of ``F.soft_dtw`` and ``F.soft_dtw_from_cost``: unit-norm frames, as SCORE makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import speechft
from speechft import functional as F
from speechft import reference as R
from speechft.reference.soft_dtw import in_band, squared_euclidean

from .machine import Machine
from .registry import FORWARD, MODES, Case, Floor, Inputs, Provider, register

OP = "soft_dtw"


def lengths(batch: int, n: int, m: int, shortest: int) -> tuple[Tensor, Tensor]:
    """Lengths of x and y, evenly from ``shortest`` to the whole; those of a pair are unrelated."""
    x, y = (torch.linspace(min(shortest, T), T, batch).round().long() for T in (n, m))
    return x, y.flip(0).roll(1)


def frames(
    batch: int,
    n: int,
    m: int,
    features: int,
    *,
    shortest: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Callable[[bool], Inputs]:
    """Make unit-norm x (B, N, D) and y (B, M, D); ragged, down to ``shortest``, unless None."""

    def make(tiny: bool) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        B, N, M = (min(batch, 2), min(n, 8), min(m, 8)) if tiny else (batch, n, m)

        def side(steps: int) -> Tensor:
            return normalize(torch.randn(B, steps, features, generator=generator), dim=-1).to(dtype)

        ragged = () if shortest is None else lengths(B, N, M, shortest)
        return Inputs((side(N), side(M)), ragged)

    return make


def costs(batch: int, n: int, m: int, features: int = 64) -> Callable[[bool], Inputs]:
    """Make costs (B, N, M), the squared distances of unit-norm frames."""

    def make(tiny: bool) -> Inputs:
        x, y = frames(batch, n, m, features)(tiny).leaves
        return Inputs((squared_euclidean(x, y),))

    return make


def speechft_op(
    op: Callable[..., Tensor], backend: str, **settings: Any
) -> Callable[[Inputs], Tensor]:
    """The op on one backend, so that another cannot be timed in its name."""

    def run(inputs: Inputs) -> Tensor:
        with speechft.use_backend(backend):
            return op(*inputs.leaves, *inputs.integers, reduction="none", **settings)

    return run


def reference_op(op: Callable[..., Tensor], **settings: Any) -> Callable[[Inputs], Tensor]:
    """The reference, of any dtype."""
    return lambda inputs: op(*inputs.leaves, *inputs.integers, reduction="none", **settings)


def peer(name: str, **settings: Any) -> Callable[[Inputs], Tensor]:
    """A function of the numba peers, which are imported at the first call."""

    def run(inputs: Inputs) -> Tensor:
        from .peers import soft_dtw_numba

        value: Tensor = getattr(soft_dtw_numba, name)(*inputs.leaves, *inputs.integers, **settings)
        return value

    return run


def floor(
    n: Tensor,
    m: Tensor,
    features: int,
    *,
    divergence: bool = False,
    bandwidth: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Callable[[Machine, str], Floor]:
    """Floor of the op on frames, of pairs with lengths ``n`` and ``m`` (B,).

    The Gram matrices at the rate of GEMMs, half of one that is symmetric, and each input and
    gradient moved once. On a CPU that is all: what lies between may stay in the caches, and of
    the gradient's products only those with alignments above zero are needed, which at small gamma
    are few. On a GPU also the gradient's products; the matrices of the recursion in memory (cost
    written and read; weights, as one matrix, written and read; alignment written and read by
    either gradient); and the serial chain: 100 cycles an anti-diagonal forward, half of it
    backward.
    """

    def cells(rows: Tensor, columns: Tensor) -> float:
        if bandwidth is None:
            return float((rows * columns).sum())
        i, j = (torch.arange(1, int(T.max()) + 1) for T in (rows, columns))
        inside = (i[:, None] <= rows[:, None, None]) & (j <= columns[:, None, None])
        return float((inside & in_band(i, j, rows, columns, bandwidth)).sum())

    def state(machine: Machine, mode: str) -> Floor:
        gradient = mode != FORWARD
        own = cells(n, n) + cells(m, m) if divergence else 0.0
        across = cells(n, m)
        products = across + own / 2
        if gradient and machine.device == "cuda":
            products += 2 * across + own  # for x and for y; a self term's are the same
        flop = 2.0 * features * products
        size = torch.finfo(dtype).bits // 8
        moved = float((n + m).sum()) * features * size * (2 if gradient else 1)
        chain = 0.0
        if machine.device == "cuda":
            moved += 4 * (across + own) * (7 if gradient else 2)
            chain = float((n + m).max() - 1) * (150 if gradient else 100) / machine.clock
        rate = machine.flops.get(dtype, machine.flops[torch.float32])
        seconds = flop / rate + moved / machine.bandwidth + chain
        arithmetic = (
            f"GEMMs {flop / 1e9:.4g} GFLOP / {rate / 1e9:.4g} GFLOP/s"
            f" + {moved / 1e6:.4g} MB / {machine.bandwidth / 1e9:.4g} GB/s"
            + (f" + chain {1e3 * chain:.3g} ms" if chain else "")
            + f", rates {machine.source}"
        )
        return Floor(1e3 * seconds, arithmetic)

    return state


def floor_of_programme(batch: int, n: int, m: int) -> Callable[[Machine, str], Floor]:
    """Floor of the dynamic programme alone: the cost read once, the alignment written once."""

    def state(machine: Machine, mode: str) -> Floor:
        moved = 4.0 * batch * n * m * (1 if mode == FORWARD else 2)
        return Floor(
            1e3 * moved / machine.bandwidth,
            f"{moved / 1e6:.4g} MB / {machine.bandwidth / 1e9:.4g} GB/s, rates {machine.source}",
        )

    return state


def add(
    name: str,
    device: str,
    shape: tuple[int, int, int, int],
    *,
    settings: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    shortest: int | None = None,
    peers: Sequence[str] = (),
    reference_repeats: int | None = None,
    **options: Any,
) -> None:
    """Register a case on frames of ``shape`` (B, N, M, D): speechft, the peers, the reference."""
    settings = {"gamma": 0.1, **(settings or {})}
    backend = "cpu" if device == "cpu" else "cuda"
    ours = speechft_op(F.soft_dtw, backend, **settings)
    definition = reference_op(R.soft_dtw, **settings)
    known = {
        "speechft-graph": Provider(ours, graph=True),
        "numba-gram": Provider(peer("gram", **settings), needs="numba"),
        "score": Provider(peer("score", **settings), at_once=1, needs="numba", max_repeats=2),
    }
    batch, n, m, features = shape
    full = lengths(batch, n, m, max(n, m) if shortest is None else shortest)
    register(
        Case(
            op=OP,
            name=name,
            device=device,
            make=frames(*shape, shortest=shortest, dtype=dtype),
            providers={
                "speechft": Provider(ours),
                **{peer: known[peer] for peer in peers},
                "reference": Provider(definition, max_repeats=reference_repeats),
            },
            truth=definition,
            floor=floor(
                *full,
                features,
                divergence=settings.get("divergence", False),
                bandwidth=settings.get("bandwidth"),
                dtype=dtype,
            ),
            **{"truth_samples": 2, **options},
        )
    )


def add_programme(name: str, batch: int, n: int, m: int, *, gamma: float, **options: Any) -> None:
    """Register a case of the dynamic programme alone, on costs (B, N, M), on the CPU."""
    register(
        Case(
            op=OP,
            name=name,
            device="cpu",
            make=costs(batch, n, m),
            providers={
                "speechft": Provider(speechft_op(F.soft_dtw_from_cost, "cpu", gamma=gamma)),
                "numba-gram": Provider(peer("from_cost", gamma=gamma), needs="numba"),
                "reference": Provider(
                    reference_op(R.soft_dtw_from_cost, gamma=gamma), max_repeats=5
                ),
            },
            truth=reference_op(R.soft_dtw_from_cost, gamma=gamma),
            floor=floor_of_programme(batch, n, m),
            truth_samples=2,
            **options,
        )
    )


SCORE = {"divergence": True, "length_normalize": True}
ON_GPU = ("speechft-graph",)
NUMBA = ("numba-gram",)

add(
    "divergence B=16 500x500 D=256", "cpu", (16, 500, 500, 256),
    settings=SCORE, peers=("numba-gram", "score"), reference_repeats=3, quick=True,
)  # fmt: skip
add_programme("programme B=64 500x500", 64, 500, 500, gamma=0.1, tolerance=0.05, quick=True)
# The usual recursion loses its digits here, and is let through to show it.
add_programme("error B=2 1500x1500 gamma=0.01", 2, 1500, 1500, gamma=0.01, modes=(), tolerance=2.0,
              quick=True)  # fmt: skip
add("ragged B=16 100-800 D=256", "cpu", (16, 800, 800, 256), shortest=100, peers=NUMBA,
    reference_repeats=3, tolerance=0.05)  # fmt: skip
add("banded w=50 B=16 800x800 D=256", "cpu", (16, 800, 800, 256), settings={"bandwidth": 50},
    reference_repeats=3, tolerance=0.05)  # fmt: skip
add("long B=1 4096x4096 D=256", "cpu", (1, 4096, 4096, 256), peers=NUMBA, reference_repeats=2,
    truth_samples=1, tolerance=0.5)  # fmt: skip
add("blunt gamma=10 B=16 500x500 D=256", "cpu", (16, 500, 500, 256),
    settings={**SCORE, "gamma": 10.0}, peers=NUMBA, reference_repeats=3)  # fmt: skip
add("short B=64 50x50 D=256", "cpu", (64, 50, 50, 256), peers=NUMBA, quick=True)

add("GPU bf16 B=64 500x500 D=256", "cuda", (64, 500, 500, 256), dtype=torch.bfloat16, peers=ON_GPU,
    reference_repeats=5, modes=MODES, quick=True)  # fmt: skip
add("GPU fp32 B=64 500x500 D=256", "cuda", (64, 500, 500, 256), peers=ON_GPU, reference_repeats=5)
add("GPU bf16 divergence B=64 500x500 D=256", "cuda", (64, 500, 500, 256), dtype=torch.bfloat16,
    settings=SCORE, peers=ON_GPU, reference_repeats=5, quick=True, tolerance=0.05)  # fmt: skip
add("GPU fp32 divergence B=16 500x500 D=256", "cuda", (16, 500, 500, 256), settings=SCORE,
    peers=ON_GPU, reference_repeats=5, quick=True)  # fmt: skip
add("GPU bf16 ragged B=64 100-800 D=256", "cuda", (64, 800, 800, 256), dtype=torch.bfloat16,
    shortest=100, peers=ON_GPU, reference_repeats=5, tolerance=0.05)  # fmt: skip
add("GPU bf16 B=64 3000x3000 D=256", "cuda", (64, 3000, 3000, 256), dtype=torch.bfloat16,
    peers=ON_GPU, reference_repeats=0, tolerance=0.05)  # fmt: skip
