"""A GPU under measurement: time by its own events, inputs that its cache does not hold, memory.

The same on a CPU, where the wall clock is used: so benchmarks of GPUs are known to work before
there is one (`--device cpu`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evit_models.cli.timing import Clock, WallClock

# More than this many times the cache is used before a tensor comes again.
_CACHES = 3
_MOST_COPIES = 64
_MOST_REPEATS = 60


class EventClock:
    """The time between two events of the device.

    Before the first event the device sleeps until the host has sent off all calls. So what is
    measured is the device, and not how fast the host launches kernels.
    """

    shortest = 0.001

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cycles = 1000.0 * torch.cuda.get_device_properties(device).clock_rate  # kHz

    def time(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds per call, of several in a row."""
        repeats = min(repeats, _MOST_REPEATS)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        call()
        # What one call takes the host, and half as much again for safety.
        host = 1.5 * repeats * (time.perf_counter() - begin)
        torch.cuda.synchronize(self.device)
        torch.cuda._sleep(int(min(host, 0.1) * self._cycles) + 1)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats


def clock_of(device: torch.device) -> Clock:
    """The clock that measures a device's kernels."""
    return EventClock(device) if device.type == "cuda" else WallClock(device)


def copies_for(nbytes: int, device: torch.device) -> int:
    """How many copies of some tensors together are larger than the device's cache."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(_MOST_COPIES, -(-_CACHES * cache // max(nbytes, 1))))


class Rotation:
    """One call that is each of several in turn.

    Results are kept until their turn comes again: else the next call would write into the same
    memory, which the cache still holds.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self._calls = calls
        self._held: deque[object] = deque(maxlen=len(calls))
        self._position = 0

    def __call__(self) -> Any:
        result = self._calls[self._position]()
        self._position = (self._position + 1) % len(self._calls)
        self._held.append(result)
        return result


def copy_floor(nbytes: int, device: torch.device) -> Callable[[], object]:
    """A copy that reads and writes `nbytes` together: what moving them takes at least."""
    each = max(nbytes // 2, 1)
    pairs = [
        tuple(torch.zeros(each, dtype=torch.uint8, device=device) for _ in range(2))
        for _ in range(copies_for(nbytes, device))
    ]

    def copy(target: Tensor, source: Tensor) -> Callable[[], object]:
        return lambda: target.copy_(source)

    return Rotation([copy(*pair) for pair in pairs])


def facts_of(device: torch.device) -> dict[str, Any]:
    """What a result has to tell about the GPU and the software around it; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    # Lanes of float32 in a multiprocessor: A100 has half of what all others since have.
    lanes = 64 if (properties.major, properties.minor) == (8, 0) else 128
    hertz = 1000.0 * properties.clock_rate
    return {
        "gpu": properties.name,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_l2_bytes": properties.L2_cache_size,
        "gpu_clock_hertz": hertz,
        "gpu_float32_flops": 2 * lanes * hertz * properties.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """The version of the kernel's driver, where the system tells it."""
    try:
        with open("/proc/driver/nvidia/version", encoding="ascii") as file:
            words = file.readline().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)
