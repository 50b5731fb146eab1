"""Run the benchmarks of an op, print them, save them."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from speechft.errors import BackendError, ConfigError

from . import machine, measure, memory, plot, registry, rows, table
from .registry import Case, Provider
from .rows import Row

_SECONDS = 4.0  # for the timed calls of one provider in one mode, two calls at least
_QUICK_SECONDS = 1.0
_SUFFIXES = (".csv", ".json")


def _print(text: str) -> None:
    print(text, flush=True)


def run(
    op: str,
    *,
    providers: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    device: str | None = None,
    output: str | Path | None = None,
    repeats: int = 30,
    quick: bool = False,
    measure_memory: bool = True,
    show: Callable[[str], None] | None = _print,
) -> list[Row]:
    """Time the cases of an op, check their errors against float64, and measure their memory.

    Args:
        op: which op, ``soft_dtw``.
        providers: these providers only; all if None.
        cases: these cases only, by name or a part of it; all if None.
        device: cases of ``cpu`` or ``cuda`` only.
        output: a ``.csv`` or ``.json`` file, or a folder, which gets both, named after the op and
            the device.
        repeats: calls timed of each provider and mode, fewer where they take long (never fewer
            than two, one with ``quick``); each row says how many.
        quick: the short list of cases, and at most a second a provider and mode.
        measure_memory: each provider in a process of its own, a few seconds each on a CPU.
        show: called with the table of each case as it is done.

    Returns:
        list[Row]: one a provider and mode, those that could not be run included.

    Raises:
        ConfigError: an unknown op, case, provider or device.
    """
    chosen = registry.cases(op, cases, providers=providers, device=device, quick=quick)
    if output is not None:
        _check_output(Path(output))
    done: list[Row] = []
    for case in chosen:
        result = _run_case(case, repeats, quick, measure_memory)
        done += result
        if show is not None:
            show(table.terminal(result) + "\n")
    if output is not None:
        for path in _files(Path(output), op, done):
            rows.save(done, path)
            if show is not None:
                show(f"saved {path}")
    return done


def _run_case(case: Case, repeats: int, quick: bool, measure_memory: bool) -> list[Row]:
    template = _template(case)
    modes = case.modes or ("error only",)
    if case.device == "cuda" and not torch.cuda.is_available():
        return [
            template(name, mode, status="not run: no GPU")
            for name in case.providers
            for mode in modes
        ]
    states = _check(case)
    alive = {name: state for name, state in states.items() if not isinstance(state, str)}
    timed: dict[tuple[str, str], measure.Timed | str] = {}
    for mode in case.modes:
        for name in alive:
            if case.providers[name].max_repeats != 0:
                timed[name, mode] = _prepare(case, name, mode, repeats, quick)
    measure.interleave(
        (one for one in timed.values() if not isinstance(one, str)), measure.timer(case.device)
    )

    result = []
    for name, state in states.items():
        for mode in modes:
            if isinstance(state, str):
                result.append(template(name, mode, status=state))
                continue
            one = timed.get((name, mode))
            if isinstance(one, str):
                result.append(template(name, mode, status=one))
                continue
            figures: dict[str, object] = {
                "value_error": None if state is None else state.value,
                "gradient_error": (
                    None if state is None or mode == registry.FORWARD else state.gradient
                ),
            }
            if one is not None:
                median, low, high = one.quantiles()
                figures |= {"median_ms": median, "p20_ms": low, "p80_ms": high}
                figures["repeats"] = len(one.times)
                ours = timed.get(("speechft", mode))
                if isinstance(ours, measure.Timed):
                    figures["ratio"] = median / ours.quantiles()[0]
                if case.device == "cuda" and not case.providers[name].graph:
                    figures["host_syncs"] = measure.host_syncs(one.call)
            result.append(template(name, mode, **figures))
    timed.clear()
    return _with_memory(case, result) if measure_memory else result


def _template(case: Case) -> Callable[..., Row]:
    """Make rows of the case: what they have in common, and the floor."""
    on_gpu = case.device == "cuda"
    figures = None
    if not on_gpu or torch.cuda.is_available():
        figures = machine.measure(case.device, torch.get_num_threads())
    empty = dict.fromkeys(
        ("median_ms", "p20_ms", "p80_ms", "repeats", "ratio", "memory_mib", "value_error",
         "gradient_error", "floor_percent", "floor_ms", "host_syncs")
    )  # fmt: skip

    def row(provider: str, mode: str, **values: object) -> Row:
        floor = case.floor(figures, mode) if figures is not None and mode in case.modes else None
        if floor is not None:
            values |= {"floor_ms": floor.milliseconds, "floor": floor.arithmetic}
            median = values.get("median_ms")
            if isinstance(median, float):
                values["floor_percent"] = 100 * floor.milliseconds / median
        everything = {
            **empty,
            "status": "ok",
            "floor": "",
            "device": machine.device_name(case.device),
            "threads": torch.get_num_threads(),
            "commit": machine.commit(),
            "date": machine.now(),
            **machine.versions(),
            **values,
        }
        return Row(op=case.op, case=case.name, provider=provider, mode=mode, **everything)  # type: ignore[arg-type]

    return row


def _check(case: Case) -> dict[str, measure.Error | str | None]:
    """Each provider's error against float64 (None: not compared), or why it cannot be timed."""
    inputs, exact = measure.truth(case)
    states: dict[str, measure.Error | str | None] = {}
    for name, provider in case.providers.items():
        missing = _missing(provider)
        if missing is not None:
            states[name] = missing
            continue
        if not provider.compared:
            states[name] = None
            continue
        try:
            state = measure.error(provider, inputs, exact)
        except BackendError as reason:
            states[name] = f"not run: {reason}"
        except Exception as error:  # a provider that breaks is a row, and the others go on
            states[name] = _failed(error)
        else:
            worst = max(state.value, state.gradient)
            right = worst <= case.tolerance  # False for NaN
            states[name] = (
                state
                if right
                else (f"failed: off by {worst:.2g} of the largest, {case.tolerance:g} is admitted")
            )
    return states


def _missing(provider: Provider) -> str | None:
    if provider.needs is not None and importlib.util.find_spec(provider.needs) is None:
        return f"not run: {provider.needs} is not installed"
    return None


def _failed(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"failed: {type(error).__name__}{': ' + lines[0][:200] if lines else ''}"


def _prepare(case: Case, name: str, mode: str, repeats: int, quick: bool) -> measure.Timed | str:
    """The call, warm, and how often it is to be timed."""
    provider = case.providers[name]
    try:
        call = measure.call(provider, case.make(False).to(case.device), mode)
        if provider.graph:
            if mode == registry.BACKWARD:
                return "not run: the graph is captured with its forward pass"
            call = measure.captured(call)
        if provider.max_repeats is not None:  # slow: its check was the warm-up
            return measure.Timed(call, 1 if quick else min(repeats, provider.max_repeats), [])
        timer = measure.timer(case.device)
        timer(call)
        took = max(timer(call), 1e-3) / 1e3
    except Exception as error:
        return _failed(error)
    fit = int((_QUICK_SECONDS if quick else _SECONDS) / took)
    return measure.Timed(call, min(repeats, max(fit, 1 if quick else 2)), [])


def _with_memory(case: Case, done: list[Row]) -> list[Row]:
    peaks: dict[tuple[str, str], float | None] = {}
    for name, provider in case.providers.items():
        modes = [row.mode for row in done if row.provider == name and row.median_ms is not None]
        if modes and not provider.graph:
            try:
                found = memory.peak(case, name, modes)
            except Exception as error:
                print(f"memory of {name} on {case.name}: {_failed(error)}", file=sys.stderr)
                continue
            peaks |= {(name, mode): peak for mode, peak in found.items()}
    return [
        dataclasses.replace(row, memory_mib=peaks.get((row.provider, row.mode))) for row in done
    ]


def _check_output(output: Path) -> None:
    """Before the minutes that the run takes."""
    is_file = output.suffix in _SUFFIXES
    if output.suffix and not is_file and not output.is_dir():
        raise ConfigError(f"output {output}: wants a .csv or .json file, or a folder")
    try:
        (output.parent if is_file else output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output {output}: {error}") from error


def _files(output: Path, op: str, done: Sequence[Row]) -> list[Path]:
    if output.suffix in _SUFFIXES:
        return [output]
    ran = [row.device for row in done if row.median_ms is not None]
    device = re.sub(r"[^a-z0-9]+", "-", (ran[-1] if ran else "none").lower()).strip("-")
    return [output / f"{op}-{device}{suffix}" for suffix in _SUFFIXES]


def parser() -> argparse.ArgumentParser:
    """The command line of ``speechft bench``."""
    parser = argparse.ArgumentParser(
        prog="speechft bench",
        description="Time an op against its reference and its peers; see bench/README.md.",
    )
    parser.add_argument("op", nargs="?", default=registry.OPS[0], help=", ".join(registry.OPS))
    parser.add_argument("--quick", action="store_true", help="a short list of cases, few calls")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="these cases, by part of name")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="these providers")
    parser.add_argument("--device", help="cases of cpu or cuda only")
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="calls timed, at most")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; torch's number")
    parser.add_argument(
        "--output", default="runs/bench", metavar="PATH", help="a .csv or .json file, or a folder"
    )
    parser.add_argument("--plot", metavar="PNG", help="also a bar chart (needs matplotlib)")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out: faster")
    parser.add_argument("--list", action="store_true", help="list the cases and leave")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        int: exit code: 0 done, 1 if a provider failed, 2 for an argument that makes no sense.
    """
    given = parser().parse_args(argv)
    try:
        if given.repeats < 1 or (given.threads is not None and given.threads < 1):
            raise ConfigError("--repeats and --threads want at least 1")
        if given.threads is not None:
            torch.set_num_threads(given.threads)
        if given.list:
            for case in registry.cases(given.op, device=given.device):
                print(f"{case.name:42} {case.device:5} {', '.join(case.providers)}")
            return 0
        done = run(
            given.op,
            providers=given.providers,
            cases=given.cases,
            device=given.device,
            output=given.output,
            repeats=given.repeats,
            quick=given.quick,
            measure_memory=not given.no_memory,
        )
    except ConfigError as error:
        print(f"speechft bench: {error}", file=sys.stderr)
        return 2
    if given.plot is not None:
        plot.save(done, Path(given.plot))
    return 1 if any(row.status.startswith("failed") for row in done) else 0
