"""Registration of pointwise_depthwise_conv3d with torch: schema and fake implementation.

It has no derivative: where one is wanted, operators are called that keep what lies between.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evit_kernels import _layout, _registration
from evit_kernels.depthwise_conv3d.geometry import Geometry, from_window
from evit_kernels.pointwise_depthwise_conv3d import native

_registration.define(
    "pointwise_depthwise_conv3d(Tensor input, Tensor? pointwise_weight, Tensor? pointwise_bias, "
    "Tensor weight, Tensor? bias, Tensor? project_weight, Tensor? project_bias, Tensor? residual, "
    "int[3] stride, int[3] padding, int[3] dilation, str temporal_padding, "
    "str pointwise_activation, str activation, str backend) -> Tensor"
)

BACKENDS = {"native": native}


class Tensors(NamedTuple):
    """The tensors of a call, in the order of the schema."""

    input: Tensor
    pointwise_weight: Tensor | None
    pointwise_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None
    project_weight: Tensor | None
    project_bias: Tensor | None
    residual: Tensor | None


def pointwise_depthwise_conv3d(
    tensors: Tensors, geometry: Geometry, activations: tuple[str, str], backend: str
) -> Tensor:
    """Calls the registered operator."""
    output: Tensor = _forward(*tensors, *geometry[1:], *activations, backend)
    return output


def _forward_impl(*arguments: Any) -> Tensor:
    count = len(Tensors._fields)
    tensors = Tensors(*arguments[:count])
    *window, pointwise_activation, activation, backend = arguments[count:]
    geometry = from_window(tensors.weight, *window)
    output: Tensor = BACKENDS[backend].forward(
        *tensors, geometry, (pointwise_activation, activation)
    )
    return output


def _forward_fake(*arguments: Any) -> Tensor:
    count = len(Tensors._fields)
    input, _, _, weight, _, project_weight, _, _ = Tensors(*arguments[:count])
    geometry = from_window(weight, *arguments[count : count + 4])
    last = weight if project_weight is None else project_weight
    size = (input.shape[0], last.shape[0], *geometry.output_size(input.shape[2:]))
    return torch.empty(
        size, dtype=input.dtype, device=input.device, memory_format=_layout.format_of(input)
    )


_forward = _registration.implement("pointwise_depthwise_conv3d", _forward_impl, _forward_fake)
