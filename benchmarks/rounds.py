"""Peers measured together, and shown by pytest-benchmark as one group.

pytest-benchmark times one callable until it is done, then the next; on a machine whose speed drifts
that compares two moments, not two programs. Here every peer of a group runs once in every round, in
an order that rotates. pytest-benchmark then replays what was recorded: its statistics, tables and
JSON hold these measurements, and the n-th value of every peer belongs to the n-th round, so that
ratios can be taken within rounds (table.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evit_models.cli.timing import Clock, paired_rounds

OURS = "ours"
NCDHW = "PyTorch NCDHW"
CHANNELS_LAST = "PyTorch channels_last_3d"
COMPILED = "torch.compile"
AUTOTUNED = "torch.compile max-autotune"
OURS_NCDHW, OURS_TRITON = "ours NCDHW", "ours Triton"
TWO_CALLS, SINGLE_CALLS = "ours, two calls", "ours, single calls"
FLOOR = "copy"
PYTORCH = (NCDHW, CHANNELS_LAST)
LAYOUTS = {NCDHW: torch.contiguous_format, CHANNELS_LAST: torch.channels_last_3d}

# A peer is called, or the reason why it is absent.
Peer = Callable[[], object] | str


class _Recording:
    """A clock that stands still until a recorded measurement is played to it."""

    __name__ = "recorded_rounds"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: Any, seconds: Sequence[float]) -> None:
        remaining = iter(seconds)

        def step() -> None:
            self.now += next(remaining, 0.0)

        self.now = 0.0
        benchmark.pedantic(step, rounds=len(seconds), iterations=1)


_CLOCK = _Recording()
# Every benchmark that reports a Group needs this mark.
recorded = pytest.mark.benchmark(timer=_CLOCK)


class Group:
    """The measurements of some peers that do the same work.

    Args:
        row: what is measured, a row of the table.
        case: the shape, or whatever else tells groups of one row apart.
        seconds: per peer the time of every round.
        absent: per absent peer the reason.
        extra: per peer what else was recorded; goes into the JSON.
    """

    def __init__(
        self,
        row: str,
        case: str,
        seconds: Mapping[str, Sequence[float]],
        absent: Mapping[str, str] | None = None,
        extra: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.row = row
        self.case = case
        self.seconds = seconds
        self.absent = absent or {}
        self.extra = extra or {}
        self.facts: Mapping[str, Any] = {}

    def report(self, benchmark: Any, peer: str) -> None:
        """Gives one peer's rounds to the `benchmark` fixture; skips with the reason when absent."""
        if peer in self.absent:
            pytest.skip(f"{peer}: {self.absent[peer]}")
        benchmark.group = f"{self.row}: {self.case}"
        benchmark.extra_info.update(row=self.row, case=self.case, peer=peer, **self.facts)
        benchmark.extra_info.update(self.extra.get(peer, {}))
        _CLOCK.play(benchmark, self.seconds[peer])


def measure(
    row: str,
    case: str,
    calls: Mapping[str, Peer],
    rounds: int,
    device: torch.device | None = None,
    clock: Clock | None = None,
) -> Group:
    """Runs every peer that is there once in every round, by default by the clock on the wall."""
    present = {name: call for name, call in calls.items() if not isinstance(call, str)}
    device = device or torch.device("cpu")
    timings = paired_rounds(present, rounds, device, clock=clock)
    return Group(
        row,
        case,
        {name: timing.seconds for name, timing in timings.items()},
        {name: call for name, call in calls.items() if isinstance(call, str)},
    )


def inference(function: Callable[..., Tensor], *arguments: object) -> Callable[[], Tensor]:
    """A peer that computes no gradients."""

    def call() -> Tensor:
        with torch.inference_mode():
            return function(*arguments)

    return call


def gradients(
    output: Tensor, inputs: Sequence[Tensor], gradient: Tensor
) -> Callable[[], Sequence[Tensor]]:
    """A peer that goes backward from an output to its inputs, again and again."""

    def call() -> Sequence[Tensor]:
        return torch.autograd.grad(output, inputs, gradient, retain_graph=True)

    return call
