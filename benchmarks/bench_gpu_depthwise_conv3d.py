"""Depthwise convolution on a GPU, on the shapes of b1 and b3: forward, and each gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import Case, depthwise_cases, taps_inside
from gpu_options import GPU_OPTIONS, GpuRun
from gpu_peers import Function, operator_group, peers_of
from rounds import Group, recorded
from shapes import DepthwiseShape
from torch import Tensor

from evit_kernels import depthwise_conv3d

OPERATOR = "depthwise_conv3d"
# What of (input, weight, bias) is differentiated.
DATA, WEIGHTS = (0,), (1, 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    options = metafunc.config.stash[GPU_OPTIONS]
    metafunc.parametrize("peer", options.chosen(peers_of(OPERATOR, options.device)))
    cases = depthwise_cases(options.shapes)
    metafunc.parametrize("case", cases, ids=str, indirect=True, scope="module")


@pytest.fixture(scope="module")
def forward(case: Case, gpu_run: GpuRun) -> Group:
    """Convolution, bias, hardswish."""
    return _group("gpu depthwise_conv3d forward", case, gpu_run, "hardswish", ())


@pytest.fixture(scope="module")
def data_gradient(case: Case, gpu_run: GpuRun) -> Group:
    """The gradient of the convolution's input."""
    return _group("gpu depthwise_conv3d data gradient", case, gpu_run, None, DATA)


@pytest.fixture(scope="module")
def weight_gradient(case: Case, gpu_run: GpuRun) -> Group:
    """The gradients of the convolution's weight and bias."""
    return _group("gpu depthwise_conv3d weight gradient", case, gpu_run, None, WEIGHTS)


@recorded
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


@recorded
def bench_data_gradient(benchmark: Any, data_gradient: Group, peer: str) -> None:
    data_gradient.report(benchmark, peer)


@recorded
def bench_weight_gradient(benchmark: Any, weight_gradient: Group, peer: str) -> None:
    weight_gradient.report(benchmark, peer)


def _group(
    row: str, case: Case, run: GpuRun, activation: str | None, wanted: tuple[int, ...]
) -> Group:
    shape = case.shape
    assert isinstance(shape, DepthwiseShape)
    channels, taps = shape.input[1], shape.kernel[0] * shape.kernel[1] * shape.kernel[2]

    def numbers() -> list[Tensor]:
        make = partial(torch.randn, dtype=case.dtype, device=run.device)
        return [make(shape.input), make(channels, 1, *shape.kernel) / taps**0.5, make(channels)]

    def ours(backend: str) -> Function:
        return partial(
            depthwise_conv3d,
            stride=shape.stride,
            padding=shape.padding,
            activation=activation,
            backend=backend,
        )

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv3d(x, weight, bias, shape.stride, shape.padding, groups=channels)
        return y if activation is None else F.hardswish(y)

    products = taps_inside(shape)
    return operator_group(
        row,
        case,
        run.peers(peers_of(OPERATOR, run.device.type)),
        run.device,
        run.rounds,
        numbers,
        ours,
        theirs,
        wanted,
        # Input and output, or the gradient in the place of one of them.
        nbytes=case.dtype.itemsize * (_count(shape.input) + _count(shape.output)),
        facts={"flops": 2 * products},
    )


def _count(size: tuple[int, ...]) -> int:
    return torch.Size(size).numel()
