"""Every inverted bottleneck of b1, whole or its first two thirds: at once, one by one, PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact import check
from rounds import (
    LAYOUTS,
    OURS,
    PYTORCH,
    SINGLE_CALLS,
    TWO_CALLS,
    Group,
    inference,
    measure,
    recorded,
)
from shapes import BottleneckShape, bottleneck_shapes
from torch import Tensor

from evit_kernels import depthwise_conv3d, pointwise_conv3d, pointwise_depthwise_conv3d

PEERS = (OURS, TWO_CALLS, *PYTORCH)
WHOLE_PEERS = (OURS, SINGLE_CALLS, *PYTORCH)
WHOLE = bottleneck_shapes()
HALVES = list(dict.fromkeys(shape.without_last for shape in WHOLE if shape.in_channels))
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=HALVES, ids=str)
def forward(request: pytest.FixtureRequest, rounds: int) -> Group:
    """Pointwise convolution, bias, hardswish, depthwise convolution, bias, hardswish."""
    return _measured("pointwise_depthwise_conv3d forward", request.param, PEERS, rounds)


@pytest.fixture(scope="module", params=WHOLE, ids=str)
def whole(request: pytest.FixtureRequest, rounds: int) -> Group:
    """The same, but for separable convolutions without the first; then pointwise and residual."""
    return _measured("inverted bottleneck forward", request.param, WHOLE_PEERS, rounds)


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", WHOLE_PEERS)
def bench_whole(benchmark: Any, whole: Group, peer: str) -> None:
    whole.report(benchmark, peer)


def _measured(row: str, shape: BottleneckShape, peers: tuple[str, ...], rounds: int) -> Group:
    numbers = _numbers(shape)
    calls = {}
    for peer in peers:
        layout = LAYOUTS.get(peer, torch.channels_last_3d)
        tensors = [
            t.contiguous(memory_format=layout).clone() if t is not None and t.dim() == 5 else t
            for t in numbers
        ]
        calls[peer] = inference(_peer, peer, shape, *tensors)
    exact = _peer(PYTORCH[0], shape, *(None if t is None else t.double() for t in numbers))
    check(calls, exact, TOLERANCE, f"{row} {shape}")
    return measure(row, str(shape), calls, rounds)


def _numbers(shape: BottleneckShape) -> list[Tensor | None]:
    """Input; weight and bias of three convolutions, None for one that is not there; residual."""
    channels, kernel = shape.depthwise.input[1], shape.depthwise.kernel
    taps = kernel[0] * kernel[1] * kernel[2]

    def pointwise(depth: int, width: int) -> list[Tensor | None]:
        if not (depth and width):
            return [None, None]
        return [torch.randn(width, depth, 1, 1, 1) / depth**0.5, torch.randn(width)]

    return [
        torch.randn(shape.input),
        *pointwise(shape.in_channels, channels),
        torch.randn(channels, 1, *kernel) / taps**0.5,
        torch.randn(channels),
        *pointwise(channels, shape.out_channels),
        torch.randn(shape.output) if shape.residual else None,
    ]


def _peer(peer: str, shape: BottleneckShape, *tensors: Tensor | None) -> Tensor:
    x, first, shift, weight, bias, last, last_bias, residual = tensors
    assert x is not None
    assert weight is not None
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
            project_weight=last,
            project_bias=last_bias,
            residual=residual,
            backend="native",
        )
    if peer in (SINGLE_CALLS, TWO_CALLS):
        if first is not None:
            x = pointwise_conv3d(x, first, shift, activation="hardswish", backend="native")
        x = depthwise_conv3d(
            x, weight, bias, stride, padding, activation="hardswish", backend="native"
        )
        if last is None:
            return x
        return pointwise_conv3d(x, last, last_bias, residual=residual, backend="native")
    if first is not None:
        x = F.hardswish(F.conv3d(x, first, shift))
    x = F.hardswish(F.conv3d(x, weight, bias, stride, padding, groups=weight.shape[0]))
    if last is None:
        return x
    x = F.conv3d(x, last, last_bias)
    return x if residual is None else x + residual
