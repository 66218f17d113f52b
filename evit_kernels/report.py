"""What is available on this machine, and why the rest is not: for people and for bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
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
        """One fact a line, then a table with one line for every operator, device and backend."""
        width = max(len(name) for name, _ in self.facts)
        lines = [f"{name:{width}}  {value}" for name, value in self.facts]
        table = [("operator", "device", "backend", "available")]
        for row in self.rows:
            answer = "yes" if row.available else f"no: {row.reason}"
            table.append((row.operator, row.device, row.backend, answer))
        widths = [max(len(cells[i]) for cells in table) for i in range(3)]
        lines.append("")
        for cells in table:
            start = "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=False))
            lines.append(f"{start}  {cells[3]}")
        return "\n".join(lines)


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
        ("order on CPUs", ", ".join(backends.ORDER)),
        ("order on GPUs", f"{', '.join(backends.CUDA_ORDER)} (by no measurement yet)"),
        ("EVIT_BACKEND", os.environ.get("EVIT_BACKEND") or "not set"),
    )
    rows = tuple(row for device in ("cpu", "cuda") for row in backends.availability(device))
    return Report(facts, rows, failure)


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
