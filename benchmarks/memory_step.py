"""One training step of one peer in a process of its own; prints its peak memory as JSON.

    python memory_step.py PEER [frames] [size]

Counted is what the process holds at the step's peak, as the system sees it, beyond what it held
with all libraries loaded and warm: weights, clip, activations, gradients, and whatever operators
use inside. Both numbers come from /proc/self/status, where the step's own peak can be told from an
earlier one because the mark is reset before it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

import torch
from networks import layout_of, peer_network, plain_network, training_call
from shapes import CLIP


def main(peer: str, frames: int = CLIP[2], size: int = CLIP[3]) -> None:
    """Measures, compares the gradients with the plain network's, prints."""
    torch.manual_seed(0)
    plain = plain_network()
    training_call(peer_network(peer, plain), _clip(peer, 2, 64))()
    before = _settled()
    network, clip = peer_network(peer, plain), _clip(peer, frames, size)
    step = training_call(network, clip)
    _settled()
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    gradients = step()
    seconds = time.perf_counter() - start
    peak = _status("VmHWM") - before
    _check(gradients, training_call(plain, clip)())
    print(json.dumps({"peak_bytes": peak, "seconds": seconds}))


def _clip(peer: str, frames: int, size: int) -> torch.Tensor:
    clip = torch.randn(1, 3, frames, size, size)
    return clip.contiguous(memory_format=layout_of(peer))


def _settled() -> int:
    """Bytes in use once everything free has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def _check(gradients: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    got, want = (torch.cat([g.flatten() for g in gs]).double() for gs in (gradients, expected))
    error = float((got - want).norm() / want.norm())
    if not error < 1e-3:
        raise AssertionError(f"gradients differ from the plain network's by {error:.1e}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
