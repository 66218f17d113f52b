"""pointwise_conv3d against float64, on any shape and layout: as accurate as PyTorch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from depthwise_cases import ACTIVATIONS, LAYOUTS, lay_out
from hypothesis import example, given
from pointwise_cases import Case, cases
from torch import Tensor

from evit_kernels import pointwise_conv3d

HALVES_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
# Whole panels of channels and whole blocks of tokens, and a remainder in every loop.
CASES = [
    Case(2, 64, 96, (2, 5, 9)),
    Case(1, 37, 70, (2, 11, 13), residual="channels_last"),
    Case(1, 129, 24, (4, 8, 8), bias=False),
    Case(3, 3, 33, (1, 9, 29), residual="contiguous"),
    Case(1, 16, 8, (3, 19, 25), layout="contiguous"),
    Case(2, 48, 1, (1, 1, 1)),
    Case(1, 1, 40, (5, 9, 11)),
    Case(2, 48, 96, (2, 7, 9), groups=3),
    Case(1, 30, 20, (3, 5, 7), groups=10, residual="channels_last"),
]


def _results(case: Case, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Output and gradients, computed in `dtype` from values that the case's dtype can hold."""
    tensors = case.tensors()
    # .to() keeps the views of the case's own dtype, so that the operator meets their strides.
    leaves = {name: x.to(dtype).detach().requires_grad_() for name, x in tensors.items()}
    output = case.call(leaves, backend)
    grads = torch.autograd.grad(output, list(leaves.values()), _gradient(case, output, dtype))
    results = {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}
    # A row is an output channel. Where input channels repeat each other a row holds one number, and
    # its error is a matter of luck: then the whole gradient is one row.
    rows = 1 if case.layout == "expanded" else case.out_channels
    results["weight"] = results["weight"].reshape(rows, -1)
    return results


def _gradient(case: Case, output: Tensor, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(output.shape, dtype=torch.float64).to(case.dtype).to(dtype)


@cache  # the same for every instruction set of ours
def _pytorch(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """PyTorch's results in the case's dtype, and exact ones."""
    theirs = _results(case, case.dtype, "reference")
    return theirs, _results(case, torch.float64, "reference")


def _assert_equals_pytorch(case: Case) -> None:
    ours = _results(case, case.dtype, "native")
    theirs, exact = _pytorch(case)
    for name, value in ours.items():
        if case.dtype == torch.float64:
            # No more digits to compare with here: see test_float64_against_more_digits.
            torch.testing.assert_close(value, exact[name], rtol=1e-11, atol=1e-12, msg=name)
        else:
            factor = FORWARD if name == "output" else BACKWARD
            assert_accurate(value, theirs[name], exact[name], factor, name)


@pytest.mark.parametrize("dtype", HALVES_AND_SINGLE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_error_is_that_of_pytorch(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    _assert_equals_pytorch(replace(case, dtype=dtype, activation="hardswish"))


@pytest.mark.parametrize("dtype", HALVES_AND_SINGLE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_of_every_activation(
    activation: str | None, dtype: torch.dtype, instruction_set: str
) -> None:
    case = Case(1, 24, 37, (2, 5, 7), activation=activation, dtype=dtype)
    _assert_equals_pytorch(case)
    _assert_equals_pytorch(replace(case, residual="channels_last"))


def test_many_tokens_and_deep_sums(instruction_set: str) -> None:
    # Several partial sums of the weight gradient, of several chunks each; then a long inner sum.
    for dtype in (torch.float32, torch.bfloat16):
        _assert_equals_pytorch(Case(1, 11, 21, (5, 31, 33), activation="silu", dtype=dtype))
        _assert_equals_pytorch(Case(1, 1536, 20, (1, 4, 5), activation="relu", dtype=dtype))


@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_float64_against_more_digits(case: Case, instruction_set: str) -> None:
    case = replace(case, dtype=torch.float64)
    ours = _results(case, torch.float64, "native")
    theirs, _ = _pytorch(case)
    exact = _definition(case)
    for name, value in ours.items():
        factor = FORWARD if name == "output" else BACKWARD
        assert_accurate(value, theirs[name], exact[name], factor, name)


def _definition(case: Case) -> dict[str, Tensor]:
    """Output and gradients of a call without activation, summed in numpy's longest float."""
    assert case.activation is None
    long = {name: x.numpy().astype(np.longdouble) for name, x in case.tensors().items()}
    groups, positions = case.groups, (case.batch, -1, *case.size)
    x = long["input"].reshape(case.batch, groups, -1, *case.size)
    weight = long["weight"].reshape(groups, case.out_channels // groups, -1)
    output = np.einsum("goc,bgcthw->bgothw", weight, x).reshape(positions)
    if "bias" in long:
        output = output + long["bias"][:, None, None, None]
    if "residual" in long:
        output = output + long["residual"]
    grad = _gradient(case, torch.from_numpy(output.astype(np.float64)), torch.float64).numpy()
    wide = grad.astype(np.longdouble)
    split = wide.reshape(case.batch, groups, -1, *case.size)
    exact = {
        "output": output,
        "input": np.einsum("goc,bgothw->bgcthw", weight, split).reshape(positions),
        "weight": np.einsum("bgothw,bgcthw->goc", split, x).reshape(case.out_channels, -1),
        "bias": wide.sum((0, 2, 3, 4)),
        "residual": wide,
    }
    return {name: torch.from_numpy(value.astype(np.float64)) for name, value in exact.items()}


@given(case=cases())
@example(case=Case(0, 8, 16, (3, 4, 5), activation="gelu", residual="channels_last"))
@example(case=Case(1, 1, 1, (1, 1, 1), layout="contiguous", residual="contiguous"))
@example(case=Case(2, 24, 24, (2, 6, 7), layout="expanded", residual="expanded"))
@example(case=Case(1, 31, 5, (1, 3, 1), layout="channels_last_slice", residual="slice"))
# One position of a slice: the strides of axes of size 1 say nothing.
@example(case=Case(1, 17, 9, (1, 1, 1), layout="slice", residual="permuted"))
@example(case=Case(2, 16, 16, (3, 5, 1), layout="channels_last_slice"))
def test_any_call_equals_pytorch(case: Case) -> None:
    _assert_equals_pytorch(case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_instruction_set_reads_every_layout(layout: str, instruction_set: str) -> None:
    for dtype in HALVES_AND_SINGLE:
        case = Case(2, 27, 45, (2, 5, 6), "gelu_tanh", True, layout, layout, dtype, "strided")
        _assert_equals_pytorch(case)


def test_slices_of_channels_are_read_in_place() -> None:
    # What a split of one channels-last tensor gives: evenly spaced positions, wider than they seem.
    wide = torch.randn(2, 40, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(12, 16, 1, 1, 1)
    for part in (wide[:, :16], wide[:, 16:32], wide[:, 24:]):
        expected = pointwise_conv3d(part.clone(), weight, backend="native")
        assert torch.equal(pointwise_conv3d(part, weight, backend="native"), expected)


@pytest.mark.parametrize("channels", [(1, 1), (1, 24), (24, 1), (8, 16)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_is_kept(layout: str, channels: tuple[int, int]) -> None:
    # PyTorch keeps it for small batches too, but not with a single thread.
    x = lay_out(torch.randn(16, channels[0], 3, 4, 5), layout).requires_grad_()
    weight = torch.randn(channels[1], channels[0], 1, 1, 1, requires_grad=True)
    output = pointwise_conv3d(x, weight)
    plain = torch.nn.functional.conv3d(x, weight)
    assert output.stride() == plain.stride()
    grad_input, grad_weight = torch.autograd.grad(output.sum(), [x, weight])
    assert grad_input.stride() == x.stride()
    assert grad_weight.stride() == weight.stride()


@pytest.mark.parametrize("size", [(4, 1, 1), (1, 5, 1), (1, 1, 6)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_where_sizes_are_one(layout: str, size: tuple[int, int, int]) -> None:
    memory_format = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
    x = lay_out(torch.randn(2, 8, *size), layout).requires_grad_()
    output = pointwise_conv3d(x, torch.randn(6, 8, 1, 1, 1))
    assert output.stride() == torch.empty(2, 6, *size, memory_format=memory_format).stride()
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.stride() == torch.empty(2, 8, *size, memory_format=memory_format).stride()


def test_gradient_of_a_sum_is_expanded() -> None:
    # .sum() hands backward a gradient whose strides are all zero; .mean() over three axes, some.
    case = Case(2, 16, 24, (3, 6, 6), residual="channels_last")
    for reduce in (lambda y: y.sum(), lambda y: y.mean(dim=(2, 3, 4)).square().sum()):
        results = []
        for backend in ("native", "reference"):
            leaves = case.leaves()
            output = case.call(leaves, backend)
            results.append(torch.autograd.grad(reduce(output), list(leaves.values())))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
