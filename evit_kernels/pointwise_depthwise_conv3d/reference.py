"""The definition of pointwise_depthwise_conv3d: the definitions of its parts, one by one."""

from __future__ import annotations

from torch import Tensor

from evit_kernels.depthwise_conv3d import reference as depthwise
from evit_kernels.depthwise_conv3d.geometry import Geometry
from evit_kernels.pointwise_conv3d import reference as pointwise


def pointwise_depthwise_conv3d(
    input: Tensor,
    pointwise_weight: Tensor | None,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    project_weight: Tensor | None,
    project_bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    activations: tuple[str, str],
) -> Tensor:
    """A 1x1x1 convolution, a convolution of each channel, a 1x1x1 convolution, and the residual."""
    x = input
    if pointwise_weight is not None:
        x = pointwise.pointwise_conv3d(x, pointwise_weight, pointwise_bias, activations[0], None)
    x = depthwise.depthwise_conv3d(x, weight, bias, geometry, activations[1])
    if project_weight is None:
        return x
    return pointwise.pointwise_conv3d(x, project_weight, project_bias, "none", residual)
