"""depthwise_conv3d on the compiled core, which is channels-last: other layouts are converted there.

The CUDA kernels take both layouts as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from evit_kernels import _gradients, _layout, _native
from evit_kernels._activations import CODES
from evit_kernels._memory import empty, is_memory, new
from evit_kernels._native import DTYPES, core
from evit_kernels.depthwise_conv3d.geometry import Geometry


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """Returns the convolution of `input`, in its memory format."""
    x, planar = _readable(input)
    weight, bias = _dense(weight, bias)
    size, problem = _planned(x, planar, geometry, activation)
    output = empty(
        size, x, torch.contiguous_format if planar else torch.channels_last_3d, kept=True
    )
    if output.numel() == 0:
        return _layout.in_format_of(output, input, kept=True)
    addresses = (x.data_ptr(), weight.data_ptr(), _pointer(bias), output.data_ptr())
    if _native.on_cuda(x):
        kernels = _native.cuda()
        workspace = weight.new_empty(
            kernels.depthwise_conv3d_forward_workspace(problem), dtype=_gradients.sums(x.dtype)
        )
        kernels.depthwise_conv3d_forward(
            problem, *addresses, workspace.data_ptr(), *_native.stream(x)
        )
        return output
    core().depthwise_conv3d_forward(problem, *addresses)
    return _layout.in_format_of(output, input, kept=True)


def direct(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Callable[..., Tensor] | None:
    """Returns what computes calls like this one past the dispatcher, None if they need copies."""
    if not _in_place(input, weight, bias):
        return None
    size, problem = _planned(input, False, geometry, activation)
    call: Callable[..., Tensor] = core().depthwise_conv3d_prepared(
        problem, new(size, input.dtype, kept=True)
    )
    return call


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of input, weight and bias; those not needed are empty."""
    x, planar = _readable(input)
    layout = torch.contiguous_format if planar else torch.channels_last_3d
    grad = grad_output.contiguous(memory_format=layout)
    weight, bias = _dense(weight, bias)
    if grad.numel() == 0 or not any(needed):
        return _gradients.zeros(input, weight, needed)
    _, problem = _planned(x, planar, geometry, activation)
    if _native.on_cuda(x):
        scratch = empty(grad.shape, grad, layout) if activation != "none" else None
        return _backward_on_cuda(problem, grad, x, weight, bias, scratch, needed)
    call = _gradients.convolution(
        core(), "depthwise_conv3d", problem, grad, x, weight, activation, needed
    )
    grad_input, grad_weight, grad_bias = call(grad, x, weight, bias)
    if needed[0]:
        grad_input = _layout.in_format_of(grad_input, input)
    return grad_input, grad_weight, grad_bias


def direct_backward(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    geometry: Geometry,
    activation: str,
    needed: Sequence[bool],
) -> Callable[..., _gradients.Gradients] | None:
    """Returns what computes such gradients past the dispatcher, None if they need copies.

    tensors: grad_output, input, weight and bias.
    """
    grad_output, input, weight, bias = tensors
    if not _in_place(input, weight, bias) or not _layout.is_rows(grad_output):
        return None
    _, problem = _planned(input, False, geometry, activation)
    return _gradients.convolution(
        core(), "depthwise_conv3d", problem, grad_output, input, weight, activation, needed
    )


def _backward_on_cuda(
    problem: bytes,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scratch: Tensor | None,
    needed: Sequence[bool],
) -> _gradients.Gradients:
    kernels = _native.cuda()
    gradients = _gradients.empty(x, weight, needed)
    partials = weight.new_empty(
        kernels.depthwise_conv3d_workspace(problem), dtype=_gradients.sums(x.dtype)
    )
    kernels.depthwise_conv3d_backward(
        problem,
        grad.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        _pointer(bias),
        _pointer(scratch),
        _pointer(partials),
        *(gradient.data_ptr() for gradient in gradients),
        *_native.stream(x),
    )
    return gradients


def _in_place(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the core reads these where they lie, the input with channels next to each other."""
    return (
        is_memory(input)
        and is_memory(weight, bias, dense=True)
        and input.stride(1) == 1
        and _layout.is_channels_last(input)
    )


def _readable(input: Tensor) -> tuple[Tensor, bool]:
    """Returns `input`, or a copy that kernels can read, and whether it consists of planes."""
    if _native.on_cuda(input) and not _layout.is_channels_last(input):
        return input.contiguous(), True
    return _layout.channels_last(input), False


def _planned(
    x: Tensor, planar: bool, geometry: Geometry, activation: str
) -> tuple[tuple[int, ...], bytes]:
    return plan(
        DTYPES[x.dtype], x.shape, x.stride(), planar, geometry, activation, torch.get_num_threads()
    )


# Remembered because a call of a small network layer costs no more than working these out.
@lru_cache(maxsize=1024)
def plan(
    dtype: int,
    shape: torch.Size,
    strides: tuple[int, ...],
    planar: bool,
    geometry: Geometry,
    activation: str,
    threads: int,
) -> tuple[tuple[int, ...], bytes]:
    """Returns the size of the output, and the problem as the core takes it.

    shape, strides: of the input.
    """
    size = geometry.output_size(shape[2:])
    problem = core().depthwise_conv3d_problem(
        dtype,
        CODES[activation],
        planar,
        geometry.clamps_time,
        threads,
        shape[0],
        shape[1],
        tuple(shape[2:]),
        size,
        geometry.kernel,
        geometry.stride,
        (geometry.time_padding[0], *geometry.padding[1:]),
        geometry.dilation,
        (strides[0], strides[2], strides[3], strides[4]),
    )
    return (shape[0], shape[1], *size), problem


def _dense(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # To be held by name: the core gets addresses, which do not keep a copy alive.
    return weight.contiguous(), None if bias is None else bias.contiguous()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
