"""dense_conv3d on the compiled core, which is channels-last; other layouts are converted.

The gradient of the input, which no clip asks for, is PyTorch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evit_kernels import _layout
from evit_kernels._activations import CODES
from evit_kernels._memory import empty
from evit_kernels._native import DTYPES, core
from evit_kernels.depthwise_conv3d.geometry import Geometry, with_frames


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """Returns the convolution of `input`, in its memory format."""
    x = _lines(input)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    output = empty((x.shape[0], weight.shape[0], *geometry.output_size(x.shape[2:])), x, kept=True)
    if output.numel():
        core().dense_conv3d_forward(
            _problem(x, output, geometry, activation),
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            output.data_ptr(),
        )
    return _layout.in_format_of(output, input, kept=True)


def backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of input, weight and bias; those not needed are empty."""
    grad_input = (
        _gradient_of_input(grad_output, input, weight, geometry)
        if needed[0]
        else input.new_empty(0)
    )
    grad_weight = weight.new_empty(weight.shape) if needed[1] else input.new_empty(0)
    grad_bias = weight.new_empty(weight.shape[0]) if needed[2] else input.new_empty(0)
    if grad_output.numel() == 0:
        return grad_input, grad_weight.zero_(), grad_bias.zero_()
    if needed[1] or needed[2]:
        x = _lines(input)
        grad = _layout.dense_channels_last(grad_output)
        problem = _problem(x, grad, geometry, "none")
        partials = weight.new_empty(
            core().dense_conv3d_workspace(problem),
            dtype=torch.promote_types(x.dtype, torch.float32),
        )
        core().dense_conv3d_weight_gradient(
            problem,
            grad.data_ptr(),
            x.data_ptr(),
            partials.data_ptr(),
            grad_weight.data_ptr() if needed[1] else 0,
            grad_bias.data_ptr() if needed[2] else 0,
        )
    return grad_input, grad_weight, grad_bias


def _gradient_of_input(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    padded, padding = with_frames(input, geometry)
    grad: Tensor = torch.ops.aten.convolution_backward(
        grad_output,
        padded,
        weight,
        None,
        geometry.stride,
        padding,
        (1, 1, 1),
        False,
        (0, 0, 0),
        1,
        (True, False, False),
    )[0]
    result = torch.empty_like(input, memory_format=_layout.format_of(input))
    if padded is input:
        return result.copy_(grad)
    # Repeated frames give their gradients to the frame that they repeat.
    before, time = geometry.time_padding[0], input.shape[2]
    result.copy_(grad[:, :, before : before + time])
    result[:, :, 0] += grad[:, :, :before].sum(2)
    result[:, :, -1] += grad[:, :, before + time :].sum(2)
    return result


def _lines(x: Tensor) -> Tensor:
    """Returns `x`, or a copy, whose channels are neighbours and whose columns follow each other."""
    if x.stride(1) == 1 and x.stride(4) == x.shape[1]:
        return x
    return _layout.dense_channels_last(x)


def _problem(x: Tensor, output: Tensor, geometry: Geometry, activation: str) -> bytes:
    problem: bytes = core().dense_conv3d_problem(
        DTYPES[x.dtype],
        CODES[activation],
        geometry.clamps_time,
        torch.get_num_threads(),
        x.shape[0],
        x.shape[1],
        output.shape[1],
        tuple(x.shape[2:]),
        tuple(output.shape[2:]),
        geometry.kernel,
        geometry.stride,
        (geometry.time_padding[0], *geometry.padding[1:]),
        (x.stride(0), x.stride(2), x.stride(3)),
    )
    return problem
