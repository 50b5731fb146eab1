"""The CUDA sources compile for A100 and H100, without a warning and without a register spilt."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHITECTURES = ("80", "90a")
REGISTERS_FOR_TWO_BLOCKS = 128  # a thread, with 256 threads a block and 65536 registers

NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="no nvcc on the path: CUDA sources are not compiled here")
def test_compiles_clean(tmp_path: Path) -> None:
    assert NVCC is not None
    command = [NVCC, "-std=c++17", "-O3", "-c", "-Xptxas", "-v,-warn-spills", "--threads", "2"]
    command += ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    for architecture in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    command += [str(SOURCES / "soft_dtw.cu"), "-o", str(tmp_path / "soft_dtw.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert "warning" not in report, report

    kernels = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        report,
        re.DOTALL,
    )
    assert len(kernels) == 3 * len(ARCHITECTURES), report  # no, float and fixed-point weights
    for name, architecture, stack, stores, loads, registers in kernels:
        print(f"{architecture} {name}: {registers} registers")
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), (name, architecture)
        assert int(registers) <= REGISTERS_FOR_TWO_BLOCKS, (name, architecture)
