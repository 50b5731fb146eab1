"""What is the CPU backend's own: tiles, threads, memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from speechft import functional as F
from speechft import reference as R
from speechft.backends import compiled_module
from speechft.functional import _pairwise_lse_cpu

if compiled_module() is None:
    pytest.skip("the compiled module is missing", allow_module_level=True)


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(size: int, seed: int) -> Tensor:
    return torch.randint(-1, 3, (size,), generator=torch.Generator().manual_seed(seed))


def everything(op, query, key, **case) -> list[Tensor]:
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (query, key) if leaf is not None]
    found = [p for p in op(*leaves, **case) if p is not None]
    finite = [torch.where(torch.isfinite(p), p, 0.0) for p in found]
    total = sum((p * torch.linspace(1, 2, len(p)).to(p)).sum() for p in finite)
    return [*found, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (32, 33), (40, 7), (64, 64)], ids=str)
@pytest.mark.parametrize("same", [False, True])
def test_tiles_of_any_shape_give_one_result(monkeypatch, tile, same):
    """Tails, slabs cut short, tiles of one row; where the queries are the keys, both halves."""
    query, key = rows(70, 6), None if same else rows(83, 6, seed=1)
    of_query, of_key = labels(70, 2), None if same else labels(83, 3)
    monkeypatch.setattr(_pairwise_lse_cpu, "ROWS", tile[0])
    monkeypatch.setattr(_pairwise_lse_cpu, "COLUMNS", tile[1])
    for labelled, columns, own in itertools.product([False, True], repeat=3):
        if own and not labelled:
            continue
        case = {"self_offset": 0 if same else 4, "columns": columns, "own": own}
        if labelled:
            case |= {"query_labels": of_query, "key_labels": of_key}
        got = everything(F.pairwise_lse, query, key, **case)
        want = everything(R.pairwise_lse, query.double(), None if same else key.double(), **case)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)


def test_no_bit_depends_on_the_number_of_threads_of_ours():
    """BLAS aside: with products of whole numbers, which it cannot round, all bits are the same."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randint(-3, 4, (n, 8), generator=generator).float() for n in (300, 700))
    case = {"query_labels": labels(300, 1), "key_labels": labels(700, 2), "columns": True}
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with torch.no_grad():
                found.append([p for p in F.pairwise_lse(query, key, **case) if p is not None])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


_PEAK = """
import json, sys
import torch
from speechft import functional as F
from speechft.bench.memory import resident_peak
N, D = map(int, sys.argv[1:])
def run(n):
    q, k = torch.randn(n, D, requires_grad=True), torch.randn(n, D, requires_grad=True)
    def step():
        value = F.info_nce(q, k, symmetric=True)
        value.backward()
        return value, q.grad, k.grad
    return step
run(64)()  # starts the threads
print(json.dumps(resident_peak(run(N))))
"""


def test_memory_is_of_the_size_of_the_inputs():
    """N = 4096, D = 256: at most 64 MiB beyond the inputs, where one matrix of logits is 64 MiB
    and eager PyTorch holds several.
    """
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, "4096", "256"], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) < 64 << 20
