"""What Triton's kernels are compiled to, for any GPU, without one.

The launchers run on tensors without memory, and what they would launch is compiled as a launch
would compile it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evit_kernels import _triton

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_ALIGNED = 16  # addresses and numbers that it divides are compiled differently

_USED = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


class Launch(NamedTuple):
    """A launch that was not done: the kernel, its arguments by name, options of the compiler."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """The operator and the kernel."""
        return f"{self.kernel.fn.__module__.split('.')[1]} {self.kernel.__name__}"


class Code(NamedTuple):
    """A compiled kernel: registers, bytes of stack and spills, shared bytes, intermediate code."""

    registers: int
    stack: int
    shared: int
    ptx: str


@contextmanager
def recorded(architecture: int) -> Iterator[list[Launch]]:
    """Writes down launches, as for an architecture (90 for sm_90), instead of doing them."""
    launches: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in ("num_warps", "maxnreg") if name in named}
        bound = kernel.signature.bind(*arguments, **named)
        launches.append(Launch(kernel, dict(bound.arguments), options))

    with (
        mock.patch.object(triton.runtime.JITFunction, "run", run),
        mock.patch.object(_triton, "architecture", return_value=architecture),
    ):
        yield launches


def compiled(launch: Launch, architecture: int) -> Code:
    """Compiles what a launch would, by Triton's own rules of specialisation."""
    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
        if isinstance(value, Tensor) or (type(value) is int and value % _ALIGNED == 0):
            attributes[(i,)] = [["tt.divisibility", _ALIGNED]]
    result = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=launch.options,
    )
    return _code(result)


def _code(result: Any) -> Code:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = _USED.search(answer)
    if match is None:
        raise RuntimeError(f"cuobjdump does not say what the kernel uses: {answer}")
    registers, stack, local = map(int, match.groups())
    # Shared memory is asked for at the launch: the object does not know of it.
    return Code(registers, stack + local, result.metadata.shared, result.asm["ptx"])
