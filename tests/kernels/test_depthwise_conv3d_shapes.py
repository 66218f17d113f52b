"""depthwise_conv3d on every shape, window and memory layout that hypothesis thinks of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from depthwise_cases import LAYOUTS, Case, cases, lay_out
from hypothesis import example, given
from placement import randn
from torch import Tensor

from evit_kernels import depthwise_conv3d


def _run(case: Case, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    input, weight, bias = case.tensors()
    if dtype != case.dtype:
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    leaves = {"input": input, "weight": weight}
    if bias is not None:
        leaves["bias"] = bias
    # Leaves are the views themselves, so that the operator meets their strides.
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    output = case.call(leaves["input"], leaves["weight"], leaves.get("bias"), backend)
    grad = randn(*output.shape, seed=2).to(case.dtype).to(dtype)
    grads = torch.autograd.grad(output, list(leaves.values()), grad)
    return {"output": output, **dict(zip(leaves, grads, strict=True))}


def _assert_equals_pytorch(case: Case) -> None:
    ours = _run(case, case.dtype, "native")
    exact = _run(case, torch.float64, "reference")
    if case.dtype == torch.float64:
        # No more digits to compare with here: rounding of a few hundred terms, in another order.
        for name, value in ours.items():
            torch.testing.assert_close(value, exact[name], rtol=1e-11, atol=1e-12, msg=name)
        return
    theirs = _run(case, case.dtype, "reference")
    for name, value in ours.items():
        factor = FORWARD if name == "output" else BACKWARD
        assert_accurate(value, theirs[name], exact[name], factor, name)


@given(case=cases())
@example(case=Case(0, 8, (3, 4, 5), (3, 3, 3), padding=(1, 1, 1), activation="gelu"))
@example(case=Case(1, 1, (1, 1, 1), (1, 1, 1), layout="contiguous"))
@example(case=Case(2, 1, (1, 8, 8), (3, 3, 3), padding=(1, 1, 1), temporal_padding="causal"))
@example(case=Case(1, 8, (1, 1, 1), (7, 7, 7), padding=(6, 6, 6), stride=(3, 3, 3)))
# One frame that stands for every frame of the kernel, before and after.
@example(case=Case(1, 8, (1, 5, 5), (5, 5, 5), padding=(4, 2, 2), temporal_padding="replicate"))
# Padding beyond the kernel: outputs that see nothing but zeros.
@example(case=Case(1, 16, (2, 3, 3), (1, 3, 3), padding=(2, 5, 5), activation="hardswish"))
@example(case=Case(2, 24, (4, 6, 7), (3, 5, 5), padding=(1, 2, 2), layout="expanded"))
def test_any_call_equals_pytorch(case: Case) -> None:
    _assert_equals_pytorch(case)


@given(case=cases(dtypes=(torch.float32,), largest=24))
def test_longer_rows_equal_pytorch(case: Case) -> None:
    _assert_equals_pytorch(case)


# Clips and rows too long for a cache, which are cut along time, channels or both.
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 70, (21, 5, 57), (3, 3, 3), padding=(1, 1, 1), temporal_padding="causal"),
        Case(1, 40, (19, 6, 66), (5, 5, 5), (1, 2, 2), (2, 2, 2), temporal_padding="replicate"),
        Case(1, 40, (3, 5, 400), (3, 3, 3), (1, 2, 2), (1, 1, 1), dtype=torch.bfloat16),
        Case(2, 18, (4, 3, 1200), (5, 5, 5), padding=(2, 2, 2)),
        # The last tile of frames lies in the padding: it reads nothing.
        Case(1, 64, (20, 4, 100), (3, 3, 3), padding=(10, 1, 1)),
    ],
    ids=Case.label,
)
def test_long_clips_and_rows_equal_pytorch(case: Case, instruction_set: str) -> None:
    _assert_equals_pytorch(replace(case, activation="hardswish"))


@pytest.mark.parametrize("kernel", [3, 5])
def test_rows_of_every_width_equal_pytorch(kernel: int, instruction_set: str) -> None:
    for width in range(1, 30):
        for step in (1, 2):
            _assert_equals_pytorch(
                Case(
                    1,
                    17,
                    (3, 2, width),
                    (kernel,) * 3,
                    (1, 1, step),
                    # Sometimes as much as keeps the width, sometimes less.
                    (kernel // 2, kernel // 2, kernel // 2 - (width >= kernel and width % 3 == 0)),
                )
            )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_instruction_set_reads_every_layout(layout: str, instruction_set: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        _assert_equals_pytorch(
            Case(
                2,
                27,
                (4, 9, 10),
                (3, 3, 3),
                stride=(1, 2, 2),
                padding=(1, 1, 1),
                activation="silu",
                layout=layout,
                dtype=dtype,
                parameters="strided",
            )
        )


@pytest.mark.parametrize("channels", [1, 2, 24])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_is_kept(layout: str, channels: int) -> None:
    x = lay_out(torch.randn(2, channels, 4, 6, 8), layout).requires_grad_()
    weight = torch.randn(channels, 1, 3, 3, 3, requires_grad=True)
    output = depthwise_conv3d(x, weight, stride=(1, 2, 2), padding=1)
    plain = torch.nn.functional.conv3d(x, weight, None, (1, 2, 2), 1, 1, channels)
    assert output.stride() == plain.stride()
    grad_input, grad_weight = torch.autograd.grad(output.sum(), [x, weight])
    assert grad_input.stride() == x.stride()
    assert grad_weight.stride() == weight.stride()


def test_memory_format_of_one_pixel_and_one_frame() -> None:
    # Sizes of 1 have strides that mean nothing: they must still be those of a fresh tensor.
    for layout in ("contiguous", "channels_last"):
        x = lay_out(torch.randn(2, 8, 1, 5, 5), layout)
        output = depthwise_conv3d(x, torch.randn(8, 1, 1, 5, 5))
        assert output.shape == (2, 8, 1, 1, 1)
        memory_format = (
            torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
        )
        assert output.stride() == torch.empty(2, 8, 1, 1, 1, memory_format=memory_format).stride()


def test_gradient_of_a_sum_is_expanded() -> None:
    # .sum() hands backward a gradient whose strides are all zero; .mean() over one axis, some.
    case = Case(2, 16, (3, 6, 6), (3, 3, 3), padding=(1, 1, 1))
    for reduce in (lambda y: y.sum(), lambda y: y.mean(dim=(2, 3, 4)).square().sum()):
        results = []
        for backend in ("native", "reference"):
            leaves = [x.requires_grad_() for x in case.tensors() if x is not None]
            output = case.call(leaves[0], leaves[1], leaves[2], backend)
            results.append(torch.autograd.grad(reduce(output), leaves))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
