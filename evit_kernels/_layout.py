"""Memory formats: which one a tensor is in, so that outputs keep it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Tells whether a (B, C, T, H, W) tensor, or view of one, has its channels next to each other.

    A tensor that is dense in both formats (one channel, or one pixel) counts as contiguous unless
    it is not, as in PyTorch's own convolutions.
    """
    if x.is_contiguous():
        return False
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        return True
    # A slice or a permuted view: the channel stride decides, as long as no other axis is as small.
    return x.stride(1) == 1 and x.stride(4) != 1


def format_of(x: Tensor) -> torch.memory_format:
    """Returns the memory format that an output made from `x` keeps."""
    return torch.channels_last_3d if is_channels_last(x) else torch.contiguous_format


def empty_like_format(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns an uninitialised dense tensor of the shape, device and memory format of `x`."""
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device, memory_format=format_of(x))


def channels_last(x: Tensor) -> Tensor:
    """Returns `x`, or a copy, with channels next to each other (stride 1)."""
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)


def dense_channels_last(x: Tensor) -> Tensor:
    """Returns `x`, or a copy, as a dense channels-last tensor.

    Only its memory is to be relied on: strides of axes of size 1 may be anything.
    """
    return x.contiguous(memory_format=torch.channels_last_3d)


def position_stride(x: Tensor, axes: tuple[int, ...] = (2, 3, 4)) -> int | None:
    """Returns the one stride that leads through all positions of some axes, in their order.

    None where there is none. Axes of size 1 do not count; where all are, the answer is x.shape[1].
    """
    stride: int | None = None
    expected = 0
    for axis in reversed(axes):
        size, step = x.shape[axis], x.stride(axis)
        if size == 1:
            continue
        if stride is None:
            stride = expected = step
        if step != expected:
            return None
        expected *= size
    return x.shape[1] if stride is None else stride


def in_format_of(output: Tensor, like: Tensor) -> Tensor:
    """Returns `output` in the memory format of `like`, with exactly the strides of a new tensor."""
    if is_channels_last(like):
        return output
    # Not .contiguous(): for sizes of 1 it keeps strides that a fresh tensor would not have.
    return torch.empty(output.shape, dtype=output.dtype, device=output.device).copy_(output)
