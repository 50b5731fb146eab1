"""Compile Triton kernels for a GPU that is not here, and read what the compiler made of them.

Two doors: :func:`assert_compiles_without_spills` for one kernel and one signature, and
:func:`recorded_launches`, which takes them from a launcher's own calls on meta tensors, so that
what is compiled is what would be launched::

    with recorded_launches(module) as launches:
        module.launcher(torch.empty(64, 500, 256, device="meta"))
    for launch in launches:
        launch.assert_compiles_without_spills()
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

CAPABILITIES = (80, 90)
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # the most that one block can have


def why_not() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return "TRITON_INTERPRET=1: this process interprets kernels and cannot compile them"
    if not _tool("cuobjdump").exists():
        return f"triton {triton.__version__} ships no cuobjdump to read registers with"
    return None


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a GPU."""

    capability: int
    registers: int  # a thread
    local_bytes: int  # a thread; spilled registers and stack: 0 in a sound kernel
    shared_bytes: int  # a block


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    capability: int,
    num_warps: int = 4,
    num_stages: int = 3,
    maxnreg: int | None = None,
    enable_fp_fusion: bool = True,
    divisible_by_16: Sequence[str] = (),
) -> Usage:
    """Compile to machine code for one compute capability.

    Args:
        kernel: a function decorated with ``triton.jit``.
        signature: type of each argument that is no constant: ``"*bf16"``, ``"i32"``, ``"fp32"``.
        constexprs: value of each other argument, the ``tl.constexpr`` ones and those that the
            launch would specialise (a stride of 1, a pointer that is None).
        capability: 80, 90, ...
        num_warps: as at the launch.
        num_stages: as at the launch.
        maxnreg: as at the launch.
        enable_fp_fusion: as at the launch.
        divisible_by_16: arguments that the launch would find divisible by 16 (pointers: aligned).
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    missing = set(names) - set(signature) - set(constexprs)
    assert not missing, f"{kernel.__name__}: no type or value for {sorted(missing)}"
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs=dict(constexprs),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible_by_16},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": num_warps,
            "num_stages": num_stages,
            "maxnreg": maxnreg,
            "enable_fp_fusion": enable_fp_fusion,
        },
    )
    registers, local_bytes = _registers_and_local_bytes(compiled.asm["cubin"])
    return Usage(capability, registers, local_bytes, compiled.metadata.shared)


def assert_compiles_without_spills(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    capabilities: Sequence[int] = CAPABILITIES,
    num_warps: int = 4,
    num_stages: int = 3,
    maxnreg: int | None = None,
    enable_fp_fusion: bool = True,
    divisible_by_16: Sequence[str] = (),
) -> list[Usage]:
    """Fail where a kernel does not compile, spills registers, or wants more shared memory than
    there is. Arguments as in :func:`compile_kernel`; returns what each capability takes.
    """
    usages = [
        compile_kernel(
            kernel,
            signature,
            constexprs,
            capability=capability,
            num_warps=num_warps,
            num_stages=num_stages,
            maxnreg=maxnreg,
            enable_fp_fusion=enable_fp_fusion,
            divisible_by_16=divisible_by_16,
        )
        for capability in capabilities
    ]
    for usage in usages:
        where = f"{kernel.__name__} for sm_{usage.capability} with {dict(constexprs)}"
        print(f"{where}: {usage}")
        assert usage.local_bytes == 0, (
            f"{where} spills: {usage.local_bytes} bytes of local memory a thread at "
            f"{usage.registers} registers; take smaller blocks or more warps"
        )
        most = SHARED_BYTES[usage.capability]
        assert usage.shared_bytes <= most, (
            f"{where} wants {usage.shared_bytes} bytes of shared memory of {most}; take smaller "
            "blocks or fewer stages"
        )
    return usages


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as the arguments of :func:`compile_kernel`."""

    kernel: Any
    grid: tuple[int, ...]
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any]
    divisible_by_16: tuple[str, ...]

    def assert_compiles_without_spills(
        self, capabilities: Sequence[int] = CAPABILITIES
    ) -> list[Usage]:
        """:func:`assert_compiles_without_spills` on this launch."""
        return assert_compiles_without_spills(
            self.kernel,
            self.signature,
            self.constexprs,
            capabilities=capabilities,
            divisible_by_16=self.divisible_by_16,
            **self.options,
        )


@contextmanager
def recorded_launches(module: ModuleType) -> Iterator[list[Launch]]:
    """Inside the block, the module's Triton kernels note their launches and do not run."""
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    kernels = {name: it for name, it in vars(module).items() if isinstance(it, JITFunction)}
    for name, kernel in kernels.items():
        setattr(module, name, _Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches.append(_specialise(self.kernel, grid, args, kwargs))

        return launch


def _specialise(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Launch:
    """What ``triton.jit`` would do with these arguments: which become constants, which types."""
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    divisible: list[str] = []
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None:
            constexprs[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            divisible.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            constexprs[name] = 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                divisible.append(name)
    options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
    return Launch(kernel, grid, signature, constexprs, options, tuple(divisible))


_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}


def _tool(name: str) -> Path:
    import triton.backends.nvidia

    return Path(next(iter(triton.backends.nvidia.__path__))) / "bin" / name


def _registers_and_local_bytes(cubin: bytes) -> tuple[int, int]:
    """Read from the machine code itself: spilled registers live in local memory (the stack)."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [str(_tool("cuobjdump")), "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    assert found is not None, f"cuobjdump does not say what the kernel uses:\n{report}"
    registers, stack, local = (int(number) for number in found.groups())
    return registers, stack + local
