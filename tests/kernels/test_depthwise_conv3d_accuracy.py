"""depthwise_conv3d against float64: as accurate as PyTorch's own convolution in the same dtype."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from depthwise_cases import ACTIVATIONS, Case
from depthwise_definition import Definition
from placement import randn
from torch import Tensor

# Sizes that fill whole vectors, cross the borders of blocks, and leave a remainder in every loop.
CASES = [
    Case(2, 24, (5, 13, 19), (3, 3, 3), padding=(1, 1, 1)),
    Case(1, 40, (4, 14, 14), (3, 3, 3), stride=(1, 2, 2), padding=(1, 1, 1)),
    Case(1, 40, (5, 15, 17), (3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)),
    Case(1, 37, (6, 11, 23), (5, 5, 5), padding=(2, 2, 2), temporal_padding="replicate"),
    Case(1, 16, (7, 17, 16), (5, 5, 5), stride=(2, 2, 2), padding=(2, 2, 2)),
    Case(2, 32, (1, 9, 28), (3, 3, 3), padding=(1, 1, 1)),
    Case(2, 32, (1, 9, 28), (3, 3, 3), padding=(1, 1, 1), temporal_padding="replicate"),
    Case(1, 48, (4, 7, 21), (1, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2)),
    Case(1, 65, (9, 6, 7), (5, 1, 1), temporal_padding="causal"),
    Case(1, 24, (6, 12, 13), (4, 2, 6), padding=(2, 1, 3), stride=(1, 3, 1)),
    Case(1, 24, (7, 13, 15), (7, 7, 7), padding=(3, 3, 3), dilation=(1, 2, 1)),
]
NAMES = ("output", "gradient of input", "gradient of weight", "gradient of bias")


def _results(case: Case, dtype: torch.dtype, backend: str | None) -> list[Tensor]:
    """Output and gradients, computed in `dtype` from values that the case's dtype can hold."""
    leaves = [x.to(dtype).requires_grad_() for x in case.tensors() if x is not None]
    output = case.call(leaves[0], leaves[1], leaves[2] if case.bias else None, backend)
    grad = randn(*output.shape, seed=1).to(case.dtype).to(dtype)
    return [output, *torch.autograd.grad(output, leaves, grad)]


@cache  # PyTorch's half precision is slow, and the same for every instruction set of ours
def _pytorch(case: Case, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """PyTorch's results in the case's dtype, and exact ones, on the default device: `device`."""
    results = _results(case, case.dtype, "reference"), _results(case, torch.float64, "reference")
    return tuple([x.detach() for x in tensors] for tensors in results)


def _assert_case(case: Case) -> None:
    ours = _results(case, case.dtype, "native")
    theirs, exact = _pytorch(case, torch.get_default_device())
    for our, their, true, name in zip(ours, theirs, exact, NAMES, strict=False):
        factor = FORWARD if name == "output" else BACKWARD
        assert_accurate(our, their, true, factor, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_error_is_that_of_pytorch(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    _assert_case(replace(case, dtype=dtype, activation="hardswish"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_of_every_activation(
    activation: str | None, dtype: torch.dtype, instruction_set: str
) -> None:
    _assert_case(Case(2, 29, (3, 9, 14), (3, 3, 3), activation=activation, dtype=dtype))


@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_float64_against_more_digits(case: Case, instruction_set: str) -> None:
    case = replace(case, dtype=torch.float64)
    ours = _results(case, torch.float64, "native")
    theirs = _results(case, torch.float64, "reference")
    definition = Definition(case, *case.tensors())
    grad = randn(*ours[0].shape, seed=1)
    exact = [definition.output(), *definition.gradients(grad)]
    for our, their, true, name in zip(ours, theirs, exact, NAMES, strict=True):
        assert_accurate(our, their, true, FORWARD if name == "output" else BACKWARD, name)


def test_large_values_are_activated_as_in_pytorch(instruction_set: str) -> None:
    # Where exp overflows or erf saturates, the activations must reach their asymptotes.
    # Not at 3 and -3, where the derivative of hardswish differs between versions of PyTorch.
    values = torch.tensor([0.0, -0.0, 1e-30, 2.5, -2.5, 6.0, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4])
    input = values.view(1, 1, 1, 1, -1).expand(1, 16, 1, 1, -1).contiguous()
    for activation in ACTIVATIONS:
        case = Case(1, 16, (1, 1, len(values)), (1, 1, 1), activation=activation, bias=False)
        results = []
        for backend in ("native", "reference"):
            x = input.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            output = case.call(x, torch.ones(16, 1, 1, 1, 1), None, backend)
            results.append((output, *torch.autograd.grad(output.sum(), x)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=str(activation))


@pytest.mark.parametrize("layout", ["channels_last", "channels_last_slice"])
@pytest.mark.parametrize("temporal_padding", ["zeros", "causal"])
def test_reference_is_right_where_onednn_is_not(temporal_padding: str, layout: str) -> None:
    # Clips and planes shorter than the window, and windows that fit into the padding.
    windows = [((k, 3, 3), (k // 2, 1, 1), (t, 6, 6)) for k in (3, 5, 7) for t in range(1, k)]
    windows += [((4, 3, 3), (3, 1, 1), (2, 6, 6)), ((1, 3, 3), (3, 1, 1), (1, 6, 6))]
    windows += [((3, 7, 3), (1, 3, 1), (6, 2, 9)), ((3, 5, 3), (1, 2, 1), (6, 1, 9))]
    for kernel, padding, size in windows:
        for stride in ((1, 1, 1), (2, 1, 1)):
            case = Case(2, 16, size, kernel, stride, padding, dtype=torch.bfloat16)
            case = replace(case, temporal_padding=temporal_padding, layout=layout)
            results = _results(case, torch.bfloat16, "reference")
            exact = _results(case, torch.float64, "reference")
            for result, true, name in zip(results, exact, NAMES, strict=True):
                error = (result.double() - true).norm()
                assert error <= 0.01 * true.norm(), f"{case.label()}, {name}: {error:.3g}"
