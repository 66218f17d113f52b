"""What only a GPU can tell of a call: its captured graph, its peak of memory, its launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import profile as Profile

_WARM_UPS = 3


def captured(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Returns what replays a call from a CUDA graph; on a CPU, the call itself.

    Every replay gives the same tensors, with fresh values.
    """
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Returns the bytes that a call has in use at most beyond those before; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def profile(call: Callable[[], object], device: torch.device) -> Profile:
    """Returns the profile of one call, after one that is not in it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    result = Profile(activities=activities, record_shapes=True)
    with result:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return result


def launches(profiled: Profile) -> int:
    """Returns how many kernels ran on the GPU; copies and fills are none."""
    return sum(
        event.device_type is DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in profiled.events() or ()
    )
