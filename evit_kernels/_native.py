"""Loads the compiled core, once, with one OpenMP runtime shared with torch.

The core is compiled with OpenMP but linked without a runtime of its own: its symbols come from the
runtime that torch brings. On x86-64 wheels that runtime is visible to everybody already. On aarch64
wheels it is mapped privately under a mangled name, so it is found among the mapped files and opened
again with global visibility. Only where torch maps none is the system's opened.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
from functools import lru_cache
from types import ModuleType

import torch  # also maps the OpenMP runtime that the core is bound to
from torch import Tensor

# The codes of the core's dtypes (csrc/include/evit/common.h).
DTYPES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float64: 3,
}
NO_DEVICE = "torch sees no CUDA device"
NO_CUDA = "this build has no CUDA kernels: no nvcc, or EVIT_CUDA=0, when it was installed"
_OPENMP_FILE = re.compile(r"/(lib(?:g|i|)omp[^/]*\.so[^/]*)$")


def core() -> ModuleType:
    """Returns the compiled core; raises ImportError with the reason when it is not there."""
    module, reason = _load()
    if module is None:
        raise ImportError(reason)
    return module


def failure() -> str | None:
    """Returns why the compiled core cannot be used, or None when it can.

    A core that was never built is a reason; one that is there and does not load raises ImportError.
    """
    return _load()[1]


@lru_cache(maxsize=1)
def cuda() -> ModuleType:
    """Returns the CUDA kernels; raises ImportError with the reason when they are not there."""
    if importlib.util.find_spec("evit_kernels._cuda") is None:
        raise ImportError(NO_CUDA)
    return importlib.import_module("evit_kernels._cuda")


def on_cuda(x: Tensor) -> bool:
    """Tells whether a call on a tensor goes to the CUDA kernels."""
    return x.is_cuda


def stream(x: Tensor) -> tuple[int, int]:
    """Returns where a CUDA kernel has to run: the device, and the caller's stream on it."""
    handle: int = torch.cuda.current_stream(x.device).cuda_stream
    return x.get_device(), handle


def cuda_failure(device: torch.device) -> str | None:
    """Returns why the CUDA kernels cannot serve a device, or None when they can."""
    if importlib.util.find_spec("evit_kernels._cuda") is None:
        return NO_CUDA
    if not torch.cuda.is_available():
        return NO_DEVICE
    compiled = cuda().architectures.split(",")
    major, minor = torch.cuda.get_device_capability(device)
    if any(_runs_on(name, major, minor) for name in compiled):
        return None
    return (
        f"the CUDA kernels were compiled for {', '.join(compiled)}, the device is {major}.{minor}: "
        "set EVIT_CUDA_ARCHS and install again"
    )


def _runs_on(architecture: str, major: int, minor: int) -> bool:
    """Machine code ("90") runs on newer devices of its generation, PTX ("90+PTX") on all newer."""
    number, _, intermediate = architecture.partition("+")
    own = divmod(int(number), 10)
    if intermediate:
        return (major, minor) >= own
    return major == own[0] and minor >= own[1]


def openmp_libraries() -> list[str]:
    """Returns the paths of the OpenMP runtimes mapped into this process."""
    paths = set()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")
            if path[1] and _OPENMP_FILE.search("/" + path[2]):
                paths.add("/" + path[2])
    return sorted(paths)


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str | None]:
    if importlib.util.find_spec("evit_kernels._core") is None:
        return (
            None,
            "the compiled core was not built (install with a C++17 compiler: pip install .)",
        )
    _share_openmp()
    try:
        return importlib.import_module("evit_kernels._core"), None
    except ImportError as error:
        raise ImportError(
            f"evit_kernels: the compiled core is present but does not load: {error}. "
            "Reinstall with 'pip install --force-reinstall --no-deps .'"
        ) from error


def _share_openmp() -> None:
    if not os.path.exists("/proc/self/maps"):
        return
    mapped = openmp_libraries()
    if mapped:
        flags = os.RTLD_GLOBAL | os.RTLD_NOLOAD | os.RTLD_LAZY
        ctypes.CDLL(mapped[0], mode=flags)
    else:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_GLOBAL | os.RTLD_LAZY)
