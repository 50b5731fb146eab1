"""``pytest bench/``: the same cases under pytest-benchmark. No provider is timed before it agrees
with float64.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from . import measure, registry

_CASES = [case for op in registry.OPS for case in registry.cases(op)]
_RUNS = [(case, provider) for case in _CASES for provider in case.providers]
_truths: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("case", "name"), _RUNS, ids=[f"{case.op}-{case.name}-{name}" for case, name in _RUNS]
)
def test_op(benchmark: Any, case: registry.Case, name: str) -> None:
    provider = case.providers[name]
    if case.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("not run: no GPU")
    if provider.needs and importlib.util.find_spec(provider.needs) is None:
        pytest.skip(f"not run: {provider.needs} is not installed")
    if case.name not in _truths:
        _truths.clear()  # one case's at a time
        _truths[case.name] = measure.truth(case)
    if provider.compared:
        error = measure.error(provider, *_truths[case.name])
        assert max(error.value, error.gradient) <= case.tolerance, f"{name} is off by {error}"
        benchmark.extra_info.update(value_error=error.value, gradient_error=error.gradient)

    benchmark.group = case.name
    if not case.modes or provider.max_repeats == 0:
        benchmark.pedantic(lambda: None, rounds=1)  # errors only
        return
    call = measure.call(provider, case.make(False).to(case.device), case.modes[-1])
    if provider.graph:
        call = measure.captured(call)

    def finished() -> None:
        call()
        if case.device == "cuda":
            torch.cuda.synchronize()

    slow = provider.max_repeats is not None
    benchmark.pedantic(finished, rounds=1 if slow else 5, warmup_rounds=0 if slow else 1)
