"""pointwise_conv3d as a registered operator: opcheck, torch.compile, torch.export, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from depthwise_cases import lay_out
from torch import Tensor, nn

from evit_kernels import pointwise_conv3d
from evit_kernels.nn import PointwiseConv3d

FORWARD = torch.ops.evit.pointwise_conv3d.default
BACKWARD = torch.ops.evit.pointwise_conv3d_backward.default


def _tensors(layout: str = "channels_last") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual = (lay_out(torch.randn(2, c, 3, 4, 5), layout) for c in (8, 12))
    return x, torch.randn(12, 8, 1, 1, 1), torch.randn(12), residual


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_slice", "slice"])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_opcheck_forward(activation: str, layout: str) -> None:
    x, weight, bias, residual = _tensors(layout)
    torch.library.opcheck(FORWARD, (x, weight, bias, residual, activation, "native"))
    torch.library.opcheck(FORWARD, (x, weight, None, None, activation, "native"))


@pytest.mark.parametrize("needed", [[True, True, True], [True, False, False], [False, True, True]])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
def test_opcheck_backward(layout: str, needed: list[bool]) -> None:
    x, weight, bias, _ = _tensors(layout)
    for activation, shift in (("silu", bias), ("none", None)):
        grad = torch.randn_like(FORWARD(x, weight, shift, None, activation, "native"))
        arguments = (grad, x, weight, shift, activation, "native")
        torch.library.opcheck(BACKWARD, (*arguments, [*needed[:2], needed[2] and shift is bias]))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("size", [(3, 4, 5), (1, 1, 6), (1, 1, 1)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_slice"])
def test_fake_gives_the_strides_of_the_real(
    layout: str, size: tuple[int, ...], groups: int
) -> None:
    x = lay_out(torch.randn(2, 8, *size), layout)
    real: list[Any] = [x, torch.randn(12, 8 // groups, 1, 1, 1), torch.randn(12)]
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in real]
    results = []
    for tensors in (real, fake):
        output = FORWARD(*tensors, None, "relu", "native")
        results.append((output, *BACKWARD(output, *tensors, "relu", "native", [True] * 3)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        assert ours.stride() == theirs.stride()


def _block(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    y = pointwise_conv3d(x * 1.5, weight, bias, activation="hardswish", residual=residual)
    return pointwise_conv3d(y, weight.transpose(0, 1), residual=x).sin()


def _gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def _assert_same_gradients(
    compiled: Callable[..., Tensor], plain: Callable[..., Tensor], *tensors: Tensor
) -> None:
    both = (_gradients(compiled, *tensors), _gradients(plain, *tensors))
    for ours, eager in zip(*both, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
        assert ours.stride() == eager.stride()


def test_compiles_in_one_graph_forward_and_backward() -> None:
    torch.compiler.reset()
    compiled = torch.compile(_block, fullgraph=True)
    _assert_same_gradients(compiled, _block, *_tensors())


def test_compiles_for_sizes_that_change() -> None:
    torch.compiler.reset()
    compiled = torch.compile(_block, fullgraph=True, backend="aot_eager", dynamic=True)
    _, weight, bias, _ = _tensors()
    for size in ((2, 5, 6, 7), (3, 4, 9, 8), (4, 7, 5, 11)):
        x, residual = (
            lay_out(torch.randn(size[0], c, *size[1:]), "channels_last") for c in (8, 12)
        )
        _assert_same_gradients(compiled, _block, x, weight, bias, residual)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_with_its_input_as_residual(layout: str) -> None:
    def both(x: Tensor, weight: Tensor) -> Tensor:
        return pointwise_conv3d(x, weight, residual=x, activation="silu")

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    x, weight = lay_out(torch.randn(2, 8, 3, 4, 5), layout), torch.randn(8, 8, 1, 1, 1)
    _assert_same_gradients(compiled, both, x, weight)
    ours = _gradients(both, x, weight)
    theirs = _gradients(lambda x, w: nn.functional.silu(nn.functional.conv3d(x, w)) + x, x, weight)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_compiles_with_one_tensor_passed_twice() -> None:
    def both(x: Tensor) -> Tensor:
        return pointwise_conv3d(x, x, activation="silu")

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    _assert_same_gradients(compiled, both, torch.randn(5, 5, 1, 1, 1))


def test_compiles_with_its_own_output_as_gradient() -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        y = pointwise_conv3d(x, weight)
        return (y * y).sum() / 2

    torch.compiler.reset()
    x, weight, _, _ = _tensors()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    _assert_same_gradients(compiled, loss, x, weight)


def test_compiled_code_still_checks_its_arguments() -> None:
    torch.compiler.reset()
    compiled = torch.compile(pointwise_conv3d, fullgraph=True, backend="aot_eager")
    # The compiler wraps what it meets while tracing; our words stay in its message.
    with pytest.raises(Exception, match=r"weight takes 4 channels in 1 group.*input has 8"):
        compiled(torch.randn(1, 8, 3, 4, 4), torch.randn(6, 4, 1, 1, 1))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = PointwiseConv3d(8, 24, activation="gelu")
        self.project = PointwiseConv3d(24, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.expand(x), residual=x)


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


def test_module_has_the_state_of_a_plain_convolution() -> None:
    plain, ours = nn.Conv3d(8, 12, 1), PointwiseConv3d(8, 12, activation="relu6")
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 3, 4, 5)
    torch.testing.assert_close(ours(x), nn.functional.relu6(plain(x)), rtol=1e-4, atol=1e-5)
    assert "activation='relu6'" in repr(ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_follows_pytorch(dtype: torch.dtype) -> None:
    tensors = [t.requires_grad_() for t in _tensors()]
    x, weight, bias, residual = tensors
    with torch.autocast("cpu", dtype=dtype):
        output = pointwise_conv3d(x, weight, bias, activation="hardswish", residual=residual)
        plain = torch.nn.functional.conv3d(x, weight, bias)
    assert output.dtype == plain.dtype == dtype
    lower = [t.to(dtype) for t in tensors]
    by_hand = pointwise_conv3d(*lower[:3], activation="hardswish", residual=lower[3])
    assert torch.equal(output, by_hand)
    output.float().sum().backward()
    for leaf in tensors:
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32


def test_autocast_joins_mixed_dtypes_and_leaves_float64_alone() -> None:
    x, weight, bias, residual = _tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = pointwise_conv3d(x.bfloat16(), weight, bias.half(), residual=residual)
        assert mixed.dtype == torch.bfloat16
        assert pointwise_conv3d(x.double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        assert pointwise_conv3d(x, weight, bias).dtype == torch.float32


def test_autocast_inside_a_compiled_graph() -> None:
    torch.compiler.reset()
    x, weight, bias, _ = _tensors()

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pointwise_conv3d(x, weight, bias)

    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(), run())
