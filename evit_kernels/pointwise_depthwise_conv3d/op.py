"""Registration of pointwise_depthwise_conv3d with torch: schema and fake implementation.

It has no derivative: where one is wanted, two operators are called that keep what lies between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evit_kernels import _layout, _registration
from evit_kernels.depthwise_conv3d.geometry import Geometry, from_window
from evit_kernels.pointwise_depthwise_conv3d import native

_registration.define(
    "pointwise_depthwise_conv3d(Tensor input, Tensor pointwise_weight, Tensor? pointwise_bias, "
    "Tensor weight, Tensor? bias, int[3] stride, int[3] padding, int[3] dilation, "
    "str temporal_padding, str pointwise_activation, str activation, str backend) -> Tensor"
)

BACKENDS = {"native": native}


def pointwise_depthwise_conv3d(
    input: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activations: tuple[str, str],
    backend: str,
) -> Tensor:
    """Calls the registered operator."""
    output: Tensor = _forward(
        input,
        pointwise_weight,
        pointwise_bias,
        weight,
        bias,
        *geometry[1:],
        *activations,
        backend,
    )
    return output


def _forward_impl(
    input: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *arguments: Any,
) -> Tensor:
    *window, pointwise_activation, activation, backend = arguments
    return BACKENDS[backend].forward(
        input,
        pointwise_weight,
        pointwise_bias,
        weight,
        bias,
        from_window(weight, *window),
        (pointwise_activation, activation),
    )


def _forward_fake(
    input: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *arguments: Any,
) -> Tensor:
    geometry = from_window(weight, *arguments[:4])
    size = (input.shape[0], weight.shape[0], *geometry.output_size(input.shape[2:]))
    return torch.empty(
        size, dtype=input.dtype, device=input.device, memory_format=_layout.format_of(input)
    )


_forward = _registration.implement("pointwise_depthwise_conv3d", _forward_impl, _forward_fake)
