"""Compiles the core and its self-check without Python's headers, with any compiler, and runs it.

    python tests/native/selfcheck.py
    python tests/native/selfcheck.py --compiler clang++
    python tests/native/selfcheck.py --compiler aarch64-linux-gnu-g++ --static --runner qemu-aarch64

Sources, flags and instruction sets are those of setup.py. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"


def main() -> int:
    """Builds in a temporary folder and returns the exit code of the self-check."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--compiler", default=os.environ.get("CXX", "c++"))
    parser.add_argument("--runner", default="", help="what runs the program, for example qemu")
    parser.add_argument("--static", action="store_true", help="link everything into the program")
    arguments = parser.parse_args()
    compiler = shlex.split(arguments.compiler)
    target = _output([*compiler, "-dumpmachine"])
    print(f"{_output([*compiler, '--version']).splitlines()[0]}, for {target}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        program = _build(compiler, target.startswith("x86_64"), arguments.static, Path(folder))
        return subprocess.run(
            [*shlex.split(arguments.runner), str(program)], check=False
        ).returncode


def _build(compiler: list[str], x86: bool, static: bool, folder: Path) -> Path:
    build = _constants(ROOT / "setup.py")
    # Warnings are for the real build.
    flags = [*build["FLAGS"], "-w", f"-I{CSRC / 'include'}", f"-I{HERE}"]
    flags += ["-DEVIT_X86_LEVELS"] if x86 else []
    jobs: list[tuple[Path, str, list[str]]] = [
        (CSRC / name, Path(name).stem, [])
        for name in build["PLAIN"]
        if not name.startswith("bindings")
    ]
    jobs.append((HERE / "selfcheck.cpp", "selfcheck", ["-O1"]))
    plain = ["-DEVIT_PLAIN_ONLY"] if x86 else []
    levels = {"baseline": ["-DEVIT_BASELINE", *plain], **(build["X86_LEVELS"] if x86 else {})}
    for name in build["OPERATORS"]:
        for level, options in levels.items():
            source, stem = CSRC / "cpu" / f"{name}.cpp", f"{name}_{level}"
            jobs.append((source, stem, [f"-DEVIT_ISA={level}", *options]))

    def compile_one(job: tuple[Path, str, list[str]]) -> str:
        source, stem, options = job
        target = str(folder / f"{stem}.o")
        subprocess.run([*compiler, *flags, *options, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = folder / "selfcheck"
    options = ["-static"] if static else []
    subprocess.run([*compiler, *options, *objects, "-lgomp", "-o", str(program)], check=True)
    return program


def _constants(path: Path) -> dict[str, Any]:
    """The literals that a file assigns at its top level."""
    constants = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                constants[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return constants


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
