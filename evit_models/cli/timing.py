"""Timing that compares: rounds in which every peer runs, and medians over rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


class Clock(Protocol):
    """How calls are timed."""

    @property
    def shortest(self) -> float:
        """Seconds. A measurement shorter than this is mostly the clock, so calls are repeated."""
        ...

    def time(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds per call, of several in a row."""
        ...


@dataclass(frozen=True)
class WallClock:
    """What whoever calls waits for, until the device has finished."""

    device: torch.device
    shortest: float = 0.005

    def time(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds per call, of several in a row."""
        _finish(self.device)
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        _finish(self.device)
        return (time.perf_counter() - start) / repeats


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one peer, one value per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over rounds."""
        return statistics.median(self.seconds)

    def slower_than(self, other: Timing) -> float:
        """How many times longer this took than the other: the median of the paired ratios."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def paired_rounds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    clock: Clock | None = None,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time every call once per round, in an order that rotates, after two unmeasured calls each.

    The clock is by default the one on the wall.
    """
    clock = clock or WallClock(device)
    repeats = {name: _warm_up(call, clock) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds[name].append(clock.time(calls[name], repeats[name]))
            after_round()
    finally:
        gc.enable()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _warm_up(call: Callable[[], object], clock: Clock) -> int:
    """Run twice; how often to repeat the call so that one measurement is long enough."""
    call()
    taken = clock.time(call, 1)
    return max(1, round(clock.shortest / max(taken, 1e-7)))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
