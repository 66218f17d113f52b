"""The definition of dense_conv3d, in plain PyTorch: any dtype, any device, differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from evit_kernels import _activations
from evit_kernels.depthwise_conv3d.geometry import Geometry, with_frames


def dense_conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """Repeats the edge frames where asked, convolves, applies the activation."""
    padded, padding = with_frames(input, geometry)
    output = F.conv3d(padded, weight, bias, geometry.stride, padding)
    return _activations.reference(output, activation)
