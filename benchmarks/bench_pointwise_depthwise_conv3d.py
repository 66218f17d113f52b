"""The first two thirds of every inverted bottleneck of b1: at once, as two calls, by PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact import check
from rounds import LAYOUTS, OURS, PYTORCH, TWO_CALLS, Group, inference, measure, recorded
from shapes import BottleneckShape, bottleneck_shapes
from torch import Tensor

from evit_kernels import depthwise_conv3d, pointwise_conv3d, pointwise_depthwise_conv3d

PEERS = (OURS, TWO_CALLS, *PYTORCH)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=bottleneck_shapes(), ids=str)
def forward(request: pytest.FixtureRequest, rounds: int) -> Group:
    """Pointwise convolution, bias, hardswish, depthwise convolution, bias, hardswish."""
    shape: BottleneckShape = request.param
    numbers = _numbers(shape)
    calls = {}
    for peer in PEERS:
        layout = LAYOUTS.get(peer, torch.channels_last_3d)
        tensors = [
            t.contiguous(memory_format=layout).clone() if t.dim() == 5 else t for t in numbers
        ]
        calls[peer] = inference(_peer, peer, shape, *tensors)
    exact = _peer(PYTORCH[0], shape, *(t.double() for t in numbers))
    check(calls, exact, TOLERANCE, f"pointwise_depthwise_conv3d {shape}")
    return measure("pointwise_depthwise_conv3d forward", str(shape), calls, rounds)


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


def _numbers(shape: BottleneckShape) -> list[Tensor]:
    """Input, weight and bias of the first convolution, weight and bias of the second."""
    channels, kernel = shape.depthwise.input[1], shape.depthwise.kernel
    taps = kernel[0] * kernel[1] * kernel[2]
    return [
        torch.randn(shape.input),
        torch.randn(channels, shape.in_channels, 1, 1, 1) / shape.in_channels**0.5,
        torch.randn(channels),
        torch.randn(channels, 1, *kernel) / taps**0.5,
        torch.randn(channels),
    ]


def _peer(
    peer: str,
    shape: BottleneckShape,
    x: Tensor,
    first: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    stride, padding = shape.depthwise.stride, shape.depthwise.padding
    if peer == OURS:
        return pointwise_depthwise_conv3d(
            x,
            first,
            shift,
            weight,
            bias,
            stride,
            padding,
            pointwise_activation="hardswish",
            activation="hardswish",
            backend="native",
        )
    if peer == TWO_CALLS:
        between = pointwise_conv3d(x, first, shift, activation="hardswish", backend="native")
        return depthwise_conv3d(
            between, weight, bias, stride, padding, activation="hardswish", backend="native"
        )
    between = F.hardswish(F.conv3d(x, first, shift))
    groups = weight.shape[0]
    return F.hardswish(F.conv3d(between, weight, bias, stride, padding, groups=groups))
