"""The definition of depthwise_conv3d, in plain PyTorch: any dtype, any device, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evit_kernels import _activations, _layout
from evit_kernels.depthwise_conv3d.geometry import Geometry, Triple, with_frames


def depthwise_conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """Repeats the edge frames where asked, convolves each channel, applies the activation."""
    padded, padding = with_frames(input, geometry)
    mistaken = _onednn_mistakes_weights(padded, geometry, padding)
    output = F.conv3d(
        padded.contiguous() if mistaken else padded,
        weight,
        bias,
        geometry.stride,
        padding,
        geometry.dilation,
        groups=weight.shape[0],
    )
    if mistaken:
        output = output.contiguous(memory_format=_layout.format_of(padded))
    return _activations.reference(output, activation)


def _onednn_mistakes_weights(input: Tensor, geometry: Geometry, padding: Triple) -> bool:
    """Whether PyTorch may answer with a weight gradient that is not one.

    Measured with torch 2.13 on x86-64: the gradient of depthwise weights in bfloat16 holds bits of
    memory that nobody wrote where channels lie last and the input is padded and smaller than the
    window, as a clip of two frames is under three taps; contiguous tensors are not concerned.
    """
    if input.dtype != torch.bfloat16 or input.device.type != "cpu":
        return False
    return any(
        padding[i] > 0
        and (
            input.shape[2 + i] <= (geometry.kernel[i] - 1) * geometry.dilation[i]
            or padding[i] >= geometry.kernel[i]
        )
        for i in range(3)
    )
