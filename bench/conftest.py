"""``pytest bench/`` has the fixtures of pytest-benchmark, and says so where it is missing."""

from __future__ import annotations

import importlib.util

collect_ignore: list[str] = []
if importlib.util.find_spec("pytest_benchmark") is None:
    collect_ignore.append("test_ops.py")


def pytest_report_header() -> str | None:
    """Say why nothing is collected."""
    if collect_ignore:
        return "benchmarks need pytest-benchmark: pip install 'speechft[bench]'"
    return None
