"""What pointwise_conv3d answers to bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evit_kernels import available_backends, pointwise_conv3d


def _x(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape or (2, 8, 3, 4, 5), **options)


def _w(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape or (12, 8, 1, 1, 1), **options)


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    # Rank and sizes.
    ({"input": _x(8, 3, 4, 5)}, ValueError, r"input must have 5 dimensions.*got 4: \(8, 3, 4, 5\)"),
    ({"weight": _w(12, 8)}, ValueError, r"weight must have 5 dimensions.*got 2: \(12, 8\)"),
    ({"weight": _w(12, 8, 1, 3, 3)}, ValueError, r"kernel must be \(1, 1, 1\), got \(1, 3, 3\)"),
    ({"weight": _w(12, 4, 1, 1, 1)}, ValueError, "weight takes 4 channels.*input has 8"),
    ({"bias": torch.zeros(8)}, ValueError, r"bias must be \(12,\), got \(8,\)"),
    ({"bias": torch.zeros(12, 1)}, ValueError, r"bias must be \(12,\), got \(12, 1\)"),
    (
        {"residual": _x()},
        ValueError,
        r"residual must be \(2, 12, 3, 4, 5\), got \(2, 8, 3, 4, 5\)",
    ),
    ({"residual": _x(1, 12, 1, 1, 1)}, ValueError, r"residual must be \(2, 12, 3, 4, 5\)"),
    ({"input": _x(2, 8, 0, 4, 5)}, ValueError, r"input has zero T: \(2, 8, 0, 4, 5\)"),
    ({"input": _x(2, 8, 3, 4, 0)}, ValueError, "input has zero W"),
    (
        {"input": _x(2, 0, 3, 4, 5), "weight": _w(12, 0, 1, 1, 1)},
        ValueError,
        "input has zero channels",
    ),
    # Groups.
    ({"groups": 5}, ValueError, "groups must be at least 1 and divide weight's 12.*got 5"),
    ({"groups": 0}, ValueError, "groups must be at least 1.*got 0"),
    ({"groups": 2}, ValueError, r"weight takes 16 channels in 2 group.*input has 8"),
    ({"groups": 2.0}, TypeError, "groups must be an int, got float"),
    ({"groups": True}, TypeError, "groups must be an int, got bool"),
    # Types.
    ({"input": [[1.0]]}, TypeError, "input must be a Tensor, got list"),
    ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
    ({"bias": 1.0}, TypeError, "bias must be a Tensor, got float"),
    ({"residual": 1}, TypeError, "residual must be a Tensor, got int"),
    (
        {"input": _x(dtype=torch.int32), "weight": _w(dtype=torch.int32)},
        TypeError,
        "input must be float32, float16, bfloat16 or float64, got torch.int32",
    ),
    (
        {"weight": _w(dtype=torch.half)},
        TypeError,
        "weight is torch.float16, input is torch.float32",
    ),
    ({"bias": torch.zeros(12, dtype=torch.float64)}, TypeError, "bias is torch.float64"),
    (
        {"residual": _x(2, 12, 3, 4, 5, dtype=torch.bfloat16)},
        TypeError,
        "residual is torch.bfloat16, input is torch.float32",
    ),
    # Devices.
    ({"weight": _w(device="meta")}, RuntimeError, "weight is on meta, input is on cpu"),
    ({"bias": torch.zeros(12, device="meta")}, RuntimeError, "bias is on meta, input is on cpu"),
    (
        {"residual": _x(2, 12, 3, 4, 5, device="meta")},
        RuntimeError,
        "residual is on meta, input is on cpu",
    ),
    # Names.
    ({"activation": "mish"}, ValueError, "activation must be None or one of 'relu'.*got 'mish'"),
    ({"activation": "none"}, ValueError, "activation must be None or one of 'relu'.*got 'none'"),
    ({"backend": "cuda"}, ValueError, "backend must be one of 'reference'.*got 'cuda'"),
    (
        {"backend": "triton"},
        RuntimeError,
        "backend 'triton' is not available: .*no Triton kernels for this",
    ),
]


@pytest.mark.parametrize(("change", "error", "words"), ERRORS, ids=[e[2][:40] for e in ERRORS])
def test_error(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = {"input": _x(), "weight": _w(), **change}
    with pytest.raises(error, match=f"^pointwise_conv3d: .*{words}"):
        pointwise_conv3d(**arguments)


def test_every_available_backend_answers(device: torch.device) -> None:
    x, weight = torch.randn(2, 8, 3, 4, 5), torch.randn(12, 8, 1, 1, 1)
    expected = torch.nn.functional.conv3d(x, weight)
    names = available_backends(device, "pointwise_conv3d")
    assert "reference" in names
    for name in names:
        output = pointwise_conv3d(x.to(device), weight.to(device), backend=name)
        torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_meta_tensors_give_the_shape_of_the_answer() -> None:
    with pytest.raises(RuntimeError, match=r"'native' is not available: .*meta"):
        pointwise_conv3d(_x(device="meta"), _w(device="meta"), backend="native")
    output = pointwise_conv3d(_x(device="meta"), _w(device="meta"))
    assert output.shape == (2, 12, 3, 4, 5)
