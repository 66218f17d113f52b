"""depthwise_conv3d on the compiled core, which is channels-last; other layouts are converted."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from evit_kernels import _layout
from evit_kernels._activations import CODES
from evit_kernels._native import DTYPES, core, empty, is_memory, new
from evit_kernels.depthwise_conv3d.geometry import Geometry


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """Returns the convolution of `input`, in its memory format."""
    x = input if input.stride(1) == 1 else _layout.channels_last(input)
    weight, bias = _dense(weight, bias)
    size, problem = _planned(x, geometry, activation)
    output = empty(size, x)
    if output.numel():
        core().depthwise_conv3d_forward(
            problem, x.data_ptr(), weight.data_ptr(), _pointer(bias), output.data_ptr()
        )
    return _layout.in_format_of(output, input)


def direct(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Callable[..., Tensor] | None:
    """Returns what computes calls like this one past the dispatcher, None if they need copies."""
    if input.stride(1) != 1 or not _layout.is_channels_last(input):
        return None
    if not is_memory(input) or not is_memory(weight, bias, dense=True):
        return None
    size, problem = _planned(input, geometry, activation)
    new_output = new(size, input.dtype)
    run = core().depthwise_conv3d_forward

    def call(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = new_output()
        address = 0 if bias is None else bias.data_ptr()
        run(problem, input.data_ptr(), weight.data_ptr(), address, output.data_ptr())
        return output

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
    x = _layout.channels_last(input)
    grad = grad_output.contiguous(memory_format=torch.channels_last_3d)
    weight, bias = _dense(weight, bias)
    grad_input = empty(tuple(input.shape), input) if needed[0] else input.new_empty(0)
    grad_weight = weight.new_empty(weight.shape) if needed[1] else input.new_empty(0)
    grad_bias = weight.new_empty(weight.shape[0]) if needed[2] else input.new_empty(0)
    if grad.numel() == 0:
        grad_input, grad_weight, grad_bias = (
            g.zero_() for g in (grad_input, grad_weight, grad_bias)
        )
    elif any(needed):
        _, problem = _planned(x, geometry, activation)
        # Derivative of the activation times the gradient; its input is recomputed, never stored.
        scratch = empty(grad.shape, grad) if activation != "none" else None
        partials = weight.new_empty(
            core().depthwise_conv3d_workspace(problem) if needed[1] or needed[2] else 0,
            dtype=torch.float64 if x.dtype == torch.float64 else torch.float32,
        )
        core().depthwise_conv3d_backward(
            problem,
            grad.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            _pointer(bias),
            _pointer(scratch),
            _pointer(partials),
            _pointer(grad_input if needed[0] else None),
            _pointer(grad_weight if needed[1] else None),
            _pointer(grad_bias if needed[2] else None),
        )
    if needed[0]:
        grad_input = _layout.in_format_of(grad_input, input)
    return grad_input, grad_weight, grad_bias


def _planned(x: Tensor, geometry: Geometry, activation: str) -> tuple[tuple[int, ...], bytes]:
    return _plan(
        DTYPES[x.dtype], x.shape, x.stride(), geometry, activation, torch.get_num_threads()
    )


# Remembered because a call of a small network layer costs no more than working these out.
@lru_cache(maxsize=1024)
def _plan(
    dtype: int,
    shape: torch.Size,
    strides: tuple[int, ...],
    geometry: Geometry,
    activation: str,
    threads: int,
) -> tuple[tuple[int, ...], bytes]:
    """Returns the size of the output, and the problem as the core takes it."""
    size = geometry.output_size(shape[2:])
    problem = core().depthwise_conv3d_problem(
        dtype,
        CODES[activation],
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
