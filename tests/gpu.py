"""What tests do with a GPU: side streams, graphs, watching for synchronisation and memory.

On a CPU each of them does nothing, so that the tests themselves are tried where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from evit_models.cli import cuda

# Long enough that a kernel on another stream would start, and end, in the meantime.
SLEEP_CYCLES = 100_000_000
WARM_UPS = 3


def is_gpu(device: str) -> bool:
    """Whether a device is a GPU."""
    return torch.device(device).type == "cuda"


@contextmanager
def side_stream(device: str) -> Iterator[None]:
    """A stream other than the default one, on which a while passes before anything happens."""
    if not is_gpu(device):
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        yield
    stream.synchronize()


def captured(call: Callable[[], Any], device: str) -> tuple[Callable[[], None], Any]:
    """Captures a call in a CUDA graph; returns what replays it, and its results' memory.

    On a CPU the results are those of the first call, and replaying copies fresh ones into them.
    """
    if not is_gpu(device):
        results = call()

        def again() -> None:
            for old, new in zip(results, call(), strict=True):
                old.detach().copy_(new.detach())

        return again, results
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results


@contextmanager
def synchronisation_forbidden(device: str) -> Iterator[None]:
    """Raises where the host waits for the device."""
    if not is_gpu(device):
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Bytes that a call has in use at most, beyond those before it; 0 on a CPU."""
    return cuda.peak_bytes(call, torch.device(device)) or 0


def free_bytes(device: str) -> int | None:
    """Bytes that can still be allocated on a GPU; None on a CPU."""
    return torch.cuda.mem_get_info(device)[0] if is_gpu(device) else None


@contextmanager
def full_digits() -> Iterator[None]:
    """Keeps PyTorch's own convolutions in float32 from having the digits of TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def modes(device: str) -> list[str]:
    """Modes of torch.compile to try: of graphs, a CPU knows nothing."""
    return ["default", "reduce-overhead"] if is_gpu(device) else ["default"]


def compiler(device: str, mode: str) -> dict[str, str]:
    """Options of torch.compile: a mode on a GPU; on a CPU what is quick and takes the same way."""
    return {"mode": mode} if is_gpu(device) else {"backend": "aot_eager"}
