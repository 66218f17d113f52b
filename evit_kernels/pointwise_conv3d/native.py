"""pointwise_conv3d on the compiled core: a matrix product over all positions of a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evit_kernels import _gradients, _layout
from evit_kernels._activations import CODES
from evit_kernels._memory import empty, is_memory, new
from evit_kernels._native import DTYPES, core


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """Returns the convolution of `input`, in its memory format."""
    x, step = _tokens(input)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    if residual is not None:
        residual = _layout.dense_channels_last(residual)
    output = empty((x.shape[0], weight.shape[0], *x.shape[2:]), x, kept=True)
    if output.numel():
        core().pointwise_conv3d_forward(
            _problem(x, step, weight, activation),
            x.data_ptr(),
            weight.data_ptr(),
            _pointer(bias),
            _pointer(residual),
            output.data_ptr(),
        )
    return _layout.in_format_of(output, input, kept=True)


def direct(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Callable[..., Tensor] | None:
    """Returns what computes calls like this one past the dispatcher, None if they need copies."""
    step = _step_in_place(input, weight, bias)
    if step is None or (residual is not None and not _layout.is_rows(residual)):
        return None
    problem = _problem(input, step, weight, activation)
    new_output = new((input.shape[0], weight.shape[0], *input.shape[2:]), input.dtype, kept=True)
    call: Callable[..., Tensor] = core().pointwise_conv3d_prepared(problem, new_output)
    return call


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of input, weight and bias; those not needed are empty."""
    x, step = _tokens(input)
    grad = _layout.dense_channels_last(grad_output)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    if grad.numel() == 0 or not any(needed):
        return _gradients.zeros(input, weight, needed)
    problem = _problem(x, step, weight, activation)
    call = _gradients.convolution(
        core(), "pointwise_conv3d", problem, grad, x, weight, activation, needed
    )
    grad_input, grad_weight, grad_bias = call(grad, x, weight, bias)
    if needed[0]:
        grad_input = _layout.in_format_of(grad_input, input)
    return grad_input, grad_weight, grad_bias


def direct_backward(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], activation: str, needed: Sequence[bool]
) -> Callable[..., _gradients.Gradients] | None:
    """Returns what computes such gradients past the dispatcher, None if they need copies.

    tensors: grad_output, input, weight and bias.
    """
    grad_output, input, weight, bias = tensors
    step = _step_in_place(input, weight, bias)
    if step is None or not _layout.is_rows(grad_output):
        return None
    problem = _problem(input, step, weight, activation)
    return _gradients.convolution(
        core(), "pointwise_conv3d", problem, grad_output, input, weight, activation, needed
    )


def _tokens(x: Tensor) -> tuple[Tensor, int]:
    """Returns `x`, or a copy, whose channels are neighbours, and the step between positions."""
    step = _step(x)
    return (_layout.dense_channels_last(x), x.shape[1]) if step is None else (x, step)


def _step_in_place(input: Tensor, weight: Tensor, bias: Tensor | None) -> int | None:
    """Returns the step between positions of `input`, None where anything needs a copy."""
    if not is_memory(input) or not is_memory(weight, bias, dense=True):
        return None
    return _step(input) if _layout.is_channels_last(input) else None


def _step(x: Tensor) -> int | None:
    """Returns the step between positions of `x`, None where the core needs a copy."""
    step = _layout.position_stride(x, (0, 2, 3, 4))
    if step is not None and 1 in (x.shape[1], x.stride(1)) and step >= x.shape[1]:
        return step
    return None


def _problem(x: Tensor, step: int, weight: Tensor, activation: str) -> bytes:
    problem: bytes = core().pointwise_conv3d_problem(
        DTYPES[x.dtype],
        CODES[activation],
        torch.get_num_threads(),
        x.shape[0] * x.shape[2] * x.shape[3] * x.shape[4],
        x.shape[1],
        weight.shape[0],
        x.shape[1] // weight.shape[1],
        step,
    )
    return problem


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
