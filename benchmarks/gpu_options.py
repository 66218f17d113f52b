"""Which benchmarks of a GPU run, on what, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from gpu_cases import SELECTIONS
from rounds import AUTOTUNED, COMPILED, FLOOR, OURS

NO_DEVICE = "torch sees no CUDA device"
FILES = "bench_gpu_"
# Guesses of how long a peer of a group takes, its first calls included; the budget is what holds.
_SECONDS = {COMPILED: 6.0, AUTOTUNED: 8.0}
_OTHERS = 0.7
_MODEL_COMPILES = 60.0


@dataclass
class GpuOptions:
    """What the command line chose."""

    device: str
    shapes: str
    peers: str
    budget: float

    def chosen(self, names: list[str]) -> list[str]:
        """The peers that were asked for; ours and the floor are always there."""
        wanted = [word.strip() for word in self.peers.split(",") if word.strip()]
        if not wanted:
            return names
        return [
            name
            for name in names
            if name == FLOOR or name.startswith(OURS) or any(word in name for word in wanted)
        ]


GPU_OPTIONS = pytest.StashKey[GpuOptions]()


@dataclass
class GpuRun:
    """The device, how often to measure, and the time that is left."""

    device: torch.device
    rounds: int
    options: GpuOptions
    started: float = field(default_factory=time.monotonic)

    def peers(self, names: list[str]) -> list[str]:
        """The peers that were asked for; skips where the budget is spent."""
        spent = time.monotonic() - self.started
        if spent > self.options.budget:
            pytest.skip(f"the budget of {self.options.budget:.0f} s is spent (--budget)")
        return self.options.chosen(names)


def add_options(group: Any) -> None:
    """Adds the options of GPU benchmarks to pytest's."""
    group.addoption(
        "--device",
        default="cuda",
        help="Where benchmarks of GPUs run; cpu only tries whether they work. [cuda]",
    )
    group.addoption(
        "--shapes",
        choices=SELECTIONS,
        default="few",
        help="Benchmarks of GPUs: a few shapes of b1 and b3, or all (hours; select with -k).",
    )
    group.addoption(
        "--peers",
        default="",
        help="Peers of GPU benchmarks besides ours, by parts of their names: 'NCDHW,channels'.",
    )
    group.addoption(
        "--budget",
        type=float,
        default=420.0,
        help="Seconds after which no further group of GPU benchmarks begins. [420]",
    )


def options_of(config: Any) -> GpuOptions:
    """What the command line chose."""
    names = ("device", "shapes", "peers", "budget")
    return GpuOptions(**{name: config.getoption(f"--{name}") for name in names})


def reason_for_none(options: GpuOptions) -> str | None:
    """Why benchmarks of GPUs are not collected, or None when they are."""
    if options.device == "cuda" and not torch.cuda.is_available():
        return NO_DEVICE
    return None


def estimate(items: list[Any]) -> str | None:
    """How long the GPU benchmarks among some tests might take."""
    seconds, groups = 0.0, set()
    for item in items:
        if not item.path.name.startswith(FILES):
            continue
        peer = str(item.callspec.params.get("peer", ""))
        compiles = peer in (COMPILED, AUTOTUNED) or peer.startswith(COMPILED)
        if "models" in item.path.name:
            seconds += _MODEL_COMPILES if compiles else 5.0
        else:
            seconds += _SECONDS.get(peer, _OTHERS)
        groups.add((item.path.name, item.originalname, str(item.callspec.params.get("case"))))
    if not groups:
        return None
    return f"GPU benchmarks: {len(groups)} groups, about {seconds / 60:.0f} minutes by estimate"
