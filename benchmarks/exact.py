"""Checks before timing: every peer is compared once with float64, and ours writes every element."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from rounds import OURS
from torch import Tensor

Result = Tensor | Sequence[Tensor]


def check(
    calls: Mapping[str, Callable[[], Result]], exact: Result, tolerance: float, what: str
) -> None:
    """Raises AssertionError unless every result is near the exact one.

    Args:
        calls: per peer a function of one or several tensors; called once, ours on poisoned memory.
        exact: the same in float64.
        tolerance: largest norm of the difference, relative to that of the exact values.
        what: what is compared, for the message.
    """
    truths = _several(exact)
    for peer, call in calls.items():
        # Only ours: a compiled peer is another program under this switch.
        with poisoned_memory() if peer.startswith(OURS) else nullcontext():
            results = _several(call())
        for position, (result, truth) in enumerate(zip(results, truths, strict=True)):
            label = f"{what}, {peer}, result {position}"
            if result.shape != truth.shape:
                raise AssertionError(f"{label}: {tuple(result.shape)}, not {tuple(truth.shape)}")
            result, truth = result.detach().double(), truth.detach()
            error = float((result - truth).norm() / truth.norm())
            if not error <= tolerance:  # also when it is NaN
                raise AssertionError(f"{label}: relative error {error:.1e} exceeds {tolerance:.1e}")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills uninitialised tensors with NaN, so that an element nobody wrote cannot pass."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    switch: Any = torch.utils.deterministic  # whose one attribute has no type hint
    fill = switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switch.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        switch.fill_uninitialized_memory = fill


def _several(result: Result) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else result
