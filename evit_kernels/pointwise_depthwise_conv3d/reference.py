"""The definition of pointwise_depthwise_conv3d: the definitions of its halves, one by one."""

from __future__ import annotations

from torch import Tensor

from evit_kernels.depthwise_conv3d import reference as depthwise
from evit_kernels.depthwise_conv3d.geometry import Geometry
from evit_kernels.pointwise_conv3d import reference as pointwise


def pointwise_depthwise_conv3d(
    input: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activations: tuple[str, str],
) -> Tensor:
    """A 1x1x1 convolution and its activation, then a convolution of each channel and its own."""
    middle = pointwise.pointwise_conv3d(
        input, pointwise_weight, pointwise_bias, activations[0], residual=None
    )
    return depthwise.depthwise_conv3d(middle, weight, bias, geometry, activations[1])
