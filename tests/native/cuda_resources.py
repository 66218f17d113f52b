"""What nvcc makes of the CUDA kernels: registers, stack and shared memory on every architecture.

    python tests/native/cuda_resources.py            compares with resources.txt
    python tests/native/cuda_resources.py --write    writes it there
    python tests/native/cuda_resources.py --keep DIR keeps the PTX, OPERATOR_80.ptx and _90.ptx

Needs nvcc, not a GPU. The numbers are those of one compiler, named in the first line; another one
may differ, but no kernel may ever use the stack or spill.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import resources

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
# Architectures, and the virtual ones that their code is made by way of, as setup.py does.
ARCHITECTURES = {"80": "80", "87": "80", "90": "90"}
OPERATORS = sorted(source.stem for source in (CSRC / "cuda").glob("*.cu"))

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class Kernel(NamedTuple):
    """A kernel on an architecture: bytes of stack and of spills, registers, shared bytes."""

    name: str
    architecture: str
    stack: int
    spilled: int
    registers: int
    shared: int

    def __str__(self) -> str:
        """A line of the table."""
        return (
            f"{self.name:64} sm_{self.architecture}  {self.registers:3} registers"
            f"  {self.shared:6} bytes shared"
        )


def nvcc() -> str | None:
    """Returns the CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(f"{home}/bin/nvcc") or shutil.which("nvcc")


def release() -> str:
    """Returns the version of the CUDA compiler."""
    compiler = nvcc()
    assert compiler is not None
    text = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True
    ).stdout
    return next(line for line in text.splitlines() if "release" in line).split(", ")[-1]


def measure(folder: Path) -> list[Kernel]:
    """Compiles every kernel for every architecture, by way of PTX that stays in a folder."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        virtual = [(o, v) for o in OPERATORS for v in sorted(set(ARCHITECTURES.values()))]
        list(pool.map(lambda job: _to_ptx(folder, *job), virtual))
        jobs = [(operator, number) for operator in OPERATORS for number in ARCHITECTURES]
        found = pool.map(lambda job: list(_assemble(folder, *job)), jobs)
        return sorted(kernel for kernels in found for kernel in kernels)


def entries(ptx: Path) -> dict[str, str]:
    """Returns the PTX of every kernel in a file, by its body."""
    found = re.split(r"\.entry ", ptx.read_text())[1:]
    return {_readable(entry.partition("(")[0].strip()): entry for entry in found}


def _to_ptx(folder: Path, operator: str, virtual: str) -> None:
    compiler = nvcc()
    assert compiler is not None
    flags = ["-std=c++17", "-O3", f"-I{CSRC / 'include'}", "-diag-suppress=20012,128"]
    target = str(folder / f"{operator}_{virtual}.ptx")
    source = str(CSRC / "cuda" / f"{operator}.cu")
    command = [compiler, *flags, f"-arch=compute_{virtual}", "-ptx", "-o", target, source]
    subprocess.run(command, check=True, capture_output=True)


def _assemble(folder: Path, operator: str, architecture: str) -> Iterator[Kernel]:
    compiler = nvcc()
    assert compiler is not None
    source = str(folder / f"{operator}_{ARCHITECTURES[architecture]}.ptx")
    command = [compiler, "-cubin", "-Xptxas=-v", f"-arch=sm_{architecture}", "-o", os.devnull]
    log = subprocess.run([*command, source], check=True, capture_output=True, text=True).stderr
    name, stack, spilled = "", 0, 0
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            name = _readable(match[1])
        elif match := _STACK.search(line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif match := _USED.search(line):
            shared = _SHARED.search(line)
            yield Kernel(
                f"{operator} {name}",
                architecture,
                stack,
                spilled,
                int(match[1]),
                int(shared[1]) if shared else 0,
            )


def _readable(symbol: str) -> str:
    """Returns a kernel's body, such as Forward<__half>, of its mangled name."""
    text = subprocess.run(["c++filt", symbol], check=True, capture_output=True, text=True).stdout
    text = re.sub(r"evit::cuda::|\(anonymous namespace\)::", "", text.strip())
    match = re.search(r"run_(?:body|blocks)<(.*) ?>\(", text)
    return (match[1] if match else text).strip()


def main() -> int:
    """Compares or writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if nvcc() is None:
        print("cuda_resources.py: there is no nvcc")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        kernels = measure(arguments.keep or Path(folder))
    bad = [kernel for kernel in kernels if kernel.stack or kernel.spilled]
    for kernel in bad:
        print(f"{kernel}: {kernel.stack} bytes of stack, {kernel.spilled} bytes spilled")
    same = resources.settled("nvcc", release(), kernels, write=arguments.write)
    return 1 if bad or not same else 0


if __name__ == "__main__":
    sys.exit(main())
