"""What depthwise_conv3d answers to bad arguments, and how a backend is chosen or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evit_kernels import available_backends, backends, depthwise_conv3d

pytestmark = pytest.mark.on_cpu("its tensors are made before a device is chosen")

# Arguments of a call that is right; every error changes one of them.
_GOOD: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1}


def _x(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape or (2, 8, 4, 6, 6), **options)


def _w(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape or (8, 1, 3, 3, 3), **options)


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    # Rank.
    ({"input": _x(8, 4, 6, 6)}, ValueError, r"input must have 5 dimensions.*got 4: \(8, 4, 6, 6\)"),
    ({"weight": _w(8, 3, 3, 3)}, ValueError, r"weight must have 5 dimensions.*got 4"),
    ({"bias": torch.zeros(8, 1)}, ValueError, r"bias must have 1 dimensions.*\(8, 1\)"),
    # Channels.
    ({"weight": _w(16, 1, 3, 3, 3)}, ValueError, "weight has 16 channels, input has 8"),
    ({"weight": _w(8, 2, 3, 3, 3)}, ValueError, r"one input channel per group.*\(8, 2, 3, 3, 3\)"),
    ({"bias": torch.zeros(4)}, ValueError, "bias has 4 channels, input has 8"),
    # Sizes of zero.
    ({"input": _x(2, 8, 0, 6, 6)}, ValueError, r"input has zero T: \(2, 8, 0, 6, 6\)"),
    ({"input": _x(2, 8, 4, 0, 6)}, ValueError, "input has zero H"),
    ({"input": _x(2, 8, 4, 6, 0)}, ValueError, "input has zero W"),
    (
        {"input": _x(2, 0, 4, 6, 6), "weight": _w(0, 1, 3, 3, 3)},
        ValueError,
        "input has zero channels",
    ),
    ({"weight": _w(8, 1, 0, 3, 3)}, ValueError, r"kernel must be 1 to 7.*got \(0, 3, 3\)"),
    # Kernels.
    ({"weight": _w(8, 1, 3, 8, 3)}, ValueError, r"kernel must be 1 to 7.*got \(3, 8, 3\)"),
    ({"padding": 0, "input": _x(2, 8, 2, 6, 6)}, ValueError, r"larger than.*input \(2, 6, 6\)"),
    ({"dilation": (1, 1, 5)}, ValueError, r"dilation \(1, 1, 5\) is larger than the padded input"),
    # Stride, padding, dilation.
    ({"stride": 0}, ValueError, r"stride must be at least 1, got \(0, 0, 0\)"),
    ({"stride": (1, -2, 1)}, ValueError, r"stride must be at least 1, got \(1, -2, 1\)"),
    ({"padding": (0, 0, -1)}, ValueError, r"padding must be at least 0, got \(0, 0, -1\)"),
    ({"dilation": 0}, ValueError, "dilation must be at least 1"),
    ({"stride": (1, 2)}, ValueError, r"stride must have 1 or 3 values, got 2: \(1, 2\)"),
    ({"stride": 1.5}, TypeError, "stride must be an int or three ints, got float"),
    ({"stride": (1, 2.0, 1)}, TypeError, "stride must hold ints, got float"),
    ({"stride": True}, TypeError, "stride must hold ints, got bool"),
    ({"padding": "same"}, TypeError, "padding must be an int or three ints, got str"),
    ({"dilation": None}, TypeError, "dilation must be an int or three ints, got NoneType"),
    # Types.
    ({"input": [[1.0]]}, TypeError, "input must be a Tensor, got list"),
    ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
    ({"bias": 1.0}, TypeError, "bias must be a Tensor, got float"),
    (
        {"input": _x(dtype=torch.int32), "weight": _w(dtype=torch.int32)},
        TypeError,
        "input must be float32, float16, bfloat16 or float64, got torch.int32",
    ),
    (
        {"weight": _w(dtype=torch.bfloat16)},
        TypeError,
        "weight is torch.bfloat16, input is torch.float32",
    ),
    (
        {"bias": torch.zeros(8, dtype=torch.float64)},
        TypeError,
        "bias is torch.float64, input is torch.float32",
    ),
    # Devices.
    ({"weight": _w(device="meta")}, RuntimeError, "weight is on meta, input is on cpu"),
    ({"bias": torch.zeros(8, device="meta")}, RuntimeError, "bias is on meta, input is on cpu"),
    ({"input": _x(device="meta")}, RuntimeError, "weight is on cpu, input is on meta"),
    # Names.
    ({"activation": "mish"}, ValueError, "activation must be None or one of 'relu'.*got 'mish'"),
    ({"activation": "none"}, ValueError, "activation must be None or one of 'relu'.*got 'none'"),
    ({"temporal_padding": "same"}, ValueError, "temporal_padding must be one of 'zeros'.*'same'"),
    ({"backend": "cuda"}, ValueError, "backend must be one of 'reference'.*got 'cuda'"),
    ({"backend": "triton"}, RuntimeError, "backend 'triton' is not available: .*Triton"),
]


@pytest.mark.parametrize(("change", "error", "words"), ERRORS, ids=[e[2][:40] for e in ERRORS])
def test_error(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = {"input": _x(), "weight": _w(), **_GOOD, **change}
    with pytest.raises(error, match=f"^depthwise_conv3d: .*{words}"):
        depthwise_conv3d(**arguments)


def test_error_of_every_activation_that_is_no_name() -> None:
    for wrong in (1, torch.nn.functional.relu, ["relu"]):
        with pytest.raises((ValueError, TypeError), match="activation must be"):
            depthwise_conv3d(_x(), _w(), padding=1, activation=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, [2], (1, 2, 2), torch.Size([1, 2, 2])])
def test_one_or_three_values(size: Any) -> None:
    x, weight = torch.randn(1, 8, 5, 6, 6), torch.randn(8, 1, 3, 3, 3)
    ours = depthwise_conv3d(x, weight, None, size, size, size)
    steps = size if isinstance(size, int) or len(size) == 3 else size[0]
    theirs = torch.nn.functional.conv3d(x, weight, None, steps, steps, steps, groups=8)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_available_backend_answers(device: torch.device) -> None:
    x, weight = torch.randn(2, 8, 4, 6, 6), torch.randn(8, 1, 3, 3, 3)
    expected = torch.nn.functional.conv3d(x, weight, padding=1, groups=8)
    names = available_backends(device, "depthwise_conv3d")
    assert "reference" in names
    for name in names:
        output = depthwise_conv3d(x.to(device), weight.to(device), padding=1, backend=name)
        torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_environment_variable_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 8, 4, 4, 4)
    monkeypatch.delenv("EVIT_BACKEND", raising=False)
    assert backends.select("depthwise_conv3d", None, x) == available_backends()[0]
    monkeypatch.setenv("EVIT_BACKEND", "reference")
    assert backends.select("depthwise_conv3d", None, x) == "reference"
    # The argument is nearer to the call than the environment.
    assert backends.select("depthwise_conv3d", "native", x) == "native"


def test_environment_variable_is_refused_like_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIT_BACKEND", "fastest")
    with pytest.raises(ValueError, match=r"EVIT_BACKEND must be one of .*got 'fastest'"):
        depthwise_conv3d(_x(), _w(), padding=1)
    monkeypatch.setenv("EVIT_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=r"EVIT_BACKEND 'triton' is not available: .*Triton"):
        depthwise_conv3d(_x(), _w(), padding=1)


def test_native_says_which_device_it_cannot_serve() -> None:
    x, weight = _x(device="meta"), _w(device="meta")
    with pytest.raises(RuntimeError, match=r"'native' is not available: .*for CPU and CUDA.*meta"):
        depthwise_conv3d(x, weight, padding=1, backend="native")
    # Left to choose, meta tensors give the shape of the answer.
    assert depthwise_conv3d(x, weight, padding=1).shape == x.shape
