"""What Triton kernels of several operators share. Imports Triton: nothing may import this early."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 256  # of a sum, for one program that adds up splits


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Returns what makes launches go to the device of `x`, and to the current stream there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def sum_of_splits(partials, i, inside, entries, splits, BLOCK: tl.constexpr):
    """Returns entries i of partial sums, (splits, entries), added up in the order of the splits."""
    sum = tl.zeros((BLOCK,), tl.float32)
    at = partials + i
    for _ in range(splits):
        sum += tl.load(at, mask=inside, other=0.0)
        at += entries
    return sum


def architecture(x: Tensor) -> int:
    """Returns the architecture of the device of `x` as in sm_90, 0 in the interpreter."""
    major, minor = torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)
    return 10 * major + minor


# What the kernels became when they were read: nothing changes it later.
INTERPRETED = not isinstance(sum_of_splits, triton.runtime.JITFunction)
