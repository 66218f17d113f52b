"""Depthwise convolution on every shape of b1: bias and hardswish forward; gradients backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact import check
from rounds import LAYOUTS, OURS, PYTORCH, Group, gradients, inference, measure, recorded
from shapes import DepthwiseShape, depthwise_shapes
from torch import Tensor

from evit_kernels import depthwise_conv3d

SHAPES = depthwise_shapes()
PEERS = (OURS, *PYTORCH)
TOLERANCE = 1e-5

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def forward(request: pytest.FixtureRequest, rounds: int) -> Group:
    """Convolution, bias, hardswish, as one operator and as PyTorch's two."""
    shape: DepthwiseShape = request.param
    peers = _peers(shape, "hardswish")
    calls = {name: inference(operator, *tensors) for name, (operator, tensors) in peers.items()}
    _check(peers, shape, calls, lambda y, _: y)
    return measure("depthwise_conv3d forward", str(shape), calls, rounds)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def backward(request: pytest.FixtureRequest, rounds: int) -> Group:
    """Gradients of the convolution: of its input, weight and bias."""
    return _backward_group("depthwise_conv3d backward", request.param, None, rounds)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def fused_backward(request: pytest.FixtureRequest, rounds: int) -> Group:
    """Gradients through hardswish and the convolution."""
    return _backward_group(
        "depthwise_conv3d+hardswish backward", request.param, "hardswish", rounds
    )


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_backward(benchmark: Any, backward: Group, peer: str) -> None:
    backward.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_fused_backward(benchmark: Any, fused_backward: Group, peer: str) -> None:
    fused_backward.report(benchmark, peer)


def _backward_group(row: str, shape: DepthwiseShape, activation: str | None, rounds: int) -> Group:
    peers = _peers(shape, activation)
    gradient: Tensor | None = None
    calls = {}
    for name, (operator, tensors) in peers.items():
        output = operator(*tensors)
        if gradient is None:
            gradient = torch.randn(output.shape)
        same = gradient.contiguous(memory_format=LAYOUTS.get(name, torch.channels_last_3d))
        calls[name] = gradients(output, tensors, same)
    assert gradient is not None
    exact = gradient.double()
    _check(peers, shape, calls, lambda y, inputs: torch.autograd.grad(y, inputs, exact), activation)
    return measure(row, str(shape), calls, rounds)


Peer = tuple[Convolution, tuple[Tensor, Tensor, Tensor]]


def _peers(shape: DepthwiseShape, activation: str | None) -> dict[str, Peer]:
    """Per peer the function, and (input, weight, bias) in its layout."""
    channels, taps = shape.input[1], shape.kernel[0] * shape.kernel[1] * shape.kernel[2]
    numbers = torch.randn(shape.input), torch.randn(channels, 1, *shape.kernel) / taps**0.5
    bias = torch.randn(channels)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv3d(
            x, weight, bias, shape.stride, shape.padding, activation=activation, backend="native"
        )

    peers: dict[str, Peer] = {}
    for name in PEERS:
        layout = LAYOUTS.get(name, torch.channels_last_3d)
        x, weight = (t.contiguous(memory_format=layout).clone() for t in numbers)
        tensors = tuple(t.requires_grad_() for t in (x, weight, bias.clone()))
        theirs = _pytorch(shape, activation)
        peers[name] = (ours if name == OURS else theirs, tensors)  # type: ignore[assignment]
    return peers


def _pytorch(shape: DepthwiseShape, activation: str | None) -> Convolution:
    def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv3d(x, weight, bias, shape.stride, shape.padding, groups=x.shape[1])
        return y if activation is None else F.hardswish(y)

    return convolution


def _check(
    peers: dict[str, Peer],
    shape: DepthwiseShape,
    calls: dict[str, Any],
    result: Callable[[Tensor, tuple[Tensor, ...]], Any],
    activation: str | None = "hardswish",
) -> None:
    inputs = tuple(t.detach().double().contiguous().requires_grad_() for t in peers[OURS][1])
    exact = result(_pytorch(shape, activation)(*inputs), inputs)
    check(calls, exact, TOLERANCE, f"depthwise_conv3d {shape}")
