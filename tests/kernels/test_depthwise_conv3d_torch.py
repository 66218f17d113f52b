"""depthwise_conv3d as a registered operator: opcheck, torch.compile, torch.export, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from depthwise_cases import lay_out
from torch import Tensor, nn

from evit_kernels import depthwise_conv3d
from evit_kernels.nn import DepthwiseConv3d

FORWARD = torch.ops.evit.depthwise_conv3d.default
BACKWARD = torch.ops.evit.depthwise_conv3d_backward.default
WINDOWS: list[tuple[Any, ...]] = [
    ([1, 2, 2], [1, 1, 1], [1, 1, 1], "zeros", "gelu", "native"),
    ([2, 1, 1], [0, 2, 0], [2, 1, 1], "causal", "none", "native"),
]


def _tensors(layout: str = "channels_last") -> tuple[Tensor, Tensor, Tensor]:
    x = lay_out(torch.randn(2, 8, 5, 6, 7), layout)
    return x, torch.randn(8, 1, 3, 3, 3), torch.randn(8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_slice", "slice"])
@pytest.mark.parametrize("window", WINDOWS, ids=["strided", "causal"])
def test_opcheck_forward(window: tuple[Any, ...], layout: str) -> None:
    x, weight, bias = _tensors(layout)
    torch.library.opcheck(FORWARD, (x, weight, bias, *window))
    torch.library.opcheck(FORWARD, (x, weight, None, *window))


@pytest.mark.parametrize("needed", [[True, True, True], [True, False, False], [False, True, True]])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
def test_opcheck_backward(layout: str, needed: list[bool]) -> None:
    x, weight, bias = _tensors(layout)
    for window in WINDOWS:
        grad = torch.randn_like(FORWARD(x, weight, bias, *window))
        torch.library.opcheck(BACKWARD, (grad, x, weight, bias, *window, needed))


def _block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = depthwise_conv3d(x * 1.5, weight, bias, (1, 2, 2), 1, activation="hardswish")
    return depthwise_conv3d(y, weight, None, 1, 2, temporal_padding="replicate").sin()


def _gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def _assert_same_gradients(compiled: Callable[..., Tensor], *tensors: Tensor) -> None:
    both = (_gradients(compiled, *tensors), _gradients(_block, *tensors))
    for ours, eager in zip(*both, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
        assert ours.stride() == eager.stride()


def test_compiles_in_one_graph_forward_and_backward() -> None:
    torch.compiler.reset()
    compiled = torch.compile(_block, fullgraph=True)
    _assert_same_gradients(compiled, *_tensors())


def test_compiles_for_sizes_that_change() -> None:
    torch.compiler.reset()
    compiled = torch.compile(_block, fullgraph=True, backend="aot_eager", dynamic=True)
    _, weight, bias = _tensors()
    for size in ((2, 8, 5, 6, 7), (3, 8, 4, 9, 8), (4, 8, 7, 5, 11)):
        x = lay_out(torch.randn(size), "channels_last")
        _assert_same_gradients(compiled, x, weight, bias)


def test_compiles_with_one_tensor_passed_twice() -> None:
    def both(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv3d(x, weight, padding=2, activation="silu")

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    start = torch.randn(1, 1, 5, 5, 5)
    gradients = []
    for function in (compiled, both):
        x = start.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(x, x).sum(), x)[0])
    x, y = start.clone().requires_grad_(), start.clone().requires_grad_()
    separate = torch.autograd.grad(both(x, y).sum(), [x, y])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], separate[0] + separate[1])


def test_compiles_with_its_own_output_as_gradient() -> None:
    # The output is saved by nobody and comes back as its gradient: three names for few tensors.
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        y = depthwise_conv3d(x, weight, padding=1)
        return (y * y).sum() / 2

    torch.compiler.reset()
    x, weight, _ = _tensors()
    results = []
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        results.append(torch.autograd.grad(function(*leaves), leaves))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_compiled_code_still_checks_its_arguments() -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, w: depthwise_conv3d(x, w, padding=1), fullgraph=True, backend="aot_eager"
    )
    # The compiler wraps what it meets while tracing; our words stay in its message.
    with pytest.raises(Exception, match="weight has 4 channels, input has 8"):
        compiled(torch.randn(1, 8, 3, 4, 4), torch.randn(4, 1, 3, 3, 3))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = DepthwiseConv3d(8, 3, padding=1, activation="gelu")
        self.second = DepthwiseConv3d(8, (3, 1, 1), temporal_padding="causal")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_dynamic_batch_and_time(strict: bool) -> None:
    network = _Network().eval()
    x = torch.randn(2, 8, 4, 6, 6)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("time", min=2)}
    with torch.no_grad():
        program = torch.export.export(network, (x,), dynamic_shapes=(sizes,), strict=strict)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(FORWARD) == 2
    for other in (x, torch.randn(5, 8, 9, 6, 6)):
        torch.testing.assert_close(program.module()(other), network(other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_follows_pytorch(dtype: torch.dtype) -> None:
    x, weight, bias = (t.requires_grad_() for t in _tensors())
    with torch.autocast(x.device.type, dtype=dtype):
        output = depthwise_conv3d(x, weight, bias, padding=1, activation="hardswish")
        plain = torch.nn.functional.conv3d(x, weight, bias, padding=1, groups=8)
    assert output.dtype == plain.dtype == dtype
    by_hand = depthwise_conv3d(
        x.to(dtype), weight.to(dtype), bias.to(dtype), padding=1, activation="hardswish"
    )
    assert torch.equal(output, by_hand)
    output.float().sum().backward()
    for leaf in (x, weight, bias):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32


def test_autocast_joins_mixed_dtypes_and_leaves_float64_alone() -> None:
    x, weight, bias = _tensors()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        mixed = depthwise_conv3d(x.bfloat16(), weight, bias.half(), padding=1)
        assert mixed.dtype == torch.bfloat16
        assert depthwise_conv3d(x.double(), weight.double(), padding=1).dtype == torch.float64
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=False):
        assert depthwise_conv3d(x, weight, bias, padding=1).dtype == torch.float32


def test_autocast_inside_a_compiled_graph() -> None:
    torch.compiler.reset()
    x, weight, bias = _tensors()
    kind = x.device.type

    def run() -> Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16):
            return depthwise_conv3d(x, weight, bias, padding=1)

    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(), run())
