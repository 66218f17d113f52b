"""Registration of depthwise_conv3d with torch: schemas, fake implementations, derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evit_kernels import _calls, _gradients, _layout, _registration
from evit_kernels.depthwise_conv3d import native
from evit_kernels.depthwise_conv3d.geometry import NAME, Geometry, from_window

_WINDOW = "int[3] stride, int[3] padding, int[3] dilation, str temporal_padding, str activation"

_registration.define(
    f"depthwise_conv3d(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}, str backend) -> Tensor"
)
_registration.define(
    "depthwise_conv3d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, "
    f"{_WINDOW}, str backend, bool[3] needed) -> (Tensor, Tensor, Tensor)"
)

BACKENDS = _registration.Backends(__package__, native=native)
_GRADIENTS = _calls.Calls()


def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str,
    backend: str,
    direct: _calls.Direct,
) -> Tensor:
    """Calls the operator, through autograd where a gradient is wanted.

    `direct`, where there is one, instead of the registered one below autograd.
    """
    tensors = (input, weight, bias)
    if _registration.needs_autograd(*tensors):
        result: Tensor = _DepthwiseConv3d.apply(
            *_registration.distinct(*tensors), geometry, activation, backend, direct
        )
        return result
    return _forward(*tensors, *geometry[1:], activation, backend)


class _DepthwiseConv3d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        activation: str,
        backend: str,
        direct: _calls.Direct,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, bias)
        ctx.arguments = (geometry, activation, backend)
        if direct is not None:
            return direct(input, weight, bias)
        return _forward(input, weight, bias, *geometry[1:], activation, backend)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[:3])
        grads = _registration.call_backward(
            NAME, _differentiate, grad_output, *ctx.saved_tensors, *ctx.arguments, needed
        )
        chosen = [g if want else None for g, want in zip(grads, needed, strict=True)]
        return (*chosen, None, None, None, None)


def _differentiate(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (grad_output, input, weight, bias)
    call = _GRADIENTS.direct_backward(
        BACKENDS, backend, tensors, (geometry, activation, tuple(needed))
    )
    if call is not None:
        return call(*tensors)
    return _backward(*tensors, *geometry[1:], activation, backend, needed)


def _forward_impl(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    *window, activation, backend = arguments
    geometry = from_window(weight, *window)
    return BACKENDS[backend].forward(input, weight, bias, geometry, activation)


def _forward_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    geometry = from_window(weight, *arguments[:4])
    size = (input.shape[0], input.shape[1], *geometry.output_size(input.shape[2:]))
    return torch.empty(
        size, dtype=input.dtype, device=input.device, memory_format=_layout.format_of(input)
    )


def _backward_impl(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *window, activation, backend, needed = arguments
    geometry = from_window(weight, *window)
    return BACKENDS[backend].backward(
        grad_output, input, weight, bias, geometry, activation, needed
    )


def _backward_fake(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients.empty(input, weight, arguments[-1])


_forward = _registration.implement("depthwise_conv3d", _forward_impl, _forward_fake)
_backward = _registration.implement("depthwise_conv3d_backward", _backward_impl, _backward_fake)
