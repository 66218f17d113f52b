"""Memory formats: which one a tensor is in, so that outputs keep it, and fast copies between them.

PyTorch's own copies between planes and channels-last rows run at a few GB/s; those of the core run
at about the speed of memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evit_kernels._memory import empty, is_memory
from evit_kernels._native import core

_FEW_CHANNELS = 4


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


def is_rows(x: Tensor) -> bool:
    """Tells whether the core may read `x` where it lies, as dense channels-last memory."""
    return is_memory(x) and x.is_contiguous(memory_format=torch.channels_last_3d)


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
    return dense_channels_last(x)


def dense_channels_last(x: Tensor) -> Tensor:
    """Returns `x`, or a copy, as a dense channels-last tensor.

    Only its memory is to be relied on: strides of axes of size 1 may be anything.
    """
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        return x
    if not _of_planes(x):
        return x.contiguous(memory_format=torch.channels_last_3d)
    rows = empty(x.shape, x)
    core().planar_to_rows(_problem(x, rows), x.data_ptr(), rows.data_ptr())
    return rows


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


def in_format_of(output: Tensor, like: Tensor, *, kept: bool = False) -> Tensor:
    """Returns `output`, dense channels-last, in the memory format of `like`.

    The strides are exactly those of a new tensor; `kept` is that of `_memory.empty`.
    """
    if is_channels_last(like):
        return output
    # Not .contiguous(): for sizes of 1 it keeps strides that a fresh tensor would not have.
    planes = empty(output.shape, output, torch.contiguous_format, kept=kept)
    if output.stride(1) != 1 or not _of_planes(planes):
        return planes.copy_(output)
    core().rows_to_planar(_problem(planes, output), output.data_ptr(), planes.data_ptr())
    return planes


def _of_planes(x: Tensor) -> bool:
    """Whether the core copies `x` to and from channels-last memory: there are columns and channels.

    PyTorch is the faster one where there are hardly any channels.
    """
    return (
        x.device.type == "cpu"
        and x.stride(4) == 1
        and x.shape[1] >= _FEW_CHANNELS
        and x.element_size() > 1
        and x.numel() > 0
    )


def _problem(planes: Tensor, rows: Tensor) -> bytes:
    problem: bytes = core().layout_problem(
        planes.element_size(),
        torch.get_num_threads(),
        planes.shape[0],
        planes.shape[1],
        tuple(planes.shape[2:]),
        planes.stride()[:4],
        (rows.stride(0), rows.stride(2), rows.stride(3), rows.stride(4)),
    )
    return problem
