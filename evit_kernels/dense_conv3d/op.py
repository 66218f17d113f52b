"""Registration of dense_conv3d with torch: schemas, fake implementations, derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evit_kernels import _activations, _gradients, _layout, _registration
from evit_kernels.dense_conv3d import native
from evit_kernels.depthwise_conv3d.geometry import Geometry, from_window

NAME = "dense_conv3d"

_WINDOW = "int[3] stride, int[3] padding, int[3] dilation, str temporal_padding"

_registration.define(
    f"dense_conv3d(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}, str activation, "
    "str backend) -> Tensor"
)
_registration.define(
    f"dense_conv3d_backward(Tensor grad_output, Tensor input, Tensor weight, {_WINDOW}, "
    "str backend, bool[3] needed) -> (Tensor, Tensor, Tensor)"
)

BACKENDS = {"native": native}


def dense_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str,
    backend: str,
) -> Tensor:
    """Calls the registered operator, through autograd where a gradient is wanted."""
    tensors = (input, weight, bias)
    if _registration.needs_autograd(*tensors):
        # Recorded apart, the activation is differentiated by PyTorch; nothing is computed twice.
        result: Tensor = _DenseConv3d.apply(*_registration.distinct(*tensors), geometry, backend)
        return _activations.reference(result, activation)
    return _forward(*tensors, *geometry[1:], activation, backend)


class _DenseConv3d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.arguments = (*geometry[1:], backend)
        return _forward(input, weight, bias, *geometry[1:], "none", backend)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[:3])
        grads = _registration.call_backward(
            NAME, _backward, grad_output, *ctx.saved_tensors, *ctx.arguments, needed
        )
        return (*(g if want else None for g, want in zip(grads, needed, strict=True)), None, None)


def _forward_impl(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    *window, activation, backend = arguments
    geometry = from_window(weight, *window)
    return BACKENDS[backend].forward(input, weight, bias, geometry, activation)


def _forward_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    geometry = from_window(weight, *arguments[:4])
    size = (input.shape[0], weight.shape[0], *geometry.output_size(input.shape[2:]))
    return torch.empty(
        size, dtype=input.dtype, device=input.device, memory_format=_layout.format_of(input)
    )


def _backward_impl(
    grad_output: Tensor, input: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *window, backend, needed = arguments
    geometry = from_window(weight, *window)
    return BACKENDS[backend].backward(grad_output, input, weight, geometry, needed)


def _backward_fake(
    grad_output: Tensor, input: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients.empty(input, weight, arguments[-1])


_forward = _registration.implement("dense_conv3d", _forward_impl, _forward_fake)
_backward = _registration.implement("dense_conv3d_backward", _backward_impl, _backward_fake)
