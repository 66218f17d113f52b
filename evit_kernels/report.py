"""What is available on this machine, and why the rest is not: for people and for bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evit_kernels import _native, backends


@dataclass(frozen=True)
class Report:
    """The state of everything.

    Attributes:
        facts: (name, value) pairs: versions, compiler, instruction sets, OpenMP, threads, CUDA.
        rows: for every operator, device and backend, whether it is available and why not.
        failure: the loader's message, when the compiled core is there and does not load.
    """

    facts: tuple[tuple[str, str], ...]
    rows: tuple[backends.Availability, ...]
    failure: str | None

    def __str__(self) -> str:
        """One fact a line; who is available for every operator; who is asked first, and why."""
        rows = [("operator", "device", "backend", "available")]
        for row in self.rows:
            answer = "yes" if row.available else f"no: {row.reason}"
            rows.append((row.operator, row.device, row.backend, answer))
        orders = [("device", "operators", "dtypes", "order", "because")]
        for line in backends.ORDERS:
            operators = _any_or(line.operators, backends.OPERATORS)
            dtypes = _any_or([str(x).removeprefix("torch.") for x in line.dtypes], backends.DTYPES)
            order = ", ".join(line.backends)
            orders.append((line.device, operators, dtypes, order, line.grounds))
        return "\n\n".join(map(_aligned, (self.facts, rows, orders)))


def collect() -> Report:
    """Asks torch, the compiled core and every backend; raises nothing because something is missing.

    Looks for CUDA devices, which `import evit_kernels` never does.
    """
    failure, core_facts = _core()
    cuda = torch.cuda.is_available()
    facts = (
        ("evit", _version()),
        ("torch", torch.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *core_facts,
        ("OpenMP", _openmp()),
        ("threads", str(torch.get_num_threads())),
        ("CUDA", torch.cuda.get_device_name() if cuda else "torch sees no device"),
        ("CUDA kernels", _cuda_kernels()),
        ("Triton", backends.triton_failure() or backends.triton_version()),
        ("EVIT_BACKEND", os.environ.get("EVIT_BACKEND") or "not set"),
    )
    rows = tuple(row for device in ("cpu", "cuda") for row in backends.availability(device))
    return Report(facts, rows, failure)


def _aligned(table: Sequence[tuple[str, ...]]) -> str:
    """Returns lines whose columns, but the last, are as wide as their widest cells."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
    return "\n".join(
        "  ".join([*(cell.ljust(size) for cell, size in zip(row, widths, strict=False)), row[-1]])
        for row in table
    )


def _any_or(chosen: Sequence[str], every: Sequence[object]) -> str:
    return "any" if len(chosen) == len(every) else ", ".join(chosen)


def _core() -> tuple[str | None, tuple[tuple[str, str], ...]]:
    try:
        missing = _native.failure()
    except ImportError as error:
        return str(error), (("compiled core", "present, does not load (see native below)"),)
    if missing is not None:
        return None, (("compiled core", missing),)
    core = _native.core()
    in_use = core.instruction_set()
    others = [name for name in core.instruction_sets() if name != in_use]
    also = f" (also here: {', '.join(others)})" if others else ""
    return None, (("compiler", core.compiler), ("instruction set", f"{in_use}{also}"))


def _cuda_kernels() -> str:
    try:
        kernels = _native.cuda()
    except ImportError as error:
        return str(error)
    return f"{kernels.compiler}, for {kernels.architectures.replace(',', ', ')}"


def _openmp() -> str:
    libraries = _native.openmp_libraries()
    if len(libraries) > 1:
        return f"{len(libraries)} runtimes, which slow each other down: {', '.join(libraries)}"
    return libraries[0] if libraries else "no runtime is mapped"


def _version() -> str:
    try:
        return importlib.metadata.version("evit")
    except importlib.metadata.PackageNotFoundError:
        return "not installed, used from its sources"
