"""The definition of depthwise_conv3d, in plain PyTorch: any dtype, any device, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evit_kernels import _activations
from evit_kernels.depthwise_conv3d.geometry import Geometry


def depthwise_conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """Repeats the edge frames where asked, convolves each channel, applies the activation."""
    padding = geometry.padding
    if geometry.clamps_time:
        before, after = geometry.time_padding
        if before or after:
            first = input[:, :, :1].expand(-1, -1, before, -1, -1)
            last = input[:, :, -1:].expand(-1, -1, after, -1, -1)
            input = torch.cat([first, input, last], dim=2)
        padding = (0, padding[1], padding[2])
    output = F.conv3d(
        input, weight, bias, geometry.stride, padding, geometry.dilation, groups=weight.shape[0]
    )
    return _activations.reference(output, activation)
