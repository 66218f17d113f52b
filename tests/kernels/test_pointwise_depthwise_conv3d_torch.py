"""pointwise_depthwise_conv3d with the rest of torch, and what it answers to bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from depthwise_cases import lay_out
from torch import Tensor

from evit_kernels import available_backends, pointwise_depthwise_conv3d

FORWARD = torch.ops.evit.pointwise_depthwise_conv3d.default
WINDOW = ([1, 2, 2], [1, 1, 1], [1, 1, 1], "replicate")


def _tensors(layout: str = "channels_last", frames: int = 4) -> list[Tensor]:
    x = lay_out(torch.randn(2, 6, frames, 7, 9), layout)
    first, weight = torch.randn(20, 6, 1, 1, 1), torch.randn(20, 1, 3, 3, 3)
    return [x, first, torch.randn(20), weight, torch.randn(20)]


# Two frames go one by one inside the operator.
@pytest.mark.parametrize("frames", [4, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_slice", "slice"])
def test_opcheck(layout: str, frames: int) -> None:
    tensors = _tensors(layout, frames)
    none = (None, None, None)
    torch.library.opcheck(FORWARD, (*tensors, *none, *WINDOW, "silu", "gelu", "native"))
    x, first, _, weight, _ = tensors
    torch.library.opcheck(
        FORWARD, (x, first, None, weight, None, *none, *WINDOW, "none", "relu", "native")
    )
    last, residual = torch.randn(7, 20, 1, 1, 1), lay_out(torch.randn(2, 7, frames, 4, 5), layout)
    every = (*tensors, last, torch.randn(7), residual)
    torch.library.opcheck(FORWARD, (*every, *WINDOW, "silu", "gelu", "native"))
    alone = (x, None, None, weight[:6], None, last[:, :6], None, None)
    torch.library.opcheck(FORWARD, (*alone, *WINDOW, "none", "gelu", "native"))


def _block(*tensors: Tensor) -> Tensor:
    y = pointwise_depthwise_conv3d(
        tensors[0] * 1.5,
        *tensors[1:],
        (1, 2, 2),
        1,
        temporal_padding="causal",
        pointwise_activation="hardswish",
        activation="gelu",
    )
    y = y.sin()
    return pointwise_depthwise_conv3d(
        y,
        None,
        None,
        tensors[3],
        padding=1,
        project_weight=tensors[1].transpose(0, 1),
        residual=y[:, :6],
    )


@pytest.mark.parametrize("frames", [4, 2])
def test_compiles_in_one_graph(frames: int) -> None:
    torch.compiler.reset()
    compiled = torch.compile(_block, fullgraph=True, backend="aot_eager")
    tensors = _tensors(frames=frames)
    with torch.no_grad():
        assert torch.equal(compiled(*tensors), _block(*tensors))
    leaves = [t.requires_grad_() for t in tensors]
    grads = [
        torch.autograd.grad(function(*leaves).square().sum(), leaves)
        for function in (compiled, _block)
    ]
    for ours, eager in zip(*grads, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_exports() -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return _block(*tensors)

    tensors = tuple(_tensors())
    with torch.no_grad():
        program = torch.export.export(Module(), tensors)
        assert torch.equal(program.module()(*tensors), _block(*tensors))
    assert any(node.target == FORWARD for node in program.graph.nodes)


def test_autocast_lowers_all_tensors() -> None:
    tensors = _tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = pointwise_depthwise_conv3d(*tensors)
        expected = pointwise_depthwise_conv3d(*(t.bfloat16() for t in tensors))
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)


def test_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "native" in available_backends("cpu", "pointwise_depthwise_conv3d")
    tensors = _tensors()
    with torch.no_grad():
        fused = _block(*tensors)
        monkeypatch.setenv("EVIT_BACKEND", "reference")
        torch.testing.assert_close(_block(*tensors), fused, rtol=1e-4, atol=1e-4)


def _zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": _zeros(6, 4, 7, 9)}, ValueError, "input must have 5 dimensions"),
    ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
    ({"input": _zeros(2, 6, 0, 7, 9)}, ValueError, "input has zero T"),
    ({"input": _zeros(2, 5, 4, 7, 9)}, ValueError, "pointwise_weight takes 6 chan.*input has 5"),
    ({"pointwise_weight": [1.0]}, TypeError, "pointwise_weight must be a Tensor, got list"),
    (
        {"pointwise_weight": None},
        ValueError,
        "pointwise_bias is given, pointwise_weight is None",
    ),
    (
        {"pointwise_weight": None, "pointwise_bias": None},
        ValueError,
        "weight has 20 channels, input has 6",
    ),
    ({"project_weight": _zeros(7, 20)}, ValueError, "project_weight must have 5 dimensions"),
    (
        {"project_weight": _zeros(7, 6, 1, 1, 1)},
        ValueError,
        "project_weight takes 6 channels, weight has 20",
    ),
    (
        {"project_weight": _zeros(7, 20, 1, 1, 2)},
        ValueError,
        r"project_weight's kernel must be \(1, 1, 1\), got \(1, 1, 2\)",
    ),
    (
        {"project_weight": _zeros(7, 20, 1, 1, 1), "project_bias": _zeros(20)},
        ValueError,
        r"project_bias must be \(7,\), got \(20,\)",
    ),
    ({"project_bias": _zeros(7)}, ValueError, "project_bias is given, project_weight is None"),
    ({"residual": _zeros(1)}, ValueError, "residual is added behind project_weight, which is None"),
    (
        {"project_weight": _zeros(7, 20, 1, 1, 1), "residual": _zeros(2, 7, 4, 7, 9)},
        ValueError,
        r"residual must be \(2, 7, 2, 5, 7\), got \(2, 7, 4, 7, 9\)",
    ),
    (
        {
            "project_weight": _zeros(7, 20, 1, 1, 1),
            "residual": _zeros(2, 7, 2, 5, 7, dtype=torch.half),
        },
        TypeError,
        "residual is torch.float16, input is torch.float32",
    ),
    ({"pointwise_weight": _zeros(20, 6)}, ValueError, "pointwise_weight must have 5 dimensions"),
    (
        {"pointwise_weight": _zeros(20, 6, 1, 3, 3)},
        ValueError,
        r"pointwise_weight's kernel must be \(1, 1, 1\), got \(1, 3, 3\)",
    ),
    (
        {"pointwise_weight": _zeros(20, 6, 1, 1, 1, dtype=torch.half)},
        TypeError,
        "pointwise_weight is torch.float16, input is torch.float32",
    ),
    ({"pointwise_bias": _zeros(6)}, ValueError, r"pointwise_bias must be \(20,\), got \(6,\)"),
    ({"pointwise_bias": 1.0}, TypeError, "pointwise_bias must be a Tensor, got float"),
    ({"weight": _zeros(20, 3, 3, 3)}, ValueError, "weight must have 5 dimensions"),
    (
        {"weight": _zeros(24, 1, 3, 3, 3)},
        ValueError,
        "weight has 24 channels, pointwise_weight gives 20",
    ),
    ({"weight": _zeros(20, 2, 3, 3, 3)}, ValueError, "weight must have one input channel"),
    ({"weight": _zeros(20, 1, 8, 3, 3)}, ValueError, "kernel must be 1 to 7"),
    ({"weight": _zeros(20, 1, 7, 7, 7)}, ValueError, "larger than the padded input"),
    ({"bias": _zeros(6)}, ValueError, "bias has 6 channels"),
    ({"stride": 0}, ValueError, "stride must be at least 1"),
    ({"padding": -1}, ValueError, "padding must be at least 0"),
    ({"dilation": "2"}, TypeError, "dilation must be an int or three ints"),
    ({"temporal_padding": "same"}, ValueError, "temporal_padding must be one of"),
    ({"activation": "mish"}, ValueError, "activation must be None or one of .*got 'mish'"),
    ({"pointwise_activation": "mish"}, ValueError, "pointwise_activation must be None or one of"),
    ({"backend": "cudnn"}, ValueError, "backend must be one of .*got 'cudnn'"),
    ({"backend": "triton"}, RuntimeError, "no Triton kernels for this operator yet"),
]


@pytest.mark.parametrize(("changes", "error", "words"), ERRORS)
def test_bad_arguments_are_named(
    changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    names = ("input", "pointwise_weight", "pointwise_bias", "weight", "bias")
    arguments = dict(zip(names, _tensors(), strict=True))
    with pytest.raises(error, match=f"^pointwise_depthwise_conv3d: .*{words}"):
        pointwise_depthwise_conv3d(**{**arguments, **changes})
