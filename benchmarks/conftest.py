"""Options of the benchmarks, and what their JSON tells about the machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpu_options
import pytest
import torch
from device import facts_of
from gpu_cases import Case
from gpu_options import GPU_OPTIONS, GpuRun

from evit_kernels import _native


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("evit")
    group.addoption("--rounds", type=int, default=15, help="Rounds in which every peer runs once.")
    group.addoption(
        "--quick", action="store_true", help="One round, to see that every benchmark still works."
    )
    gpu_options.add_options(group)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[GPU_OPTIONS] = gpu_options.options_of(config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks of GPUs are there where a GPU is."""
    of_gpus = collection_path.name.startswith(gpu_options.FILES)
    return True if of_gpus and gpu_options.reason_for_none(config.stash[GPU_OPTIONS]) else None


def pytest_report_header(config: pytest.Config) -> str | None:
    options = config.stash[GPU_OPTIONS]
    reason = gpu_options.reason_for_none(options)
    if reason:
        return f"evit: no benchmarks of GPUs: {reason}"
    return f"evit: benchmarks of GPUs on {options.device}, {options.shapes} shapes"


def pytest_report_collectionfinish(items: list[Any]) -> str | None:
    return gpu_options.estimate(items)


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """How many rounds to measure."""
    return 1 if request.config.getoption("--quick") else int(request.config.getoption("--rounds"))


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether this run only shows that the benchmarks work."""
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def gpu_run(pytestconfig: pytest.Config, rounds: int) -> GpuRun:
    """Where benchmarks of GPUs run, and for how long."""
    options = pytestconfig.stash[GPU_OPTIONS]
    return GpuRun(torch.device(options.device), rounds, options)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """One case of a benchmark of GPUs; memory of the one before is given back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    case: Case = request.param
    return case


@pytest.fixture(scope="module", autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _kept_memory() -> None:
    """Lets glibc keep what is freed.

    It hands large blocks back to the system until it has seen one as large as it ever keeps freed
    (32 MiB). Before that, some peers paid several times their own time for fresh pages at every
    call and others did not, depending on what happened to be allocated before.
    """
    block = torch.empty(31 * 2**20, dtype=torch.uint8)
    del block


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Names the machine's kind and the software; nothing that tells one machine from its twin."""
    machine_info.pop("node", None)
    core = _native.core() if _native.failure() is None else None
    machine_info.update(
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        onednn=torch.backends.mkldnn.is_available() and _onednn_version(),
        torch_cpu_capability=torch.backends.cpu.get_cpu_capability(),
        evit=version("evit"),
        evit_compiler=core.compiler if core else None,
        evit_instruction_set=core.instruction_set() if core else None,
        system=platform.system(),
        machine=platform.machine(),
        **_gpu(config),
    )
    cpu = machine_info.get("cpu")
    if isinstance(cpu, dict):
        kept = ("brand_raw", "arch", "count", "l2_cache_size", "l3_cache_size")
        machine_info["cpu"] = {key: cpu[key] for key in kept if key in cpu}


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Leaves out Python objects that no reader can use, and digits that no clock can give."""
    for entry in output_json["benchmarks"]:
        entry.pop("params")
        entry["stats"]["data"] = [float(f"{x:.7g}") for x in entry["stats"]["data"]]


def _gpu(config: Any) -> dict[str, Any]:
    options = config.stash[GPU_OPTIONS]
    return {} if gpu_options.reason_for_none(options) else facts_of(torch.device(options.device))


def _onednn_version() -> str:
    line = next(x for x in torch.__config__.show().splitlines() if "MKL-DNN" in x)
    return line.strip(" -").split("(")[0].strip()
