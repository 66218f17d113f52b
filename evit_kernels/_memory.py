"""Tensors for kernels to write, and which tensors kernels may read where they lie.

Fresh memory is dear on CPUs: a page fault costs several times what writing the page does. So large
tensors are hinted to be backed by large pages, and what autograd may keep is allocated so that a
gradient can take its place.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from evit_kernels._native import core

_CPU = torch.device("cpu")
_LARGE = 4 << 20  # bytes, two large pages; training takes smaller ones fresh from the system, too
# For memory aligned to 64 bytes glibc looks for 96 bytes more than it is asked for and gives what
# is left to whoever wants so little, for long. So the hole that a tensor leaves is too small for
# one of the same size: in a training step no gradient fitted where an activation had been, and the
# heap grew and shrank by 150 MB each time. Asked for a little more, activations leave room.
_SLACK = 128  # bytes
_SLACKENED = 64 << 10  # bytes of the smallest tensor for which that is worth a call more


def empty(
    size: Sequence[int],
    like: Tensor,
    memory_format: torch.memory_format = torch.channels_last_3d,
    *,
    kept: bool = False,
) -> Tensor:
    """Returns an uninitialised tensor of the dtype and device of `like` for a kernel to write.

    Args:
        kept: whether autograd may keep it until gradients of its size are made: an output.
    """
    shape = tuple(size)
    nbytes = math.prod(shape) * like.itemsize if like.is_cpu else 0
    if kept and nbytes >= _SLACKENED:
        tensor = _with_slack(shape, like.dtype, memory_format)
    else:
        tensor = torch.empty(
            shape, dtype=like.dtype, device=like.device, memory_format=memory_format
        )
    if nbytes >= _LARGE:
        core().advise_huge_pages(tensor.data_ptr(), nbytes)
    return tensor


def new(
    size: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.channels_last_3d,
    *,
    kept: bool = False,
) -> Callable[[], Tensor]:
    """Returns what makes uninitialised tensors of one size in CPU memory, as `empty` does."""
    like = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format)
    if kept and like.nbytes >= _SLACKENED:
        make = partial(_with_slack, like.shape, dtype, memory_format)
    else:
        make = partial(torch.empty_strided, like.shape, like.stride(), dtype=dtype, device=_CPU)
    if like.nbytes < _LARGE:
        return make

    def large() -> Tensor:
        tensor = make()
        core().advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
        return tensor

    return large


def new_dense(size: int | Sequence[int], dtype: torch.dtype) -> Callable[[], Tensor]:
    """Returns what makes uninitialised contiguous tensors in CPU memory, whatever the default."""
    return partial(torch.empty, size, dtype=dtype, device=_CPU)


def is_memory(*tensors: Tensor | None, dense: bool = False) -> bool:
    """Tells whether kernels of the core may read tensors where they lie; dense: as one block."""
    return all(
        t.device.type == "cpu"
        and t.layout is torch.strided
        and not t.is_neg()
        and t.numel() > 0
        and (t.is_contiguous() or not dense)
        for t in tensors
        if t is not None
    )


def _with_slack(
    shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    count = math.prod(shape)
    memory = torch.empty(count + _SLACK // dtype.itemsize, dtype=dtype, device=_CPU)
    # Who saves the tensor saves its storage: the same bytes each time, and nothing of others'.
    ctypes.memset(memory.data_ptr() + count * dtype.itemsize, 0, _SLACK)
    # Not a view: what a function of autograd returns as one nobody may change in place.
    return memory.resize_(shape, memory_format=memory_format)
