"""The benchmarks tell the truth: rows, errors, memory, turns, and what could not be run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from speechft.bench import machine, measure, memory, plot, registry, rows, run, soft_dtw, table

from speechft.errors import ConfigError

REGISTERED = registry.cases("soft_dtw")
SHORT = "short B=64"


def small(case: registry.Case, **changes) -> registry.Case:
    """A case on its tiny inputs."""
    return replace(case, make=lambda tiny: case.make(True), **changes)


@pytest.fixture
def case(monkeypatch):
    """The only case of the registry: two pairs of 8 frames."""
    (short,) = registry.cases("soft_dtw", [SHORT])
    tiny = small(short)
    monkeypatch.setattr(registry, "_cases", {"soft_dtw": {tiny.name: tiny}})
    return tiny


@pytest.mark.parametrize("case", REGISTERED, ids=lambda case: case.name)
def test_every_case_is_sound(case):
    inputs = case.make(True)
    again = case.make(True)
    assert all(torch.equal(a, b) for a, b in zip(inputs.leaves, again.leaves, strict=True))
    figures = machine.Machine(case.device, "a machine", 1e10, {torch.float32: 1e11}, 1e9, "given")
    floors = [case.floor(figures, mode) for mode in (registry.FORWARD, registry.BOTH)]
    assert 0 < floors[0].milliseconds < floors[1].milliseconds
    if case.device == "cpu":
        tiny = small(case)
        truth = measure.truth(tiny)
        for name, provider in case.providers.items():
            error = measure.error(provider, *truth)
            assert max(error.value, error.gradient) < 1e-3, name


def test_floor_on_an_h100_is_the_published_arithmetic():
    h100 = machine.Machine(
        "cuda", "H100", 3.35e12, {torch.bfloat16: 800e12, torch.float32: 60e12}, 1.755e9, "stated"
    )
    (case,) = registry.cases("soft_dtw", ["GPU bf16 B=64 500x500"])
    assert 0.25 <= case.floor(h100, registry.BOTH).milliseconds <= 0.30


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_floor_counts_what_lies_inside_lengths_and_band(device):
    """On a CPU the Gram matrices; on a GPU the two products of the gradient too."""
    figures = machine.Machine(device, "it", 1e30, {torch.float32: 1e9}, 1e30, "given")
    times = 3 if device == "cuda" else 1

    def cells(n, m, **settings):
        stated = soft_dtw.floor(torch.tensor(n), torch.tensor(m), 10, **settings)
        return stated(figures, registry.BOTH).milliseconds * 1e6 / (2 * 10 * times)

    assert cells([4], [6]) == pytest.approx(24)
    assert cells([4, 2], [6, 3]) == pytest.approx(24 + 6)
    # half of a symmetric matrix, and one product of its gradient: also half of two
    assert cells([4], [6], divergence=True) == pytest.approx(24 + (16 + 36) / 2)
    assert cells([5], [5], bandwidth=1) == pytest.approx(13)


def test_rows_of_a_run(case, tmp_path):
    shown = []
    done = run.run("soft_dtw", repeats=3, measure_memory=False, output=tmp_path, show=shown.append)
    assert {row.provider for row in done} == set(case.providers)
    for row in done:
        assert row.status == "ok"
        assert row.repeats == 3
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms
        assert row.floor_percent == pytest.approx(100 * row.floor_ms / row.median_ms)
        assert row.value_error < 1e-5
        assert (row.gradient_error is None) == (row.mode == registry.FORWARD)
    ours = {row.mode: row.median_ms for row in done if row.provider == "speechft"}
    assert all(row.ratio == pytest.approx(row.median_ms / ours[row.mode]) for row in done)
    csv, json_file = (next(tmp_path.glob(f"*{suffix}")) for suffix in (".csv", ".json"))
    assert rows.load(csv) == rows.load(json_file)
    assert [row.provider for row in rows.load(csv)] == [row.provider for row in done]
    assert "×" in shown[0]


def test_no_gpu_is_a_row(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run.run("soft_dtw", device="cuda", show=None)
    assert done
    assert {row.status for row in done} == {"not run: no GPU"}
    assert "not run: no GPU" in table.terminal(done)


def test_a_wrong_provider_is_not_timed(case, monkeypatch, tmp_path):
    right = case.providers["speechft"]
    providers = {
        **case.providers,
        "wrong": registry.Provider(lambda inputs: right.op(inputs) * 1.1),
        "nan": registry.Provider(lambda inputs: right.op(inputs) * float("nan")),
        "broken": registry.Provider(lambda inputs: 1 / 0),
        "absent": replace(right, needs="a_module_that_is_not_there"),
    }
    broken = {case.name: replace(case, providers=providers)}
    monkeypatch.setattr(registry, "_cases", {"soft_dtw": broken})
    done = run.run("soft_dtw", repeats=1, measure_memory=False, show=None)
    status = {row.provider: row.status for row in done}
    times = {row.provider: row.median_ms for row in done}
    assert status["wrong"].startswith("failed: off by 0.1 ")
    assert status["nan"].startswith("failed: off by nan")
    assert status["broken"].startswith("failed: ZeroDivisionError")
    assert status["absent"] == "not run: a_module_that_is_not_there is not installed"
    assert times["wrong"] is times["nan"] is times["broken"] is times["absent"] is None
    assert times["speechft"] is not None
    arguments = ["--no-memory", "--repeats", "1", "--output", str(tmp_path / "x.csv")]
    assert run.main(arguments) == 1


def test_providers_take_turns():
    order = []
    timed = [
        measure.Timed(call=lambda name=name: order.append(name), repeats=n, times=[])
        for name, n in (("a", 6), ("b", 6), ("slow", 2))
    ]
    measure.interleave(timed, measure.time_cpu)
    assert [name for name in order if name != "slow"] == ["a", "b"] * 6
    assert order.count("slow") == 2
    first, second = (i for i, name in enumerate(order) if name == "slow")
    assert second - first > len(order) // 3  # spread over the run, not bunched
    assert [len(one.times) for one in timed] == [6, 6, 2]


def test_time_is_of_the_call():
    assert 50 <= measure.time_cpu(lambda: time.sleep(0.05)) < 500
    one = measure.Timed(call=int, repeats=5, times=[5.0, 1.0, 2.0, 4.0, 3.0])
    assert one.quantiles() == pytest.approx((3.0, 1.8, 4.2))


def test_peak_memory_sees_what_is_given_back():
    """A tensor made and dropped inside the call, after one of its size was made and dropped."""

    def call() -> None:
        torch.ones(64 << 20, dtype=torch.uint8)

    call()
    rise = memory.resident_peak(call) / memory.MIB
    assert 60 <= rise <= 80
    assert memory.resident_peak(lambda: None) / memory.MIB < 4


def test_peak_memory_in_a_process_of_its_own():
    """What the op holds is a few cost matrices of a block of pairs, and the gradients."""
    (case,) = registry.cases("soft_dtw", ["divergence B=16"], device="cpu")
    found = memory.peak(case, "speechft", [registry.FORWARD, registry.BOTH])
    costs = 16 * 500 * 500 * 4 / memory.MIB
    assert costs / 2 < found[registry.FORWARD] < 6 * costs
    assert costs < found[registry.BOTH] < 10 * costs


def test_graphs_of_lots_accumulate_nothing():
    """One pair at a time gives the same as all at once."""
    (case,) = registry.cases("soft_dtw", ["short B=64"])
    inputs = case.make(True)
    op = case.providers["reference"].op
    exact = measure._value_and_gradients(op, inputs.to("cpu", torch.float64))
    error = measure.error(registry.Provider(op, at_once=1), inputs, exact)
    assert max(error.value, error.gradient) < 1e-4
    calls = []

    def counted(lot):
        calls.append(len(lot))
        return op(lot)

    measure.call(registry.Provider(counted, at_once=1), inputs, registry.BOTH)()
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["soft_dwt"], "Did you mean 'soft_dtw'?"),
        (["soft_dtw", "--cases", "divergance B=16 500x500 D=256"], "Did you mean 'divergence"),
        (["soft_dtw", "--providers", "speechtf"], "Did you mean 'speechft'?"),
        (["soft_dtw", "--device", "gpu"], "no device 'gpu'"),
        (["soft_dtw", "--repeats", "0"], "at least 1"),
        (["soft_dtw", "--output", "x.xlsx"], ".csv or .json"),
        (["soft_dtw", "--output", "/dev/null/x.csv"], "/dev/null"),
    ],
)
def test_what_makes_no_sense_is_named(arguments, said, capsys):
    assert run.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_list(capsys):
    assert run.main(["--list"]) == 0
    assert capsys.readouterr().out.count("\n") == len(REGISTERED)


def test_markdown_has_a_line_a_row(case):
    done = run.run("soft_dtw", repeats=1, measure_memory=False, show=None)
    lines = table.markdown(done).splitlines()
    assert len(lines) == 2 + len(done)
    assert len({line.count("|") for line in lines}) == 1


def test_plot_without_matplotlib_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        plot.save([], tmp_path / "x.png")


def test_saved_file_is_json_of_the_schema(case, tmp_path):
    path = tmp_path / "deep" / "results.json"
    done = run.run("soft_dtw", repeats=1, measure_memory=False, output=path, show=None)
    records = json.loads(path.read_text())
    assert list(records[0]) == list(rows.Row.__dataclass_fields__)
    assert len(records) == len(done)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_script_says_that_there_is_no_gpu(tmp_path):
    script = Path(__file__).parents[2] / "bench" / "gpu.sh"
    result = subprocess.run(
        ["bash", str(script)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 3
    assert "no GPU here" in result.stdout
