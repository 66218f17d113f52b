"""Where tensors that kernels write come to lie: gradients where activations have been."""

from __future__ import annotations

import io
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from evit_kernels import relu_linear_attention_qkv
from evit_kernels.dense_conv3d import dense_conv3d
from evit_kernels.nn import BatchNormAct3d, DepthwiseConv3d, PointwiseConv3d

GLIBC = 96  # bytes that it looks for beyond what it is asked for, aligned to 64 bytes

# Every other output goes, between small things that stay; a gradient comes.
HOLES = """
import ctypes
import sys
import torch
from evit_kernels import _memory

libc = ctypes.CDLL(None)
torch.empty(31 << 20, dtype=torch.uint8)  # what is smaller comes from the heap from here on
size = (1, 32, 8, 28, int(sys.argv[1]))
kept = [_memory.new(size, torch.float32, kept=True) for _ in range(8)]
outputs = []
for make in kept:
    outputs.append(make())
    for _ in range(9):
        for few in (24, 56, 72, 88):
            libc.malloc(few)
new_gradient = _memory.new(size, torch.float32)
gradients = []
for i in (2, 4, 6):
    hole, outputs[i] = outputs[i].data_ptr(), None
    gradients.append(new_gradient())
    assert 0 <= gradients[-1].data_ptr() - hole < 128, (i, gradients[-1].data_ptr() - hole)
"""


def _attend(x: Tensor) -> Tensor:
    return relu_linear_attention_qkv(x, 16)


OPERATORS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "depthwise": lambda: DepthwiseConv3d(48, 3, padding=1),
    "pointwise": lambda: PointwiseConv3d(48, 48),
    "norm": lambda: BatchNormAct3d(48, activation="hardswish"),
    "dense": lambda: (
        lambda x: dense_conv3d(x, torch.randn(8, 48, 3, 3, 3, requires_grad=True), padding=1)
    ),
    "attention": lambda: _attend,
}
LAYOUTS = [torch.channels_last_3d, torch.contiguous_format]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("width", [28, 29, 112])
def test_a_gradient_fits_where_an_output_was(width: int) -> None:
    subprocess.run([sys.executable, "-c", HOLES, str(width)], check=True, timeout=100)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["channels_last_3d", "contiguous"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_outputs_leave_room_and_gradients_need_none(
    operator: str, layout: torch.memory_format
) -> None:
    call = OPERATORS[operator]()
    if isinstance(call, nn.Module):
        call.train()
    x = torch.randn(1, 48, 4, 28, 28).contiguous(memory_format=layout).requires_grad_()
    plain = torch.randn_like(x)
    for repetition in range(3):  # through the dispatcher, then past it
        output = call(x)
        expected = torch.empty(output.shape).contiguous(memory_format=layout)
        assert output.untyped_storage().nbytes() >= output.nbytes + GLIBC, repetition
        assert output.stride() == expected.stride()
        assert not output._is_view()
        (gradient,) = torch.autograd.grad(output.square().sum(), x)
        assert gradient.untyped_storage().nbytes() == plain.untyped_storage().nbytes()


@pytest.mark.parametrize("operator", ["depthwise", "pointwise", "norm"])
def test_an_output_may_be_changed_in_place(operator: str) -> None:
    call = OPERATORS[operator]()
    x = torch.randn(1, 48, 4, 28, 28).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    for _ in range(2):
        (expected,) = torch.autograd.grad(call(x).clone().clamp(max=0.1).square().sum(), x)
        (got,) = torch.autograd.grad(call(x).clamp_(max=0.1).square().sum(), x)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_saved_output_is_the_same_file_each_time(dtype: torch.dtype) -> None:
    x, files = torch.randn(1, 64, 4, 28, 28, dtype=dtype), []
    layer = PointwiseConv3d(64, 64).to(dtype)
    for _ in range(3):
        with torch.no_grad():
            output = layer(x)
        assert not any(output.untyped_storage()[output.nbytes :])
        torch.save(output, file := io.BytesIO())
        files.append(file.getvalue())
    assert files[0] == files[1] == files[2]


def test_small_outputs_are_not_enlarged() -> None:
    output = PointwiseConv3d(8, 8)(torch.randn(1, 8, 2, 4, 4))
    assert output.untyped_storage().nbytes() == output.nbytes
