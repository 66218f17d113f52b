"""Backends: their names, which one serves a call, and the reason when one does not.

`reference` is plain PyTorch and always there. `native` is the compiled core. `triton` is for GPU
machines without a CUDA compiler.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from evit_kernels import _native, trials

ENVIRONMENT = "EVIT_BACKEND"
INTERPRETER = "TRITON_INTERPRET"  # Triton's own variable, read when Triton is imported
NAMES: tuple[str, ...] = ("reference", "native", "triton")
DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Why a backend cannot serve an operator on tensors of a device and dtype, whose heads are wide or
# not; None when it can.
Refusal = Callable[[str, torch.device, torch.dtype, bool], "str | None"]


@dataclass(frozen=True)
class Availability:
    """Whether a backend can serve an operator on a device, and the reason when it cannot."""

    operator: str
    backend: str
    device: str
    available: bool
    reason: str


def native_refusal(
    operator: str, device: torch.device, dtype: torch.dtype, wide: bool = False
) -> str | None:
    """Returns why compiled kernels cannot serve an operator on a device and dtype, or None."""
    if dtype not in DTYPES:
        return f"the compiled core has no kernels for {dtype}"
    if device.type == "cpu":
        return _native.failure()
    if device.type != "cuda":
        return f"there are compiled kernels for CPU and CUDA, the tensors are on {device}"
    if operator not in CUDA_OPERATORS:
        return "there is no CUDA kernel for this operator yet"
    return _native.failure() or _native.cuda_failure(device)


def triton_refusal(
    operator: str, device: torch.device, dtype: torch.dtype, wide: bool = False
) -> str | None:
    """Returns why Triton cannot serve an operator on a device and dtype, or None.

    Looks for Triton without importing it, which takes longer than importing us.
    """
    if operator not in TRITON_OPERATORS:
        return "there are no Triton kernels for this operator yet"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"Triton kernels keep their sums in float32, the tensors are {dtype}"
    if wide:
        return f"there are Triton kernels for heads of at most {TRITON_WIDEST} features"
    if device.type not in ("cpu", "cuda"):
        return f"there are Triton kernels for GPUs, the tensors are on {device}"
    reason = triton_failure()
    if reason is not None:
        return reason
    if device.type == "cuda":
        return None if torch.cuda.is_available() else _native.NO_DEVICE
    if os.environ.get(INTERPRETER) != "1":
        return (
            "Triton kernels run on GPUs, the tensors are on cpu "
            f"({INTERPRETER}=1 has them interpreted there, slowly)"
        )
    loaded = sys.modules.get("evit_kernels._triton")
    if loaded is not None and not loaded.INTERPRETED:
        return f"{INTERPRETER}=1 was set after the Triton kernels were loaded"
    return None


@lru_cache(maxsize=1)
def triton_failure() -> str | None:
    """Returns why the Triton that is installed cannot be used, or None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'evit[triton]')"
    version = triton_version()
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        return f"the version of Triton, {version!r}, is no version"
    if not TRITON_VERSIONS[0] <= (int(numbers[1]), int(numbers[2])) <= TRITON_VERSIONS[1]:
        first, last = (".".join(map(str, pair)) for pair in TRITON_VERSIONS)
        return f"Triton {version} is installed, the kernels are for {first} to {last}"
    return None


def triton_version() -> str:
    """Returns the version of the distribution that brought Triton: torch's own have other names."""
    for name in ("triton", "pytorch-triton", "triton-rocm"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"


_REFUSALS: dict[str, Refusal] = {
    "reference": lambda operator, device, dtype, wide: None,
    "native": native_refusal,
    "triton": triton_refusal,
}
OPERATORS: tuple[str, ...] = (
    "depthwise_conv3d",
    "dense_conv3d",
    "relu_linear_attention",
    "pointwise_conv3d",
    "pointwise_depthwise_conv3d",
    "batch_norm_activation",
)
CUDA_OPERATORS: tuple[str, ...] = ("depthwise_conv3d", "relu_linear_attention")
TRITON_OPERATORS: tuple[str, ...] = ("depthwise_conv3d", "relu_linear_attention")
TRITON_WIDEST = 64  # features of a head: the matrices of wider ones do not fit a multiprocessor
TRITON_VERSIONS = ((3, 2), (3, 9))  # the first and the last that the kernels are for


class Order(NamedTuple):
    """Backends, preferred first, and for which calls: the first line that fits is heeded.

    Shapes make no difference in any line: where they were measured, one backend won them all.

    Attributes:
        device: the kind of device.
        operators, dtypes: of the calls that it is for.
        backends: every backend, whether or not it can serve.
        grounds: what was measured, or why this order where nothing was.
        trial: whether a fused backend has to pass a trial before it serves by default, because
            nobody has seen its kernels run on such a device (trials.py).
    """

    device: str
    operators: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    backends: tuple[str, ...]
    grounds: str
    trial: bool = False


ORDERS: tuple[Order, ...] = (
    Order(
        "cpu",
        ("depthwise_conv3d", "relu_linear_attention"),
        (torch.float32,),
        ("native", "reference", "triton"),
        "measured on every shape of b1: benchmarks/results; Triton is only interpreted",
    ),
    Order(
        "cpu",
        OPERATORS,
        DTYPES,
        ("native", "reference", "triton"),
        "unmeasured one by one; by its floor: one pass over memory, where PyTorch makes several",
    ),
    # Both fused backends read and write what the floor says; the launches of native cost less.
    Order(
        "cuda",
        OPERATORS,
        DTYPES,
        ("native", "triton", "reference"),
        "unmeasured; by their floors, and only after a trial on the device at hand",
        trial=True,
    ),
)


def available_backends(
    device: str | torch.device = "cpu", operator: str | None = None
) -> tuple[str, ...]:
    """Returns the names of the backends that can serve float32 tensors on a device, best first.

    Those that serve one operator (a name in OPERATORS), or by default all of them. Raises
    ValueError for an operator that is not there.
    """
    device = torch.device(device)
    if operator is not None and operator not in OPERATORS:
        raise ValueError(
            f"available_backends: operator must be one of {', '.join(map(repr, OPERATORS))}, "
            f"got {operator!r}"
        )
    asked = OPERATORS if operator is None else (operator,)
    return tuple(
        backend
        for backend in order(asked[0], device, torch.float32).backends
        if all(refusal(name, backend, device, torch.float32) is None for name in asked)
    )


def order(operator: str, device: torch.device, dtype: torch.dtype) -> Order:
    """Returns the order in which backends are asked to serve a call.

    Of devices and dtypes that no line is for, all but the reference refuse: any line does.
    """
    fitting = (
        line
        for line in ORDERS
        if line.device == device.type and operator in line.operators and dtype in line.dtypes
    )
    return next(fitting, ORDERS[-1])


def availability(device: str | torch.device = "cpu") -> list[Availability]:
    """Returns, for every operator and backend, whether it is available on a device and why not.

    A compiled core that does not load is a reason here, not an error: this is where people look.
    """
    device = torch.device(device)
    rows = []
    for operator in OPERATORS:
        for backend in NAMES:
            reason = _reason(operator, backend, device)
            rows.append(Availability(operator, backend, str(device), reason is None, reason or ""))
    return rows


def refusal(
    operator: str, backend: str, device: torch.device, dtype: torch.dtype, wide: bool = False
) -> str | None:
    """Returns why a backend cannot serve an operator on a device and dtype, or None.

    wide: heads of attention have more than TRITON_WIDEST features.
    """
    return _REFUSALS[backend](operator, device, dtype, wide)


def _reason(operator: str, backend: str, device: torch.device) -> str | None:
    try:
        if device.type == "cuda" and backend == "reference" and not torch.cuda.is_available():
            return _native.NO_DEVICE
        return refusal(operator, backend, device, torch.float32)
    except ImportError as error:
        return str(error)


def select(operator: str, backend: str | None, x: Tensor, head_dim: int = 0) -> str:
    """Returns the backend that serves a call; head_dim: features of a head, for attention.

    `backend` wins over the environment variable EVIT_BACKEND, which wins over the automatic choice.
    Raises ValueError for an unknown name, RuntimeError with the reason for one that cannot serve.
    """
    # A branch makes a constant of a compiler's symbol, bool() does not.
    wide = True if head_dim > TRITON_WIDEST else False  # noqa: SIM210
    return _select(operator, backend, x.device, x.dtype, wide)


def _select(
    operator: str, backend: str | None, device: torch.device, dtype: torch.dtype, wide: bool
) -> str:
    origin = "backend"
    if backend is None:
        backend = os.environ.get(ENVIRONMENT) or None
        origin = ENVIRONMENT
    if backend is None:
        line = order(operator, device, dtype)
        able = (n for n in line.backends if refusal(operator, n, device, dtype, wide) is None)
        return next(
            n
            for n in able
            if n == "reference" or not line.trial or trials.passed(operator, n, device, dtype)
        )
    if backend not in NAMES:
        raise ValueError(
            f"{operator}: {origin} must be one of {', '.join(map(repr, NAMES))}, got {backend!r}"
        )
    reason = refusal(operator, backend, device, dtype, wide)
    if reason is not None:
        raise RuntimeError(f"{operator}: {origin} {backend!r} is not available: {reason}")
    return backend


# To the compiler the choice is a constant. This is all that torch.compiler.assume_constant_result
# does, but for importing the compiler, which would almost double the time of importing us.
vars(_select)["_dynamo_marked_constant"] = True
