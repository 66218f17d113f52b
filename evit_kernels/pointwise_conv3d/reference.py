"""The definition of pointwise_conv3d, in plain PyTorch: any dtype, any device, differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from evit_kernels import _activations


def pointwise_conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """A 1x1x1 convolution, then the activation, then the sum with the residual."""
    convolved = F.conv3d(input, weight, bias, groups=input.shape[1] // weight.shape[1])
    output = _activations.reference(convolved, activation)
    return output if residual is None else output + residual
