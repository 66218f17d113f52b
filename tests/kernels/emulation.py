"""The CUDA kernels, compiled for the host: every thread of a launch is run by a loop (launch.h).

So the kernels themselves are tried where there is no GPU: their arithmetic, their indices, what
they write and what they leave out. Not tried are the compiler for GPUs, and what threads do to each
other.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import shared
import torch
from known_calls import forget_every_call

from evit_kernels import _native, backends

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "csrc"
OPERATORS = backends.CUDA_OPERATORS
NAME = "evit_cuda_emulated"


@cache
def kernels() -> ModuleType:
    """Returns the CUDA kernels, compiled for the host once in a test run, as the module `_cuda`."""
    library = shared.folder() / f"{NAME}.so"
    with shared.alone(NAME):
        if not library.exists():
            _compile(library)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(library: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    includes = [CSRC / "include", pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [
        *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
        *("-Wno-psabi", "-Wno-unknown-pragmas", "-ffp-contract=fast"),
        *(f"-I{path}" for path in includes),
        f"-DEVIT_CUDA_MODULE={NAME}",
        '-DEVIT_CUDA_ARCHITECTURES="host"',
        '-DEVIT_CUDA_COMPILER="the host\'s"',
        # For runs under sanitizers (tests/sanitize.sh).
        *shlex.split(os.environ.get("EVIT_EMULATION_FLAGS", "")),
    ]
    sources = [CSRC / "bindings_cuda.cpp", *(CSRC / "cuda" / f"{n}.cu" for n in OPERATORS)]

    def compiled(source: Path) -> str:
        target = str(library.with_name(f"{NAME}_{source.stem}.o"))
        command = [*compiler, *flags, "-x", "c++", "-c", str(source), "-o", target]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*compiler, *flags, "-shared", *objects, "-o", str(library)], check=True)


@contextmanager
def in_use() -> Iterator[None]:
    """Sends the calls of CPU tensors to the CUDA kernels."""
    module = kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "cuda", lambda: module)
        patch.setattr(_native, "on_cuda", lambda x: x.device == torch.device("cpu"))
        patch.setattr(_native, "stream", lambda x: (0, 0))
        # Known calls have chosen their kernels.
        forget_every_call(patch)
        yield
