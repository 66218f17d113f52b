"""What Triton makes of its kernels: registers, spills and shared memory on every architecture.

    python tests/native/triton_resources.py            compares with resources.txt
    python tests/native/triton_resources.py --write    writes it there

Needs Triton, not a GPU. The launchers run on tensors without memory; what they would launch is
compiled as a launch would compile it. The numbers are those of one version of Triton, named in the
first line; another one may differ, but no kernel may ever use the stack or spill. Kernels of rows
load 128 bits at a time, and attention of 16-bit tensors multiplies on tensor cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import resources
import torch
import triton
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "benchmarks"))

import triton_code  # noqa: E402

from evit_kernels.depthwise_conv3d import triton as depthwise  # noqa: E402
from evit_kernels.depthwise_conv3d.geometry import Geometry  # noqa: E402
from evit_kernels.relu_linear_attention import triton as attention  # noqa: E402

ARCHITECTURES = (80, 87, 90)
LAST = torch.channels_last_3d


class Kernel(NamedTuple):
    """A kernel on an architecture, and what it was compiled to."""

    name: str
    architecture: int
    code: triton_code.Code

    def __str__(self) -> str:
        """A line of the table."""
        return (
            f"{self.name:56} sm_{self.architecture}  {self.code.registers:3} registers"
            f"  {self.code.shared:6} bytes shared"
        )


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls whose kernels are compiled, by name: few, as every kernel takes a third of a second.

    (All tiles of triton_tiles.json were compiled by who made it, and spill nothing.)
    """
    cube, step, wide = (3, 3, 3), (1, 2, 2), (5, 5, 5)
    for kernel, stride, channels, dtype, layout in (
        (cube, (1, 1, 1), 64, torch.bfloat16, LAST),
        (cube, step, 16, torch.bfloat16, LAST),
        (cube, step, 16, torch.bfloat16, torch.contiguous_format),
        (wide, (1, 1, 1), 64, torch.float16, LAST),
        (wide, (1, 1, 1), 64, torch.float32, LAST),
    ):
        where = "rows" if layout is LAST else "planes"
        name = f"{kernel[1]}x{kernel[2]} s{stride[1]} {channels} {where}"
        call = partial(_depthwise, kernel, stride, channels, dtype, layout)
        yield f"{name} {triton_code.TYPES[dtype]}", call
    for dtype, width in ((torch.bfloat16, 16), (torch.float32, 32), (torch.float16, 64)):
        yield f"d{width} rows {triton_code.TYPES[dtype]}", partial(_attention, width, dtype)


def _depthwise(
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    channels: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    x = _empty((2, channels, 8, 28, 28), dtype, layout)
    weight = torch.empty((channels, 1, *kernel), dtype=dtype, device="meta")
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    geometry = Geometry(kernel, stride, padding, (1, 1, 1), "replicate")
    bias = torch.empty(channels, dtype=dtype, device="meta")
    y = depthwise.forward(x, weight, bias, geometry, "hardswish")
    depthwise.backward(torch.empty_like(y), x, weight, bias, geometry, "hardswish", [True] * 3)


def _attention(width: int, dtype: torch.dtype) -> None:
    qkv = [_empty((2, 4 * 3 * width, 4, 16, 16), dtype, LAST)]
    output, state = attention.forward_qkv(qkv, width, 1e-15)
    attention.backward_qkv(output, qkv, state, width, 1e-15, [True])


def _empty(size: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta", memory_format=layout)


def measure(architectures: tuple[int, ...] = ARCHITECTURES) -> list[Kernel]:
    """Compiles every kernel of every case."""
    found: dict[tuple[str, int], Kernel] = {}
    for architecture in architectures:
        for case, call in cases():
            with triton_code.recorded(architecture) as launches:
                call()
            for launch in launches:
                key = (_name(launch, case), architecture)
                if key not in found:
                    found[key] = Kernel(*key, triton_code.compiled(launch, architecture))
    return [found[key] for key in sorted(found)]


def _name(launch: triton_code.Launch, case: str) -> str:
    if launch.kernel.__name__ == "add_splits":
        return launch.name  # the same in every case
    if launch.arguments.get("SLOPE"):
        return f"{launch.name} slope {case}"
    return f"{launch.name}{' of gradient' if launch.arguments.get('TRANSPOSED') else ''} {case}"


def slow(kernel: Kernel) -> str | None:
    """Returns what a kernel is to have and has not, or None."""
    ptx, words = kernel.code.ptx, kernel.name.split()
    whole = any(x in ptx for x in ("ld.global.v4.b32", "ld.global.v2.b64", "cp.async.cg"))
    if "rows" in words and not whole:
        return "no 128-bit load"
    multiplies = words[0] == "relu_linear_attention" and words[-1] in ("bf16", "fp16")
    if multiplies and "mma.sync" not in ptx and "wgmma" not in ptx:
        return "no tensor core"
    return None


def main() -> int:
    """Compares or writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    kernels = measure()
    bad = [kernel for kernel in kernels if kernel.code.stack]
    for kernel in bad:
        print(f"{kernel}: {kernel.code.stack} bytes of stack")
    lacking = [(kernel, reason) for kernel in kernels if (reason := slow(kernel))]
    for kernel, reason in lacking:
        print(f"{kernel}: {reason}")
    same = resources.settled("Triton", triton.__version__, kernels, write=arguments.write)
    return 1 if bad or lacking or not same else 0


if __name__ == "__main__":
    sys.exit(main())
